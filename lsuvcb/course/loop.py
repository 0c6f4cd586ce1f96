"""The lessons' building blocks of a loop: events fired by hand, by a decorator, and one batch taken as a fit would."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from operator import attrgetter
from typing import Any

from ..loaders import DataLoaders
from ..training.events import CANCEL, Callback, CancelFitException
from ..training.learner import Learner
from ..training.lsuv_callback import LSUVCallback
from ..training.rehearsal import rehearsal
from ..training.training_batch import training_batch


def run_cbs(cbs: Iterable[Callback], method_nm: str, learn: Any = None) -> None:
    """Call the method `method_nm`, with the learner, of every callback that has it, in their order."""
    for cb in sorted(cbs, key=attrgetter("order")):
        method = getattr(cb, method_nm, None)
        if method is not None:
            method(learn)


class with_cbs:
    """Decorates a method with the events of a stage: `before_nm`, then the method, `after_nm`, and always `cleanup_nm`.

    Args:
        nm: "fit", "epoch" or "batch"; its Cancel exception ends the method, and goes no further.

    The object that has the method fires events with `self.callback(name)`.
    """

    def __init__(self, nm: str) -> None:
        if nm not in CANCEL:
            raise ValueError(f"`nm` must be one of {', '.join(CANCEL)}, got {nm!r}.")
        self.nm = nm

    def __call__(self, f: Callable[..., Any]) -> Callable[..., None]:
        @wraps(f)
        def staged(o: Any, *args: Any, **kwargs: Any) -> None:
            try:
                o.callback(f"before_{self.nm}")
                f(o, *args, **kwargs)
                o.callback(f"after_{self.nm}")
            except CANCEL[self.nm]:
                pass
            finally:
                o.callback(f"cleanup_{self.nm}")

        return staged


class _Take(Callback):
    """Takes a batch from `dl` and ends the fit, where LSUVCallback would run. Runs at before_fit."""

    order = LSUVCallback.order - 1

    def __init__(self, dl: Any) -> None:
        self.dl, self.batch = dl, None

    def before_fit(self, learn: Learner) -> None:
        learn.for_this_fit(dls=DataLoaders(self.dl, None))
        with training_batch(learn) as batch:
            self.batch = batch
        raise CancelFitException


def get_batch(dl: Any, learn: Learner) -> Any:
    """The first batch of `dl` as `learn` would train on it: on its device, after every callback's `before_batch`.

    Returns:
        The batch, `xb, yb` in most cases. Random generators, the loader's too, and the learner are as before.
    """
    taker = _Take(dl)
    with rehearsal(learn):
        learn.fit(1, valid=False, cbs=taker)
    return taker.batch
