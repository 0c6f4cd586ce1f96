"""What is not linear in its weight, a layer behind its activation or a block, is solved alone, never on the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..keeping.undisturbed import RNGState
from ..measuring.moments import Moments, moments, moments_of
from ..measuring.pool import Pool, pooled
from ..model.blocks import Block, output_tensor
from ..model.off_target import MeanOutOfReach, Missed, StdOutOfReach, outside
from ..seeing.activations import Elementwise
from ..seeing.output import has_rows
from .newton import Newton, OutOfReach, Solved, Try, out_of_reach, reach
from .solution import Solution
from .target import Target

_SAMPLE = 1 << 15  # values that a Newton step looks at before the whole output is
PART = 1 << 22  # values that a step on the whole output makes a copy of at a time
_MARGIN = 0.4  # in stds: how near to the end of its activation's range a mean is brought, where the target lies outside


Select = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Layer:
    """An output y = W x + b, and what comes of it: f(s y + (1 - s) b + t) for weight s W and bias b + t, or b where it is kept.

    Attributes:
        y: the output.
        bias: b in a shape that broadcasts over y, where it does not scale with W; None where it does, or is zero.
        activation: f, which may overwrite its argument.
        found: moments of y.
        moves: the bias may move.
        counted: the values that count, of f's output; None: all.
    """

    y: Tensor
    bias: Tensor | None
    activation: Elementwise
    found: Moments
    moves: bool
    counted: Select | None = None

    def moved(self, y: Tensor, scale: float, shift: float) -> Tensor:
        """A new tensor: y for another scale and shift."""
        if self.bias is not None:
            return torch.add((1 - scale) * self.bias + shift, y, alpha=scale)
        return y * scale + shift if shift else y * scale


def solve_behind(layer: Layer, solution: Solution, pool: Pool | None) -> bool:
    """Fill in the scale and the shift that bring f(y) to the solution's target. y is not touched.

    Returns:
        False where f(y) is constant and no shift can change that.
    """
    target, tol, y = solution.target, solution.tol, layer.y
    moves = layer.moves and target.mean is not None
    bias_has_rows = layer.bias is not None and layer.bias.ndim >= y.ndim  # W x + b, with features first
    by_rows = layer.activation.takes_rows and not bias_has_rows and layer.counted is None
    few, parts = (sample_rows(y), row_parts(y)) if by_rows else (None, [y])

    def evaluator(parts: Sequence[Tensor]) -> Callable[[float, float], Try]:
        def evaluate(scale: float, shift: float) -> Try:
            given = (layer.activation(layer.moved(part, scale, shift)) for part in parts)
            counted = given if layer.counted is None else map(layer.counted, given)
            found = pooled(moments_of(counted), y.device, pool)
            return Try(scale, shift, float(found.std), float(found.mean))

        return evaluate

    whole = evaluator(parts)
    sample = evaluator([few]) if few is not None else whole
    guess = _normalised(layer, target, pool)
    if not any(sample(*at).std > 0 for at in ((1.0, 0.0), guess)):
        return False
    limits = reach(layer.activation, y if few is None else few)
    beyond = out_of_reach(*limits, target, moves)
    newton = Newton(target, tol, moves, y.dtype)
    solved = newton.solve(whole, sample, guess) if beyond is None else _nearest(newton, limits, whole, sample, guess)
    _take(solution, solved, beyond)
    return True


def _take(solution: Solution, solved: Solved, beyond: OutOfReach | None) -> None:
    best = solved.best
    solution.scale, solution.shift, solution.iterations = best.scale, best.shift, solved.iterations
    solution.behind = Moments(best.mean, best.std, 0.0, solution.found.count)
    if not solved.converged:
        solution.missed = True
        solution.reason = missed(best, solved.iterations, solution.target, solution.tol, beyond)


def missed(best: Try, evaluations: int, target: Target, tol: float, beyond: OutOfReach | None = None) -> Missed:
    """For the report: where the best try ended, and why."""
    std, mean = outside(best.std, target.std, tol), outside(best.mean, target.mean, tol)
    if beyond is None:
        return Missed(std, mean, evaluations)
    kind = MeanOutOfReach if beyond.what == "mean" else StdOutOfReach
    return kind(std, mean, evaluations, beyond.low, beyond.high, beyond.goal)


def bring_block(
    block: Block, args: Sequence[Any], kwargs: Mapping[str, Any], start: Tensor, bias: Any,
    target: Target, tol: float, pool: Pool | None,
) -> Solved:  # fmt: skip
    """Scale s and shift t such that the block with weight s * start and bias + t gives an output of the target's moments.

    Only the block runs, on the input that it was called with. Without a target mean, t is 0.
    """
    moves = target.mean is not None
    rng = RNGState({start.device})

    def evaluator(args: Sequence[Any]) -> Callable[[float, float], Try]:
        def evaluate(scale: float, shift: float) -> Try:
            rng.restore()  # the same dropout each time
            output = block.run(args, kwargs, start * scale, bias + shift if shift else bias)
            found = pooled(moments(output_tensor(output)), start.device, pool)
            return Try(scale, shift, float(found.std), float(found.mean))

        return evaluate

    whole = evaluator(args)
    alone = len(args) == 1 and isinstance(args[0], Tensor) and not kwargs and not list(block.module.buffers())
    few = sample_rows(args[0]) if alone and has_rows(args[0], start) else None
    first = whole(1.0, 0.0)
    guess = (target.std / first.std if first.std > 0 else 1.0, 0.0)
    return Newton(target, tol, moves, start.dtype).solve(whole, whole if few is None else evaluator((few,)), guess)


def _nearest(
    judge: Newton, limits: tuple[float, float],
    whole: Callable[[float, float], Try], sample: Callable[[float, float], Try], guess: tuple[float, float],
) -> Solved:  # fmt: skip
    """The best of a target out of reach: the nearest mean that the range allows; for the std, the layer's own output."""
    (low, high), target, moves = limits, judge.target, judge.moves
    tries = [whole(1.0, 0.0)]
    if moves and target.mean is not None:
        nearest = max(min(target.mean, high - _MARGIN * target.std), low + _MARGIN * target.std)
        if low < nearest < high and not out_of_reach(low, high, replace(target, mean=nearest), moves):
            near = replace(target, mean=nearest)
            tries.append(judge.towards(near).solve(whole, sample, guess).best)
    if len(tries) == 1:
        tries.append(whole(*guess))
    return Solved(min(tries, key=judge.error), len(tries), False)


def _normalised(layer: Layer, target: Target, pool: Pool | None) -> tuple[float, float]:
    """The guess that knows nothing of f: s y + (1 - s) b + t of the target's std and of mean zero."""
    scale = target.std / float(layer.found.std)
    if target.mean is None or not layer.moves:
        return scale, 0.0
    if layer.bias is None:
        kept = 0.0
    elif pool is None:
        kept = (1 - scale) * float(layer.bias.double().mean())
    else:  # a rank may hold a part of it
        kept = (1 - scale) * float(pooled(moments(layer.bias), layer.bias.device, pool).mean)
    return scale, -(scale * float(layer.found.mean) + kept)


def sample_rows(y: Tensor) -> Tensor | None:
    """Some rows of y, evenly spread over the batch; None where y is small enough to take whole."""
    if y.numel() <= 2 * _SAMPLE:
        return None
    step = math.ceil(y.shape[0] / max(2, math.ceil(_SAMPLE * y.shape[0] / y.numel())))
    return y[::step].clone() if step > 1 else None


def row_parts(y: Tensor) -> Sequence[Tensor]:
    """The rows of y in parts of about `PART` values, as views."""
    return y.split(max(1, PART * len(y) // max(1, y.numel())))
