"""LSUVCallback: LSUV at the start of a fit, and no other difference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..engine.drawn import drawn_here
from ..engine.errors import LSUVError
from ..engine.generators import rewound
from ..engine.initialiser import Initialiser
from ..engine.lsuv import survey
from ..engine.report import Survey
from ..engine.run import fresh
from ..engine.select import Selector
from ..engine.undisturbed import devices_of
from .batches import empty_loader
from .callbacks import DeviceCB
from .events import Callback, CancelBatchException, CancelEpochException, CancelFitException
from .rehearsal import rehearsal

if TYPE_CHECKING:
    from .learner import Learner


class LSUVCallback(Initialiser, Callback):
    """Initialises the model with LSUV on one training batch, once per model, and prints one line. Runs at before_fit.

    See `lsuv_` for the arguments, all by keyword. Two more:

    Args:
        batch: use this batch, as the training loader would give it (or a tensor of inputs), instead of drawing one.
        force: initialise again even if the model has been through an LSUVCallback before; not in a fit that resumes.

    Attributes:
        report: the LSUVReport of the last run; None before.

    Raises:
        TypeError, ValueError: where the callback is made, for an argument that `lsuv_` would refuse.

    The batch is the first that the fit will train on (that no callback cancels): taken in this process, with every
    callback's before_batch, the model in train mode and `learn.predict()` as its forward (`forward=` replaces it, and
    is given the whole batch). A fit that does not train, one that resumes from a checkpoint, and a model that is done
    already (a second fit, another Learner, weights read by `learn.load`) are left alone.

    Side effects: the weights, see `lsuv_`. All else is as before: torch's generators (on the devices too), numpy's,
    Python's, and those held by the loader, its samplers and its data set; so the fit sees the batches, augmentations
    and dropout masks that it would have seen without the callback. A loader's workers are neither started nor asked.

    Caveats: what cannot be rewound loses the batch to LSUV: a one-shot iterator, an IterableDataset that keeps its
    place; so does state of your own that a data set changes on reading. A data set that only works inside a worker
    (worker_init_fn) cannot be read here. Name a `batch=` in these cases.

    Example:
        >>> LSUVCallback(tol=0.01, orthonormal=False)
        LSUVCallback(tol=0.01, orthonormal=False)
        >>> LSUVCallback(tolerance=0.01)
        Traceback (most recent call last):
        TypeError: LSUVCallback has no argument 'tolerance'; did you mean 'tol'?
    """

    order = DeviceCB.order + 30
    in_rehearsal = "itself"

    def before_fit(self, learn: Learner) -> None:
        if not learn.do_train or learn.resumed or not self.is_due(learn.model):
            return
        with training_batch(learn, self.batch) as batch:
            self.initialise(learn.model, batch, quiet=not learn.is_main, forward=_predict(learn))


def _predict(learn: Learner) -> Any:
    def forward(model: nn.Module, batch: Any) -> Any:
        learn.batch = batch
        learn.predict()
        return learn.preds

    return forward


@contextmanager
def training_batch(learn: Learner, batch: Any = None) -> Iterator[Any]:
    """The batch that training would have at its first `predict`, in a fit; afterwards nothing tells that it was drawn.

    Args:
        batch: one to prepare instead of drawing it.
    """
    with rewound(learn.dls.train, devices_of(learn.model)), _borrowed(learn):
        _prepare(learn, batch)
        yield learn.batch


def _prepare(learn: Learner, named: Any) -> None:
    learn.dl, learn.epoch, learn.iter, learn.training = learn.dls.train, 0, -1, True
    with drawn_here(learn.dl if named is None else [named]) as batches:
        for i, batch in enumerate(batches):
            learn.iter, learn.batch = i, fresh((batch,) if isinstance(batch, torch.Tensor) else batch)
            try:
                learn.callback("before_batch")
                return
            except CancelBatchException:
                continue
            except CancelEpochException:
                break
    if learn.iter < 0:
        raise ValueError(empty_loader(learn.dls, "train"))
    raise LSUVError(
        "LSUV needs one training batch, and a callback cancelled each one in before_batch. No weight was changed. "
        "Name another: LSUVCallback(batch=...)."
    )


class SurveyCB(Callback):
    """Surveys the model on one training batch where LSUVCallback would run, and ends the fit. Runs at before_fit.

    Args:
        layers: see `survey`.

    Attributes:
        survey: what it found.
    """

    order = LSUVCallback.order - 1

    def __init__(self, layers: Selector | None = None) -> None:
        self.layers = layers
        self.survey: Survey | None = None

    def before_fit(self, learn: Learner) -> None:
        with training_batch(learn) as batch:
            self.survey = survey(learn.model, batch, layers=self.layers, forward=_predict(learn))
        raise CancelFitException


def survey_of(learn: Learner, layers: Selector | None = None) -> Survey:
    """The survey of a learner's model on its first training batch: nothing is changed but the model's device (DeviceCB)."""
    cb = SurveyCB(layers)
    with rehearsal(learn):
        learn.fit(1, valid=False, cbs=cb)
    assert cb.survey is not None
    return cb.survey


@contextmanager
def _borrowed(learn: Learner) -> Iterator[None]:
    """Whatever of the learner a prediction touches is afterwards as it was."""
    names = ("batch", "preds", "loss", "dl", "epoch", "iter")
    held = {name: vars(learn)[name] for name in names if name in vars(learn)}
    modes = [(module, module.training) for module in learn.model.modules()]
    try:
        yield
    finally:
        for name in names:
            vars(learn).pop(name, None)
        vars(learn).update(held)
        for module, mode in modes:
            module.training = mode
