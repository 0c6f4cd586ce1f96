"""The pass that only looks: moments of every weight's output, at each of its uses."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from typing import Any

import torch
from torch import Tensor

from ..measuring.moments import Moments, Number, joined, moments, number
from ..measuring.pool import Group, Pool, pooled
from ..model.blocks import output_tensor
from ..model.weight import Weight
from ..model.weights import Weights
from ..ranks import Ranks
from ..seeing.activations import Activations
from ..seeing.behind import Behind
from ..seeing.follow import Facts, Follow
from ..seeing.output import Output, has_rows
from ..seeing.provenance import OF_BATCH, Trace, Trail
from ..seeing.use import Use, output_of
from .counted import Counted
from .obstacles import keeps_bias

_FIRST = 8  # layers that are asked what they read


class Found:
    """One output.

    Attributes:
        moments: of its values.
        signal, balance: see `LayerSurvey`; None for one sample.
        bare: moments without a bias that may be kept; None where there is none.
    """

    __slots__ = ("balance", "bare", "moments", "signal")

    def __init__(
        self, found: Moments, rows: Tensor | None, bare: Moments | None, whole: bool, sharers: Ranks | None
    ) -> None:
        self.moments, self.bare = found, bare
        self.signal = None if rows is None else _signal_of(rows, whole, sharers)
        self.balance = None if rows is None else _balance_of(rows, whole, sharers)


class Measure(Follow):
    """Moments of each weight's output, or of the activation behind it; nothing is changed.

    Args:
        behind: measure behind the activation that takes an output directly.
        group: moments are summed over its ranks.
        counted: which values count.

    Attributes:
        found: what was measured, by weight, in the order of its uses.
    """

    def __init__(
        self, weights: Weights, activations: Activations, facts: Facts, *, behind: bool = False,
        group: Group = None, counted: Counted | None = None, input: InputMoments | None = None,
    ) -> None:  # fmt: skip
        super().__init__(weights, activations, facts, by_module=behind)
        self.behind, self.group = behind, group
        self.counted, self.input = counted or Counted(None), input
        self.found: dict[Weight, list[Found]] = {}

    def at_work(self, use: Use) -> tuple[Any, Output | None]:
        weight = use.weight
        self.trail.see(weight).uses += 1
        result = self.run(use)
        if use.reads_batch and self.input is not None:
            self.input.look(use, self.trail)
        self.settle_now(weight)
        y = output_of(result)
        if not self.is_measured(y):
            return result, None
        use.free()
        output = Output(use, y)
        self.follow(output)
        return result, output

    def run(self, use: Use) -> Any:
        """What the use gives."""
        return use.run()

    def is_measured(self, y: Tensor) -> bool:
        return y.is_floating_point() and not y.is_nested and bool(y.numel() or self.group)

    def on_block(self, weight: Weight, args: Any, kwargs: Any, result: Any) -> Any:
        self.trail.see(weight).uses += 1
        self.trail.meet(weight, "block")
        self.note(weight, output_tensor(result))

    def settle(self, output: Output, read: Tensor, behind: Behind) -> None:
        activation, use = behind.activation, output.use
        if activation is not None and self.behind:
            output.behind_activation = True
            self.note(use.weight, activation(output.y.clone()), sharers=use.sharers)
            return
        image = output.measured(read, by_activation=activation is not None)
        output.behind_activation = activation is not None and image is not output.images[0]
        kept = keeps_bias(use, mean_moves=False)
        bare = output.without(use.spread_bias(), image) if kept else None
        self.note(use.weight, image.tensor, bare, use.sharers)

    def note(self, weight: Weight, y: Tensor, bare: Tensor | None = None, sharers: Ranks | None = None) -> None:
        """Measure an output.

        Args:
            bare: its values without a bias that may be kept.
            sharers: the ranks that hold other parts of it.
        """
        pool = weight.pool(self.group or sharers)
        without = None if bare is None else self._moments(weight, bare, pool)
        self.found.setdefault(weight, []).append(
            Found(self._moments(weight, y, pool), self._samples(weight, y), without, self.counted.all, sharers)
        )

    def _samples(self, weight: Weight, y: Tensor) -> Tensor | None:
        """The samples as rows, in float32 or wider; None where there are no two."""
        if not has_rows(y, weight.tensor) or len(y) < 2 or not y.numel():
            return None
        rows = self.counted.samples(weight.name, y).flatten(1)
        return rows if rows.dtype == torch.float64 else rows.float()

    def _moments(self, weight: Weight, y: Tensor, pool: Pool | None) -> Moments:
        counted = self.counted.select(weight.name, y)
        return pooled(moments(counted), counted.device, pool)

    def read(self, kept: Container[Weight] = ()) -> dict[Weight, list[Measured]]:
        """Std, mean and signal of each use, read from each device once.

        Args:
            kept: weights whose bias is kept: their std is that without it, as it was solved.
        """
        rows = {(w, i): f for w, found in self.found.items() for i, f in enumerate(found)}
        spread = {key: f.bare if f.bare is not None and key[0] in kept else f.moments for key, f in rows.items()}
        numbers = read({key: (spread[key].std, f.moments.mean) for key, f in rows.items()})
        pairs = read(
            {k: (f.signal, f.balance) for k, f in rows.items() if f.signal is not None and f.balance is not None}
        )
        result: dict[Weight, list[Measured]] = {}
        for key, (std, mean) in numbers.items():
            signal, balance = pairs.get(key, (None, None))
            result.setdefault(key[0], []).append(Measured(std, mean, signal, balance, rows[key].moments.count))
        return result


def _signal_of(rows: Tensor, whole: bool, sharers: Ranks | None) -> Number:
    """The root mean square over all features of each one's std over the samples.

    Args:
        whole: all values count; else those that do not are NaN.
        sharers: the ranks that hold other features of the same samples.
    """
    if whole:  # on a CPU torch.var over the first dimension takes several times as long
        apart = (rows - rows.mean(0)).flatten()
        square = apart.dot(apart) / apart.numel()
    else:
        square = (rows - rows.nanmean(0)).square().nanmean(0).nanmean()
    if sharers is not None:
        sums = torch.stack([square * rows.shape[1], torch.full_like(square, rows.shape[1])])
        sharers.sum_(sums)
        square = sums[0] / sums[1]
    return number(square) ** 0.5


def _balance_of(rows: Tensor, whole: bool, sharers: Ranks | None) -> Number:
    """The median of the samples' root mean squares over the root mean square of these; 1 where all are zero."""
    if sharers is not None:
        squares = rows.square().nansum(1)
        sharers.sum_(squares)
        sizes = squares.sqrt() if whole else squares.sqrt().masked_fill(rows.isnan().all(1), torch.nan)
    else:
        sizes = torch.linalg.vector_norm(rows, dim=1) if whole else rows.square().nanmean(1).sqrt()
    if not whole:
        sizes = sizes[~sizes.isnan()]
    middle = number(sizes.sort().values[(len(sizes) - 1) // 2 : len(sizes) // 2 + 1].mean())
    together = number(torch.linalg.vector_norm(sizes)) / len(sizes) ** 0.5
    if isinstance(together, Tensor):
        return torch.where(together > 0, middle / together, torch.ones_like(together))
    return middle / together if together > 0 else 1.0


class Measured:
    """The numbers of one output, on the host."""

    __slots__ = ("balance", "count", "mean", "signal", "std")

    def __init__(self, std: float, mean: float, signal: float | None, balance: float | None, count: int) -> None:
        self.std, self.mean, self.signal, self.balance, self.count = std, mean, signal, balance, count


def together(uses: Sequence[Measured]) -> Measured:
    """The numbers of all uses' values; signal and balance of the last."""
    found = joined([Moments(use.mean, use.std, 0.0, use.count) for use in uses])
    return Measured(float(found.std), float(found.mean), uses[-1].signal, uses[-1].balance, found.count)


class InputMoments:
    """Moments of what the first layers read of the batch, before any parameter has touched it.

    Attributes:
        closed: a pass has seen them all.
    """

    def __init__(self, group: Group = None, counted: Counted | None = None) -> None:
        self.group, self.counted, self.closed = group, counted or Counted(None), False
        self._found: list[tuple[Moments, torch.device, bool]] = []
        self._numbers: tuple[float | None, float | None] | None = None

    def look(self, use: Use, trail: Trail) -> None:
        """Called at each use of the first pass."""
        if not self.closed:
            self.look_at([(tensor, trail.of(tensor)) for tensor in use.inputs()])

    def look_at(self, tensors: Sequence[tuple[Tensor, Trace | None]]) -> None:
        """A layer reads these."""
        if self.closed or len(self._found) >= _FIRST:
            return
        for tensor, trace in tensors:
            if trace is None or not trace.of_batch or tensor.layout != torch.strided or not tensor.is_floating_point():
                continue
            if tensor.numel() or self.group is not None:
                found = moments(self.counted.select("", tensor))
                self._found.append((found, tensor.device, trace is OF_BATCH))

    def numbers(self) -> tuple[float | None, float | None]:
        """Std and mean of that whose std is nearest 1; None and None where no layer reads of the batch.

        A constant counts where it is the batch's own, and nothing else is read.
        """
        if self._numbers is None:
            pool = None if self.group is None else Pool(self.group)
            found = [pooled(here, device, pool) for here, device, _ in self._found]
            rows = read({i: (m.std, m.mean) for i, m in enumerate(found)})
            varied = [(std, mean) for std, mean in rows.values() if std > 0]
            constant = [(0.0, rows[i][1]) for i, (_, _, own) in enumerate(self._found) if own and not rows[i][0] > 0]
            if varied:
                self._numbers = min(varied, key=lambda row: abs(math.log(row[0])))
            else:
                self._numbers = constant[0] if constant else (None, None)
        return self._numbers


def read(rows: dict[Any, Sequence[Number]]) -> dict[Any, list[float]]:
    """Rows of one length, on the host: one transfer for each device."""
    values: dict[Any, list[float]] = {}
    away: dict[torch.device, dict[Any, Tensor]] = {}
    for key, row in rows.items():
        tensor = next((v for v in row if isinstance(v, Tensor)), None)
        if tensor is None:
            values[key] = [float(v) for v in row]
        else:
            stacked = torch.stack([torch.as_tensor(v, dtype=tensor.dtype, device=tensor.device) for v in row])
            away.setdefault(tensor.device, {})[key] = stacked.float()
    for device_rows in away.values():
        values.update(zip(device_rows, torch.stack(list(device_rows.values())).tolist(), strict=True))
    return {key: values[key] for key in rows}
