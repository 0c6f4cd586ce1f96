"""Writing the solutions into the model: in place, all or nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .passes import Solution, Values
from .weights import Weight


class Change(NamedTuple):
    """What the commit does to one weight or bias: values <- scale * values + shift, begun from `start` if it is given."""

    target: Weight
    scale: float
    shift: float
    start: Tensor | None


@contextlib.contextmanager
def restored_on_failure(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Whatever is raised inside, Ctrl-C included, `tensors` hold bit for bit what they held.

    The copies that this takes lie in the host's memory, so that an accelerator never holds a second set of weights.
    """
    saved = [(t, t.detach().to("cpu", copy=True)) for t in tensors]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for tensor, values in saved:
                tensor.copy_(values)
        torch.clear_autocast_cache()
        raise


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
        start = None if solutions[weight].start is None else torch.zeros_like(bias.tensor)
        if (scale != 1 and not bias.zero) or shift != 0 or (start is not None and not bias.zero):
            changes.append(Change(bias, scale, shift, start))
    return changes
