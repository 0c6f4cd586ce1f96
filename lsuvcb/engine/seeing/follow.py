"""From a layer to its activation: follows each layer's output to the op that takes it first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..keeping.undisturbed import RNGState, tensors_in
from ..model.weights import Weight, Weights, tensors_of
from . import ops
from .eye import Eye, Use

Activation = type[nn.Module] | nn.Module | Callable[..., Any]
View = Callable[[Tensor], Tensor]

# Elementwise functions that turn a layer's output into an activation, as torch spells them; in-place forms included.
ELEMENTWISE = frozenset(
    "relu relu6 leaky_relu elu selu celu gelu silu mish softplus softsign tanh sigmoid hardtanh hardswish hardsigmoid "
    "logsigmoid log_sigmoid tanhshrink softshrink hardshrink threshold prelu clamp clamp_min clamp_max sin".split()
)


@dataclass(frozen=True)
class Elementwise:
    """An activation as a function of what stands in the place of a layer's output, which it may overwrite.

    Attributes:
        takes_rows: it takes some rows of the output as well as all of them.
    """

    function: Callable[[Tensor], Tensor]
    takes_rows: bool

    def __call__(self, values: Tensor) -> Tensor:
        return self.function(values)


class Activations:
    """What counts as an activation: the ops of `ELEMENTWISE`, and those that the user names.

    Args:
        extra: module types, modules or torch functions, one or several. A module counts with all that it does.

    Raises:
        TypeError: an item is none of these.
    """

    def __init__(self, extra: Activation | Iterable[Activation] | None = None) -> None:
        items = () if extra is None else tuple(extra) if isinstance(extra, (tuple, list, set, frozenset)) else (extra,)
        for item in items:
            if not callable(item):
                raise TypeError(f"`activations` takes module types, modules and torch functions, got {item!r}.")
        self._types = tuple(i for i in items if isinstance(i, type) and issubclass(i, nn.Module))
        self._modules = {i for i in items if isinstance(i, nn.Module)}
        self._names = {ops.op_name(i) for i in items if not isinstance(i, (type, nn.Module))}

    def names_module(self, module: nn.Module) -> bool:
        return isinstance(module, self._types) or module in self._modules

    def has_op(self, name: str) -> bool:
        return name.removesuffix("_") in ELEMENTWISE or name in self._names


@dataclass(eq=False)
class Output:
    """A linear op's output y on its way to the op that takes it: `alias` are the views of y that were made since."""

    use: Use
    y: Tensor
    alias: list[tuple[Tensor, View]]


class Follow(Eye):
    """An eye that decides for each layer where it is measured: at its output, or behind the activation that takes it.

    Args:
        activations: None measures every layer at its own output.

    A subclass calls `hand_on` with what a linear op gave; `settle` is called back, before any other op reads y.
    """

    def __init__(self, weights: Weights, activations: Activations | None = None) -> None:
        super().__init__(weights)
        self.activations = activations
        self._waiting: dict[int, tuple[Output, View]] = {}
        self._inside: tuple[nn.Module, Output, View] | None = None
        self._blocks_open = 0
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def settle(self, use: Use, y: Tensor, activation: Elementwise | None, why: str) -> None:
        """Measure or correct y, in place.

        Args:
            activation: gives the activation's output from values in the place of y, which it may overwrite; None: at the layer.
            why: for the report, where an activation was looked for and none takes y directly.
        """
        raise NotImplementedError

    def on_block(self, weight: Weight, args: Any, kwargs: Any, output: Any) -> Any:
        """A selected block has run: measure its output, or give the one to hand on; None leaves it."""
        raise NotImplementedError

    def hand_on(self, use: Use, y: Tensor) -> None:
        if self.activations is None:
            self.settle(use, y, None, "")
        else:
            self._watch(Output(use, y, []), y, lambda values: values)

    def __enter__(self) -> Any:
        if self.activations is not None:
            for module in self.weights.paths.values():
                leaf = not any(True for _ in module.children()) and not any(True for _ in module.parameters())
                if leaf or self.activations.names_module(module):
                    self._handles.append(module.register_forward_pre_hook(self._step_in))
                    self._handles.append(module.register_forward_hook(self._step_out))
        for weight in self.weights.blocks:
            enter, leave = partial(self._enter_block, weight), partial(self._leave_block, weight)
            self._handles.append(weight.module.register_forward_pre_hook(enter, with_kwargs=True))
            self._handles.append(weight.module.register_forward_hook(leave, with_kwargs=True, prepend=True))
        return super().__enter__()

    def __exit__(self, exc_type: Any, *rest: Any) -> None:
        super().__exit__(exc_type, *rest)
        for handle in self._handles:
            handle.remove()
        if exc_type is None:
            for output, _ in list(self._waiting.values()):
                self._settle_at_layer(output, "no activation follows")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._blocks_open:
            return func(*args, **kwargs)
        if self._waiting and (taken := self._taken(args, kwargs)) and (op := ops.op_name(func)) not in ops.LOOKS:
            if op in ops.TEMPLATES and id(args[0]) not in self._waiting:
                return super().__torch_function__(func, types, args, kwargs)
            if op in ops.VIEWS and len(taken) == 1:
                return self._through_view(func, types, args, kwargs)
            for output, view in taken:
                self._settle_before(op, output, view, func, args, kwargs)
        return super().__torch_function__(func, types, args, kwargs)

    def _taken(self, args: Any, kwargs: Any) -> list[tuple[Output, View]]:
        tensors = (t for a in (*args, *kwargs.values()) for t in tensors_of(a))
        found = [self._waiting[id(t)] for t in tensors if id(t) in self._waiting]
        return [pair for i, pair in enumerate(found) if all(pair[0] is not other for other, _ in found[:i])]

    def _watch(self, output: Output, tensor: Tensor, view: View) -> None:
        output.alias.append((tensor, view))
        self._waiting[id(tensor)] = (output, view)

    def _through_view(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        result = super().__torch_function__(func, types, args, kwargs)
        ((output, view),) = self._taken(args, kwargs)
        if isinstance(result, Tensor) and result.untyped_storage().data_ptr() == output.y.untyped_storage().data_ptr():
            self._watch(output, result, lambda values: func(view(values), *args[1:], **kwargs))
            return result
        self._settle_at_layer(output, f"its output goes to {ops.op_name(func)}")
        return super().__torch_function__(func, types, args, kwargs)

    def _settle_before(self, op: str, output: Output, view: View, func: Any, args: Any, kwargs: Any) -> None:
        assert self.activations is not None
        inside = self._inside if self._inside is not None and self._inside[1] is output else None
        named = inside is not None and self.activations.names_module(inside[0])
        if not named and not (self.activations.has_op(op) and args and id(args[0]) in self._waiting):
            return self._settle_at_layer(output, f"its output goes to {op}")
        call: View = lambda values: func(view(values), *args[1:], **kwargs)  # noqa: E731
        # A view with sizes of its own fits the whole output only, and so do bounds for each sample
        others = (t for a in (*args[1:], *kwargs.values()) for t in tensors_of(a))
        alone = len(output.alias) == 1 and all(t.ndim < output.y.ndim for t in others)
        takes_rows = alone and has_rows(output.y, output.use.weight.tensor)
        if inside is not None:
            module, _, into = inside
            call = lambda values: module.forward(into(values))  # noqa: E731
            if not _is_function_of(call, output.y[:2] if takes_rows else output.y):
                return self._settle_at_layer(output, f"{type(module).__name__} is not elementwise")
        self._release(output)
        return self.settle(output.use, output.y, Elementwise(call, takes_rows), "")

    def settle_now(self, weight: Weight) -> None:
        """Settle what still waits for its activation: another op is about to read the same weight."""
        for output in [o for o, _ in self._waiting.values() if o.use.weight is weight or o.use.bias is weight]:
            self._settle_at_layer(output, "its weight is used again before the activation")

    def _settle_at_layer(self, output: Output, why: str) -> None:
        if any(output is waiting for waiting, _ in self._waiting.values()):
            self._release(output)
            self.settle(output.use, output.y, None, f"measured at the layer: {why}")

    def _release(self, output: Output) -> None:
        for tensor, _ in output.alias:
            self._waiting.pop(id(tensor), None)

    def _enter_block(self, weight: Weight, module: nn.Module, args: Any, kwargs: Any) -> None:
        for tensor in tensors_in((args, kwargs)):
            if id(tensor) in self._waiting:
                self._settle_at_layer(self._waiting[id(tensor)][0], f"its output goes to the block {weight.name!r}")
        self.settle_now(weight)
        self._blocks_open += 1

    def _leave_block(self, weight: Weight, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        result = None if self._blocks_open > 1 else self.on_block(weight, args, kwargs, output)
        self._blocks_open -= 1
        return result

    def _step_in(self, module: nn.Module, args: Sequence[Any]) -> None:
        if len(args) == 1 and isinstance(args[0], Tensor) and id(args[0]) in self._waiting:
            output, view = self._waiting[id(args[0])]
            self._inside = (module, output, view)

    def _step_out(self, module: nn.Module, args: Any, result: Any) -> None:
        self._inside = None


def _is_function_of(activation: View, y: Tensor) -> bool:
    """Does it give one tensor of as many values, the same ones each time? Draws made in finding out are put back."""
    rng = RNGState([y.device])
    first, second = activation(y.clone()), activation(y.clone())
    rng.restore()
    return isinstance(first, Tensor) and first.numel() == y.numel() and torch.equal(first, second)


def has_rows(y: Tensor, weight: Tensor) -> bool:
    """Is the first dimension of an input or output the batch's? An unbatched one has fewer dimensions than a conv's weight."""
    return y.ndim >= max(2, weight.ndim)
