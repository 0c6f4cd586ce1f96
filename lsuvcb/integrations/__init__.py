"""The LSUVCallback of other trainers, one module each, imported where it is used: `lightning`."""
