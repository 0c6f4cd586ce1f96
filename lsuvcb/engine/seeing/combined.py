"""Ops that make of a weight what is linear in it: multiples, sums over a stack, and products with other parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..model.left_alone import ProductOfTwo, Reason
from ..model.weight import Weight
from ..tensors import tensors_of
from . import ops
from .call import Call
from .provenance import Made, Source, Trace, Trail, is_all_of

_PRODUCTS = frozenset("matmul mm bmm einsum linalg_matmul kron outer mul multiply".split())


def combined_in(call: Call, new_value: Callable[[Any], Any]) -> Source | None:
    """How the result comes from one weight that this op is linear in; None where there is none.

    Args:
        new_value: of another parameter: what it will be.
    """
    if call.op.writes or any(isinstance(trace.source, Made) for _, trace in call.traces):
        return None
    if call.op.plain in ops.FACTORS and (scaled := _scaled_in(call)) is not None:
        tensor, source = scaled
        return source.through(call.on(tensor), scaled=True)
    if len(call.sources) < len(call.traces):
        return None
    if call.op.plain in ops.SUMS:
        return _sum_in(call)
    return _difference_in(call) or _product_in(call, new_value)


def note_product(call: Call, of: Source, trail: Trail, leave: Callable[[Weight, Reason], None]) -> None:
    """Of the factors of a product, one stands for it; the others are left as they are."""
    trail.see(of.weight).mixed_by = call.op.name
    for _, source in call.sources:
        if source.weight is not of.weight:
            if not trail.used_by(source.weight, mixed=True):
                leave(source.weight, ProductOfTwo(call.op.name))
            trail.meet(source.weight, call.op.name)


def tag_view(result: Any, call: Call, parent: Source | Made, trail: Trail) -> None:
    """Remember that `result`, or each tensor in it, is a view or a copy of what `parent` is, whole or in part."""
    above = nearest = 0
    for _, trace in call.traces:  # a weight may be multiplied by another layer's output
        above, nearest = above | trace.above, nearest | trace.nearest
    for item in tensors_of(result):
        source = parent
        if isinstance(parent, Source):
            part = call.op.is_part and not is_all_of(item, call.args[0])
            source = parent.through(lambda values: call.func(values, *call.args[1:], **call.kwargs), part)
        trail.tag(item, Trace(source, None, above, nearest))


def one_factor(sources: list[Source]) -> Source | None:
    """Which of several factors is scaled for all of them: the last that may be."""
    if len({source.weight for source in sources}) < len(sources):
        return None
    free = [s for s in sources if s.weight.reason is None and s.weight.tensor.requires_grad and not s.weight.zero]
    return next((s for s in reversed(free) if not s.part), None)


def _scaled_in(call: Call) -> tuple[Tensor, Source] | None:
    """The weight that is multiplied by something that it is no part of."""
    sources = call.sources
    large = [(t, s) for t, s in sources if s.weight.tensor.ndim > 1]
    if not large and len(call.traces) == 1:  # a bias
        large = sources
    if len(large) != 1 or not call.has(large[0][0]) or len({s.weight for _, s in sources}) != len(sources):
        return None
    tensor, source = large[0]
    if call.op.plain in ops.QUOTIENTS and call.args[0] is not tensor:
        return None
    if call.op.plain == "masked_fill" and call.args[2] != 0:
        return None
    if call.op.plain == "where" and not all(_is_choice_or_zero(v) for v in call.args if v is not tensor):
        return None
    return tensor, source


def _is_choice_or_zero(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not value.is_floating_point() or not bool(value.any())
    return bool(value == 0)


def _sum_in(call: Call) -> Source | None:
    """Over some dimensions of a weight, so that matrices are left."""
    (tensor, source), args, kwargs = call.sources[0], call.args, call.kwargs
    dims = args[1] if len(args) > 1 else kwargs.get("dim")
    keeps = args[2] if len(args) > 2 else kwargs.get("keepdim", False)
    if not args or args[0] is not tensor or dims is None:
        return None
    left = tensor.ndim if keeps else tensor.ndim - (len(dims) if isinstance(dims, (tuple, list)) else 1)
    return source.through(call.on(tensor)) if left > 1 else None


def _difference_in(call: Call) -> Source | None:
    """A weight and what is linear in it, added or subtracted: a symmetric matrix, a centred one."""
    if call.op.plain not in ("add", "sub", "subtract") or len(call.args) != 2 or len(call.sources) != 2:
        return None
    first, second = (next((s for t, s in call.sources if t is value), None) for value in call.args)
    if first is None or second is None or first.weight is not second.weight:
        return None
    func, kwargs, of_first, of_second = call.func, call.kwargs, first.replay, second.replay
    part, product = first.part or second.part, first.product or second.product
    return Source(first.weight, lambda values: func(of_first(values), of_second(values), **kwargs), part, True, product)


def _product_in(call: Call, new_value: Callable[[Any], Any]) -> Source | None:
    """Of several weights, as in a product of low rank."""
    large = [(t, s) for t, s in call.sources if s.weight.tensor.ndim > 1]
    if call.op.plain not in _PRODUCTS or len(large) < 2:
        return None
    chosen = one_factor([source for _, source in large])
    tensor = next((t for t, s in large if s is chosen), None)
    if chosen is None or tensor is None or sum(t is tensor for v in call.args for t in tensors_of(v)) != 1:
        return None
    if not call.has(tensor):
        return None
    args = [value if value is tensor else new_value(value) for value in call.args]
    others = Call(call.op, call.func, args, call.kwargs, call.traces)
    return chosen.through(others.on(tensor), product=call.op.name)
