"""Why a layer is not at its target, a type each, as in left_alone.py."""

from __future__ import annotations

from dataclasses import dataclass

from .left_alone import Reason


@dataclass(frozen=True)
class Missed(Reason):
    sentence = "std {std}, mean {mean} after {evaluations} evaluations"
    std: str
    mean: str
    evaluations: int


@dataclass(frozen=True)
class MeanOutOfReach(Missed):
    sentence = Missed.sentence + ": an activation with outputs in [{low:.3g}, {high:.3g}] has no mean of {goal:g}"
    low: float
    high: float
    goal: float


@dataclass(frozen=True)
class StdOutOfReach(Missed):
    sentence = Missed.sentence + ": an activation with outputs in [{low:.3g}, {high:.3g}] has no std of {goal:g}"
    low: float
    high: float
    goal: float


@dataclass(frozen=True)
class Apart(Reason):
    sentence = "its uses did not come together at the target; it keeps its values"


@dataclass(frozen=True)
class OtherwiseAfterwards(Reason):
    sentence = (
        "measured {what} {found} afterwards, not as in the pass: the net amplifies rounding, keeps a state of its own, or draws "
        "from a generator that is not torch's, numpy's or Python's global one"
    )
    what: str
    found: str


def outside(value: float, goal: float | None, tol: float) -> str:
    """A number with three digits, or as many as it takes to show that it is not within `tol` of its goal.

    >>> outside(1.00123, 1.0, 1e-3), outside(0.5, 1.0, 1e-3)
    ('1.0012', '0.5')
    """
    shown = [f"{value:.{digits}g}" for digits in range(3, 10)]
    if goal is None or not abs(value - goal) > tol:
        return shown[0]
    return next((text for text in shown if abs(float(text) - goal) > 1.0001 * tol), shown[-1])
