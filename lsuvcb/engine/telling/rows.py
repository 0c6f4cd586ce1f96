"""From what the passes found to what the user reads: the rows of the report, the errors and warnings about layers."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

from torch import nn

from ..errors import NoLayersError, NotConvergedWarning
from ..model.weights import Weight, Weights
from ..passes.runner import Runner
from ..passes.solve import Scale, Values
from ..seeing.eye import Eye, hidden_reason
from ..select import Selector, module_paths
from .report import LayerReport, LSUVReport, number

Measured = dict[str, tuple[float, float]]


def layer_reports(eye: Scale, values: dict[str, Values], before: Measured, after: Measured) -> list[LayerReport]:
    """One row for each weight at work and for each other weight of two or more dimensions, in execution order."""
    rows, tol = [], 0.0
    for weight in eye.weights.in_order():
        name, solution = weight.name, eye.solutions.get(weight)
        if solution is None and not weight.uses and (weight.tensor.ndim < 2 or weight in eye.biases):
            continue
        std_before, mean_before = before.get(name, (None, None))
        std_after, mean_after = after.get(name, (None, None))
        row = LayerReport(name, weight.kind, "", "", std_before, mean_before, std_after, mean_after, uses=weight.uses)
        if solution is not None:
            row.scale, row.shift, row.iterations = values[name].scale, values[name].shift, solution.iterations
            changed = row.scale != 1 or row.shift != 0 or solution.start is not None
            row.status = "scaled" if changed else "unchanged"
            row.reason = solution.reason
            if solution.missed:
                row.status = "not converged"
            else:
                if eye.target.mean is not None and not solution.has_bias:
                    row.reason = "; ".join(filter(None, (row.reason, "no bias: mean not moved")))
                tol = max(tol, solution.tol)  # the rounding of a layer in low precision reaches those behind it
                _hold_to_target(row, eye, tol, solution.has_bias)
        else:
            row.status, row.reason = "left alone", weight.reason or hidden_reason(weight)
        rows.append(row)
    return rows


def _hold_to_target(row: LayerReport, eye: Scale, tol: float, has_bias: bool) -> None:
    """A layer that the last pass measured off its target is no success, whatever the solution promised."""
    target = eye.target
    for what, found, goal in (("std", row.std_after, target.std), ("mean", row.mean_after, target.mean)):
        if found is None or goal is None or (what == "mean" and not has_bias):
            continue
        if not abs(found - goal) <= tol:
            row.status = "not converged"
            row.reason = (
                f"measured {what} {number(found)} afterwards, not as in the pass: is this forward the same each time?"
            )


def warn_if_missed(report: LSUVReport, eye: Scale) -> None:
    """NotConvergedWarning with the layers outside their target, their numbers, and what to do."""
    missed = [r for r in report.layers if r.status == "not converged"]
    if not missed:
        return
    tol = max([s.tol for s in eye.solutions.values() if s.weight.name in {r.name for r in missed}])
    worked = sum(r.status != "left alone" for r in report.layers)
    goal = f"std {report.std:g}" + (f", mean {report.mean:g}" if report.mean is not None else "")
    which = "; ".join(f"{r.name!r} ({r.kind}) {r.reason}" for r in missed[:3]) + ("; ..." if len(missed) > 3 else "")
    advice = ""
    if any("has no mean of" in r.reason for r in missed):
        advice = " Use `mean=None`, or an activation such as GeneralRelu(sub=0.4)."
    elif any("has no std of" in r.reason for r in missed):
        advice = ' Use a smaller `std`, or `measure="layer"`.'
    warnings.warn(
        f"{len(missed)} of {worked} layers {'is' if len(missed) == 1 else 'are'} outside {goal} +/- {tol:g}: "
        f"{which}. Each keeps its best scale.{advice}",
        NotConvergedWarning,
        stacklevel=3,
    )


def no_layers(run: Runner, layers: Selector | None, left: list[Weight]) -> NoLayersError:
    """The error for a selection that means no weight at work; names the modules that ran."""
    ran: dict[str, str] = {}

    def note(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            ran.setdefault(path, type(module).__name__)

        return hook

    with contextlib.ExitStack() as hooks:
        for path, module in module_paths(run.model).items():
            if not any(True for _ in module.children()):
                hooks.callback(module.register_forward_pre_hook(note(path)).remove)
        run.watch(Eye(Weights(nn.Module())))
    names = ", ".join(f"{path!r} ({kind})" for path, kind in list(ran.items())[:12]) or "none"
    what = "no weight at work was found" if layers is None else "`layers` selected no weight at work"
    seen = [w for w in left if w.reason and w.tensor.ndim > 1 and not w.unselected]
    if seen:
        what += " (left alone: " + ", ".join(f"{w.name!r}, {w.reason}" for w in seen[:3]) + ")"
    return NoLayersError(
        f"{what}; this model's modules that ran: {names}. See `survey(model, batch)` for the layers that LSUV can scale."
    )
