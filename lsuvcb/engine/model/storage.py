"""Two parameters over the same memory: what changes one changes the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

if TYPE_CHECKING:
    from .weights import Source


class Places:
    """Which memory parameters take: two of them may be one, or views of one under different shapes."""

    def __init__(self) -> None:
        self._by_storage: dict[int, list[tuple[Tensor, Source]]] = {}

    def take(self, tensor: Tensor, source: Source) -> Source:
        """`source`, or the one of an earlier parameter that is the same memory in the same shape.

        Those that overlap in another way are left alone, both. Of two that have gaps between their values (columns of one
        matrix) this cannot be told, and they count as apart.
        """
        if not tensor.numel() or tensor.layout != torch.strided:
            return source
        if type(tensor) is not nn.Parameter and is_traceable_wrapper_subclass(tensor):
            return source
        if not tensor.is_contiguous() and _repeats(tensor):
            source.weight.note("several of its values are one place in memory (an expanded tensor)")
        storage = tensor.untyped_storage().data_ptr()
        taken = self._by_storage.setdefault(storage, []) if storage else []
        for held, owner in taken:
            if held.device != tensor.device:
                continue
            place, other = _place(tensor), _place(held)
            if place[:2] == other[:2] and place[3:] == other[3:]:
                source.weight.note(f"shares its memory with {owner.weight.name!r}")
                return owner
            if place[0] < other[1] and other[0] < place[1] and (place[2] or other[2]):
                for one, with_it in ((source.weight, owner.weight), (owner.weight, source.weight)):
                    one.note(f"shares its memory with {with_it.name!r}, in another shape")
        taken.append((tensor, source))
        return source


def _repeats(tensor: Tensor) -> bool:
    return any(n > 1 and stride == 0 for n, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """First and last byte of its storage that it takes, whether without gaps, its shape and strides."""
    spread = 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    begin = tensor.storage_offset() * tensor.element_size()
    return begin, begin + spread * tensor.element_size(), spread == tensor.numel(), tensor.shape, tensor.stride()
