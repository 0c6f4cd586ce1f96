"""Kernels that layers generate: an output that is another op's weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..model.weight import Weight
from ..model.weights import Weights
from ..ranks import local, parts_of
from ..tensors import tensors_of
from . import ops
from .call import Call
from .output import Output
from .provenance import Trace, Trail

# Ops that read the scores of queries and keys, which are a product of signals, too, and no kernel's
SCORES = frozenset("softmax log_softmax softmin masked_fill setitem".split())
_PRODUCTS = frozenset("matmul bmm mm einsum baddbmm linalg_matmul".split())


def takes_for_kernel(call: Call, output: Output, tensor: Tensor) -> bool:
    """Is `tensor`, made of this output, what this op multiplies its input by: a kernel that a layer generates?

    Where the op has a place for a kernel, what stands there is one. A product of two signals is taken for one where one of
    them is matrices that are each made of the features of one row of the output; the rows of attention's queries and keys
    come from several.
    """
    if _has_bias(call):
        return False
    if call.op.name in ops.KERNEL_AT:
        return _at_kernel(call) is tensor
    others = _others(call, tensor)
    if not others or any(_is_matrices(t, trace.output) for t, trace in call.traces if t is not tensor and trace.output):
        return False
    return _is_matrices(tensor, output)


def generators_of(call: Call, trail: Trail, weights: Weights) -> list[Weight]:
    """The layers that make, in a way that is not linear in them, a signal that this op takes for its kernel."""
    if call.op.name in ops.KERNEL_AT:
        trace = trail.of(_at_kernel(call))
        return [] if trace is None or _waits(trace, call) else _nearest(trace, weights)
    if call.op.plain not in _PRODUCTS:
        return []
    found = {w: None for t, trace in call.traces if _others(call, t) for w in _makes_matrices(t, trace, call, weights)}
    return list(found) if len(found) == 1 else []


def _makes_matrices(tensor: Tensor, trace: Trace, call: Call, weights: Weights) -> list[Weight]:
    """The one layer whose features became this op's matrices. It has no part in what they work on."""
    nearest = [] if _waits(trace, call) else _nearest(trace, weights)
    if len(nearest) != 1 or any(other.nearest & trace.nearest for t, other in call.traces if t is not tensor):
        return []
    shape = nearest[0].tensor.shape
    if 1 in tensor.shape[-2:]:  # a vector for each row may as well be attention's only query
        return []
    features = {n // parts for n in (shape[0], shape[-1]) for parts in parts_of(nearest[0].tensor)}
    return nearest if any(_reach_is_within(local(tensor), n) for n in features) else []


def _waits(trace: Trace, call: Call) -> bool:
    """It comes from no layer, or is linear in one: that is followed."""
    if trace.source is not None or trace.mixed is not None:
        return True
    return trace.output is not None and (not trace.output.settled or bool(trace.output.kernel)) and not _has_bias(call)


def _nearest(trace: Trace, weights: Weights) -> list[Weight]:
    return [weight for weight in weights.all if trace.nearest >> weight.number & 1] if trace.nearest else []


def _at_kernel(call: Call) -> Any:
    at = ops.KERNEL_AT[call.op.name]
    return call.args[at] if len(call.args) > at else call.kwargs.get("weight")


def _others(call: Call, tensor: Tensor) -> list[Tensor]:
    """What this product of signals multiplies `tensor` by; nothing where it is none."""
    if call.op.plain not in _PRODUCTS or any(trace.source is not None for _, trace in call.traces):
        return []
    given = [t for value in (*call.args, *call.kwargs.values()) for t in tensors_of(value)]
    return [] if sum(t is tensor for t in given) != 1 else [t for t in given if t is not tensor]


def _is_matrices(tensor: Tensor, output: Output) -> bool:
    y, image = output.y, output.image(tensor)
    if y.ndim < 2 or image is None or image.of is None:
        return False
    dim = 1 if output.use.op.startswith("conv") else y.ndim - 1
    if not _reach_is_within(local(tensor), y.shape[dim]):
        return False
    rows = torch.arange(y.numel() // y.shape[dim], device=y.device, dtype=torch.float32)
    of_row = image.of(rows.view([1 if i == dim else n for i, n in enumerate(y.shape)]).expand_as(y).contiguous())
    return bool((of_row == of_row[..., :1, :1]).all())


def _reach_is_within(tensor: Tensor, features: int) -> bool:
    """Does each matrix of the stack lie within so many neighbours in memory, the features of one row?"""
    if tensor.ndim < 3 or not features:
        return False
    rows, columns = tensor.shape[-2:]
    reach = (rows - 1) * tensor.stride(-2) + (columns - 1) * tensor.stride(-1)
    batch = zip(tensor.shape[:-2], tensor.stride()[:-2], strict=True)
    return rows * columns > 1 and reach < features and all(n == 1 or s % features == 0 for n, s in batch)


def _has_bias(call: Call) -> bool:
    places = ops.LINEAR.get(call.op.name)
    if places is None or places.bias is None:
        return False
    position, keyword = places.bias
    return (call.args[position] if len(call.args) > position else call.kwargs.get(keyword)) is not None
