"""LSUVCallback for fastai: LSUV at the start of a fit, and no other difference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.distributed import DistributedTrainer, rank_distrib
from fastai.learner import CastToTensor, SkipToEpoch

from ..engine.generators import rewound
from ..engine.initialiser import Initialiser
from ..engine.once import mark_done
from ..engine.undisturbed import devices_of
from .borrowed import as_before, in_train_mode


class LSUVCallback(Initialiser, Callback):
    """Initialises the model with LSUV on one training batch, once per model, and prints one line. Runs at before_fit.

    See `lsuv_` for the arguments, all by keyword. Two more:

    Args:
        batch: use this batch, as `dls.train` would give it, instead of drawing one.
        force: initialise again even if the model has been through an LSUVCallback before; not where `start_epoch` skips.

    Attributes:
        report: the LSUVReport of the last run; None before.

    Raises:
        TypeError, ValueError: where the callback is made, for an argument that `lsuv_` would refuse.

    The batch is the first that the fit will train on, drawn in this process and with the loader's batch transforms. The
    forward is `model(*xb)` in train mode, without gradients, under MixedPrecision's autocast if the Learner has it;
    `forward=` replaces it and is called as forward(model, batch) with the tuple `xb`. With DistributedTrainer, moments are
    summed over all ranks. `lr_find` counts as a fit: it starts from the initialised model and gives it back.

    Side effects: the weights, see `lsuv_`. All else is as before: random generators, also those that the loader and its
    data set hold; the loader; the attributes of the model, with what lists, dicts, sets and tensors among them hold (the
    hidden state of a language model). A second fit and another Learner around the same model are left alone.

    Caveats: before_batch of other callbacks (MixUp) is not called for this batch. Weights read by `learn.load` are trained, and
    nothing tells: leave the callback out. What cannot be rewound loses the batch to LSUV; name a `batch=`.

    Example:
        Learner(dls, model, cbs=[LSUVCallback()]).fit_one_cycle(3)
    """

    order = max(MixedPrecision.order, DistributedTrainer.order) + 1
    run_valid = False

    def __init__(self, *, batch: Any = None, force: bool = False, **lsuv_args: Any) -> None:
        Initialiser.__init__(self, batch=batch, force=force, **lsuv_args)

    def before_fit(self) -> None:
        learn, model = self.learn, self.learn.model
        if any(isinstance(cb, SkipToEpoch) and cb._skip_to > 0 for cb in learn.cbs):
            mark_done(model)
            return
        if not self.is_due(model):
            return
        loader = learn.dls.train
        with (
            rewound(loader, devices_of(model)),
            _as_it_was(learn),
            _as_it_was(loader),
            as_before(model),
            in_train_mode(model),
        ):
            learn._split(learn._set_device(loader.one_batch() if self.batch is None else self.batch))
            for cast in [cb for cb in learn.cbs if isinstance(cb, CastToTensor)]:
                cast.before_batch()
            with _autocast(learn):
                self.initialise(model, learn.xb, quiet=rank_distrib() > 0)
        mark_done(model)  # an attribute, which `as_before` took off


@contextmanager
def _as_it_was(thing: Any) -> Iterator[None]:
    """The attributes of a Learner or a loader are afterwards the objects from before."""
    held = vars(thing).copy()
    try:
        yield
    finally:
        vars(thing).clear()
        vars(thing).update(held)


def _autocast(learn: Any) -> Any:
    return next((cb.autocast for cb in learn.cbs if isinstance(cb, MixedPrecision)), nullcontext())
