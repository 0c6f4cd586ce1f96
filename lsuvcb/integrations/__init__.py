"""The LSUVCallback of other trainers, one module each, to be imported by name: `fastai`, `lightning`, `transformers`."""
