"""What is not linear in its weight, a layer behind its activation or a block, is solved alone, never on the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..keeping.undisturbed import RNGState
from ..measuring.moments import Moments, Pool, moments, moments_of
from ..model.blocks import Block, output_tensor
from ..seeing.follow import Elementwise, has_rows
from .newton import Newton, Solved, Target, Try, out_of_reach, reach

_SAMPLE = 1 << 15  # values that a Newton step looks at before the whole output is
_PART = 1 << 22  # values that a step on the whole output makes a copy of at a time
_MARGIN = 0.4  # in stds: how near to the end of its activation's range a mean is brought, where the target lies outside


@dataclass(frozen=True)
class Layer:
    """An output y = W x + b, and what comes of it: f(s y + (1 - s) b + t), the output for weight s W and bias b + t.

    Attributes:
        y: the output; corrected in place by the solution.
        bias: b in a shape that broadcasts over y; None where it is zero.
        activation: f, which may overwrite its argument.
        found: moments of y.
        has_bias: the bias may move.
    """

    y: Tensor
    bias: Tensor | None
    activation: Elementwise
    found: Moments
    has_bias: bool

    def moved(self, y: Tensor, scale: float, shift: float, *, with_mean: bool) -> Tensor:
        """A new tensor: y for weight s W and bias b + t; s b where the mean is left alone."""
        if with_mean and self.bias is not None:
            return torch.add((1 - scale) * self.bias + shift, y, alpha=scale)
        return y * scale + shift if shift else y * scale


class Behind(NamedTuple):
    """The solution: W <- scale * W, and b <- b + shift, or scale * b where the mean is left alone."""

    scale: float
    shift: float
    iterations: int
    reason: str
    missed: bool


def solve_behind(layer: Layer, target: Target, tol: float, pool: Pool | None = None) -> Behind | None:
    """Bring f(y) to the target by a scale and a shift, and correct `layer.y` in place.

    Returns:
        None, and y untouched, where f(y) is constant and no shift can change that.
    """
    moves = layer.has_bias and target.mean is not None
    with_mean = target.mean is not None
    bias_has_rows = layer.bias is not None and layer.bias.ndim >= layer.y.ndim  # W x + b, with features first
    by_rows = layer.activation.takes_rows and not bias_has_rows
    few, parts = (sample_rows(layer.y), row_parts(layer.y)) if by_rows else (None, [layer.y])

    def evaluator(parts: Sequence[Tensor]) -> Callable[[float, float], Try]:
        def evaluate(scale: float, shift: float) -> Try:
            moved = (layer.moved(y, scale, shift, with_mean=with_mean) for y in parts)
            found = moments_of(map(layer.activation, moved), pool)
            return Try(scale, shift, float(found.std), float(found.mean))

        return evaluate

    whole = evaluator(parts)
    sample = evaluator([few]) if few is not None else whole
    guess = _normalised(layer, target, with_mean)
    if not any(sample(*at).std > 0 for at in ((1.0, 0.0), guess)):
        return None
    limits = reach(layer.activation, layer.y if few is None else few)
    why = out_of_reach(*limits, target, moves)
    if not why:
        solved = Newton(target, tol, moves, layer.y.dtype).solve(whole, sample, guess)
    else:
        solved = _nearest(Newton(target, tol, moves, layer.y.dtype), limits, whole, sample, guess)
    best = solved.best
    if (best.scale, best.shift) != (1.0, 0.0):
        for y in [layer.y] if layer.y.requires_grad else parts:  # autograd takes no change of a part
            y.copy_(layer.moved(y, best.scale, best.shift, with_mean=with_mean))
    reason = ""
    if not solved.converged:
        reason = missed(best, solved.iterations) + (f": {why}" if why else "")
    return Behind(best.scale, best.shift, solved.iterations, reason, not solved.converged)


def solve_block(
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
            found = moments(output_tensor(output), pool)
            return Try(scale, shift, float(found.std), float(found.mean))

        return evaluate

    whole = evaluator(args)
    alone = len(args) == 1 and isinstance(args[0], Tensor) and not kwargs and not list(block.module.buffers())
    few = sample_rows(args[0]) if alone and has_rows(args[0], start) else None
    first = whole(1.0, 0.0)
    guess = (target.std / first.std if first.std > 0 else 1.0, 0.0)
    return Newton(target, tol, moves, start.dtype).solve(whole, whole if few is None else evaluator((few,)), guess)


def missed(best: Try, evaluations: int) -> str:
    """For the report: where the best try ended."""
    return f"std {best.std:.3g}, mean {best.mean:.3g} after {evaluations} evaluations"


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


def _normalised(layer: Layer, target: Target, with_mean: bool) -> tuple[float, float]:
    """The guess that knows nothing of f: s y + (1 - s) b + t of the target's std and of mean zero."""
    scale = target.std / float(layer.found.std)
    if not with_mean or not layer.has_bias:
        return scale, 0.0
    kept = (1 - scale) * float(layer.bias.double().mean()) if layer.bias is not None else 0.0
    return scale, -(scale * float(layer.found.mean) + kept)


def sample_rows(y: Tensor) -> Tensor | None:
    """Some rows of y, evenly spread over the batch; None where y is small enough to take whole."""
    if y.numel() <= 2 * _SAMPLE:
        return None
    step = math.ceil(y.shape[0] / max(2, math.ceil(_SAMPLE * y.shape[0] / y.numel())))
    return y[::step].clone() if step > 1 else None


def row_parts(y: Tensor) -> Sequence[Tensor]:
    """The rows of y in parts of about `_PART` values, as views."""
    return y.split(max(1, _PART * len(y) // max(1, y.numel())))
