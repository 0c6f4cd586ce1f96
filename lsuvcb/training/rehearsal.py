"""A fit that leaves no trace on the learner and its callbacks: for `lr_find` and `learn.survey`."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..engine.select import all_modules
from .events import Callback

if TYPE_CHECKING:
    from .learner import Learner


@contextmanager
def rehearsal(learn: Learner) -> Iterator[None]:
    """Inside, `learn` has copies of its callbacks (see `Callback.in_rehearsal`); afterwards, whatever happens, its own.

    All attributes of the learner are put back as well. The model's weights and the random generators are not looked at.
    A callback that cannot be copied (it holds an open file, say) takes part itself.
    """
    held = dict(vars(learn))
    learn.cbs, learn.rehearsing = _stand_ins(learn), True
    try:
        yield
    finally:
        vars(learn).clear()
        vars(learn).update(held)


def _stand_ins(learn: Learner) -> list[Callback]:
    loaders = [getattr(learn.dls, "train", None), getattr(learn.dls, "valid", None)]
    shared = [learn, learn.dls, learn.loss_func, *loaders, *(getattr(dl, "dataset", None) for dl in loaders)]
    for module in all_modules(learn.model):
        shared += [module, *module._parameters.values(), *module._buffers.values()]
    memo = {id(thing): thing for thing in shared}
    return [_stand_in(cb, memo) for cb in learn.cbs if cb.in_rehearsal != "nothing"]


def _stand_in(cb: Callback, memo: dict[int, object]) -> Callback:
    if cb.in_rehearsal == "itself":
        return cb
    try:
        return copy.deepcopy(cb, memo)
    except (TypeError, RuntimeError, NotImplementedError, copy.Error):
        return cb
