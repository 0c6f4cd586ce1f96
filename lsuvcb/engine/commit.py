"""Writing the solutions into the model: in place, all or nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .blocks import Block
from .errors import LSUVError
from .ranks import local
from .scale import Solution, Values
from .weights import Weight


class Change(NamedTuple):
    """What the commit does to one parameter: values <- scale * values + shift, begun from `start` if it is given."""

    tensor: Tensor
    scale: float = 1.0
    shift: float = 0.0
    start: Tensor | None = None


class Setting(NamedTuple):
    """A block's bias, to be set by way of the block."""

    block: Block
    value: Any


class Undo:
    """What it takes to leave no trace of a call that fails: values of weights, states of generators.

    The copies lie in the host's memory, so that an accelerator never holds a second set of weights.
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        self._saved: list[tuple[Tensor, Tensor]] = []
        self._settings: list[Setting] = []
        self._generator = generator or torch.default_generator
        self._state = self._generator.get_state()

    def save(self, changes: Iterable[Change], settings: Iterable[Setting]) -> None:
        self._saved += [(c.tensor, c.tensor.detach().to("cpu", copy=True)) for c in changes]
        self._settings += [Setting(s.block, s.block.bias) for s in settings]

    @torch.no_grad()
    def restore(self) -> None:
        for tensor, values in self._saved:
            tensor.copy_(values)
        for block, bias in self._settings:
            block.module.bias = bias
        self._generator.set_state(self._state)
        torch.clear_autocast_cache()


@torch.no_grad()
def commit(changes: list[Change], settings: list[Setting]) -> None:
    """Make the changes in place: the same parameters, dtypes and memory formats, with new values."""
    begun = [(c.tensor, c.start) for c in changes if c.start is not None]
    if begun:
        torch._foreach_copy_([tensor for tensor, _ in begun], [start for _, start in begun])
    scaled = [c for c in changes if c.scale != 1]
    if scaled:
        torch._foreach_mul_([c.tensor for c in scaled], [c.scale for c in scaled])
    moved = [c for c in changes if c.shift != 0]
    if moved:
        torch._foreach_add_([c.tensor for c in moved], [c.shift for c in moved])
    for block, bias in settings:
        block.module.bias = bias
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
        if scale == 1 and solution.start is None:
            continue
        if weight.computed is None:
            start = solution.start if solution.start is None else local(solution.start)
            changes.append(Change(local(weight.tensor), scale, 0.0, start))
        else:
            values_now = weight.tensor.detach() if solution.start is None else solution.start
            originals = weight.computed.originals_for(values_now * scale)
            if originals is None:
                raise LSUVError(f"layer {weight} did not take its new weight; nothing was changed.")
            pairs = zip(weight.computed.originals, originals, strict=True)
            changes += [Change(original, start=new) for original, new in pairs]
    for bias, weight in biases.items():
        if weight not in solutions:
            continue
        scale, shift = values[weight.name].scale, values[weight.name].shift
        if solutions[weight].keeps_bias:
            scale = 1.0
        zeros = None if solutions[weight].start is None else torch.zeros_like(local(bias.tensor))
        if (scale != 1 and not bias.zero) or shift != 0 or (zeros is not None and not bias.zero):
            changes.append(Change(local(bias.tensor), scale, shift, zeros))
    return changes
