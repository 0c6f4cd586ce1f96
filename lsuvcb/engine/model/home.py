"""Where a weight's or a bias's values live: in a parameter, in shards of one, in what a parametrization computes them from.

A home is read, tried and changed; nobody else asks which kind it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from ..ranks import is_sharded, laid_out, layout_of, local
from .computed import Computed


class Change:
    """What a commit does to one tensor in memory: values <- scale * values, begun from `start` if it is given."""

    __slots__ = ("scale", "start", "tensor")

    def __init__(self, tensor: Tensor, scale: float = 1.0, start: Tensor | None = None) -> None:
        self.tensor, self.scale, self.start = tensor, scale, start

    def write(self) -> None:
        if self.start is not None:
            self.tensor.copy_(self.start)
        if self.scale != 1:
            self.tensor.mul_(self.scale)


class Home(ABC):
    """Where the values of one weight or bias live.

    Attributes:
        kind: what computes them; "" where they are a parameter's own.
    """

    kind = ""

    @abstractmethod
    def values(self) -> Tensor:
        """All of them as they are now, in shards where they lie so; detached, and maybe the memory itself."""

    @abstractmethod
    def takes(self, values: Tensor) -> bool:
        """Would these values come back if they were written? Tried, and put back."""

    def part_of(self, values: Tensor) -> Tensor:
        """What this rank needs of values that are equal on all ranks, to be handed to `changes`."""
        return values

    @abstractmethod
    def changes(self, scale: float, start: Tensor | None = None) -> list[Change] | None:
        """How the values become scale * values, or scale * start; None where they would not."""


class Held(Home):
    """A parameter, whole or in shards over ranks."""

    def __init__(self, parameter: Tensor) -> None:
        self.parameter = parameter

    def values(self) -> Tensor:
        return self.parameter.detach()

    def takes(self, values: Tensor) -> bool:
        return True

    def changes(self, scale: float, start: Tensor | None = None) -> list[Change]:
        part = None if start is None else local(laid_out(start, layout_of(self.parameter)))
        return [Change(local(self.parameter), scale, part)]

    def part_of(self, values: Tensor) -> Tensor:
        if not is_sharded(self.parameter):
            return values
        return laid_out(values, layout_of(self.parameter)).clone()  # no view that keeps all of them


class Derived(Home):
    """A tensor that a module computes from other parameters: weight_norm and its kin."""

    def __init__(self, computed: Computed, tensor: Tensor) -> None:
        self.computed, self.tensor, self.kind = computed, tensor, computed.kind

    def values(self) -> Tensor:
        return self.tensor.detach()

    def takes(self, values: Tensor) -> bool:
        return self.computed.originals_for(values) is not None

    def changes(self, scale: float, start: Tensor | None = None) -> list[Change] | None:
        originals = self.computed.originals_for((self.values() if start is None else start) * scale)
        if originals is None:
            return None
        return [Change(o, start=new) for o, new in zip(self.computed.originals, originals, strict=True)]
