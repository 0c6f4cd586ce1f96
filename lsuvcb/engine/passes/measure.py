"""The pass that only looks: moments of every weight's output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..measuring.moments import Moments, Number, moments
from ..model.blocks import output_tensor
from ..model.weights import Weight, Weights
from ..seeing.eye import Use, output_of
from ..seeing.follow import Activations, Elementwise, Follow, has_rows


class Measure(Follow):
    """Moments of each weight's output, or of the activation behind it, at its first use; nothing is changed."""

    def __init__(
        self, weights: Weights, activations: Activations | None = None, group: dist.ProcessGroup | None = None
    ) -> None:
        super().__init__(weights, activations)
        self.group = group
        self.found: dict[str, Moments] = {}

    def at_work(self, use: Use) -> Any:
        result, weight = use.run(), use.weight
        weight.uses += 1
        y = output_of(result)
        if weight.uses == 1 and torch.is_floating_point(y) and not y.is_nested and (y.numel() or self.group):
            use.free_inputs()
            self.hand_on(use, y)
        return result

    def on_block(self, weight: Weight, args: Any, kwargs: Any, output: Any) -> Any:
        weight.uses += 1
        self.weights.meet(weight, "block")
        if weight.uses == 1:
            self.note(weight, output_tensor(output))

    def settle(self, use: Use, y: Tensor, activation: Elementwise | None, why: str) -> None:
        self.note(use.weight, y if activation is None else activation(y.clone()))

    def note(self, weight: Weight, y: Tensor) -> None:
        self.found[weight.name] = moments(y, weight.pool(self.group))

    def read(self) -> dict[str, tuple[float, float]]:
        """Std and mean by name, read from each device once."""
        rows = read({name: (m.std, m.mean) for name, m in self.found.items()})
        return {name: (std, mean) for name, (std, mean) in rows.items()}


class Look(Measure):
    """Measures also how much of each output differs from sample to sample: what `survey` needs to know."""

    def __init__(self, weights: Weights) -> None:
        super().__init__(weights)
        self.signals: dict[str, Number] = {}

    def note(self, weight: Weight, y: Tensor) -> None:
        super().note(weight, y)
        if has_rows(y, weight.tensor) and len(y) > 1:
            y = y if y.dtype == torch.float64 else y.float()
            self.signals[weight.name] = y.var(0, correction=0).mean().sqrt()

    def read_signals(self) -> dict[str, float]:
        """By name, the root mean square over all features of each one's std over the samples; read from each device once."""
        return {name: signal for name, (signal,) in read({n: (s,) for n, s in self.signals.items()}).items()}


def read(rows: dict[str, Sequence[Number]]) -> dict[str, list[float]]:
    """Rows of one length, on the host: one transfer for each device."""
    values: dict[str, list[float]] = {}
    away: dict[torch.device, dict[str, Tensor]] = {}
    for name, row in rows.items():
        tensor = next((v for v in row if isinstance(v, Tensor)), None)
        if tensor is None:
            values[name] = [float(v) for v in row]
        else:
            stacked = torch.stack([torch.as_tensor(v, dtype=tensor.dtype, device=tensor.device) for v in row])
            away.setdefault(tensor.device, {})[name] = stacked.float()
    for device_rows in away.values():
        values.update(zip(device_rows, torch.stack(list(device_rows.values())).tolist(), strict=True))
    return values
