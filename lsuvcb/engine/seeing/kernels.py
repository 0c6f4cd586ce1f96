"""Kernels that layers generate: an output that is another op's weight."""

from __future__ import annotations

from torch import Tensor

from ..model.weight import Weight
from ..model.weights import Weights
from . import ops
from .call import Call
from .output import Output
from .provenance import Trail


def takes_for_kernel(call: Call, output: Output, tensor: Tensor) -> bool:
    """Is `tensor`, made of this output, what this op multiplies its input by: a kernel that a layer generates?

    Where the op has a place for a kernel, what stands there is one. A product of two signals is taken for one where each
    sample has a matrix of its own, made of the features of one row of the output; attention's queries and keys have rows from
    several. Where both sides come straight from layers, neither is the kernel of the other.
    """
    name, args = call.op.name, call.args
    if _has_bias(call):
        return False
    if (at := ops.KERNEL_AT.get(name)) is not None:
        return (args[at] if len(args) > at else call.kwargs.get("weight")) is tensor
    if call.op.plain not in ("matmul", "bmm", "mm", "einsum", "baddbmm", "linalg_matmul"):
        return False
    others = [trace for t, trace in call.traces if t is not tensor]
    if not others or any(trace.output is not None or trace.source is not None for trace in others):
        return False
    return _has_a_matrix_for_each_row(tensor, output.y)


def _has_a_matrix_for_each_row(tensor: Tensor, y: Tensor) -> bool:
    if tensor.ndim < 3 or y.ndim < 2 or not y.is_contiguous():
        return False
    if tensor.untyped_storage().data_ptr() != y.untyped_storage().data_ptr():
        return False
    features, (rows, columns) = y.shape[-1], tensor.shape[-2:]
    reach = (rows - 1) * tensor.stride(-2) + (columns - 1) * tensor.stride(-1)
    batch = zip(tensor.shape[:-2], tensor.stride()[:-2], strict=True)
    return rows > 1 and columns > 1 and reach < features and all(n == 1 or s % features == 0 for n, s in batch)


def _has_bias(call: Call) -> bool:
    places = ops.LINEAR.get(call.op.name)
    if places is None or places.bias is None:
        return False
    position, keyword = places.bias
    return (call.args[position] if len(call.args) > position else call.kwargs.get(keyword)) is not None


def generators_of(call: Call, trail: Trail, weights: Weights) -> list[Weight]:
    """The layers that a signal in the place of a kernel is made of, where it is no image of an output that waits."""
    at = ops.KERNEL_AT[call.op.name]
    trace = trail.of(call.args[at] if len(call.args) > at else call.kwargs.get("weight"))
    if trace is None or trace.source is not None or trace.mixed is not None:
        return []
    if trace.output is not None and not trace.output.settled and not _has_bias(call):
        return []
    return [weight for weight in weights.all if trace.nearest >> weight.number & 1]
