"""Small questions about tensors that several rooms ask."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

EXACT = frozenset((torch.float32, torch.float64))  # types whose values are summed as they are


def tensors_of(value: object) -> list[Tensor]:
    """The tensors in a value that an op takes or gives: itself, or the items of a tuple or list."""
    if isinstance(value, Tensor):
        return [value]
    return [item for item in value if isinstance(item, Tensor)] if isinstance(value, (tuple, list)) else []


def tensors_in(batch: Any) -> list[Tensor]:
    """Every tensor in a nested batch, in order: tuples, lists, mappings, dataclasses known to pytree."""
    return [leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)]


def has_repeats(tensor: Tensor) -> bool:
    """Are several of its values one place in memory (an expanded tensor)?"""
    return any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def starts_alive(tensor: Tensor) -> bool:
    """Is its first value other than zero? False where they cannot be read without waiting, or not cheaply."""
    if not tensor.is_cpu or type(tensor) not in (Tensor, nn.Parameter) or not tensor.is_floating_point():
        return False
    if tensor.layout != torch.strided or not tensor.ndim or not tensor.numel():
        return False
    return bool(tensor.as_strided((), ()).item())


def zero_on_cpu(tensor: Tensor) -> bool:
    """Are all values zero? On other devices, and for tensors of no plain layout, it does not look."""
    if starts_alive(tensor) or not tensor.is_cpu or tensor.layout != torch.strided or not tensor.numel():
        return False
    return not tensor.any()
