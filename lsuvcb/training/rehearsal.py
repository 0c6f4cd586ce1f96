"""A fit, or a batch of one, that leaves no trace on the learner and its callbacks: copies of these take part."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from ..engine.keeping.attributes import attributes_kept
from ..engine.select import all_modules
from .events import Callback
from .loop import Loop


@contextmanager
def rehearsal(learn: Loop) -> Iterator[None]:
    """Inside, `learn` has copies of its callbacks (see `Callback.in_rehearsal`); afterwards, whatever happens, its own.

    All attributes of the learner are put back as well. The model's weights and the random generators are not looked at.
    A callback that cannot be copied (it holds an open file, say) takes part itself.
    """
    with attributes_kept(learn):
        learn.cbs, learn.rehearsing = stand_ins(learn, learn.cbs), True
        yield


def stand_ins(learn: Loop, cbs: Iterable[Callback]) -> list[Callback]:
    """What takes the place of each callback in a rehearsal; those that take no part in one are left out.

    The copies share with the originals the learner, the model, its parameters and buffers, the loaders, the data sets and
    the loss function.
    """
    loaders = [getattr(learn.dls, "train", None), getattr(learn.dls, "valid", None)]
    shared = [learn, learn.dls, learn.loss_func, *loaders, *(getattr(dl, "dataset", None) for dl in loaders)]
    for module in all_modules(learn.model):
        shared += [module, *module._parameters.values(), *module._buffers.values()]
    memo = {id(thing): thing for thing in shared}
    return [_stand_in(cb, memo) for cb in cbs if cb.in_rehearsal != "nothing"]


def _stand_in(cb: Callback, memo: dict[int, object]) -> Callback:
    if cb.in_rehearsal == "itself":
        return cb
    try:
        return copy.deepcopy(cb, memo)
    except (TypeError, RuntimeError, NotImplementedError, copy.Error):
        return cb
