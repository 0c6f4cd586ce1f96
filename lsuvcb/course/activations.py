"""The lessons' statistics of activations: three lists on a hook, and what is drawn from them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..training.activation_stats import BINS, LIMIT
from ..training.devices import to_cpu


def append_stats(hook: Any, mod: nn.Module, inp: Any, outp: Tensor) -> None:
    """For Hook and Hooks: append the output's mean, std and histogram of magnitudes to the lists `hook.stats[0]`, `[1]`, `[2]`.

    Every output is copied to the CPU; `ActivationStats` keeps the same numbers without that.
    """
    if not hasattr(hook, "stats"):
        hook.stats = ([], [], [])
    values = to_cpu(outp)
    for series, value in zip(
        hook.stats, (values.mean(), values.std(), values.abs().histc(BINS, 0, LIMIT)), strict=True
    ):
        series.append(value)


def get_hist(h: Any) -> Tensor:
    """log(1 + count) of the histograms of a hook, (bins, steps): the picture of `color_dim`."""
    return torch.stack(list(h.stats[2])).t().float().log1p()


def get_min(h: Any) -> Tensor:
    """The share of values near zero (the first bin) at each step, (steps,): the curve of `dead_chart`."""
    counts = torch.stack(list(h.stats[2])).t().float()
    return counts[0] / counts.sum(0)
