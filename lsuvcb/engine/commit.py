"""Writing the solutions into the model: in place, all or nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from .scale import Solution, Values
from .weights import Weight


class Change(NamedTuple):
    """What the commit does to one weight or bias: values <- scale * values + shift, begun from `start` if it is given."""

    target: Weight
    scale: float
    shift: float
    start: Tensor | None


class Undo:
    """What it takes to leave no trace of a call that fails: values of weights, states of generators.

    The copies lie in the host's memory, so that an accelerator never holds a second set of weights.
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        self._saved: list[tuple[Tensor, Tensor]] = []
        self._generator = generator or torch.default_generator
        self._state = self._generator.get_state()

    def save(self, tensors: Iterable[Tensor]) -> None:
        self._saved += [(t, t.detach().to("cpu", copy=True)) for t in tensors]

    @torch.no_grad()
    def restore(self) -> None:
        for tensor, values in self._saved:
            tensor.copy_(values)
        self._generator.set_state(self._state)
        torch.clear_autocast_cache()


@torch.no_grad()
def commit(changes: list[Change]) -> None:
    """Make the changes in place: the same parameters, dtypes and memory formats, with new values."""
    begun = [(c.target.tensor, c.start) for c in changes if c.start is not None]
    if begun:
        torch._foreach_copy_([tensor for tensor, _ in begun], [start for _, start in begun])
    if changes:
        torch._foreach_mul_([c.target.tensor for c in changes], [c.scale for c in changes])
    moved = [c for c in changes if c.shift != 0]
    if moved:
        torch._foreach_add_([c.target.tensor for c in moved], [c.shift for c in moved])
    # autocast keeps low-precision copies of weights and does not notice a change in place
    torch.clear_autocast_cache()


def changes_of(
    solutions: dict[Weight, Solution], biases: dict[Weight, Weight], values: dict[str, Values]
) -> list[Change]:
    """The changes that the solutions ask for.

    Args:
        biases: bias -> the weight whose solution it follows.
        values: the numbers of each solution, by the weight's name.
    """
    changes = []
    for weight, solution in solutions.items():
        scale = values[weight.name].scale
        if scale != 1 or solution.start is not None:
            changes.append(Change(weight, scale, 0.0, solution.start))
    for bias, weight in biases.items():
        if weight not in solutions:
            continue
        scale, shift = values[weight.name].scale, values[weight.name].shift
        if solutions[weight].keeps_bias:
            scale = 1.0
        start = None if solutions[weight].start is None else torch.zeros_like(bias.tensor)
        if (scale != 1 and not bias.zero) or shift != 0 or (start is not None and not bias.zero):
            changes.append(Change(bias, scale, shift, start))
    return changes
