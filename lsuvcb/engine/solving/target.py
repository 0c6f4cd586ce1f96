"""Where a layer's output is to go."""

from __future__ import annotations

from dataclasses import dataclass

import torch

LOW_PRECISION = frozenset((torch.bfloat16, torch.float16))
LOW_PRECISION_TOL = 1e-2


@dataclass(frozen=True)
class Target:
    """Std > 0, and a mean or None to leave the mean alone; within `tol` times the std of both, by `max_iters` evaluations."""

    std: float = 1.0
    mean: float | None = None
    tol: float = 1e-3
    max_iters: int = 20

    def tolerance(self, *dtypes: torch.dtype) -> float:
        """Largest allowed error: `tol` times the std; bf16 and fp16 cannot hold less than 1e-2 of it."""
        high = LOW_PRECISION.isdisjoint(dtypes)
        return (self.tol if high else max(self.tol, LOW_PRECISION_TOL)) * self.std
