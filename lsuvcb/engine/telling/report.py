"""What happened: LSUVReport and its layers, Survey and its verdict; as text, as data, as a picture."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .table import table_html

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 100


def number(value: float | None) -> str:
    """Three digits that fit a column: 0.58, 12.3, 4.1e-05; a dash for what was not measured."""
    if value is None:
        return "-"
    if value == 0 or not math.isfinite(value) or 1e-3 <= abs(value) < 1e4:
        return f"{value:.3g}" if abs(value) < 1000 or not math.isfinite(value) else f"{value:.0f}"
    return f"{value:.1e}"


def shorten(path: str, width: int) -> str:
    """A dotted path in at most `width` characters: its first parts shrink to a letter and a number, its last ones stay.

    >>> shorten("encoder.layers.encoder_layer_10.mlp.0", 20)
    'e.l.e10.mlp.0'
    """
    parts = path.split(".")
    for i, part in enumerate(parts[:-1]):
        if len(".".join(parts)) <= width:
            break
        parts[i] = part if part.isdigit() else part[:1] + part[len(part.rstrip("0123456789")) :]
    short = ".".join(parts)
    return short if len(short) <= width else "…" + short[len(short) - width + 1 :]


def table(rows: Sequence[Sequence[str]], left: Iterable[int]) -> list[str]:
    """Rows as aligned columns, the first row the head; the columns in `left` flush left, the others right.

    The first column gives way where a line would be longer than WIDTH.
    """
    left = set(left)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    widths[0] = min(widths[0], WIDTH - sum(widths[1:]) - 2 * (len(widths) - 1))
    rows = [(shorten(row[0], widths[0]), *row[1:]) for row in rows]
    cells = (
        [c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        for row in rows
    )
    return ["  ".join(row).rstrip() for row in cells]


def wrapped(indent: str, text: str) -> list[str]:
    """`text` in lines of at most WIDTH characters, each begun with `indent`."""
    import textwrap

    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent)


@dataclass
class LayerReport:
    """One weight: what it was, what was done, what came of it.

    Attributes:
        name: dotted path of the module; with the tensor's name behind it where that is not `weight`.
        kind: the type of the module.
        status: "scaled", "unchanged" (within tol already), "not converged" or "left alone".
        reason: "" unless there is something to say; always given for "left alone".
        std_before, mean_before, std_after, mean_after: of its output, measured by survey passes; None without them,
            and where the weight gave no output of its own.
        scale, shift: W became scale * W, and the bias scale * b + shift (measure="layer") or b + shift (measure="activation").
        iterations: evaluations of the layer that the solution took.
        uses: how many ops of the pass used the weight.
    """

    name: str
    kind: str
    status: str
    reason: str = ""
    std_before: float | None = None
    mean_before: float | None = None
    std_after: float | None = None
    mean_after: float | None = None
    scale: float = 1.0
    shift: float = 0.0
    iterations: int = 0
    uses: int = 0


@dataclass
class LSUVReport:
    """What `lsuv_` found and did, layer by layer in execution order; what did not run comes last.

    Attributes:
        layers: one LayerReport for each weight at work, and for each other weight of two or more dimensions.
        input_std, input_mean: of the batch's first floating tensor; None if it has none.
        passes: how often the model ran.
        seconds: wall time of the whole call.
        std, mean, tol: the target, and the allowed error (see `lsuv_`).
    """

    layers: list[LayerReport]
    input_std: float | None
    input_mean: float | None
    passes: int
    seconds: float
    std: float = 1.0
    mean: float | None = None
    tol: float = 1e-3

    @property
    def converged(self) -> bool:
        """No layer missed its target. Layers left alone do not count."""
        return all(layer.status != "not converged" for layer in self.layers)

    @property
    def worst_error(self) -> float | None:
        """The largest |std - target| among the layers at their target, as measured afterwards; None without a measurement."""
        errors = [
            abs(r.std_after - self.std) for r in self.layers if r.status != "left alone" and r.std_after is not None
        ]
        return max(errors, default=None)

    def summary(self) -> str:
        """One line: how many layers are at their target, the worst error, how many were left alone, the cost."""
        count = Counter(layer.status for layer in self.layers)
        done, missed = count["scaled"] + count["unchanged"], count["not converged"]
        goal = f"std {number(self.std)}" + (f", mean {number(self.mean)}" if self.mean is not None else "")
        already = f" ({count['unchanged']} already)" if count["unchanged"] and not missed else ""
        parts = [f"{done} of {done + missed} layers at {goal}{already}"]
        if missed:
            parts.append(f"{missed} not converged")
        elif self.worst_error is not None:
            parts.append(f"worst error {self.worst_error:.1e}")
        if count["left alone"]:
            parts.append(f"{count['left alone']} left alone")
        seconds = f"{self.seconds:.2f}" if self.seconds < 10 else f"{self.seconds:.0f}"
        parts.append(f"{self.passes} pass{'es' * (self.passes > 1)}, {seconds} s")
        return "LSUV: " + "; ".join(parts)

    @property
    def _worked(self) -> list[LayerReport]:
        return [r for r in self.layers if r.status != "left alone"]

    def _notes(self) -> list[str]:
        """What there is to say of layers at work, then why others were left alone, each reason once."""
        said = [f"* {reason}: {_few(names)}" for reason, names in _by_reason(r for r in self._worked if r.reason)]
        left = _by_reason(r for r in self.layers if r.status == "left alone")
        return said + [f"{len(names)} left alone, {reason}: {_few(names)}" for reason, names in left]

    def __str__(self) -> str:
        lines = [self.summary()]
        if self._worked:
            lines += table([_HEAD, *map(_cells, self._worked)], _FLUSH_LEFT)
        for note in self._notes():
            lines += wrapped("  ", note)
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return table_html(self.summary(), _HEAD, list(map(_cells, self._worked)), _FLUSH_LEFT, self._notes())

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values that json.dumps takes."""
        return {**asdict(self), "converged": self.converged, "worst_error": self.worst_error}

    def plot(self, ax: Axes | None = None) -> Axes:
        """Std of each layer's output by depth, before and after, on a log scale. Needs the measurements of verify=True."""
        from ...plot import plot_stds

        shown = [
            r for r in self.layers if r.status != "left alone" and r.std_before is not None and r.std_after is not None
        ]
        if not shown:
            raise ValueError("this report holds no measurements to plot; call `lsuv_` with verify=True.")
        names, before, after = zip(*((r.name, r.std_before, r.std_after) for r in shown), strict=True)
        return plot_stds(names, before, after, ax=ax)


_HEAD = ("layer", "kind", "std", "mean", "->", "std", "mean", "scale", "status")
_SURVEY_HEAD = ("layer", "kind", "std", "mean", "signal")
_FLUSH_LEFT = (0, 1, 8)


def _cells(r: LayerReport) -> tuple[str, ...]:
    before, after = (r.std_before, r.mean_before), (r.std_after, r.mean_after)
    status = r.status + (f", {r.uses} uses" if r.uses > 1 else "") + (" *" if r.reason else "")
    return (r.name, r.kind[:16], *map(number, before), "->", *map(number, after), number(r.scale), status)


def _by_reason(layers: Iterable[LayerReport]) -> Iterable[tuple[str, list[str]]]:
    groups: dict[str, list[str]] = {}
    for layer in layers:
        groups.setdefault(layer.reason, []).append(layer.name)
    return groups.items()


def _few(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


@dataclass
class LayerSurvey:
    """One layer's output on one batch.

    Attributes:
        std, mean: over all its values; the population's.
        signal: how much of std tells one sample from another: each feature's std over the samples, as their root mean
            square. The rest is what the features differ by, biases above all. None where there is one sample.
    """

    name: str
    kind: str
    std: float
    mean: float
    signal: float | None = None


@dataclass
class Survey:
    """The signal by depth, before anyone changed a weight.

    Attributes:
        layers: in execution order, a layer that runs several times by its first run.
        input_std, input_mean: of the batch's first floating tensor; None if it has none.
        unseen: how many matrices no linear op uses as they are: look-up tables, standardised weights, recurrent ops.
    """

    layers: list[LayerSurvey]
    input_std: float | None
    input_mean: float | None
    unseen: int = 0

    @property
    def verdict(self) -> str:
        """One sentence. The rule compares the median std of the last third of the layers with that of the first third:

        below 1/3 of it the signal is vanishing, above 3 times it, and 1 or more, exploding. Biases can hold up the std of
        outputs that no longer depend on the input: where signal / std, compared in the same way, falls below 1/30, the
        signal is vanishing too. Otherwise it is near unit variance if every std lies in [1/2, 2], and steady if not. A
        std that is no number is named first; constant outputs (a branch that starts at zero) are counted and take no part.
        Where more weights are unseen than seen, the sentence says so.
        """
        seen, total = len(self.layers), len(self.layers) + self.unseen
        caveat = f" (sees {seen} of {total} weights; `lsuv_` names the others and why)" if self.unseen > seen else ""
        return self._by_rule() + caveat

    def _by_rule(self) -> str:
        for layer in self.layers:
            if not math.isfinite(layer.std):
                return f"not finite from {layer.name!r} on: exploding; lsuv_ would help"
        varied = [layer for layer in self.layers if layer.std > 0]
        stds = [layer.std for layer in varied]
        if not stds:
            return "every output is constant: no scale gives it a spread; look at the inputs and the first layer"
        constant = f", {len(self.layers) - len(stds)} more constant" if len(stds) < len(self.layers) else ""
        count = ("1 layer" if len(stds) == 1 else f"{len(stds)} layers") + constant
        first, last = _ends(stds)
        if last < first / 3:
            return f"std falls {_change(stds)} over {count}: vanishing; lsuv_ would help"
        if last > first * 3 and last >= 1:
            return f"std grows {_change(stds)} over {count}: exploding; lsuv_ would help"
        low, high = min(stds), max(stds)
        span = f"std between {number(low)} and {number(high)} over {count}"
        known = [(layer.signal, layer.signal / layer.std) for layer in varied if layer.signal is not None]
        if known:
            signals, shares = zip(*known, strict=True)
            most, least = _ends(shares)
            if least < most / 30:
                return (
                    f"{span}, but what of it tells samples apart falls {_change(signals)}: vanishing; lsuv_ would help"
                )
        if low >= 0.5 and high <= 2:
            return f"{span}: near unit variance; little to gain from lsuv_"
        return f"{span}: steady, but not unit variance; lsuv_ sets it to 1"

    def _rows(self) -> list[tuple[str, ...]]:
        return [(r.name, r.kind[:20], *map(number, (r.std, r.mean, r.signal))) for r in self.layers]

    def __str__(self) -> str:
        return "\n".join([*wrapped("", f"Survey: {self.verdict}"), *table([_SURVEY_HEAD, *self._rows()], left=(0, 1))])

    def _repr_html_(self) -> str:
        return table_html(f"Survey: {self.verdict}", _SURVEY_HEAD, self._rows(), left=(0, 1))

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values that json.dumps takes."""
        return {**asdict(self), "verdict": self.verdict}

    def plot(self, ax: Axes | None = None) -> Axes:
        """Std of each layer's output by depth, and what of it tells samples apart, on a log scale."""
        from ...plot import plot_stds

        names, stds, signals = zip(*((r.name, r.std, r.signal) for r in self.layers), strict=True)
        known = [math.nan if signal is None else signal for signal in signals]
        return plot_stds(names, stds, signal=None if all(map(math.isnan, known)) else known, ax=ax)


def _change(values: Sequence[float]) -> str:
    """From the first to the last layer where these show what the medians of the thirds do, else from median to median."""
    first, last = _ends(values)
    if (last < first) == (values[-1] < values[0]) and not 1 / 3 <= values[-1] / (values[0] or 1) <= 3:
        return f"from {number(values[0])} to {number(values[-1])}"
    return f"from {number(first)} to {number(last)} (medians of the first and the last third)"


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """The medians of the first and of the last third."""
    third = max(1, len(values) // 3)
    first, last = (sorted(part)[third // 2] for part in (values[:third], values[-third:]))
    return first, last
