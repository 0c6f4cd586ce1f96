"""What happened: LSUVReport and its layers; as text, as data, as a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import LSUVError
from .table import few, number, table, table_html, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass
class LayerReport:
    """One weight: what it was, what was done, what came of it.

    Attributes:
        name: dotted path of the module; with the tensor's name behind it where that is not `weight`.
        kind: the type of the module.
        status: "scaled", "unchanged" (within tol already), "not converged" or "left alone".
        reason: "" unless there is something to say; always given for "left alone".
        target: the std that its output was brought to; None where it was left alone.
        std_before, mean_before, std_after, mean_after: of its output, over all its uses, measured by passes of their own; None
            without them, and where the weight gave no output of its own.
        signal_after: how much of std_after tells one sample from another; see LayerSurvey. None for a batch of one.
        scale, shift: W became scale * W, and the bias scale * b + shift (measure="layer") or b + shift (measure="activation").
        iterations: evaluations of the layer that the solution took.
        uses: how many ops of the pass used the weight.
    """

    name: str
    kind: str
    status: str
    reason: str = ""
    target: float | None = None
    std_before: float | None = None
    mean_before: float | None = None
    std_after: float | None = None
    mean_after: float | None = None
    signal_after: float | None = None
    scale: float = 1.0
    shift: float = 0.0
    iterations: int = 0
    uses: int = 0

    @property
    def worked(self) -> bool:
        return self.status != "left alone"


@dataclass(repr=False)
class LSUVReport:
    """What `lsuv_` found and did, layer by layer in execution order; what did not run comes last.

    Attributes:
        layers: one LayerReport for each weight at work, and for each other weight of two or more dimensions; a tied weight has
            one under each of its names.
        input_std, input_mean: of what the first layer reads of the batch; None where it reads none of it as it is.
        passes: how often the model ran.
        seconds: wall time of the whole call.
        std, mean, tol: the target, and the allowed error (see `lsuv_`).
        recipe: its name.
        ties: the second and further names of tied weights -> the first.
        outlook: what stands in the way of training although the scale is right; "" where nothing does.
    """

    layers: list[LayerReport]
    input_std: float | None
    input_mean: float | None
    passes: int
    seconds: float
    std: Any = 1.0
    mean: float | None = None
    tol: float = 1e-3
    recipe: str = ""
    ties: dict[str, str] = field(default_factory=dict)
    outlook: str = ""

    @property
    def converged(self) -> bool:
        """No layer missed its target. Layers left alone do not count."""
        return all(layer.status != "not converged" for layer in self.layers)

    @property
    def worst_error(self) -> float | None:
        """The largest |std - target| among the layers at their target, as measured afterwards; None without a measurement."""
        errors = [abs(r.std_after - self._goal(r)) for r in self.layers if r.worked and r.std_after is not None]
        return max(errors, default=None)

    def assert_healthy(self) -> None:
        """For a user's own checks: raise where a layer missed its target, or the net will not train although none did.

        Raises:
            LSUVError: with the report's first line and its outlook.
        """
        if not self.converged or self.outlook:
            raise LSUVError(" ".join(filter(None, (self.summary() + ".", self.outlook))))

    def _goal(self, layer: LayerReport) -> float:
        return layer.target if layer.target is not None else self.std if isinstance(self.std, (int, float)) else 1.0

    @property
    def _distinct(self) -> list[LayerReport]:
        return [layer for layer in self.layers if layer.name not in self.ties]

    def summary(self) -> str:
        """One line: how many layers are at their target, the worst error, how many were left alone, the cost."""
        count = Counter(layer.status for layer in self._distinct)
        done, missed, left = count["scaled"] + count["unchanged"], count["not converged"], count["left alone"]
        if not done + missed:
            reasons = _by_reason(self._distinct)
            first = f", {reasons[0][0]}" if len(reasons) == 1 else ""
            return f"LSUV: no layer to scale; {left} left alone{first}; {self._cost()}"
        already = f" ({count['unchanged']} already)" if count["unchanged"] and not missed else ""
        parts = [f"{done} of {done + missed} layers at {self.goals}{already}"]
        if missed:
            parts.append(f"{missed} not converged")
        elif self.worst_error is not None:
            parts.append(f"worst error {self.worst_error:.1e}")
        if left:
            parts.append(f"{left} left alone")
        return "LSUV: " + "; ".join([*parts, self._cost()])

    @property
    def goals(self) -> str:
        """What the layers were brought to, in words."""
        goals = sorted({self._goal(r) for r in self.layers if r.worked})
        span = number(goals[0]) if len(goals) == 1 else f"{number(goals[0])} to {number(goals[-1])}"
        return f"std {span}" + (f", mean {number(self.mean)}" if self.mean is not None else "")

    def _cost(self) -> str:
        seconds = f"{self.seconds:.2f}" if self.seconds < 10 else f"{self.seconds:.0f}"
        recipe = f" ({self.recipe})" if self.recipe else ""
        return f"{self.passes} pass{'es' * (self.passes > 1)}, {seconds} s{recipe}"

    @property
    def _worked(self) -> list[LayerReport]:
        return [r for r in self.layers if r.worked]

    def _notes(self) -> list[str]:
        """What there is to say of layers at work, then why others were left alone, each reason once; then the outlook."""
        said = [f"* {reason}: {few(names)}" for reason, names in _by_reason(r for r in self._worked if r.reason)]
        left = _by_reason(r for r in self.layers if not r.worked)
        said += [f"{len(names)} left alone, {reason}: {few(names)}" for reason, names in left]
        return said + ([self.outlook] if self.outlook else [])

    def __str__(self) -> str:
        lines = [self.summary()]
        if self._worked:
            lines += table([_HEAD, *map(self._cells, self._worked)], _FLUSH_LEFT)
        for note in self._notes():
            lines += wrapped("  ", note)
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return table_html(self.summary(), _HEAD, list(map(self._cells, self._worked)), _FLUSH_LEFT, self._notes())

    def _cells(self, r: LayerReport) -> tuple[str, ...]:
        before, after = (r.std_before, r.mean_before), (r.std_after, r.mean_after)
        status = r.status + (f", {r.uses} uses" if r.uses > 1 else "") + (" *" if r.reason else "")
        return (r.name, r.kind[:16], *map(number, before), "->", *map(number, after), number(r.scale), status)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values that json.dumps takes."""
        std = {str(k): v for k, v in self.std.items()} if isinstance(self.std, Mapping) else self.std
        plain = {**vars(self), "layers": [asdict(layer) for layer in self.layers], "std": std}
        return {**plain, "converged": self.converged, "worst_error": self.worst_error}

    def to_log(self) -> dict[str, float]:
        """What was counted and measured, flat, as loggers take it: "lsuv/passes", "lsuv/std_after/body.3"; a tied weight once."""
        count, rows = Counter(row.status for row in self._distinct), self._distinct
        figures = {
            "layers_at_target": count["scaled"] + count["unchanged"],
            "layers_not_converged": count["not converged"],
            "layers_left_alone": count["left alone"],
            "worst_error": self.worst_error,
            "passes": self.passes,
            "seconds": self.seconds,
            **{f"std_before/{row.name}": row.std_before for row in rows},
            **{f"std_after/{row.name}": row.std_after for row in rows},
        }
        return {f"lsuv/{name}": float(value) for name, value in figures.items() if value is not None}

    def plot(self, ax: Axes | None = None) -> Axes:
        """Std of each layer's output by depth, before and after, on a log scale. Needs the measurements of verify=True."""
        from ...plot import plot_stds

        shown = [r for r in self._worked if r.std_before is not None and r.std_after is not None]
        if not shown:
            raise ValueError("this report holds no measurements to plot; call `lsuv_` with verify=True.")
        names, before, after = zip(*((r.name, r.std_before, r.std_after) for r in shown), strict=True)
        return plot_stds(names, before, after, ax=ax)


_HEAD = ("layer", "kind", "std", "mean", "->", "std", "mean", "scale", "status")
_FLUSH_LEFT = (0, 1, 8)


def _by_reason(layers: Iterable[LayerReport]) -> list[tuple[str, list[str]]]:
    groups: dict[str, list[str]] = {}
    for layer in layers:
        groups.setdefault(layer.reason, []).append(layer.name)
    return list(groups.items())
