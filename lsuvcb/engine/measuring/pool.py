"""Moments over the ranks of a process group: all of them must be at the same place of the pass."""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from ..errors import LSUVError
from ..ranks import Ranks
from .moments import Moments

Group: TypeAlias = "Ranks | None"
_NOTHING = Moments(0.0, 0.0, 0.0, 0)  # of no values


class Pool(NamedTuple):
    """Whose moments are summed.

    Attributes:
        number, name: of the layer whose output it is; the number is compared over the ranks, the name is for messages.
    """

    group: Ranks
    number: int = 0
    name: str = "the batch"


def pooled(here: Moments, device: torch.device, pool: Pool | None) -> Moments:
    """The moments of all ranks' values, each rank with its own; `here` for a process alone (no pool).

    First the global mean, then the sum of squares around it.

    Raises:
        LSUVError: on a CPU, where the ranks are at different layers; elsewhere, where nothing waits, the std is then NaN.
    """
    if pool is None:
        return here
    n, wide, group = here.count, torch.float32 if device.type == "mps" else torch.float64, pool.group
    mean, std, peak = (torch.as_tensor(v, dtype=wide, device=device) for v in (here.mean, here.std, here.peak))
    total, together = _meet(n * mean, n, pool)
    mean_all, count = total[0] / total[1].clamp(min=1), total[1].clamp(min=1)
    squares = n * (std * std + (mean - mean_all) ** 2)
    group.sum_(squares)
    peak = peak.clone()
    group.max_(peak)
    std_all = (squares / count).sqrt()
    if device.type == "cpu":
        return Moments(mean_all.item(), std_all.item(), peak.item(), n)
    return Moments(mean_all, torch.where(together, std_all, math.nan), peak, n)


def meet_at_the_end(device: torch.device, group: Ranks) -> None:
    """Wait for all ranks at the end of a pass. One that ran fewer layers would leave the others waiting at theirs."""
    pooled(_NOTHING, device, Pool(group, 0, "the end of the pass"))


def highest(value: int, pool: Pool | None) -> float:
    """The highest such value of the ranks, all of which must call; where tensors are in the host's memory."""
    if pool is None:
        return value
    most = torch.tensor(float(value))
    _meet(most, 1, pool)
    pool.group.max_(most)
    return most.item()


def _meet(value: Tensor, count: int, pool: Pool) -> tuple[Tensor, Tensor]:
    """The ranks' sums of `value` and `count`, and whether all of them are at the same layer.

    With the sums goes the layer's number: its squares add up to the square of its sum by the number of ranks where all
    ranks have the same one.
    """
    total = torch.stack([value, *(torch.full_like(value, v) for v in (count, pool.number, pool.number**2))])
    pool.group.sum_(total)
    together = total[3] * pool.group.size == total[2] ** 2
    if total.device.type == "cpu" and not together:
        raise LSUVError(
            f"the ranks are at different layers, this one at {pool.name}: their moments cannot be pooled. Every rank must run "
            "the same layers in the same order on its part of the batch: give each one samples for all of them, or call "
            "`lsuv_` on one rank, on the model without its wrapper, and broadcast the weights."
        )
    return total, together
