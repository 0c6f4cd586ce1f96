"""One call of a linear op with a weight of the model: it can be run again on other values of its weight and its bias."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..keeping.autocast import autocast_on, under
from ..model.left_alone import BiasIsFrozen, BiasIsScaled, NestedOutput, NotReal, Reason
from ..model.weight import Weight
from ..ranks import Layout, Ranks, is_sharded, laid_out, layout_of, local, reduced
from ..tensors import tensors_of
from . import ops
from .provenance import Source


class Use:
    """y = op(x, W) + b.

    Attributes:
        op: the op's name.
        weight, source, key: whose weight it is, how the call's value comes from it, and the value's place in the call.
        bias, bias_source, bias_key: the bias, a parameter of the model, how its value in the call comes from it, and where in the
            call that value stands; all None without a bias.
        added: adds a bias behind the op, where the model does (`x @ W + b`); None where the op has it.
        obstacle: why the op's added term cannot change; None if it can or if there is none.
        others: the call takes other parameters beside these.
        reads_batch: one of its inputs is of the batch, and no parameter has touched it.
        is_mixed: the weight stands in the op multiplied by another layer's output.
        autocast: see `autocast_on`.
        layout: how its output lies on the ranks; None where this one has all of it.
        fan_in: how many values of the input make one of the output.
    """

    __slots__ = (
        "added", "args", "autocast", "bias", "bias_key", "bias_source", "func", "is_mixed", "key", "kwargs", "layout",
        "obstacle", "op", "others", "reads_batch", "source", "weight",
    )  # fmt: skip

    def __init__(
        self, op: str, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], source: Source, key: ops.Key,
        others: bool = False, is_mixed: bool = False,
    ) -> None:  # fmt: skip
        self.op, self.func, self.args, self.kwargs = op, func, args, kwargs
        self.autocast = autocast_on(source.weight.tensor.device.type)
        self.weight, self.source, self.key, self.others = source.weight, source, key, others
        self.is_mixed, self.reads_batch = is_mixed, False
        self.bias: Weight | None = None
        self.bias_source: Source | None = None
        self.bias_key: ops.Key | None = None
        self.added: Callable[[Tensor, Tensor], Tensor] | None = None
        self.obstacle: Reason | None = None
        self.layout: Layout | None = None

    def take_bias(self, source: Source, key: ops.Key | None, added: Callable[[Tensor, Tensor], Tensor] | None) -> None:
        """This parameter is added to the output, inside the op at `key` or behind it by `added`."""
        self.bias, self.bias_source, self.bias_key, self.added = source.weight, source, key, added
        if key is not None and self.kwargs and self.kwargs.get("beta", 1) != 1:
            self.obstacle = BiasIsScaled()
        elif not self.bias.zero and not self.bias.tensor.requires_grad:
            self.obstacle = BiasIsFrozen()

    @property
    def is_stack(self) -> bool:
        """Does the op multiply by a stack of matrices (bmm)?"""
        return ("mm" in self.op or self.op == "matmul") and self.weight.tensor.ndim > 2

    @property
    def fan_in(self) -> int:
        shape = self.weight.tensor.shape
        if self.op == "linear" or self.op.startswith(("conv", "deform")):
            return max(1, shape[1:].numel())
        return max(1, shape[-2] if len(shape) > 1 else shape[0])

    def run(self, weight: Tensor | None = None, bias: Tensor | None = None) -> Any:
        """Call the op as the model did, under the same autocast; with other values for its weight and bias where given.

        Summands that lie on several ranks are summed up.
        """
        args, kwargs = self.args, self.kwargs
        if weight is bias is None and self.added is None:
            return self.taken(self.func(*args, **kwargs))
        if weight is not None:
            values = self.source.replay(weight).to(ops.get(args, kwargs, self.key).dtype)  # FSDP2 may gather in bf16
            args, kwargs = ops.put(args, kwargs, self.key, values)
        if bias is not None and self.bias_key is not None and self.bias_source is not None:
            values = self.bias_source.replay(bias).to(ops.get(args, kwargs, self.bias_key).dtype)
            args, kwargs = ops.put(args, kwargs, self.bias_key, values)
        with under(self.autocast):
            result = self.func(*args, **kwargs)
        if self.added is not None and self.bias_source is not None:
            own = self.bias_source.weight.home.values()
            result = self.added(result, self.bias_source.replay(own if bias is None else bias).to(result.dtype))
        return self.taken(result)

    def taken(self, result: Any) -> Any:
        """What the op gave, to be handed on."""
        if type(result) is Tensor:
            return result
        result = reduced(result)
        self.layout = layout_of(result)
        return result

    @property
    def sharers(self) -> Ranks | None:
        """The ranks that hold other parts of the same output; None where this one has all of it, or all of its samples."""
        if self.layout is None:
            return None
        groups = self.layout.groups(i for i, p in enumerate(self.layout.placements) if p.is_shard() and p.dim > 0)
        return Ranks(groups) if groups else None

    def inputs(self) -> list[Tensor]:
        """The tensors that the weight works on, this rank's part of them."""
        weight, added = ops.get(self.args, self.kwargs, self.key), ops.get(self.args, self.kwargs, self.bias_key)
        values = (*self.args, *self.kwargs.values())
        found = [t for value in values for t in tensors_of(value) if t is not weight and t is not added]
        return [t if type(t) is Tensor else local(t) for t in found]

    def spread_bias(self) -> Tensor:
        """The bias of this call in the shape that broadcasts over its output: convolutions have their channels ahead of space.

        Of an output in shards, the part that goes with this rank's.
        """
        assert self.bias_source is not None
        bias = self.bias_source.replay(self.bias_source.weight.home.values())
        spatial = 2 if self.op == "deform_conv2d" else int(self.op[-2]) if self.op.startswith("conv") else 0
        if self.layout is not None:
            bias = local(laid_out(bias, self.layout.of_vector(spatial)))
        if self.added is not None:
            return bias
        return bias.view(-1, *([1] * spatial)) if spatial else bias

    def free(self) -> None:
        """Let go of the call's arguments, which the model may have freed; it cannot be run any more."""
        self.args, self.kwargs = (), {}


def output_of(result: Any) -> Tensor:
    """This rank's part of what a linear op gave: its result, or the first of them (attention also gives its weights)."""
    y = result[0] if isinstance(result, (tuple, list)) else result
    return y if type(y) is Tensor else local(y)


def zeros_for(bias: Weight | None) -> Tensor | None:
    """Zeros in the place of a bias; None without one."""
    if bias is None:
        return None
    return in_place_of(bias, torch.zeros(bias.tensor.shape, dtype=bias.tensor.dtype, device=bias.tensor.device))


def in_place_of(weight: Weight, values: Tensor) -> Tensor:
    """`values`, to stand in for those of `weight`, with a path to its parameter for a forward that takes gradients by it."""
    parameter = weight.tensor
    if not torch.is_grad_enabled() or not parameter.requires_grad or is_sharded(parameter):
        return values
    return values + (parameter - parameter.detach())


_REAL = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))


def no_real_values(weight: Weight, output: Tensor) -> Reason | None:
    """Why values of this type have no std to scale; None for real floating ones."""
    if output.is_nested:
        return NestedOutput()
    if type(output) is Tensor and output.dtype in _REAL and weight.tensor.dtype in _REAL:
        return None
    if weight.tensor.is_floating_point() and output.is_floating_point():
        return None
    what, tensor = ("its output", output) if weight.tensor.is_floating_point() else ("its weight", weight.tensor)
    return NotReal(what, "complex" if tensor.is_complex() else "of an integer type", str(tensor.dtype))
