"""Weights that are used more than once: pass after pass, until the std of all uses together is at the target."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from ..model.weight import Weight
from ..solving.broyden import Broyden
from .solve import Aim, Solve


def bring_together(eye: Solve, aims: dict[Weight, Aim], solve: Callable[[], Solve], most: int) -> Solve:
    """Solve until each weight that is used more than once has its target over all its uses. A model without one pays nothing.

    The unknowns are the targets at the first uses. A weight that does not arrive keeps the values that it has, and the rest is
    begun anew without it; where that fails, too, all of them keep theirs.

    Args:
        eye: the pass that used no aims.
        aims: filled in; what `solve` makes its pass with.
        most: passes, the first included.

    Returns:
        The last pass.
    """
    for off in (_off, list):
        eye = _approach(eye, aims, solve, most)
        errors = _errors(eye)
        if not _off(errors):
            break
        eye.facts.apart.update(off(errors))
        aims.clear()
        eye = solve()
    return eye


def _approach(eye: Solve, aims: dict[Weight, Aim], solve: Callable[[], Solve], most: int) -> Solve:
    weights = list(eye.solutions.uses)
    method = Broyden(len(weights))
    for _ in range(most - 1):
        if not _off(errors := _errors(eye)):
            return eye
        for weight, factor in zip(
            weights, method.next([errors[w].size if w in errors else 0.0 for w in weights]), strict=True
        ):
            solution = eye.solutions.of.get(weight)
            if solution is not None:
                aims[weight] = Aim(math.exp(factor), solution)
        eye = solve()
    return eye


class _Error(NamedTuple):
    """The logarithm of goal / std over all uses, and whether that is more than the tolerance."""

    size: float
    off: bool


def _off(errors: dict[Weight, _Error]) -> list[Weight]:
    return [weight for weight, error in errors.items() if error.off]


def _errors(eye: Solve) -> dict[Weight, _Error]:
    """Of the weights used more than once."""
    errors = {}
    for weight, std in eye.solutions.read_uses().items():
        solution = eye.solutions.of[weight]
        factor = eye.aims.get(weight, Aim()).factor
        goal = solution.target.std / factor
        if not solution.missed and std != 0:
            size = math.log(goal / std) if 0 < std < math.inf else -math.inf
            errors[weight] = _Error(size, not abs(std - goal) <= solution.tol / factor)
    return errors
