"""What keeps a weight from being solved at the use at hand."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ..measuring.moments import Moments
from ..measuring.pool import Pool, highest
from ..model.left_alone import AllZero, BiasIsComputed, BiasUsedEarlier, Empty, Frozen, Reason, UsedEarlier
from ..model.weight import Weight
from ..ranks import whole
from ..seeing import ops
from ..seeing.provenance import Trail
from ..seeing.use import Use
from ..tensors import zero_on_cpu


def obstacle(use: Use, trail: Trail, *, waits: bool, mean_moves: bool) -> Reason | None:
    """Why this use cannot be solved.

    Args:
        waits: it was used before, on zeros alone.
        mean_moves: the mean has a target, so that a bias of zeros matters, too.
    """
    used_by = "" if waits else trail.used_by(use.weight, mixed=use.is_mixed)
    bias_used_by = "" if waits or use.bias is None else trail.used_by(use.bias)
    return obstacle_of(use.weight, used_by) or bias_obstacle(use, bias_used_by, mean_moves=mean_moves)


def obstacle_of(weight: Weight, used_by: str) -> Reason | None:
    if not weight.tensor.requires_grad:
        return Frozen()
    if used_by:
        return UsedEarlier(used_by)
    if not weight.tensor.numel():
        return Empty()
    return AllZero() if weight.zero else None


def bias_obstacle(use: Use, used_by: str, *, mean_moves: bool) -> Reason | None:
    """Why the bias of this use keeps the weight from being solved."""
    bias = use.bias
    if use.obstacle is not None or bias is None:
        return use.obstacle
    if bias.home.kind:
        return BiasIsComputed(bias.home.kind)
    if used_by and (mean_moves or not bias.zero):
        return BiasUsedEarlier(used_by)
    return None


def keeps_bias(use: Use, *, mean_moves: bool) -> bool:
    """Was the bias set on purpose? Then it is kept as it is, unless the mean is to be moved, which biases are there for.

    So it was where a value lies beyond what torch's own layers draw, 1 / sqrt(fan_in), or where all are equal and not zero. A
    layer that was scaled had both scaled: where its weights lie beyond that, too, a value must be twice the largest of them.
    """
    bias = use.bias
    if mean_moves or bias is None or bias.vector is None or bias.zero:
        return False
    if bias.on_purpose is None:
        vector, single = bias.vector, bias.tensor.numel() == 1
        beyond = vector.largest > (1 + 1e-6) / math.sqrt(use.fan_in) and _is_beyond_weights(vector.largest, use)
        bias.on_purpose = (vector.equal and not single) or (beyond and not (single and use.fan_in == 1))
    return bias.on_purpose


def _is_beyond_weights(largest: float, use: Use) -> bool:
    values = use.weight.home.values()
    if use.source.scaled:  # views, and what lies in shards, are as large either way
        values = use.source.replay(values)
    weights = float(whole(values.abs().max()))
    return weights <= (1 + 1e-6) / math.sqrt(use.fan_in) or largest > 2 * weights


def is_unfed(use: Use, found: Moments, added: bool, pool: Pool | None) -> bool:
    """Is the input all zero? A recurrent weight's first state often is: its output is the bias alone, whatever the weight.

    Told where the values are in the host's memory.

    Args:
        found: moments of the output.
        added: the output has the bias in it.
    """
    if not isinstance(found.std, float):
        return False
    vector = use.bias.vector if use.bias is not None else None
    square = (
        0.0 if use.bias is None or use.bias.zero or not added else vector.square if vector is not None else math.nan
    )
    if abs(found.square - square) > 0.05 * square and not found.constant:
        return False  # more than the bias; to look at the inputs would cost more
    held = [t for t in use.inputs() if t.numel()]
    silent = any if use.op in ops.PRODUCTS else all
    here = 0 if not held else 1 if silent(map(zero_on_cpu, held)) else 2  # nothing, zeros, values
    return highest(here, pool) == 1


def silent_if_unfed(use: Use, found: Moments) -> Moments:
    """The moments, with a std of 0 where the input is all zero: told on a device without waiting for it."""
    if not isinstance(found.std, Tensor) or use.bias is None:
        return found
    fed = [t.any() for t in use.inputs() if t.layout == torch.strided and t.device == found.std.device]
    return replace(found, std=found.std * torch.stack(fed).any()) if fed else found
