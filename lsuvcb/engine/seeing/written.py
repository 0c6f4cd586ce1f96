"""What an op writes into: a buffer that a model fills piece by piece depends on all that was written there."""

from __future__ import annotations

from torch import Tensor

from ..tensors import tensors_of
from .call import Call
from .provenance import Trace, Trail


def note_written(call: Call, given: Trace, trail: Trail) -> None:
    """What this op has written into, and the tensor that this is a view of, depend on what the op was given.

    Args:
        given: what the op's result depends on.
    """
    into = call.args[0] if call.op.writes and call.args else call.kwargs.get("out")
    for tensor in tensors_of(into):
        for written in (tensor, tensor._base):
            if isinstance(written, Tensor):
                _join(written, given, trail)


def _join(tensor: Tensor, given: Trace, trail: Trail) -> None:
    known = trail.of(tensor)
    if known is given or (known is not None and known.source is not None):
        return
    output, above, nearest, branches, of_batch = None, given.above, given.nearest, given.branches, given.of_batch
    if known is not None:
        output, above, nearest = known.output, above | known.above, nearest | known.nearest
        branches, of_batch = max(branches, known.branches), of_batch and known.of_batch
    trail.tag(tensor, Trace(None, output, above, nearest, branches, of_batch))
