"""Blocks as layers: a selected module with a `weight` and a `bias` of its own making is solved by running it alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .undisturbed import tensors_in


def is_block(module: nn.Module) -> bool:
    """Has it a weight, and a bias that is no parameter of its own: a property, a number, a tensor?

    nn.Linear and its kin are none: their op takes both as they are.
    """
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    return isinstance(weight, nn.Parameter) and bias is not None and "bias" not in module._parameters


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

    @contextmanager
    def holding(self, values: Tensor | None, bias: Any) -> Iterator[None]:
        """The block with other values for its weight and another bias; afterwards the old ones, bit for bit."""
        saved, old = self.weight.detach().clone(), self.bias
        try:
            if values is not None:
                self.weight.detach().copy_(values)
            self.module.bias = bias
            yield
        finally:
            self.weight.detach().copy_(saved)
            self.module.bias = old

    def run(self, args: Sequence[Any], kwargs: Mapping[str, Any], values: Tensor | None, bias: Any) -> Any:
        """The block's output for other values of its weight and its bias. Hooks do not run."""
        with self.holding(values, bias):
            return self.module.forward(*args, **kwargs)


def output_tensor(output: Any) -> Tensor:
    return tensors_in(output)[0]
