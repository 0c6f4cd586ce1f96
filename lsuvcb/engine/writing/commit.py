"""Writing the solutions into the model: in place, all or nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import LSUVError
from ..model.weights import Weight
from ..passes.solve import Solution, Values
from ..ranks import local
from .undo import LARGEST_UNASKED, Change, Setting, Undo


@torch.no_grad()
def commit(changes: list[Change], settings: list[Setting], undo: Undo) -> None:
    """Make the changes in place: the same parameters, dtypes and memory formats, with new values; `undo` takes them back."""
    for tensor, scale, start in undo.saved(changes):  # each is still in the cache when it is written
        if start is not None:
            tensor.copy_(start)
        if scale != 1:
            tensor.mul_(scale)
    for block, bias in undo.saved_settings(settings):
        block.set_bias(bias)
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
        _check_range(weight, weight.tensor.detach() if solution.start is None else solution.start, scale)
        if weight.computed is None:
            start = solution.start if solution.start is None else local(solution.start)
            changes.append(Change(local(weight.tensor), scale, start))
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
        solution, found = solutions[weight], values[weight.name]
        rescaled = found.scale != 1 and not solution.keeps_bias
        old = local(bias.tensor)
        if found.shift != 0 or (solution.start is not None and not bias.zero):
            changes.append(Change(old, start=_new_bias(old.detach(), solution, found)))
        elif rescaled and not bias.zero:
            changes.append(Change(old, found.scale))
    return changes


def _check_range(weight: Weight, start: Tensor, scale: float) -> None:
    """A scale or a weight that its type cannot hold: the layer's input or its weights are next to nothing."""
    dtype = weight.tensor.dtype
    if abs(scale) < (1.0 if dtype == torch.float16 else LARGEST_UNASKED):
        return
    most = abs(scale) * float(local(start).abs().max())
    widest = torch.finfo(torch.promote_types(dtype, torch.float32)).max  # the product is computed in float32 or wider
    if not (most <= torch.finfo(dtype).max and abs(scale) <= widest):
        raise LSUVError(
            f"layer {weight} would need a scale of {scale:.3g} and weights up to {most:.3g}, which {dtype} cannot hold: its "
            "output is next to nothing on this batch. Scale its inputs, or use a wider type; nothing was changed."
        )


def _new_bias(bias: Tensor, solution: Solution, found: Values) -> Tensor:
    """scale * b + shift, or b + shift where the solution keeps b; rounded once, since s * b may be large and t its opposite."""
    wide = bias.to(torch.float32 if bias.device.type == "mps" else torch.float64)
    if solution.start is not None:
        wide = torch.zeros_like(wide)
    return ((wide if solution.keeps_bias else wide * found.scale) + found.shift).to(bias.dtype)
