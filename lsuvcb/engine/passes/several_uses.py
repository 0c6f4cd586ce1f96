"""Weights that are used more than once: pass after pass, until the std of all uses together is at the target."""

from __future__ import annotations

import math
from collections.abc import Callable

from ..model.weight import Weight
from ..solving.broyden import Broyden
from .solve import Aim, Solve


def bring_together(eye: Solve, aims: dict[Weight, Aim], solve: Callable[[], Solve], most: int) -> Solve:
    """Solve until each weight that is used more than once has its target over all its uses. A model without one pays nothing.

    The unknowns are the targets at the first uses. A weight that does not arrive keeps the values that it has, and the rest is
    begun anew without it.

    Args:
        eye: the pass that used no aims.
        aims: filled in; what `solve` makes its pass with.
        most: passes, the first included.

    Returns:
        The last pass.
    """
    weights = list(eye.solutions.uses)
    method = Broyden(len(weights))
    for _ in range(most - 1):
        if not (errors := _errors(eye)):
            return eye
        for weight, factor in zip(weights, method.next([errors.get(w, 0.0) for w in weights]), strict=True):
            solution = eye.solutions.of.get(weight)
            if solution is not None:
                aims[weight] = Aim(math.exp(factor), solution)
        eye = solve()
    if not (errors := _errors(eye)):
        return eye
    eye.facts.apart.update(errors)
    aims.clear()
    return bring_together(solve(), aims, solve, most)


def _errors(eye: Solve) -> dict[Weight, float]:
    """The logarithm of goal / std over all uses, of the weights used more than once; empty where all are at their goals."""
    errors, off = {}, False
    for weight, std in eye.solutions.read_uses().items():
        solution = eye.solutions.of[weight]
        factor = eye.aims.get(weight, Aim()).factor
        goal = solution.target.std / factor
        if not solution.missed and std != 0:
            errors[weight] = math.log(goal / std) if 0 < std < math.inf else -math.inf
            off = off or not abs(std - goal) <= solution.tol / factor
    return errors if off else {}
