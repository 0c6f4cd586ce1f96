"""Writing the solutions into the model: in place, all or nothing."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ..errors import LSUVError
from ..model.blocks import BlockChange
from ..model.home import Change
from ..model.weight import Weight
from ..ranks import whole
from ..solving.solution import Solution
from .undo import LARGEST_UNASKED, Undo


@torch.no_grad()
def commit(changes: Iterable[Change | BlockChange], undo: Undo) -> None:
    """Make the changes in place: the same parameters, dtypes and memory formats, with new values; `undo` takes them back."""
    for change in undo.saved(list(changes)):  # each is still in the cache when it is written
        change.write()
    # autocast keeps low-precision copies of weights and does not notice a change in place
    torch.clear_autocast_cache()


def changes_of(solutions: dict[Weight, Solution], biases: dict[Weight, Weight]) -> list[Change]:
    """The changes that the solutions ask for.

    Args:
        biases: bias -> the weight whose solution it follows.

    Raises:
        LSUVError: a weight that its type cannot hold, or that does not take its new values.
    """
    changes: list[Change] = []
    for weight, solution in solutions.items():
        if not solution.changes_weight:
            continue
        _check_range(weight, solution)
        found = weight.home.changes(float(solution.scale), solution.start)
        if found is None:
            raise LSUVError(f"layer {weight} did not take its new weight; nothing was changed.")
        changes += found
    for bias, weight in biases.items():
        if weight not in solutions:
            continue
        solution = solutions[weight]
        if not solution.changes_bias or (bias.zero and solution.shift == 0):
            continue
        if solution.shift == 0 and solution.start is None:
            found = bias.home.changes(float(solution.scale))
        else:  # rounded once, since s * b may be large and t its opposite
            values = bias.home.values()
            wide = values.to(torch.float32 if values.device.type == "mps" else torch.float64)
            found = bias.home.changes(1.0, solution.new_bias(wide).to(values.dtype))
        changes += found or []
    return changes


def _check_range(weight: Weight, solution: Solution) -> None:
    """A scale or a weight that its type cannot hold: the layer's input or its weights are next to nothing."""
    dtype, scale = weight.tensor.dtype, float(solution.scale)
    if abs(scale) < (1.0 if dtype == torch.float16 else LARGEST_UNASKED):
        return
    start = weight.tensor.detach() if solution.start is None else solution.start
    most = abs(scale) * float(whole(start.abs().max()))
    widest = torch.finfo(torch.promote_types(dtype, torch.float32)).max  # the product is computed in float32 or wider
    if not (most <= torch.finfo(dtype).max and abs(scale) <= widest):
        raise LSUVError(
            f"layer {weight} would need a scale of {scale:.3g} and weights up to {most:.3g}, which {dtype} cannot hold: its "
            "output is next to nothing on this batch. Scale its inputs, or use a wider type; nothing was changed."
        )
