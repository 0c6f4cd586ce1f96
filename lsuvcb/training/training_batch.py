"""The batch that training would have first, prepared as a fit prepares it; afterwards nothing tells that it was drawn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from ..callback.loader_batch import drawn_here
from ..engine.errors import LSUVError
from ..engine.keeping.attributes import attributes_kept, modes_kept
from ..engine.keeping.autocast import autocast_kept
from ..engine.keeping.generators import rewound
from ..engine.keeping.undisturbed import devices_of, undisturbed
from ..engine.passes.forward import fresh
from .batches import empty_loader
from .events import BATCH_EVENTS, CANCEL, Callback, CancelBatchException, CancelEpochException
from .loop import Loop
from .rehearsal import stand_ins


@contextmanager
def training_batch(learn: Loop, batch: Any = None) -> Iterator[Any]:
    """Inside, in a fit, the learner is where training is at its first `predict`; afterwards it is where it was.

    Args:
        batch: one to prepare instead of drawing it: as the loader would give it, or a tensor of inputs.

    `before_batch` is fired, and behind the block, for the callbacks that heard it, the other events of a batch: what was
    opened for the batch (a context, a file, a timer) is closed. These callbacks take part as copies, which see a loss of
    that batch and gradients of zero; nothing is trained. After an exception in the block they are closed as well.
    """
    with ExitStack() as stack:
        stack.enter_context(rewound(learn.dls.train, devices_of(learn.model)))
        stack.enter_context(attributes_kept(learn))
        stack.enter_context(modes_kept(learn.model))
        stack.enter_context(autocast_kept())
        openers = _listen(learn, stack)
        _prepare(learn, batch, openers)
        try:
            yield learn.batch
        except BaseException as failure:
            try:
                _close(learn, openers, loss=False)
            except Exception as error:
                failure.add_note(f"Then, while the batch was closed: {error!r}")
            raise
        _close(learn, openers, loss=not isinstance(batch, torch.Tensor))


def predict_with(learn: Loop) -> Any:
    """`learn.predict()` as a function of model and batch, inside `training_batch`."""

    def forward(model: nn.Module, batch: Any) -> Any:
        learn.batch = batch
        learn.predict()
        return learn.preds

    return forward


def _listen(learn: Loop, stack: ExitStack) -> list[Callback]:
    """Copies in the place of the callbacks that hear `before_batch`; returns them."""
    opening = {id(cb) for cb in learn.cbs if hasattr(cb, "before_batch")}
    cbs = [one for cb in learn.cbs for one in (stand_ins(learn, [cb]) if id(cb) in opening else [cb])]
    openers = [cb for cb in cbs if hasattr(cb, "before_batch")]
    stack.enter_context(attributes_kept(*(cb for cb in openers if id(cb) in opening)))  # those that cannot be copied
    stack.enter_context(learn.hearing(cbs))
    for name in ("preds", "loss"):  # of a fit before
        vars(learn).pop(name, None)
    return openers


def _prepare(learn: Loop, named: Any, openers: list[Callback]) -> None:
    learn.dl, learn.epoch, learn.iter, learn.training = learn.dls.train, 0, -1, True
    with drawn_here(learn.dl if named is None else [named]) as batches:
        for i, batch in enumerate(batches):
            learn.iter, learn.batch = i, fresh((batch,) if isinstance(batch, torch.Tensor) else batch)
            try:
                learn.callback("before_batch")
                return
            except CancelBatchException:
                _fire(learn, openers, "cleanup_batch")
            except CancelEpochException:
                _fire(learn, openers, "cleanup_batch")
                break
            except BaseException:
                _fire(learn, openers, "cleanup_batch")
                raise
    if learn.iter < 0:
        raise ValueError(empty_loader(learn.dls, "train"))
    raise LSUVError(
        "LSUV needs one training batch, and a callback cancelled each one in before_batch. No weight was changed. "
        "Name another: LSUVCallback(batch=...)."
    )


def _close(learn: Loop, openers: list[Callback], loss: bool) -> None:
    """Fire what a batch fires behind its prediction, for `openers`.

    Args:
        loss: compute the loss; else it is 0.
    """
    heard = {event for event in BATCH_EVENTS for cb in openers if event != "before_batch" and hasattr(cb, event)}
    if not heard:
        return
    with undisturbed(learn.model, learn.batch) as snapshot, torch.no_grad():
        snapshot.hide_gradients()
        try:
            if "preds" not in vars(learn):
                learn.predict()
            _fire(learn, openers, "after_predict")
            learn.loss = torch.zeros((), device=next(iter(devices_of(learn.model)), None))
            if loss:
                learn.get_loss()
            _fire(learn, openers, "after_loss")
            if heard.intersection(("after_backward", "after_step")):
                for parameter in learn.model.parameters():
                    parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
            for event in ("after_backward", "after_step", "after_batch"):
                _fire(learn, openers, event)
        except tuple(CANCEL.values()):
            pass
        finally:
            _fire(learn, openers, "cleanup_batch")


def _fire(learn: Loop, cbs: list[Callback], event: str) -> None:
    with learn.hearing(cbs):
        learn.callback(event)
