"""Which module of several ops an output has gone into: an activation or a normalisation may be one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..model.weight import Weight
from .activations import Activations
from .behind import Inside, is_norm, is_of_one_op
from .output import Output
from .provenance import Trail


class Doors:
    """Hooks on modules without parameters, norms and those that the user calls activations.

    Attributes:
        inside: the module that runs, where it was given an output that waits for its reader.
    """

    def __init__(self) -> None:
        self.inside: Inside | None = None
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def of(self, output: Output) -> Inside | None:
        """The module that this output is in."""
        return self.inside if self.inside is not None and self.inside.output is output else None

    def watch(self, modules: Iterable[nn.Module], activations: Activations, trail: Trail) -> None:
        def step_in(module: nn.Module, args: Sequence[Any]) -> None:
            if args and isinstance(args[0], Tensor) and (len(args) == 1 or is_norm(module)):
                trace = trail.of(args[0])
                if trace is not None and trace.output is not None and not trace.output.settled:
                    self.inside = Inside(module, trace.output, args[0])

        def step_out(module: nn.Module, args: Any, result: Any) -> None:
            if self.inside is not None and self.inside.module is module:
                self.inside = None

        for module in modules:
            leaf = not module._modules and not module._parameters and not is_of_one_op(module)
            if leaf or is_norm(module) or activations.names_module(module):
                self._handles.append(module.register_forward_pre_hook(step_in))
                self._handles.append(module.register_forward_hook(step_out))

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


class BlockDoors:
    """Hooks on blocks. What goes on inside one is its own matter, and of blocks in one another only the outermost counts.

    Attributes:
        open: how many blocks run.
    """

    def __init__(self) -> None:
        self.open = 0
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def watch(self, blocks: Iterable[Weight], enter: Callable[..., None], leave: Callable[..., Any]) -> None:
        """Call enter(weight, args, kwargs) and leave(weight, args, kwargs, result), which may give another result."""
        for weight in blocks:

            def step_in(module: nn.Module, args: Any, kwargs: Any, weight: Weight = weight) -> None:
                if not self.open:
                    enter(weight, args, kwargs)
                self.open += 1

            def step_out(module: nn.Module, args: Any, kwargs: Any, result: Any, weight: Weight = weight) -> Any:
                self.open -= 1
                return None if self.open else leave(weight, args, kwargs, result)

            self._handles.append(weight.module.register_forward_pre_hook(step_in, with_kwargs=True))
            self._handles.append(weight.module.register_forward_hook(step_out, with_kwargs=True, prepend=True))

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
