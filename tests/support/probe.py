"""The tests' own look at a model. It shares no idea with the library's eye: the functions themselves are patched, and a
weight is known by the memory that an op reads, not by the identity of a tensor.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_FUNCTIONS = {
    F: "linear bilinear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d",
    torch: "mm bmm matmul addmm baddbmm einsum mv inner tensordot",
    torch.Tensor: "__matmul__ matmul mm bmm addmm",
}


@dataclass(frozen=True)
class Seen:
    """One output of a linear op that read a parameter: population std and mean, in float64."""

    op: str
    std: float
    mean: float
    count: int


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for item in value for t in _tensors(item)] if isinstance(value, (tuple, list)) else []


@contextmanager
def probe(model: nn.Module) -> Iterator[dict[str, list[Seen]]]:
    """Record what every linear op gives inside the block, by the name of each matrix of `model` that it reads.

    Names are those of the report: `layer.weight` is `layer`. Attention's fused path, which hides its ops, is off.
    """
    # A bias has one dimension; it is read by the op too, and is no weight.
    names = {_storage(p): name for name, p in model.named_parameters() if p.ndim > 1 and p.numel()}
    seen: dict[str, list[Seen]] = {}

    def watched(function: Any, op: str) -> Any:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            output = function(*args, **kwargs)
            for tensor in _tensors((*args, *kwargs.values())):
                if tensor.numel() and (name := names.get(_storage(tensor))) is not None:
                    y = output.detach().double()
                    found = Seen(op, y.std(correction=0).item(), y.mean().item(), y.numel())
                    seen.setdefault(report_name(model, name), []).append(found)
            return output

        return call

    fused = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        for owner, ops in _FUNCTIONS.items():
            for op in ops.split():
                stack.enter_context(mock.patch.object(owner, op, watched(getattr(owner, op), op)))
        stack.callback(torch.backends.mha.set_fastpath_enabled, fused)
        torch.backends.mha.set_fastpath_enabled(False)
        yield seen


def report_name(model: nn.Module, parameter: str) -> str:
    """The name that a report should give to the parameter of this name in `model.named_parameters()`."""
    parameter = parameter.replace("_orig_mod.", "")
    return parameter.removesuffix(".weight") if parameter != "weight" else type(model).__name__


def probed(model: nn.Module, *batch: Any) -> dict[str, list[Seen]]:
    """Run `model(*batch)` once, without gradients, and return what the probe saw."""
    with torch.no_grad(), probe(model) as seen:
        model(*batch)
    return seen


def over_all(uses: list[Seen]) -> float:
    """The std of the values of several outputs together."""
    count = sum(use.count for use in uses)
    mean = sum(use.count * use.mean for use in uses) / count
    return (sum(use.count * (use.std**2 + (use.mean - mean) ** 2) for use in uses) / count) ** 0.5


@contextmanager
def forwards(model: nn.Module) -> Iterator[list[None]]:
    """A list that grows by one item with each forward of `model` inside the block."""
    calls: list[None] = []
    handle = model.register_forward_pre_hook(lambda module, args: calls.append(None))
    try:
        yield calls
    finally:
        handle.remove()
