"""`learn.survey()`: the model's survey on the batch that training would have first, with the learner's loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..engine.lsuv import survey
from ..engine.passes.counted import Mask
from ..engine.select import Selector
from ..engine.telling.survey import Survey
from .events import Callback, CancelFitException
from .loop import Loop
from .lsuv_callback import LSUVCallback
from .rehearsal import rehearsal
from .training_batch import predict_with, training_batch


class SurveyCB(Callback):
    """Surveys the model on one training batch where LSUVCallback would run, and ends the fit. Runs at before_fit.

    Args:
        layers, mask: see `survey`.

    Attributes:
        survey: what it found.
    """

    order = LSUVCallback.order - 1

    def __init__(self, layers: Selector | None = None, mask: Mask | None = None) -> None:
        self.layers, self.mask = layers, mask
        self.survey: Survey | None = None

    def before_fit(self, learn: Loop) -> None:
        with training_batch(learn) as batch:
            self.survey = survey(
                learn.model,
                batch,
                layers=self.layers,
                forward=predict_with(learn),
                mask=self.mask,
                loss=_loss_of(learn),
            )
        raise CancelFitException


def _loss_of(learn: Loop) -> Callable[[Any], Tensor]:
    """The learner's loss of what it has just predicted."""

    def loss(preds: Any) -> Tensor:
        learn.get_loss()
        return learn.loss

    return loss


def survey_of(learn: Loop, layers: Selector | None = None, mask: Mask | None = None) -> Survey:
    """The survey of a learner's model on its first training batch: nothing is changed but the model's device (DeviceCB)."""
    cb = SurveyCB(layers, mask)
    with rehearsal(learn):
        learn.fit(1, valid=False, cbs=cb)
    assert cb.survey is not None
    return cb.survey
