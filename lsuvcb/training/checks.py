"""What a fit needs before it begins: arguments of the right kind, every step taught once, loaders that can give a batch."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from .batches import empty_loader, length
from .events import STEPS, owner_name
from .hearing import Hearing


def check_arguments(learn: Any) -> None:
    """TypeError where the model, the loaders, the loss function or the optimizer's maker of a learner is of a wrong kind."""
    if isinstance(learn.model, type):
        name = learn.model.__name__
        raise TypeError(f"`model` must be a module, got the class {name}; make one first: `{name}(...)`.")
    dls = learn.dls
    if dls is not None and not (hasattr(dls, "train") or hasattr(dls, "valid")):
        advice = "DataLoaders.from_dd(dls, batch_size)" if isinstance(dls, Mapping) else "DataLoaders(train, valid)"
        raise TypeError(f"`dls` must have a `.train` and a `.valid` loader, got {_shown(dls)}; write `{advice}`.")
    loss_func, opt_func = learn.loss_func, learn.opt_func
    if isinstance(loss_func, type) or not (callable(loss_func) or loss_func is None):
        advice = f"; write `{loss_func.__name__}()`" if isinstance(loss_func, type) else ""
        raise TypeError(f"`loss_func` must be a function of predictions and targets, got {_shown(loss_func)}{advice}.")
    if not (callable(opt_func) or opt_func is None):
        kind = type(opt_func).__name__
        advice = (
            f"; write `opt_func={kind}`, of which each fit makes its own" if isinstance(opt_func, Optimizer) else ""
        )
        raise TypeError(f"`opt_func` must be a function of parameters and `lr`, got {_shown(opt_func)}{advice}.")
    check_rate(learn.lr)


def check_rate(lr: Any) -> None:
    """TypeError where a learning rate is no number."""
    if isinstance(lr, bool) or not (isinstance(lr, (Real, Tensor)) or lr is None):
        raise TypeError(f"`lr` must be a number > 0, got {lr!r} ({type(lr).__name__}).")


def _shown(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return repr(value) if value is None or isinstance(value, str) else f"a {type(value).__name__}"


def check_steps(learn: Any) -> None:
    """ValueError where nothing teaches a step that this fit takes, or two callbacks teach the same."""
    for step in STEPS if learn.do_train else STEPS[:2] if learn.do_valid else ():
        teachers = [owner_name(handler) for handler in learn.heard(step)]
        if getattr(type(learn), step) is not getattr(Hearing, step):
            teachers.insert(0, type(learn).__name__)
        if not teachers and step not in vars(learn):
            raise ValueError(
                f"Nothing teaches this {type(learn).__name__} to `{step}`: add TrainCB() to its callbacks, or use "
                f"TrainLearner. Its callbacks: {', '.join(type(cb).__name__ for cb in learn.cbs) or 'none'}."
            )
        if len(teachers) > 1:
            raise ValueError(f"`{step}` must be taught by one, got {' and '.join(teachers)}; keep one of them.")


def check_loaders(learn: Any) -> None:
    """ValueError where a loader that this fit goes over is missing or empty."""
    for name in [name for name, used in (("train", learn.do_train), ("valid", learn.do_valid)) if used]:
        loader = getattr(learn.dls, name, None)
        if loader is None:
            got = "None" if hasattr(learn.dls, name) else f"{_shown(learn.dls)} without one"
            advice = (
                f"pass {name}=False to leave it out" if learn.dls is not None else "write `DataLoaders(train, valid)`"
            )
            raise ValueError(f"fit({name}=True) needs `dls.{name}`, got {got}; {advice}.")
        if length(loader) == 0:
            raise ValueError(empty_loader(learn.dls, name))
