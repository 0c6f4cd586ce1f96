"""Pass after pass over one model and one batch, each from the same state: the one that looks, the one that solves."""
