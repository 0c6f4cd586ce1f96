"""The survey and its verdict: the signal by depth, before anyone changed a weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .table import number, table, table_html, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_HEAD = ("layer", "kind", "std", "mean", "signal")


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
    balance: float | None = None
    gradient: float | None = None


@dataclass(repr=False)
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
        return "\n".join([*wrapped("", f"Survey: {self.verdict}"), *table([_HEAD, *self._rows()], left=(0, 1))])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return table_html(f"Survey: {self.verdict}", _HEAD, self._rows(), left=(0, 1))

    def to_dict(self) -> dict[str, Any]:
        """The survey as plain values that json.dumps takes."""
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
