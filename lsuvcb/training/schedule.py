"""Schedules of torch's making, stepped by batch or by epoch, and a record of what changes with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from .events import Callback
from .loop import Loop
from .metrics import MetricsCB
from .thinned import Thinned

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class HasLearnCB(Callback):
    """Keeps the learner as `self.learn` during a fit, for methods that are not events. Runs at before_fit and cleanup_fit."""

    learn: Loop | None = None

    def before_fit(self, learn: Loop) -> None:
        self.learn = learn

    def cleanup_fit(self, learn: Loop) -> None:
        self.learn = None


class BaseSchedCB(Callback):
    """Makes a scheduler for the optimizer of each fit that trains; a subclass says when it steps. Runs at before_fit.

    Args:
        sched: called with the optimizer; gives one of torch's schedulers, `partial(CosineAnnealingLR, T_max=10)`.

    Attributes:
        schedo: the scheduler of the last fit; its state is kept in checkpoints.
    """

    order = (
        MetricsCB.order + 20
    )  # whoever reads the learning rate behind a batch reads the one that it was trained with
    in_rehearsal = "nothing"
    schedo: Any = None

    def __init__(self, sched: Callable[[torch.optim.Optimizer], Any]) -> None:
        if not callable(sched):
            raise TypeError(
                f"`sched` must be called with an optimizer, got {sched!r} ({type(sched).__name__}); write "
                "`partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=...)`."
            )
        self.sched = sched

    def before_fit(self, learn: Loop) -> None:
        self.schedo = self.sched(learn.opt) if learn.do_train else None

    def state_dict(self) -> dict[str, Any]:
        return self.schedo.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.schedo.load_state_dict(state)


class BatchSchedCB(BaseSchedCB):
    """Steps a scheduler after each training batch. Runs at before_fit and after_batch."""

    def after_batch(self, learn: Loop) -> None:
        if learn.training:
            self.schedo.step()


class EpochSchedCB(BaseSchedCB):
    """Steps a scheduler after each epoch. Runs at before_fit and after_epoch.

    A ReduceLROnPlateau steps behind the validation, with its loss, which takes a MetricsCB; without validation, with the
    training loss. Any other steps behind the training.

    Raises:
        ValueError: a ReduceLROnPlateau without a MetricsCB.
    """

    def before_fit(self, learn: Loop) -> None:
        super().before_fit(learn)
        if isinstance(self.schedo, ReduceLROnPlateau) and not any(isinstance(cb, MetricsCB) for cb in learn.cbs):
            raise ValueError("ReduceLROnPlateau looks at the loss of each epoch: add MetricsCB() to the callbacks.")

    def after_epoch(self, learn: Loop) -> None:
        if isinstance(self.schedo, ReduceLROnPlateau):
            if not learn.training or not learn.do_valid:
                self.schedo.step(learn.history[-1]["loss"])
        elif learn.training:
            self.schedo.step()


def lr_of(cb: RecorderCB) -> float:
    """The learning rate of the optimizer's first group."""
    return cb.pg["lr"]


def loss_of(cb: RecorderCB) -> torch.Tensor:
    """The loss of the batch."""
    assert cb.learn is not None
    return cb.learn.loss


class RecorderCB(HasLearnCB):
    """Records values of each training batch: the learning rate and the loss, or others.

    Runs at before_fit, after_batch and cleanup_fit.

    Args:
        **d: name -> function of this callback, which has `learn` and `pg`, the optimizer's first group of parameters. As
            in the course: `RecorderCB(beta=lambda cb: cb.pg["betas"][0])`. Default: lr and loss.

    Attributes:
        recs: name -> values by batch, of this fit. At most 10,000, evenly spaced, and the steps that they are of in `steps`.

    Tensors stay on their device until they are looked at.
    """

    order = MetricsCB.order - 15

    def __init__(self, **d: Callable[[RecorderCB], Any]) -> None:
        for name, function in d.items():
            if not callable(function):
                raise TypeError(f"RecorderCB({name}=...) takes a function of the callback, got {function!r}.")
        self.d = d or {"lr": lr_of, "loss": loss_of}
        self._start()

    @property
    def pg(self) -> dict[str, Any]:
        """The first parameter group of the optimizer, looked up anew each time: a resumed fit's optimizer gets new groups."""
        return self.learn.opt.param_groups[0] if self.learn is not None else {}

    def _start(self) -> None:
        self._rows: Thinned[tuple[int, list[Any]]] = Thinned(10_000)
        self._step = 0

    def before_fit(self, learn: Loop) -> None:
        super().before_fit(learn)
        self._start()

    def after_batch(self, learn: Loop) -> None:
        if not learn.training:
            return
        if self._rows.due():
            self._rows.append((self._step, [_kept(function(self)) for function in self.d.values()]))
        self._step += 1

    @property
    def steps(self) -> list[int]:
        return [step for step, _ in self._rows]

    @property
    def recs(self) -> dict[str, list[Any]]:
        return {name: _read([row[i] for _, row in self._rows]) for i, name in enumerate(self.d)}

    def plot(self) -> Axes:
        """Draw each record by training step, side by side; returns the first axes."""
        from ..plot import plot_records

        return plot_records(self.steps, self.recs)

    def __repr__(self) -> str:
        return f"RecorderCB({', '.join(self.d)})"


def _kept(value: Any) -> Any:
    """A number where it can be had without waiting; a tensor that no later step changes elsewhere."""
    if not isinstance(value, torch.Tensor):
        return value
    return value.item() if value.device.type == "cpu" and value.numel() == 1 else value.detach().clone()


def _read(values: list[Any]) -> list[Any]:
    """Numbers for tensors of one value, in one transfer."""
    if values and all(isinstance(v, torch.Tensor) and v.numel() == 1 for v in values):
        return torch.stack([v.reshape(()) for v in values]).tolist()
    return values
