"""Will it train? What signal and gradient by depth tell of it before any training, and what would help.

The bounds are round numbers chosen on the outcomes of the evidence suite (tests/benchmarks/evidence.py, part "verdict": the nets
and starts that it trains, and what was said of each before).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .table import number

# "From first to last" is from the median of the first third of the layers to that of the last third.
FADES = 1 / 3  # of the std from first to last: worth a word
DIES = 1 / 100  # of the std from first to last; and its inverse
FORGETS = 0.01  # of the std of the last layers: what tells samples apart
HANGS = 0.15  # balance of the last layers
GRADIENT = 1 / 50  # of the first layers, relative to the last one; and its inverse


@dataclass
class LayerSurvey:
    """One layer's output on one batch, at one use of its weight.

    Attributes:
        std, mean: over all its values; the population's.
        signal: how much of std tells one sample from another: each feature's std over the samples, as their root mean
            square. The rest is what the features differ by, biases above all. None where there is one sample.
        balance: the median of the samples' root mean squares over the root mean square of these: 1 where all samples are
            equally strong, near 0 where a few hold all the variance. None where there is one sample.
        gradient: the L2 norm of the loss's gradient with respect to the output, times std, relative to the last layer's: free
            of the layer's width, the image's size, and scales that a normalisation takes out. None where none comes back.
        left: why `lsuv_` would leave it alone by default; "" where it would scale it.
        normed: a normalisation right behind it takes its scale away.
    """

    name: str
    kind: str
    std: float
    mean: float
    signal: float | None = None
    balance: float | None = None
    gradient: float | None = None
    left: str = ""
    normed: bool = False


class Found(NamedTuple):
    """What the numbers show.

    Attributes:
        what: the numbers.
        name: what they mean: "vanishing", "exploding", ...; "" where all is well.
    """

    what: str
    name: str = ""


def trouble(layers: Sequence[LayerSurvey]) -> Found | None:
    """What will keep the net from training: the first that holds of the rules in `Survey.verdict`; None where none does."""
    if (found := _not_finite(layers)) is not None:
        return found
    alive = [layer for layer in layers if layer.std > 0]
    if not alive:
        return Found("every output is constant", "nothing passes")
    return _forward(alive) or _backward(alive)


def _not_finite(layers: Sequence[LayerSurvey]) -> Found | None:
    first = next((layer.name for layer in layers if not math.isfinite(layer.std)), None)
    return None if first is None else Found(f"not finite from {first!r} on", "exploding")


def _forward(layers: Sequence[LayerSurvey]) -> Found | None:
    stds = [layer.std for layer in _free(layers)]
    first, last = ends(stds)
    if last < first * DIES:
        return Found(f"std falls {change(stds)}", "vanishing")
    if last * DIES > first:
        return Found(f"std grows {change(stds)}", "exploding")
    share = _last([None if layer.signal is None else layer.signal / layer.std for layer in layers])
    if share < FORGETS:
        return Found(f"{share:.1g} of the std tells samples apart in the last layers", "the input is forgotten")
    balance = _last([layer.balance for layer in layers])
    if balance < HANGS:
        return Found(f"balance {balance:.1g} in the last layers", "a few samples hold all the variance")
    return None


def _backward(layers: Sequence[LayerSurvey]) -> Found | None:
    gradients = [layer.gradient for layer in layers if layer.gradient is not None]
    size = ends(gradients)[0] if len(gradients) > 1 and gradients[-1] else 1.0
    if size < GRADIENT:
        return Found(f"gradient {number(size)} in the first layers", "the gradient vanishes")
    if not size <= 1 / GRADIENT:
        return Found(f"gradient {number(size)} in the first layers", "the gradient explodes")
    return None


def signal_by_depth(layers: Sequence[LayerSurvey]) -> Found:
    """How the signal goes through the net, whether that keeps it from training or not."""
    if (found := _not_finite(layers)) is not None:
        return found
    alive = [layer for layer in layers if layer.std > 0]
    if not alive:
        return Found("every output is constant", "no scale gives it a spread; look at the inputs and the first layer")
    stds, count = [layer.std for layer in alive], _count(layers)
    first, last = ends(stds)
    if last < first * FADES:
        return Found(f"std falls {change(stds)} over {count}", "vanishing")
    if last * FADES > first and last >= 1:
        return Found(f"std grows {change(stds)} over {count}", "exploding")
    low, high = min(stds), max(stds)
    span = f"std {number(low)}" if number(low) == number(high) else f"std between {number(low)} and {number(high)}"
    span += f" over {count}"
    known = [(layer.signal, layer.signal / layer.std) for layer in alive if layer.signal is not None]
    if known:
        signals, shares = zip(*known, strict=True)
        most, least = ends(shares)
        if least < most / 30:
            return Found(f"{span}, but what of it tells samples apart falls {change(signals)}", "vanishing")
    return Found(span)


def says(layers: Sequence[LayerSurvey]) -> str:
    """The verdict: the signal by depth; whether the net will train; what would help."""
    signal, stop = signal_by_depth(layers), trouble(layers)
    if not any(layer.std > 0 or not math.isfinite(layer.std) for layer in layers):
        return f"{signal.what}: {signal.name}"
    if stop is not None:
        name = signal.name or "steady"
        why = "" if stop.name in (name, "exploding", "vanishing") else f" ({stop.what}: {stop.name})"
        return f"{signal.what}: {name}; {advice(layers)}; as it is, it will not train{why}"
    if _normed(layers):
        return f"{signal.what}: normalisation keeps the scale; little to gain from lsuv_"
    can = [layer for layer in layers if not layer.left and layer.std > 0]
    if signal.name and can:
        return f"{signal.what}: {signal.name}; {advice(layers)}; it trains as it is"
    if signal.name:
        return f"{signal.what}: {signal.name}, but it trains; {advice(layers)}"
    stds = [layer.std for layer in layers if layer.std > 0]
    if min(stds) >= 0.5 and max(stds) <= 2:
        return f"{signal.what}: near unit variance; little to gain from lsuv_"
    if not can:
        return f"{signal.what}: steady; lsuv_ would leave it as it is"
    if _is_level([layer.std for layer in can]):
        return f"{signal.what}: steady, and its scale is level already; little to gain from lsuv_"
    return f"{signal.what}: steady, but not unit variance; lsuv_ sets it to 1"


def advice(layers: Sequence[LayerSurvey]) -> str:
    """What would help: `lsuv_`, where it has something to scale and the signal is not level already; else something else."""
    can = [layer for layer in layers if not layer.left]
    if not can:
        reasons = Counter(layer.left for layer in layers)
        return f"lsuv_ would leave its layers alone ({reasons.most_common(1)[0][0]})"
    if not all(math.isfinite(layer.std) for layer in layers):
        return "lsuv_ would help"
    if _is_level([layer.std for layer in can]):
        return "its scale is level already: skip connections, normalisation layers or fewer layers would help"
    return "lsuv_ would help"


def outlook(layers: Sequence[LayerSurvey], recipe: str) -> str:
    """What stands in the way of training behind layers that are at their target; "" where nothing was found."""
    stop = trouble(layers)
    if stop is None:
        return ""
    other = 'recipe="balanced", ' if recipe != "balanced" else ""
    return (
        f"This net will not train as it is, though its layers are at their targets: {stop.what}: {stop.name}. "
        f"What helps: {other}skip connections, normalisation layers, fewer layers."
    )


def _is_level(stds: Sequence[float]) -> bool:
    """Are four of five near one value, and that where `lsuv_` would put it? Then there is nothing left for it to do."""
    middle = sorted(stds)[len(stds) // 2]
    near = sum(middle / 2 <= std <= middle * 2 for std in stds)
    return 0.4 <= middle <= 4.1 and near >= 0.8 * len(stds)


def _normed(layers: Sequence[LayerSurvey]) -> bool:
    """Does a normalisation follow most of the layers that another layer reads?"""
    normed = sum(layer.normed for layer in layers)
    return normed > 0 and normed >= sum(not layer.left for layer in layers)


def _free(layers: Sequence[LayerSurvey]) -> Sequence[LayerSurvey]:
    """The layers whose scale no normalisation takes away right behind them; all of them where it does behind each."""
    return [layer for layer in layers if not layer.normed] or layers


def _last(values: Sequence[float | None]) -> float:
    """The median of the last third of those that are known; 1 where none is."""
    known = [value for value in values if value is not None]
    return ends(known)[1] if known else 1.0


def ends(values: Sequence[float]) -> tuple[float, float]:
    """The medians of the first and of the last third."""
    third = max(1, len(values) // 3)
    first, last = (sorted(part)[third // 2] for part in (values[:third], values[-third:]))
    return first, last


def change(values: Sequence[float]) -> str:
    """From the first to the last layer where these show what the medians of the thirds do, else from median to median."""
    first, last = ends(values)
    if (last < first) == (values[-1] < values[0]) and not 1 / 3 <= values[-1] / (values[0] or 1) <= 3:
        return f"from {number(values[0])} to {number(values[-1])}"
    return f"from {number(first)} to {number(last)} (medians of the first and the last third)"


def _count(layers: Sequence[LayerSurvey]) -> str:
    alive = sum(layer.std > 0 for layer in layers)
    constant = f", {len(layers) - alive} more constant" if alive < len(layers) else ""
    return ("1 layer" if alive == 1 else f"{alive} layers") + constant
