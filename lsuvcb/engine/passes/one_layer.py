"""One layer, when its output is about to be read: measured where the plan says, and solved."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from ..measuring.moments import Moments, moments
from ..measuring.pool import pooled
from ..model.left_alone import (
    BiasInKernel,
    BiasIsMultiplied,
    BiasKept,
    Constant,
    ConstantBehindActivation,
    Empty,
    FactorBehind,
    Kernel,
    MeasuredAtLayer,
    NoBias,
    NoLevelStd,
    Reason,
    SumBehind,
    Unfed,
    add,
)  # fmt: skip
from ..model.weight import Weight
from ..seeing import ops
from ..seeing.behind import Behind
from ..seeing.output import CONSTANT, Output
from ..solving.newton import closed_form
from ..solving.nonlinear import Layer, solve_behind
from ..solving.solution import BiasRule, Solution
from .counted import Counted
from .nonfinite import non_finite
from .obstacles import is_unfed, keeps_bias, silent_if_unfed
from .plan import Goals


class Site(NamedTuple):
    """Where a layer is measured, and from what it starts.

    Attributes:
        output, read, behind: see Follow.settle.
        start: its draw; None for the weight that it has.
        said: what there is to say of the draw.
    """

    output: Output
    read: Tensor
    behind: Behind
    start: Tensor | None
    said: Reason | None


def solve_layer(site: Site, goals: Goals, counted: Counted, factor: float, before: Weight | None) -> Solution | Reason:
    """The solution of a layer, whose output is not touched; or why there is none.

    Args:
        factor: of the target.
        before: the layer that was solved last, for messages.

    Raises:
        LSUVError: its output is not finite, where that can be told without waiting for a device.
    """
    output, behind, plan = site.output, site.behind, goals.plan
    use, y, weight = output.use, output.y, output.use.weight
    pool, kept = weight.pool(plan.group), keeps_bias(use, mean_moves=plan.moves_mean)
    if kept and site.start is None and _is_there_already(site, goals, counted, factor):
        kept = False
    target, choice = goals.target(weight, behind)
    if factor != 1:
        target = replace(target, std=target.std * factor)
    activation = behind.activation if plan.measure == "activation" else None
    values = _measured(output, site.read, behind, without_bias=kept)
    values = counted.select(weight.name, values) if activation is None else values
    found = silent_if_unfed(use, pooled(moments(values), values.device, pool))
    if isinstance(found.std, float) and not math.isfinite(found.std):
        raise non_finite(use, y, before, pooled=plan.group is not None)
    added = site.start is None and not kept
    if not output.kernel and is_unfed(use, found, added, pool):
        return Unfed()
    if site.start is None:
        use.free()  # it is not run again
    waits = site.start is not None or activation is not None or not found.count
    if waits and bool(found.constant):
        return Constant() if found.count else Empty()
    bias = use.bias if use.bias is not None and use.bias.tensor.requires_grad else None
    stuck = _why_mean_stays(output, activation)
    moves = bias is not None and not kept and stuck is None
    rule: BiasRule = "kept" if kept else "moved" if activation is not None and target.mean is not None else "scaled"
    has_bias = use.bias is not None and not use.bias.zero
    stays = has_bias and (kept or (rule == "moved" and site.start is None))
    solution = Solution(
        weight, target, target.tolerance(weight.tensor.dtype, y.dtype), found, start=site.start,
        bias=bias, rule=rule, stays=stays, moves=moves,
    )  # fmt: skip
    solution.reason = _what_to_say(site, goals, kept, None if moves else stuck or NoBias())
    if choice is not None and choice.fails:
        solution.reason = add(solution.reason, NoLevelStd(choice.fails, choice.std))
    if activation is None:
        solution.scale, solution.shift = closed_form(
            found, target, solution.tol, has_bias=moves, keep_close=site.start is None
        )
        return solution
    staying = use.spread_bias() if solution.stays else None
    layer = Layer(y, staying, activation, found, moves, None if counted.all else partial(counted.select, weight.name))
    return solution if solve_behind(layer, solution, pool) else ConstantBehindActivation()


def moments_of_use(output: Output, read: Tensor, behind: Behind, goals: Goals, counted: Counted) -> Moments:
    """Moments of a later use of a solved weight, of what its first use was solved by."""
    weight, activation, plan = output.use.weight, behind.activation, goals.plan
    if activation is not None and plan.measure == "activation":
        values = activation(output.y.clone())
    else:
        values = _measured(output, read, behind, without_bias=keeps_bias(output.use, mean_moves=plan.moves_mean))
    values = counted.select(weight.name, values)
    return pooled(moments(values), values.device, weight.pool(plan.group))


def _is_there_already(site: Site, goals: Goals, counted: Counted, factor: float) -> bool:
    """Is the output, with its bias, at its target? So an earlier call left it, which took the bias for any other."""
    weight, y, activation = site.output.use.weight, site.output.y, site.behind.activation
    target, _ = goals.target(weight, site.behind)
    if activation is not None and goals.plan.measure == "activation":
        values = activation(y.clone())
    else:
        values = _measured(site.output, site.read, site.behind)
    values = counted.select(weight.name, values)
    found = pooled(moments(values), values.device, weight.pool(goals.plan.group))
    error: Any = found.std - target.std * factor
    return bool(abs(error) <= target.tolerance(weight.tensor.dtype, y.dtype))


def _measured(output: Output, read: Tensor, behind: Behind, *, without_bias: bool = False) -> Tensor:
    """The values whose std is brought to the target, where that is no activation's."""
    image = output.measured(read, by_activation=behind.activation is not None)
    return output.without(output.use.spread_bias(), image) if without_bias else image.tensor


def _why_mean_stays(output: Output, activation: Any) -> Reason | None:
    """Why a bias does not move the mean of what is measured; None where it does, if there is one."""
    source = output.use.bias_source
    if source is not None and source.scaled:
        return BiasIsMultiplied()
    return BiasInKernel() if source is not None and output.kernel and activation is None else None


def _what_to_say(site: Site, goals: Goals, kept: bool, mean_stays: Reason | None) -> Reason | None:
    output, behind, plan = site.output, site.behind, goals.plan
    said = site.said
    if plan.measure == "activation" and behind.activation is None:
        said = add(said, MeasuredAtLayer(behind.why))
    if output.kernel:
        said = add(said, Kernel(output.kernel))
    if what := _factor_unknown(output, site.read, behind):
        said = add(said, FactorBehind(what))
    if behind.op == "sum":
        said = add(said, SumBehind(behind.op))
    if kept:
        said = add(said, BiasKept())
    elif plan.mean is not None:
        said = add(said, mean_stays)
    return said


def _factor_unknown(output: Output, read: Tensor, behind: Behind) -> str:
    """What multiplies the output between where it is measured and what reads it; "" where nothing does."""
    image = output.image(read)
    if image is output.measured(read, by_activation=behind.activation is not None) and not behind.factor:
        return ""
    what = behind.factor or (image.factor if image is not None else "")
    return "" if what == CONSTANT or behind.branch or behind.op in ops.LINEAR else what
