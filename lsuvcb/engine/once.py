"""Once per model: the mark that keeps a callback from initialising weights that were trained since."""

from torch import nn

from .select import unwrap

# In the module's __dict__, not in its state: a deep copy or a pickle of a trained model carries it on, a state_dict does not.
_MARK = "_lsuvcb_done"


def mark_done(model: nn.Module, done: bool = True) -> None:
    """Note on `model` that LSUV has run; every later LSUVCallback leaves it alone, unless told `force=True`."""
    unwrap(model).__dict__[_MARK] = done


def is_done(model: nn.Module) -> bool:
    """Has an LSUVCallback, or a checkpoint written after one, initialised this model?"""
    return bool(unwrap(model).__dict__.get(_MARK, False))
