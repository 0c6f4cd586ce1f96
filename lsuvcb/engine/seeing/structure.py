"""Where a layer stands in its net: at the end of a branch that is added to a stream."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .call import Call
from .provenance import Trace


class Branch(NamedTuple):
    """An add of a stream and a branch: the weights that the stream depends on are a strict subset of the branch's."""

    stream: Trace
    tensor: Tensor  # the branch's end


def branch_of(call: Call) -> Branch | None:
    """The branch that this op adds to a stream; None for any other op, and where both sides have weights of their own."""
    if call.op.plain != "add" or len(call.traces) != 2:
        return None
    (a, first), (b, second) = call.traces
    if a.shape != b.shape or first.source is not None or second.source is not None:
        return None
    if first.above == second.above:
        return None
    if first.above & second.above == first.above:
        return Branch(first, b)
    if first.above & second.above == second.above:
        return Branch(second, a)
    return None
