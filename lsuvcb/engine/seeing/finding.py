"""In one call of an op: which weight works there, or is multiplied by something."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..model.left_alone import BiasIsNoParameter, ProductOfTwo, Reason, Transformed, UnderVmap, UsedInParts
from ..model.weight import Weight
from ..tensors import tensors_of
from . import ops
from .call import Call
from .provenance import Made, Source, Trail
from .use import Use

_inside_transform = torch._C._are_functorch_transforms_active  # torch.vmap and its like


def use_in(call: Call, trail: Trail, leave: Callable[[Weight, Reason], None]) -> Use | None:
    """The use of a weight that this call of a linear op is; None where it is none.

    Args:
        leave: told of each weight that cannot be solved here, and why.
    """
    op, args, kwargs = call.op.name, call.args, call.kwargs
    places = ops.slots(op, args, kwargs)
    if places is None:
        return None
    at = []
    for key in places.weights:
        trace = trail.of(ops.get(args, kwargs, key))
        source = None if trace is None else trace.source
        if trace is not None and op in ops.KERNEL_AT:
            source = source or trace.mixed
        if isinstance(source, Source):
            at.append((key, source))
        elif source is not None:
            for weight in source.weights:
                leave(weight, Transformed(op, source.op))
    if len(at) > 1:  # a parameter that is spread over the batch is data (learned queries), the other one the weight
        at = [(k, s) for k, s in at if ops.get(args, kwargs, k).numel() <= s.weight.tensor.numel()] or at
    if len(at) != 1:
        for _, source in at:
            leave(source.weight, ProductOfTwo(op))
        return None
    key, source = at[0]
    if _inside_transform() and _is_batched(args):
        leave(source.weight, UnderVmap(op))
        return None
    if source.part:
        leave(source.weight, UsedInParts(op))
    added = ops.get(args, kwargs, places.bias)
    value = ops.get(args, kwargs, key)
    others = any(t is not value and t is not added and trace.source is not None for t, trace in call.traces)
    use = Use(op, call.func, args, kwargs, source, key, others, trail.source(value) is None)
    if added is not None:
        of = trail.source(added)
        if isinstance(of, Source) and not of.part:
            use.take_bias(of, places.bias, None)
        else:
            use.obstacle = BiasIsNoParameter()
    return use


def _is_batched(args: Any) -> bool:
    """Does torch.vmap hide the values of one of the arguments, under whatever other transforms?"""
    functorch = torch._C._functorch
    for tensor in tensors_of(args):
        while functorch.is_functorch_wrapped_tensor(tensor):
            if functorch.is_batchedtensor(tensor):
                return True
            tensor = functorch.get_unwrapped(tensor)
    return False


def scaled_in(call: Call) -> tuple[Tensor, Source] | None:
    """The weight that is multiplied by something that it is no part of; None where this is no such product."""
    sources = call.sources
    if any(isinstance(trace.source, Made) for _, trace in call.traces):
        return None
    large = [(t, s) for t, s in sources if s.weight.tensor.ndim > 1]
    if (
        len(large) != 1
        or not call.has(large[0][0])
        or call.op.writes
        or len({s.weight for _, s in sources}) != len(sources)
    ):
        return None
    tensor, source = large[0]
    if call.op.plain in ops.QUOTIENTS and call.args[0] is not tensor:
        return None
    if call.op.plain == "masked_fill" and call.args[2] != 0:
        return None
    return tensor, source
