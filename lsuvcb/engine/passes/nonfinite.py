"""Counting what is no number, and saying where it began."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import LSUVError
from ..measuring.moments import moments
from ..measuring.pool import Group, pooled
from ..model.weight import Weight
from ..ranks import whole
from ..seeing.use import Use, no_real_values
from ..solving.solution import Solution


def count_non_finite(tensors: list[Tensor]) -> tuple[int, int]:
    """How many values of the floating tensors are NaN or infinite, and how many there are."""
    floats = [t for t in tensors if torch.is_floating_point(t) or t.is_complex()]
    return sum(int(whole((~torch.isfinite(t)).sum())) for t in floats), sum(t.numel() for t in floats)


def check_values(dropped: Solution) -> None:
    """LSUVError where a layer that keeps its values after all, in place of a draw, has some that are not finite."""
    weight, bias = dropped.weight, dropped.bias
    if dropped.start is None:
        return
    bad, total = count_non_finite([held.home.values() for held in (weight, bias) if held is not None])
    if bad:
        raise LSUVError(
            f"layer {weight} gives non-finite output: {bad} of its {total} weights and biases are not finite."
        )


def check_output(use: Use, y: Tensor, before: Weight | None, group: Group, later: list[Tensor], *, wait: bool) -> None:
    """LSUVError where an output is not finite, of a weight that keeps its values.

    Args:
        before: the last layer that was solved.
        later: a std on a device is put here, to be asked at the end.
        wait: for the device, to know at once.
    """
    if no_real_values(use.weight, y) is not None or not (y.numel() or group):
        return
    std = pooled(moments(y), y.device, use.weight.pool(group)).std
    if isinstance(std, Tensor) and not wait:
        later.append(std)
    elif not math.isfinite(float(std)):
        raise non_finite(use, y, before, pooled=group is not None)


def non_finite(use: Use, y: Tensor, before: Weight | None, *, pooled: bool) -> LSUVError:
    """The error for an op whose output y has moments that are not finite.

    Args:
        before: the last layer that was solved.
        pooled: the moments are those of several ranks.
    """
    bad, total = count_non_finite([y])
    if not bad and pooled:
        return LSUVError(
            f"layer {use.weight} gave non-finite output on another rank, or the ranks are at different layers; every rank "
            "must run the same ones in the same order."
        )
    inputs_bad, inputs_total = count_non_finite(use.inputs())
    where = "the first non-finite values appear here"
    if inputs_bad:
        after = f"between {before} and it" if before else "before it"
        where = f"its input holds {inputs_bad} of {inputs_total} such values already, from an op {after}"
    return LSUVError(f"layer {use.weight} gave non-finite output on this batch ({bad} of {total} values); {where}.")
