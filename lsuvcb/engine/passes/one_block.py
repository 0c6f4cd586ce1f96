"""One block, a selected module with a weight and a bias of its own making: solved by running it alone."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from torch import Tensor

from ..errors import LSUVError
from ..measuring.moments import Moments
from ..model.blocks import Block, output_tensor
from ..model.left_alone import Constant, Reason
from ..model.weight import Weight
from ..seeing.behind import Behind
from ..solving.nonlinear import bring_block, missed
from ..solving.solution import Solution
from .plan import Goals


class BlockSolution(NamedTuple):
    """What a block's weight becomes, and the bias that it is given."""

    solution: Solution
    bias: Any


def solve_block(
    block: Block, weight: Weight, args: Any, kwargs: Any, result: Any, drawn: Tensor | None, goals: Goals
) -> BlockSolution | Reason:
    """The solution of a block; or why there is none.

    Args:
        result: what it gave as it is.
        drawn: takes the place of its weight, and 0 that of its bias; None keeps both.

    Raises:
        LSUVError: its output is not finite, whatever the scale.
    """
    start, bias = (weight.home.values(), block.bias) if drawn is None else (drawn, block.bias * 0)
    target, _ = goals.target(weight, Behind(""))
    tol = target.tolerance(weight.tensor.dtype, output_tensor(result).dtype)
    solved = bring_block(block, args, kwargs, start, bias, target, tol, weight.pool(goals.plan.group))
    best = solved.best
    if not math.isfinite(best.std + best.mean):
        raise LSUVError(f"layer {weight} gave non-finite output on this batch, whatever its scale.")
    if not best.std > 0:
        return Constant()
    reason = None if solved.converged else missed(best, solved.iterations, target, tol)
    found = Moments(best.mean, best.std, 0.0, 0)
    solution = Solution(
        weight, target, tol, found, best.scale, best.shift, drawn, rule="moved", iterations=solved.iterations, reason=reason,
        missed=not solved.converged, moves=True, behind=found,
    )  # fmt: skip
    return BlockSolution(solution, bias + best.shift if best.shift or drawn is not None else bias)
