"""Broyden's method: a system of equations that no one has the derivatives of, a few evaluations at a time.

Reference: Broyden, "A class of methods for solving nonlinear simultaneous equations", Mathematics of Computation 19, 1965.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

_LONGEST = 1.5  # of a step, in each unknown


class Broyden:
    """Looks for the x at which errors(x) is 0, from x = 0. The derivative is taken for -1, each error with its own unknown.

    With one unknown it is the secant method.

    Args:
        size: how many unknowns and errors there are.
    """

    def __init__(self, size: int) -> None:
        self._inverse = torch.eye(size, dtype=torch.float64)  # of the derivative, times -1
        self._x = torch.zeros(size, dtype=torch.float64)
        self._step: torch.Tensor | None = None
        self._errors = self._x

    def next(self, errors: Sequence[float]) -> list[float]:
        """Where to look next, from the errors at the last x; infinite ones count as long steps, and teach nothing."""
        found = torch.tensor(errors, dtype=torch.float64).nan_to_num(nan=-_LONGEST, posinf=_LONGEST, neginf=-_LONGEST)
        if self._step is not None:
            change = self._inverse @ (self._errors - found)
            along = self._step @ change
            if abs(along) > 1e-12:
                self._inverse += torch.outer(self._step - change, self._step @ self._inverse) / along
        self._step = (self._inverse @ found).clamp(-_LONGEST, _LONGEST)
        self._errors, self._x = found, self._x + self._step
        return self._x.tolist()
