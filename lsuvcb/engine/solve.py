"""The scale and the shift that bring one layer's output to its target."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .moments import Moments

LOW_PRECISION = (torch.bfloat16, torch.float16)
LOW_PRECISION_TOL = 1e-2


@dataclass(frozen=True)
class Target:
    """Where a layer's output is to go: std > 0, and a mean or None to leave the mean alone; within `tol` of both."""

    std: float = 1.0
    mean: float | None = None
    tol: float = 1e-3

    def tolerance(self, *dtypes: torch.dtype) -> float:
        """Largest allowed error: `tol`, of the std where that is below one; bf16 and fp16 cannot hold less than 1e-2."""
        low = any(dtype in LOW_PRECISION for dtype in dtypes)
        return max(self.tol, LOW_PRECISION_TOL if low else 0.0) * min(1.0, self.std)


def closed_form(
    found: Moments, target: Target, tol: float, *, has_bias: bool, keep_close: bool = True
) -> tuple[Tensor, Tensor]:
    """Scale s and shift t such that s * y + t has the target's moments: W <- s W, b <- s b + t.

    An output linear in its weight needs no iteration: s = std / sqrt(Var(y)), the paper's W_L / sqrt(Var(B_L)) for
    std = 1, and t = mean - s * mean(y), which moves only through a bias.

    Args:
        found: moments of y.
        has_bias: without one t is 0.
        keep_close: an output within `tol` of its target already keeps s = 1, t = 0.

    Returns:
        s and t, 0-d, on the device of `found`; s = 1, t = 0 for a constant output. No host round trip.
    """
    mean, std = found.mean, found.std
    moves = has_bias and target.mean is not None
    goal = target.mean if moves and target.mean is not None else 0.0
    stay = found.constant
    if keep_close:
        close = (std - target.std).abs() <= tol
        stay = stay | (close & ((mean - goal).abs() <= tol) if moves else close)
    scale = torch.where(stay, torch.ones_like(std), target.std / std)
    shift = torch.where(stay, torch.zeros_like(std), goal - scale * mean) if moves else torch.zeros_like(std)
    return scale, shift
