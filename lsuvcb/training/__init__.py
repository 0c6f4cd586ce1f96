"""The training loop: a Learner, its callbacks, and LSUV as one of them."""
