"""In one call of an op: which weight works there, or is multiplied by something."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..model.left_alone import (
    BiasIsNoParameter,
    ProductOfTwo,
    Reason,
    Transformed,
    UnderTransform,
    UnderVmap,
    UsedInParts,
)
from ..model.weight import Weight
from ..tensors import tensors_of
from . import ops
from .call import Call
from .combined import one_factor
from .provenance import Made, Source, Trace, Trail
from .transforms import inside_transform, is_batched, wrapped_in
from .use import Use


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
        if isinstance(source, Source) and source.product and key != places.weights[-1]:
            leave(source.weight, ProductOfTwo(source.product))  # what another weight works on
        elif isinstance(source, Source):
            at.append((key, source))
        elif source is not None:
            for weight in source.weights:
                leave(weight, Transformed(op, source.op))
    if len(at) > 1:  # a parameter that is spread over the batch is data (learned queries), the other one the weight
        at = [(k, s) for k, s in at if ops.get(args, kwargs, k).numel() <= s.weight.tensor.numel()] or at
    chosen = at[0][1] if len(at) == 1 else one_factor([s for _, s in at]) if op == "einsum" else None
    for _, source in at:
        if source is not chosen:
            leave(source.weight, ProductOfTwo(op))
    if chosen is None:
        return None
    key, source = next((k, s) for k, s in at if s is chosen)
    if inside_transform() and is_batched(args, kwargs):
        leave(source.weight, UnderVmap(op))
        return None
    if source.part:
        leave(source.weight, UsedInParts(op))
    added = ops.get(args, kwargs, places.bias)
    value = ops.get(args, kwargs, key)
    others = any(t is not value and t is not added and trace.source is not None for t, trace in call.traces)
    use = Use(op, call.func, args, kwargs, source, key, others, bool(source.product) or trail.source(value) is None)
    if added is not None:
        of = trail.source(added)
        if isinstance(of, Source) and not of.part:
            use.take_bias(of, places.bias, None)
        else:
            use.obstacle = BiasIsNoParameter()
    return use


def made_in(call: Call, result: Any, trail: Trail) -> Made | None:
    """What an op makes of parameters alone; None where something else takes part.

    Masks, scales and random numbers that no op of the forward gave count as nothing else, where one weight's shape comes out.
    """
    given = [trail.of(t) for value in (*call.args, *call.kwargs.values()) for t in tensors_of(value)]
    if any(trace is not None and trace.source is None for trace in given):
        return None
    sources = [trace.source for _, trace in call.traces if trace.source is not None]
    of = {w: None for s in sources for w in (s.weights if isinstance(s, Made) else (s.weight,))}
    if None in given:
        shape = tensors_of(result)[0].shape
        if call.op.name in ops.TABLES or len(shape) < 2 or all(shape != weight.tensor.shape for weight in of):
            return None
    return Made(call.op.name, tuple(of))


def look_inside(
    op: str, values: Any, traces: Sequence[tuple[Tensor, Trace]], trail: Trail,
    settle_now: Callable[[Weight], None], leave: Callable[[Weight, Reason], None],
) -> int:  # fmt: skip
    """An op inside a torch.func transform, some of whose arguments are wrapped: what it gives cannot be followed out of there.

    Args:
        values: its arguments.
        settle_now: told of each weight that it reads, before it does.
        leave: told of each weight that it reads in another tensor's place.

    Returns:
        the weights whose outputs it reads, as bits.
    """
    read = 0
    for _, trace in traces:
        if isinstance(trace.source, Source):
            settle_now(trace.source.weight)
    for tensor, batched in wrapped_in(values):
        for _, beside in traces if batched else ():
            read |= beside.above
        known = trail.of(tensor)
        if known is not None and isinstance(known.source, Source):
            settle_now(known.source.weight)
            leave(known.source.weight, UnderTransform("torch.vmap" if batched else "a torch.func transform"))
            trail.meet(known.source.weight, op)
        elif known is not None:
            read |= known.above
    return read
