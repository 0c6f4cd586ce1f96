"""Counting what is no number."""

from __future__ import annotations

import torch
from torch import Tensor


def count_non_finite(tensors: list[Tensor]) -> tuple[int, int]:
    """How many values of the floating tensors are NaN or infinite, and how many there are."""
    floats = [t for t in tensors if torch.is_floating_point(t) or t.is_complex()]
    return sum(int((~torch.isfinite(t)).sum()) for t in floats), sum(t.numel() for t in floats)
