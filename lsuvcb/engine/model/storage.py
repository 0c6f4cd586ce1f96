"""Two parameters over the same memory: what changes one changes the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..tensors import has_repeats
from .left_alone import Expanded, OverlapsMemory, SharesMemory
from .weight import Weight


class Memory:
    """Which memory parameters take: two of them may be one, or views of one under different shapes."""

    def __init__(self) -> None:
        self._taken: dict[int, list[Weight]] = {}

    def owner(self, weight: Weight) -> Weight:
        """`weight`, or an earlier one that is the same memory in the same shape.

        Those that overlap in another way are left alone, both. Of two that have gaps between their values (columns of one
        matrix) this cannot be told, and they count as apart.
        """
        tensor = weight.tensor
        if not tensor.numel() or tensor.layout != torch.strided:
            return weight
        if type(tensor) is not nn.Parameter and is_traceable_wrapper_subclass(tensor):
            return weight
        if not tensor.is_contiguous() and has_repeats(tensor):
            weight.leave(Expanded())
        storage = tensor.untyped_storage().data_ptr()
        taken = self._taken.setdefault(storage, []) if storage else []
        for other in taken:
            if other.tensor.device != tensor.device:
                continue
            here, there = _extent(tensor), _extent(other.tensor)
            if here[:2] == there[:2] and here[3:] == there[3:]:
                weight.leave(SharesMemory(other.name))
                return other
            if here[0] < there[1] and there[0] < here[1] and (here[2] or there[2]):
                weight.leave(OverlapsMemory(other.name))
                other.leave(OverlapsMemory(weight.name))
        taken.append(weight)
        return weight


def _extent(tensor: Tensor) -> tuple[Any, ...]:
    """First and last byte of its storage that it takes, whether without gaps, its shape and strides."""
    spread = 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    begin = tensor.storage_offset() * tensor.element_size()
    return begin, begin + spread * tensor.element_size(), spread == tensor.numel(), tensor.shape, tensor.stride()
