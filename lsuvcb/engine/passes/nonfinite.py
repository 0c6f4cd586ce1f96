"""Counting what is no number, and saying where it began."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import LSUVError
from ..model.weight import Weight
from ..seeing.use import Use


def count_non_finite(tensors: list[Tensor]) -> tuple[int, int]:
    """How many values of the floating tensors are NaN or infinite, and how many there are."""
    floats = [t for t in tensors if torch.is_floating_point(t) or t.is_complex()]
    return sum(int((~torch.isfinite(t)).sum()) for t in floats), sum(t.numel() for t in floats)


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
