"""The scale and the shift that bring one layer's output to its target: in closed form, or by Newton's method."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..measuring.moments import Moments, Number
from .target import LOW_PRECISION, Target


def closed_form(
    found: Moments, target: Target, tol: float, *, has_bias: bool, keep_close: bool = True
) -> tuple[Number, Number]:
    """Scale s and shift t such that s * y + t has the target's moments: W <- s W, b <- s b + t.

    An output linear in its weight needs no iteration: s = std / sqrt(Var(y)), the paper's W_L / sqrt(Var(B_L)) for
    std = 1, and t = mean - s * mean(y), which moves only through a bias.

    Args:
        found: moments of y.
        has_bias: without one t is 0.
        keep_close: an output within `tol` of its target already keeps s = 1, t = 0.

    Returns:
        s and t, where `found` is: numbers, or 0-d tensors on a device that nothing waits for. s = 1, t = 0 for a
        constant output.
    """
    mean: Any = found.mean  # numbers or tensors: the same arithmetic
    std: Any = found.std
    moves = has_bias and target.mean is not None
    goal = target.mean if moves and target.mean is not None else 0.0
    stay = found.constant
    if keep_close:
        close = abs(std - target.std) <= tol
        stay = stay | (close & (abs(mean - goal) <= tol) if moves else close)
    if isinstance(std, float):
        scale = 1.0 if stay else target.std / std
        return scale, goal - scale * mean if moves and not stay else 0.0
    scales = torch.where(stay, torch.ones_like(std), target.std / std)
    shifts = torch.where(stay, torch.zeros_like(std), goal - scales * mean) if moves else torch.zeros_like(std)
    return scales, shifts


class Try(NamedTuple):
    """One evaluation of a layer: at this scale and shift it has this std and mean."""

    scale: float
    shift: float
    std: float
    mean: float


Evaluate = Callable[[float, float], Try]
_STEP = 1e-3  # of the finite differences, in log(scale) and in shift / std
_COARSE_STEP = 0.05  # of those where values are bf16 or fp16, whose rounding drowns a smaller one
_UNSURE = 0.3  # in stds: how far a sample may be off; farther from its target than this, the whole is too
_LARGEST = math.log(8.0)  # of one Newton step in log(scale); in shift, that many stds


@dataclass(frozen=True)
class Solved:
    """The best try, how many evaluations of the whole output it took, and whether it is within tolerance."""

    best: Try
    iterations: int
    converged: bool


class Newton:
    """Finds scale s and shift t for an output that is not linear in its weight: a layer behind its activation, a block.

    Two unknowns, log(s) and t / std, and two residuals, log(std / target) and (mean - target) / std: Newton's method
    with a Jacobian from finite differences on a sample, then the same Jacobian on the whole output until it is within
    tolerance. One unknown and one residual where the mean is left alone.

    Args:
        target: where to go; `max_iters` bounds the evaluations of the whole output.
        tol: largest error of std and mean.
        moves: t is free and the mean has a target.
        dtype: of the output.
    """

    def __init__(self, target: Target, tol: float, moves: bool, dtype: torch.dtype = torch.float32) -> None:
        self.target, self.tol, self.moves = target, tol, moves
        self.step = _COARSE_STEP if dtype in LOW_PRECISION else _STEP

    def towards(self, target: Target) -> Newton:
        """A copy that goes to another target."""
        other = copy.copy(self)
        other.target = target
        return other

    def residual(self, tried: Try) -> tuple[float, float]:
        if not tried.std > 0 or not math.isfinite(tried.std + tried.mean):
            return math.inf, math.inf
        off_mean = (tried.mean - (self.target.mean or 0.0)) / self.target.std if self.moves else 0.0
        return math.log(tried.std / self.target.std), off_mean

    def error(self, tried: Try) -> float:
        """The larger of |std - target| and |mean - target|: what `tol` bounds, and what the best try has least of."""
        if not math.isfinite(tried.std + tried.mean):
            return math.inf
        off_mean = abs(tried.mean - (self.target.mean or 0.0)) if self.moves else 0.0
        return max(abs(tried.std - self.target.std), off_mean)

    def solve(self, whole: Evaluate, sample: Evaluate, guess: tuple[float, float], steps: int = 30) -> Solved:
        """The best try, from the start (s = 1, t = 0), which the result is never worse than, or from `guess`.

        Args:
            whole: evaluates the whole output.
            sample: evaluates a part of it, at a small part of the cost.
            steps: most Newton steps on the sample.
        """
        first = sample(1.0, 0.0)
        if self.error(first) <= self.tol + _UNSURE * self.target.std:
            start = whole(1.0, 0.0)
            if self.error(start) <= self.tol:
                return Solved(start, 1, True)
        here, slopes = self._descend(sample, min(first, sample(*guess), key=self.error), steps)
        solved = self._polish(whole, here, slopes)
        if not solved.converged:
            solved = replace(solved, best=min(whole(1.0, 0.0), solved.best, key=self.error))
        return solved

    def _descend(self, evaluate: Evaluate, here: Try, steps: int) -> tuple[Try, tuple[float, ...]]:
        """Newton's method on the sample, each step cut until it gains; the Jacobian serves on while it gains much."""
        slopes = self._slopes(evaluate, here)
        for _ in range(steps):
            if self.error(here) <= 0.1 * self.tol:
                break
            part = 1.0
            while not self.error(there := evaluate(*self._step(here, slopes, part))) < self.error(here):
                part /= 4
                if part < 1e-3:
                    return here, slopes
            gained = self.error(there) / self.error(here)
            here = there
            if gained > 0.1:
                slopes = self._slopes(evaluate, here)
            if gained > 0.999:
                break
        return here, slopes

    def _polish(self, whole: Evaluate, here: Try, slopes: tuple[float, ...]) -> Solved:
        """Steps with the Jacobian that the sample gave, on the whole output, until well within tolerance or without gain."""
        best, stalled, n = here, 0, 0
        while n < self.target.max_iters and stalled < 3 and (n == 0 or self.error(best) > 0.5 * self.tol):
            at = self._step(here, slopes, 1.0) if n else (here.scale, here.shift)
            here, n = whole(*at), n + 1
            stalled = 0 if n == 1 or self.error(here) < 0.9 * self.error(best) else stalled + 1
            best = here if n == 1 else min(best, here, key=self.error)
        return Solved(best, n, self.error(best) <= self.tol)

    def _slopes(self, evaluate: Evaluate, at: Try) -> tuple[float, ...]:
        """The Jacobian (a, b; c, d) of the residuals by log(s) and t / std."""
        r = self.residual(at)
        by_scale = self.residual(evaluate(at.scale * math.exp(self.step), at.shift))
        a, c = ((p - q) / self.step for p, q in zip(by_scale, r, strict=True))
        if not self.moves:
            return a, 0.0, 0.0, 1.0
        by_shift = self.residual(evaluate(at.scale, at.shift + self.step * self.target.std))
        b, d = ((p - q) / self.step for p, q in zip(by_shift, r, strict=True))
        return a, b, c, d

    def _step(self, at: Try, slopes: tuple[float, ...], part: float) -> tuple[float, float]:
        """One Newton step, `part` of it, within bounds; where the Jacobian says nothing, the lesson's own step."""
        (p, q), (a, b, c, d) = self.residual(at), slopes
        determinant = a * d - b * c
        if math.isfinite(p + q + determinant) and abs(determinant) > 1e-6:
            x, y = (d * p - b * q) / determinant, (a * q - c * p) / determinant
        else:
            x, y = (p, q) if math.isfinite(p + q) else (0.0, -1.0)
        x, y = (max(-_LARGEST, min(_LARGEST, part * v)) for v in (x, y))
        return at.scale * math.exp(-x), at.shift - (y * self.target.std if self.moves else 0.0)


def reach(activation: Callable[[Tensor], Tensor], like: Tensor) -> tuple[float, float]:
    """The lowest and the highest value that an elementwise function gives; infinite where it goes on growing.

    Args:
        like: a tensor of the shape, dtype and device that the function takes.
    """
    ends = []
    for size in (4.0, 1e2, 1e4):  # near zero, where smooth activations dip; far out, to see them grow
        values = torch.linspace(-size, size, like.numel(), device=like.device, dtype=torch.float32).to(like.dtype)
        least, most = activation(values.view(like.shape)).aminmax()
        ends.append((float(least), float(most)))
    _, (low, high), (lower, higher) = ends
    lowest, highest = min(a for a, _ in ends), max(b for _, b in ends)
    return (-math.inf if lower < low - 1 else lowest), (math.inf if higher > high + 1 else highest)


class OutOfReach(NamedTuple):
    """Values in [low, high] have no `what` ("mean" or "std") of `goal`."""

    what: str
    low: float
    high: float
    goal: float


def out_of_reach(low: float, high: float, target: Target, moves: bool) -> OutOfReach | None:
    """Why values in [low, high] cannot have the target's moments; None if they can.

    A mean lies strictly inside; a variance is at most (high - mean) (mean - low) (Bhatia & Davis, 2000).
    """
    mean = target.mean if moves else None
    if mean is not None and not low < mean < high:
        return OutOfReach("mean", low, high, mean)
    most = math.sqrt((high - mean) * (mean - low)) if mean is not None else (high - low) / 2
    return OutOfReach("std", low, high, target.std) if target.std >= most else None
