"""MetricsCB: the loss and any metrics by epoch, counted on the device and read once for each pass over a loader.

torcheval raises some thirty deprecation warnings when it is imported. Its metrics can be had from this module
without them, `from lsuvcb.training.metrics import MulticlassAccuracy`, and torcheval is imported then, not before.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import torch
from torch.utils import _pytree as pytree

from .events import Callback
from .loop import Loop


@runtime_checkable
class Metric(Protocol):
    """What MetricsCB asks of a metric; torcheval's and torchmetrics' have it, and a `.to(device)` besides."""

    def reset(self) -> Any: ...
    def update(self, preds: Any, target: Any) -> Any: ...
    def compute(self) -> Any: ...


def torcheval_metrics() -> ModuleType:
    """The module torcheval.metrics, imported without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("torcheval.metrics")


def __getattr__(name: str) -> Any:
    if name[0].isupper():  # a metric's name, not something that a tool looks for in every module
        try:
            return getattr(torcheval_metrics(), name)
        except AttributeError:
            pass
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}, and torcheval.metrics has none either")


def batch_size(batch: Any) -> int:
    """The length of the first tensor in a nested batch; 1 if it has none."""
    first = batch[0] if isinstance(batch, (list, tuple)) and batch else batch
    if not isinstance(first, torch.Tensor):
        first = next((leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, torch.Tensor)), None)
    return len(first) if first is not None and first.dim() else 1


def model_device(model: torch.nn.Module) -> torch.device | None:
    """Where the first parameter or buffer of `model` lives; None without any."""
    return next((t.device for source in (model.parameters(), model.buffers()) for t in source), None)


class MeanLoss:
    """The mean of the losses weighted by sample, summed on their device; `compute` is the one read."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._total: torch.Tensor | None = None
        self._count = 0

    def update(self, loss: torch.Tensor, weight: int = 1) -> None:
        if self._total is None:
            wide = torch.float32 if loss.device.type == "mps" else torch.float64  # MPS has no float64
            self._total = torch.zeros((), dtype=wide, device=loss.device)
        value = loss.detach()
        self._total.add_(value.mean() if value.dim() else value, alpha=weight)
        self._count += weight

    def compute(self, gather: Callable[[torch.Tensor], torch.Tensor] = lambda rows: rows) -> float:
        """The mean so far; NaN without a batch.

        Args:
            gather: gives the (1, 2) sums and counts of several processes as rows of one tensor.
        """
        if self._total is None:
            return float("nan")
        rows = gather(torch.stack([self._total, torch.full_like(self._total, self._count)]).view(1, 2))
        total, count = rows.sum(0)
        return (total / count).item()


class MetricsCB(Callback):
    """Appends a row of loss and metrics to `learn.history` after each pass over a loader.

    Runs at before_fit, before_epoch, after_batch and after_epoch. A row is
    `{"accuracy": 0.43, "loss": 1.61, "epoch": 0, "train": "train" or "eval"}`. Without a ProgressCB it is printed;
    override `_log(row)` to send it elsewhere. The rows of `lr_find` are neither.

    Args:
        *ms: metrics, named by their class: torcheval's, torchmetrics', or anything with reset, update and compute.
        **named: metrics by name.

    Example:
        >>> MetricsCB(accuracy=MeanLoss())
        MetricsCB('accuracy')
    """

    order = 50

    def __init__(self, *ms: Metric, **named: Metric) -> None:
        self.metrics: dict[str, Metric] = {}
        for name, metric in [*((type(m).__name__, m) for m in ms), *named.items()]:
            if isinstance(metric, type) or not isinstance(metric, Metric):
                raise TypeError(
                    f"metric {name!r} must have reset, update and compute, got {metric!r}{_instead(metric)}."
                )
            if name in self.metrics or name in ("loss", "epoch", "train"):
                raise ValueError(f"a metric named {name!r} is there already; name this one: MetricsCB(other_name=...).")
            self.metrics[name] = metric
        self.loss = MeanLoss()

    @property
    def all_metrics(self) -> dict[str, Any]:
        return {**self.metrics, "loss": self.loss}

    def before_fit(self, learn: Loop) -> None:
        learn.metrics = self
        device = model_device(learn.model)
        if device is not None:
            for metric in self.metrics.values():
                if hasattr(metric, "to"):
                    metric.to(device)

    def before_epoch(self, learn: Loop) -> None:
        for metric in self.all_metrics.values():
            metric.reset()

    def after_batch(self, learn: Loop) -> None:
        self.loss.update(learn.loss, weight=batch_size(learn.batch))
        if self.metrics:
            preds, *targets = learn.gather((_detached(learn.preds), *learn.yb), samples=True)
            for metric in self.metrics.values():
                metric.update(preds, *targets)

    def after_epoch(self, learn: Loop) -> None:
        row: dict[str, Any] = {name: _number(metric.compute()) for name, metric in self.metrics.items()}
        row["loss"] = self.loss.compute(learn.gather)
        row |= {"epoch": learn.epoch, "train": "train" if learn.training else "eval"}
        learn.history.append(row)
        if learn.is_main and not learn.rehearsing:
            self._log(row)

    def _log(self, row: dict[str, Any]) -> None:
        print(as_text(row))

    def __repr__(self) -> str:
        return f"MetricsCB({', '.join(repr(name) for name in self.metrics)})"


def _instead(metric: Any) -> str:
    """What to give in the place of something that is no metric."""
    if isinstance(metric, type):
        return f"; write {metric.__name__}()"
    if callable(metric):
        return (
            ": a function sees one batch, a metric a whole epoch; write MulticlassAccuracy() or another of torcheval.metrics "
            "or torchmetrics, or a class with these three methods"
        )
    return ""


def as_text(row: dict[str, Any]) -> dict[str, str]:
    """A row's values as short strings, numbers with three decimals; a table of strings is what fastprogress takes."""
    return {name: _short(value) for name, value in row.items()}


def _short(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(_short(v) for v in value)
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _detached(preds: Any) -> Any:
    if isinstance(preds, torch.Tensor):
        return preds.detach()
    return pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, preds)


def _number(value: Any) -> Any:
    # a float where the metric is one number, a list where it has several (by class); numpy's kinds, too
    return value.tolist() if hasattr(value, "tolist") else value
