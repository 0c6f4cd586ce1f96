"""lr_find: a short fit with a learning rate that grows, of which nothing is left but its curve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch

from ..engine.keeping.generators import rewound
from ..engine.keeping.undisturbed import Snapshot, devices_of
from .checks import check_rate
from .events import Callback, CancelEpochException, CancelFitException
from .loop import Loop
from .progress import in_notebook
from .rehearsal import rehearsal

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class LRFinderCB(Callback):
    """Multiplies the learning rate by `gamma` after each batch until the loss blows up, then ends the fit.

    Runs at before_fit, after_batch and cleanup_fit. In `cleanup_fit` weights, buffers, gradients, modes and random
    generators are put back to what they were in `before_fit`, after LSUV.

    Args:
        gamma: factor of the learning rate from one batch to the next, > 1.
        max_mult: the loss has blown up where it exceeds `max_mult` times its smallest value, > 1, or is no number.

    Attributes:
        lrs, losses: of each batch.
        suggestion: see `suggest`.
    """

    order = 40

    def __init__(self, gamma: float = 1.3, max_mult: float = 3) -> None:
        if not gamma > 1 or not max_mult > 1:
            raise ValueError(f"`gamma` and `max_mult` must be > 1, got {gamma} and {max_mult}.")
        self.gamma, self.max_mult = gamma, max_mult
        self.lrs: list[float] = []
        self.losses: list[float] = []
        self._restore: ExitStack | None = None

    def before_fit(self, learn: Loop) -> None:
        self.lrs, self.losses = [], []
        self._restore = ExitStack()
        self._restore.enter_context(rewound(learn.dls.train, devices_of(learn.model)))
        snapshot = Snapshot(learn.model)
        snapshot.hide_gradients()
        weights = [(p, p.detach().clone()) for p in learn.model.parameters()]
        self._restore.callback(snapshot.restore)
        self._restore.callback(_put_back, weights)

    def after_batch(self, learn: Loop) -> None:
        if not learn.training:
            raise CancelEpochException
        loss = learn.gather(learn.loss.detach().mean().view(1)).mean().item()  # the same on all processes
        self.lrs.append(learn.opt.param_groups[0]["lr"])
        self.losses.append(loss)
        if not math.isfinite(loss) or loss > self.max_mult * min(self.losses):
            raise CancelFitException
        for group in learn.opt.param_groups:
            group["lr"] *= self.gamma

    def cleanup_fit(self, learn: Loop) -> None:
        if self._restore is not None:
            self._restore.close()
            self._restore = None

    @property
    def suggestion(self) -> float | None:
        return suggest(self.lrs, self.losses)

    def plot(self) -> Axes:
        """Draw loss by learning rate, on a log scale, with the suggestion."""
        from ..plot import plot_lrs

        return plot_lrs(self.lrs, self.losses, self.suggestion)


@torch.no_grad()
def _put_back(weights: list[tuple[torch.nn.Parameter, torch.Tensor]]) -> None:
    for parameter, values in weights:
        parameter.copy_(values)


def suggest(lrs: Sequence[float], losses: Sequence[float]) -> float | None:
    """The learning rate at which the loss falls fastest, for each step of its logarithm; None where it never falls.

    The losses are smoothed first, over a factor of four in the learning rate, and only those before their smallest
    smoothed value count (Smith, 2017, arXiv:1506.01186, section 3.3, reads the same off the curve by eye).

    >>> suggest([1e-4, 1e-3, 1e-2, 1e-1, 1.0], [2.3, 2.3, 2.0, 0.5, 9.0])
    0.01
    """
    points = [(math.log(lr), loss) for lr, loss in zip(lrs, losses, strict=True) if math.isfinite(loss)]
    width = math.log(2)
    smooth = []
    for x, _ in points:
        near = [loss for other, loss in points if abs(other - x) <= width]
        smooth.append(sum(near) / len(near))
    end = min(range(len(smooth)), key=smooth.__getitem__, default=0)
    slopes = [(smooth[i + 1] - smooth[i]) / (points[i + 1][0] - points[i][0]) for i in range(end)]
    best = min(range(end), key=slopes.__getitem__, default=None)
    return None if best is None else lrs[best]


def lr_find(
    learn: Loop,
    gamma: float = 1.3,
    max_mult: float = 3,
    start_lr: float = 1e-5,
    max_epochs: int = 10,
    plot: bool | None = None,
) -> float | None:
    """Train for a while with a growing learning rate, put everything back, and suggest a rate.

    Args:
        gamma, max_mult: see LRFinderCB.
        start_lr: of the first batch, > 0.
        max_epochs: the most passes over the training set.
        plot: draw the curve. None: in a notebook.

    Returns:
        The suggestion (see `suggest`), or None. `learn.lr_finder` has `lrs`, `losses` and `plot()`.

    Side effects: none on the model, the optimizer, the random generators and the callbacks, after an exception and Ctrl-C
    too: the callbacks take part as copies, schedulers and CheckpointCB not at all. One thing is kept: an LSUVCallback
    that has not run yet runs, as it would in the next fit, which then equals a fit without lr_find, bit for bit.
    """
    check_rate(start_lr)
    if not start_lr > 0:
        raise ValueError(f"`start_lr` must be > 0, got {start_lr}.")
    finder = LRFinderCB(gamma, max_mult)
    with rehearsal(learn):
        learn.fit(max_epochs, valid=False, cbs=finder, lr=start_lr)
    vars(learn)["lr_finder"] = finder
    if in_notebook() if plot is None else plot:
        finder.plot()
    return finder.suggestion
