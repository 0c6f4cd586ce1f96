"""Ops that hand a layer's output on before anything reads it: views, biases, factors, dropout, and what takes it for a kernel."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..ranks import on_shards
from .call import Call
from .kernels import takes_for_kernel
from .output import NUMBER, Function, Image, Output, factor_in, is_bias
from .provenance import Source


class Onward(NamedTuple):
    """How the result of an op is the output that it was given.

    Attributes:
        parent: as which image the output was given.
        of: the result as a function of that; None where it cannot be repeated (dropout).
        factor: what it was multiplied by; see `factor_in`.
        bias: a parameter that was added to it, which had none.
        kernel: the op's name, where it multiplied its input by the output.
    """

    parent: Image
    of: Function | None
    factor: str = ""
    bias: Source | None = None
    kernel: str = ""


def onward(call: Call, output: Output, tensor: Tensor, *, through_dropout: bool) -> Onward | None:
    """How this op hands the output on; None where it reads it.

    Args:
        tensor: as which image of the output.
        through_dropout: dropout, and factors that are no numbers, hand it on, too.
    """
    image, op = output.image(tensor), call.op
    if image is None or not call.has(tensor):
        return None
    of = on_shards(call.on(tensor), tensor)
    if (op.views or _is_whole(call)) and call.args[0] is tensor:
        return Onward(image, of)
    if (bias := is_bias(call, output, tensor)) is not None:
        return Onward(image, of, bias=bias)
    factor = "" if op.writes else factor_in(call, tensor)
    if factor and (factor == NUMBER or through_dropout):
        return Onward(image, of, factor)
    if through_dropout and op.is_dropout and call.args[0] is tensor:
        return Onward(image, None)
    return Onward(image, of, kernel=op.name) if takes_for_kernel(call, output, tensor) else None


def _is_whole(call: Call) -> bool:
    """Does this op index a tensor, and take all of it? y[:, None] only adds a dimension."""
    if call.op.name != "__getitem__":
        return False
    index = call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
    return all(item is None or item is ... or (isinstance(item, slice) and item == slice(None)) for item in index)
