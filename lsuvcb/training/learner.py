"""The Learner: the loop, and what a user asks of it: a learning rate, a survey, files, pictures."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..callback.past import note_trained
from ..engine.passes.counted import Mask
from ..engine.select import Selector
from ..engine.telling.survey import Survey
from . import loop
from .events import Callback, as_callbacks
from .loop import Loop
from .lr_find import LRFinderCB, lr_find
from .saving.model import load_weights, save_model
from .saving.resume import ResumeCB, to_resume
from .survey import survey_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__doc__ += f"\n\n{loop.__doc__}"


class Learner(Loop):
    """A model, its data and its loss function, trained by `fit`; what happens on the way is up to the callbacks.

    See `lsuvcb.training.loop.Loop` for the arguments and attributes. One attribute more:

    Attributes:
        lr_finder: the LRFinderCB of the last `lr_find`, with its `lrs` and `losses`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lsuvcb.training.callbacks import TrainCB
        >>> from types import SimpleNamespace
        >>> _ = torch.manual_seed(0)
        >>> data = [(torch.ones(4, 1), torch.ones(4, 1))] * 10
        >>> learn = Learner(nn.Linear(1, 1), SimpleNamespace(train=data, valid=data), lr=0.1, cbs=TrainCB())
        >>> learn.fit(3)
        >>> round(learn.loss.item(), 4)
        0.0
    """

    lr_finder: LRFinderCB

    def fit(
        self,
        n_epochs: int = 1,
        train: bool = True,
        valid: bool = True,
        cbs: Callback | Iterable[Callback] | None = None,
        lr: float | None = None,
        resume: str | Path | None = None,
    ) -> None:
        """Train for `n_epochs`, each followed by a pass over the validation loader.

        Args:
            n_epochs, train, valid, cbs, lr: see `lsuvcb.training.loop.Loop.fit`.
            resume: a checkpoint of CheckpointCB, or its folder, of which the newest that is whole is taken: go on behind
                its epoch as if the fit had never stopped. A folder to which this fit's own CheckpointCB writes may be
                empty: then the fit begins at the beginning. `n_epochs` counts from the beginning, too.

        Raises:
            ValueError: a loader gave no batch, a step that nothing teaches, a step taught twice.
            FileNotFoundError, CheckpointError: `resume` names nothing that can be read, or a checkpoint of another model.

        Side effects: the model is trained in place and left in the mode of its last pass; a new optimizer is made. Once it
        has taken a step, the model carries a note that it is trained: no LSUVCallback initialises it, but by `force=True`.
        """
        cbs = as_callbacks(cbs)
        saved = None if resume is None else to_resume(resume, [*self.cbs, *cbs])
        try:
            super().fit(n_epochs, train, valid, [*cbs, *([ResumeCB(saved)] if saved is not None else [])], lr)
        finally:
            if self.stepped and not self.rehearsing:
                note_trained(self.model, "by a Learner")
        if saved is not None:
            note_trained(self.model, "by a fit that was resumed")

    def lr_find(
        self, gamma: float = 1.3, max_mult: float = 3, start_lr: float = 1e-5, max_epochs: int = 10, plot: bool | None = None
    ) -> float | None:  # fmt: skip
        """Try learning rates from `start_lr` upwards and suggest one; see `lsuvcb.training.lr_find.lr_find`."""
        return lr_find(self, gamma, max_mult, start_lr, max_epochs, plot)

    def survey(self, layers: Selector | None = None, mask: Mask | None = None) -> Survey:
        """`lsuvcb.survey` of the model on the batch that LSUVCallback would take, with the learner's loss; see there."""
        return survey_of(self, layers, mask)

    def save(self, path: str | Path) -> None:
        """Write the model's weights to a file, all or nothing; `load` and `torch.load` read it."""
        save_model(self.model, path)

    def load(self, path: str | Path) -> None:
        """Read weights, and nothing else, that `save`, CheckpointCB or torch.save(model.state_dict()) wrote.

        An LSUVCallback leaves them alone from then on, unless it is told `force=True`.

        Raises:
            FileNotFoundError, CheckpointError: no such file, a damaged one, or weights of another model. None is changed.
        """
        load_weights(self.model, path)
        note_trained(self.model, "read from a file by `learn.load`")

    def plot_history(self) -> Axes:
        """Draw the loss and each metric of `history` by epoch, training and validation."""
        from ..plot import plot_history

        return plot_history(self.history)
