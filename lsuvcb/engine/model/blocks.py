"""Blocks as layers: a selected module with a `weight` and a `bias` of its own making is solved by running it alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..tensors import tensors_in


def is_block(module: nn.Module) -> bool:
    """Has it a weight, and a bias that is no parameter: a property, a number, a tensor?

    nn.Linear and its kin are none: their op takes both as they are, also where the bias is computed from parameters of theirs.
    """
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    computed = "bias_orig" in module._parameters or "bias" in getattr(module, "parametrizations", ())
    return isinstance(weight, nn.Parameter) and not (bias is None or isinstance(bias, nn.Parameter) or computed)


@dataclass(frozen=True)
class Block:
    """A module that turns (weight, bias) into an output in its own way, such as a conv and an activation with a bias behind it.

    Attributes:
        module: whose `weight` is scaled and whose `bias` is set.
        weight: module.weight, a parameter of it or of a module inside.
    """

    module: nn.Module
    weight: nn.Parameter

    @property
    def bias(self) -> Any:
        """The bias as it is now; a copy, where it is a tensor."""
        bias = self.module.bias
        return bias.detach().clone() if isinstance(bias, Tensor) else bias

    def set_bias(self, bias: Any) -> None:
        """Set it by way of the module; a buffer stays the same object."""
        if isinstance(held := self.module._buffers.get("bias"), Tensor):
            held.copy_(bias)
        else:
            self.module.bias = bias

    @contextmanager
    def holding(self, values: Tensor | None, bias: Any) -> Iterator[None]:
        """The block with other values for its weight and another bias; afterwards the old ones, bit for bit."""
        saved, old = self.weight.detach().clone(), self.bias
        try:
            if values is not None:
                self.weight.detach().copy_(values)
            self.set_bias(bias)
            yield
        finally:
            self.weight.detach().copy_(saved)
            self.set_bias(old)

    def run(self, args: Sequence[Any], kwargs: Mapping[str, Any], values: Tensor | None, bias: Any) -> Any:
        """The block's output for other values of its weight and its bias. Hooks do not run."""
        with self.holding(values, bias):
            return self.module.forward(*args, **kwargs)


class BlockChange:
    """A block's bias, to be set by way of the block."""

    __slots__ = ("block", "value")

    def __init__(self, block: Block, value: Any) -> None:
        self.block, self.value = block, value

    def write(self) -> None:
        self.block.set_bias(self.value)


def output_tensor(output: Any) -> Tensor:
    return tensors_in(output)[0]
