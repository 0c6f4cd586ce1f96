"""`learn.survey()`: the model's survey on the batch that training would have first."""

from __future__ import annotations

from ..engine.lsuv import survey
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
        layers: see `survey`.

    Attributes:
        survey: what it found.
    """

    order = LSUVCallback.order - 1

    def __init__(self, layers: Selector | None = None) -> None:
        self.layers = layers
        self.survey: Survey | None = None

    def before_fit(self, learn: Loop) -> None:
        with training_batch(learn) as batch:
            self.survey = survey(learn.model, batch, layers=self.layers, forward=predict_with(learn))
        raise CancelFitException


def survey_of(learn: Loop, layers: Selector | None = None) -> Survey:
    """The survey of a learner's model on its first training batch: nothing is changed but the model's device (DeviceCB)."""
    cb = SurveyCB(layers)
    with rehearsal(learn):
        learn.fit(1, valid=False, cbs=cb)
    assert cb.survey is not None
    return cb.survey
