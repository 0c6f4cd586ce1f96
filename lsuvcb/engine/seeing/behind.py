"""What stands behind a layer: an activation, a normalisation, the end of a branch, or any other op."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..ranks import on_shards
from ..tensors import tensors_of
from . import ops
from .activations import Activations, Elementwise, is_function_of
from .call import Call
from .output import Image, Output, factor_in, has_rows
from .structure import branch_of


class Behind(NamedTuple):
    """What reads a layer's output.

    Attributes:
        why: why it is measured at the layer, where an activation was looked for.
        op: the op's name; "" where nothing reads it.
        activation: the activation that takes it directly; None otherwise.
        norm: a normalisation takes it.
        branch: it ends the `branch`-th branch that is added to a stream; 0 otherwise.
        factor: by what it is multiplied; see `factor_in`.
    """

    why: str
    op: str = ""
    activation: Elementwise | None = None
    norm: bool = False
    branch: int = 0
    factor: str = ""


class Inside(NamedTuple):
    """A module that an output went into, and as which image of it."""

    module: nn.Module
    output: Output
    tensor: Tensor


def what_reads(
    output: Output,
    tensor: Tensor,
    call: Call,
    activations: Activations,
    inside: Inside | None,
    *,
    second_reader: bool,
    always: bool,
) -> Behind:
    """What reads an output where this op takes it.

    Args:
        tensor: as which image of the output.
        activations: what counts as one.
        inside: a module that the output went into, whose op this is.
        second_reader: another op reads the output beside it.
        always: an activation matters; if not, only one behind a factor, which decides where the layer is measured.
    """
    op, why = call.op, f"its output goes to {call.op.name}"
    first = bool(call.args) and call.args[0] is tensor
    if (op.plain in ops.NORMS and first) or (inside is not None and is_norm(inside.module)):
        return Behind(why, op.plain, norm=True)
    branch = branch_of(call)
    if branch is not None and branch.tensor is tensor:
        return Behind(why, op.plain, branch=branch.stream.branches + 1)
    named = inside is not None and activations.names_module(inside.module)
    if not named and not (activations.has_op(op) and first):
        return Behind(why, op.plain, factor=factor_in(call, tensor))
    image = output.image(tensor)
    if image is None or image.of is None or not (always or image.factor):
        return Behind(why, op.plain)
    if second_reader:
        return Behind(f"{why}, and to another op beside it", op.plain)
    activation = _activation(output, tensor, image, call, inside)
    if inside is not None and not (is_of_one_op(inside.module) or _is_elementwise(activation, output)):
        return Behind(f"{type(inside.module).__name__} is not elementwise", op.plain)
    return Behind(why, op.plain, activation)


def _activation(output: Output, tensor: Tensor, image: Image, call: Call, inside: Inside | None) -> Elementwise:
    of: nn.Module | Call = call
    function, before = on_shards(call.on(tensor), tensor), image.of
    if inside is not None:
        of, function = inside.module, on_shards(inside.module.forward, inside.tensor)
        at_door = output.image(inside.tensor)
        before = at_door.of if at_door is not None else before
    assert before is not None
    # A view with sizes of its own fits the whole output only, and so do bounds for each sample
    others = (t for a in (*call.args[1:], *call.kwargs.values()) for t in tensors_of(a))
    takes_rows = len(output.images) == 1 and all(t.ndim < output.y.ndim for t in others)
    takes_rows = takes_rows and has_rows(output.y, output.use.weight.tensor)
    return Elementwise(lambda values: function(before(values)), of, takes_rows)


def _is_elementwise(activation: Elementwise, output: Output) -> bool:
    return is_function_of(activation, output.y[:2] if activation.takes_rows else output.y)


_TORCH_NORMS = (
    nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm,
)  # fmt: skip


def is_of_one_op(module: nn.Module) -> bool:
    """Is it torch's own, which calls one function on what it is given?"""
    return type(module).__module__ == "torch.nn.modules.activation"


def is_norm(module: nn.Module) -> bool:
    """Does it take away the scale of what it is given? Those that torch has not made are told by their name."""
    if isinstance(module, _TORCH_NORMS):
        return True
    named = "norm" in type(module).__name__.lower() and not isinstance(module, nn.LocalResponseNorm)
    return named and all(map(_is_vector, module._parameters.values())) and not any(True for _ in module.children())


def _is_vector(parameter: Tensor | None) -> bool:
    return parameter is None or (not is_lazy(parameter) and max(parameter.shape, default=1) == parameter.numel())
