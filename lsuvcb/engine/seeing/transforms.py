"""Inside a torch.func transform (vmap, grad, jvp, ...), where a tensor may be wrapped in another one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack

from ..tensors import tensors_in

_functorch = torch._C._functorch
inside_transform = torch._C._are_functorch_transforms_active


def wrapped_in(*values: Any) -> Iterator[tuple[Tensor, bool]]:
    """What is inside each wrapped tensor among these values and in containers there, and whether torch.vmap hides its values."""
    for tensor in tensors_in(values):
        inner, batched = tensor, False
        while _functorch.is_functorch_wrapped_tensor(inner):
            batched = batched or _functorch.is_batchedtensor(inner)
            inner = _functorch.get_unwrapped(inner)
        if inner is not tensor:
            yield inner, batched


def is_batched(*values: Any) -> bool:
    """Does torch.vmap hide the values of one of these, under whatever other transforms?"""
    return any(batched for _, batched in wrapped_in(*values))


@contextmanager
def outside_transforms(tensor: Tensor | None = None) -> Iterator[None]:
    """Leave the transforms that are active, where random numbers and writes into a tensor from outside are refused.

    Args:
        tensor: stay inside those that have wrapped it; None: leave all.
    """
    level = -1 if tensor is None else _functorch.maybe_get_level(tensor)
    with ExitStack() as stack:
        while (top := _functorch.peek_interpreter_stack()) is not None and top.level() > level:
            stack.enter_context(temporarily_pop_interpreter_stack())
        yield
