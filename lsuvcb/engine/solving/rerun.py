"""A linear op again: with the weight and bias that the model has, with zeros, its output corrected."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..measuring.moments import Number
from ..model.weights import Weight
from ..ranks import is_sharded, whole
from ..seeing.eye import Use


def as_it_was(use: Use) -> Any:
    """The op on the values that the model has. The arguments of the call itself may be gone: FSDP2 frees what it gathered."""
    return use.run(whole(use.weight.tensor.detach()), None if use.bias is None else whole(use.bias.tensor.detach()))


def zeros_like(bias: Weight | None) -> Tensor | None:
    if bias is None:
        return None
    return in_place_of(bias, torch.zeros(bias.tensor.shape, dtype=bias.tensor.dtype, device=bias.tensor.device))


def in_place_of(weight: Weight, values: Tensor) -> Tensor:
    """The same values, with a path to the parameter for a forward that takes gradients by it."""
    parameter = weight.tensor
    if not torch.is_grad_enabled() or not parameter.requires_grad or is_sharded(parameter):
        return values
    return values + (parameter - parameter.detach())


def bias_like(use: Use) -> Tensor:
    """The bias of this call in the shape that broadcasts over its output: convolutions have their channels ahead of space."""
    assert use.bias_source is not None
    bias = use.bias_source.replay(whole(use.bias_source.weight.tensor.detach()))
    spatial = 2 if use.op == "deform_conv2d" else int(use.op[-2]) if use.op.startswith("conv") else 0
    return bias.view(-1, *([1] * spatial)) if spatial else bias


def correct(y: Tensor, scale: Number, shift: Number) -> None:
    """y <- scale * y + shift, in place, so that whoever holds y sees it."""
    if isinstance(scale, Tensor) or scale != 1:
        y.mul_(scale)
    if isinstance(shift, Tensor) or shift != 0:
        y.add_(shift)
