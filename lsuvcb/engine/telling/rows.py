"""From what the passes found to what the user reads: the rows of the report, the errors and warnings about layers."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from ..errors import NoLayersError, NotConvergedWarning
from ..keeping.undisturbed import Snapshot
from ..model.left_alone import NormBehind, Reason, Spread, add
from ..model.off_target import (
    Apart,
    MeanOutOfReach,
    OtherwiseAfterwards,
    StdOutOfReach,
    outside,
)
from ..model.weight import Weight
from ..model.weights import Weights
from ..passes.look import Look
from ..passes.measure import Measured, together
from ..passes.runner import Runner
from ..passes.solve import Aim, Solve
from ..seeing.eye import Eye, hidden_reason
from ..select import Selector, kind_of, module_paths
from ..solving.solution import Solution
from .report import LayerReport, LSUVReport
from .table import few, number
from .verdict import LayerSurvey

Uses = dict[Weight, list[Measured]]


class Row:
    """One weight's row, with what it was made of.

    Attributes:
        after: what was measured of each use at the end.
    """

    def __init__(
        self, report: LayerReport, weight: Weight, reason: Reason | None, tol: float, after: list[Measured]
    ) -> None:  # fmt: skip
        self.report, self.weight, self.reason, self.tol, self.after = report, weight, reason, tol, after

    def surveyed(self) -> list[LayerSurvey]:
        """Each use as a survey would have it now, without the backward half."""
        r = self.report
        normed, left = isinstance(self.reason, NormBehind), "" if r.worked else r.reason
        return [LayerSurvey(r.name, r.kind, u.std, u.mean, u.signal, u.balance, None, left, normed) for u in self.after]


def rows_of(eye: Solve, before: Uses, after: Uses) -> list[Row]:
    """One row for each weight at work and for each other weight of two or more dimensions, in execution order.

    Args:
        before, after: what was measured; empty where nothing was.
    """
    rows, tol = [], 0.0
    for weight in eye.trail.in_order():
        solution, uses = eye.solutions.of.get(weight), eye.trail.uses(weight)
        if solution is None and not uses and (weight.tensor.ndim < 2 or weight in eye.solutions.biases):
            continue
        report = LayerReport(weight.name, weight.kind, "left alone", uses=uses)
        if weight in before:
            found = together(before[weight])
            report.std_before, report.mean_before = found.std, found.mean
        if weight in after:
            found = together(after[weight])
            report.std_after, report.mean_after, report.signal_after = found.std, found.mean, found.signal
        if solution is not None:
            # the rounding of a layer in low precision reaches those behind it
            tol = max(tol, solution.tol / eye.aims.get(weight, Aim()).factor)
            reason = _work(report, solution, eye, after.get(weight, []), tol)
        else:
            reason = eye.reasons.get(weight) or hidden_reason(eye.trail.used_by(weight))
            report.status = "not converged" if isinstance(reason, Apart) else "left alone"
        report.reason = "" if reason is None else str(reason)
        rows.append(Row(report, weight, reason, tol, after.get(weight, [])))
    return rows


def _work(report: LayerReport, solution: Solution, eye: Solve, uses: list[Measured], tol: float) -> Reason | None:
    """Fill in what was done to a weight; returns what there is to say."""
    report.target = solution.target.std / eye.aims.get(solution.weight, Aim()).factor
    report.scale, report.shift, report.iterations = float(solution.scale), float(solution.shift), solution.iterations
    changed = report.scale != 1 or report.shift != 0 or solution.start is not None
    report.status = "scaled" if changed else "unchanged"
    reason = solution.reason
    if len(uses) > 1:
        low, high = min(use.std for use in uses), max(use.std for use in uses)
        reason = reason if number(low) == number(high) else add(reason, Spread(low, high, len(uses)))
    if solution.missed:
        report.status = "not converged"
        return reason
    mean = solution.target.mean if solution.moves and len(uses) < 2 else None
    for what, found, goal in (("std", report.std_after, report.target), ("mean", report.mean_after, mean)):
        if found is not None and goal is not None and not abs(found - goal) <= tol:
            report.status = "not converged"
            reason = OtherwiseAfterwards(what, outside(found, goal, tol))
    return reason


def with_ties(rows: list[Row]) -> tuple[list[LayerReport], dict[str, str]]:
    """The rows as the report has them: a tied weight's once more under each other name; and these names -> the first."""
    layers: list[LayerReport] = []
    ties: dict[str, str] = {}
    for row in rows:
        layers.append(row.report)
        for name in row.weight.names[1:]:
            ties[name] = row.weight.name
            reason = "; ".join(filter(None, (f"the weight of {row.weight.name!r}", row.report.reason)))
            layers.append(replace(row.report, name=name, reason=reason))
    return layers, ties


def surveyed(eye: Look) -> tuple[list[LayerSurvey], dict[str, str]]:
    """One row for each use of a selected weight, in execution order, under each of its names; the other names -> the first."""
    numbers = eye.read()
    rows: list[tuple[int, LayerSurvey]] = []
    ties: dict[str, str] = {}
    for weight in (w for w in eye.found if w.selected):
        ties.update((name, weight.name) for name in weight.names[1:])
        reason = eye.reasons.get(weight)
        for use, tap, gradient in zip(numbers[weight], eye.taps[weight], eye.gradients_of(weight), strict=True):
            row = LayerSurvey(weight.name, weight.kind, use.std, use.mean, use.signal, use.balance, gradient)
            row.left, row.normed = "" if reason is None else str(reason), isinstance(reason, NormBehind)
            rows += [(tap.number, replace(row, name=name)) for name in weight.names]
    layers = [row for _, row in sorted(rows, key=lambda row: row[0])]
    known = [row.gradient for row in layers if row.gradient]
    for row in layers:
        row.gradient = row.gradient / known[-1] if known and row.gradient is not None else None
    return layers, ties


def warn_if_missed(report: LSUVReport, rows: list[Row]) -> None:
    """NotConvergedWarning with the layers outside their target, their numbers, and what to do."""
    missed = [row for row in rows if row.report.status == "not converged"]
    if not missed:
        return
    tol = max(row.tol for row in missed) or report.tol
    worked = sum(row.report.worked for row in rows)
    which = "; ".join(f"{r.report.name!r} ({r.report.kind}) {r.report.reason}" for r in missed[:3])
    which += "; ..." if len(missed) > 3 else ""
    warnings.warn(
        f"{len(missed)} of {worked} layers {'is' if len(missed) == 1 else 'are'} outside {report.goals} +/- {tol:g}: "
        f"{which}. Each keeps its best scale.{_advice(missed)}",
        NotConvergedWarning,
        stacklevel=4,
    )


def _advice(missed: list[Row]) -> str:
    if any(isinstance(row.reason, MeanOutOfReach) for row in missed):
        return " Use `mean=None`, or an activation such as GeneralRelu(sub=0.4)."
    if any(isinstance(row.reason, StdOutOfReach) for row in missed):
        return ' Use a smaller `std`, or `measure="layer"`.'
    if any(isinstance(row.reason, OtherwiseAfterwards) for row in missed):
        return " Use a larger `tol`, or float64 for model and batch."
    return ""


def no_layers(run: Runner, snapshot: Snapshot, layers: Selector | None, left: dict[Weight, Reason]) -> NoLayersError:
    """The error for a selection that means no weight at work; names the modules that ran, and why their weights are left."""
    ran: dict[str, str] = {}

    def note(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            ran.setdefault(path, kind_of(module))

        return hook

    with contextlib.ExitStack() as hooks:
        for path, module in module_paths(run.model).items():
            if module._parameters or not any(True for _ in module.children()):
                hooks.callback(module.register_forward_pre_hook(note(path)).remove)
        run.watch(Eye(Weights(nn.Module())), snapshot)
    names = ", ".join(f"{path!r} ({kind})" for path, kind in list(ran.items())[:12]) or "none"
    what = "no weight at work was found" if layers is None else "`layers` selected no weight at work"
    by_reason: dict[str, list[str]] = {}
    for weight, reason in left.items():
        if weight.tensor.ndim > 1 and weight.selected:
            by_reason.setdefault(str(reason), []).append(repr(weight.name))
    if by_reason:
        shown = [f"{reason}: {few(names)}" for reason, names in list(by_reason.items())[:3]]
        what += f" (left alone, {'; '.join(shown + ['...'] * (len(by_reason) > 3))})"
    return NoLayersError(f"{what}; this model's modules that ran: {names}.")
