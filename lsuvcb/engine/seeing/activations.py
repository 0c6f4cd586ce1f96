"""What counts as an activation, and an activation as a function of what stands in the place of a layer's output."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..keeping.undisturbed import RNGState
from ..tensors import tensors_of
from . import ops
from .call import Call

Function = Callable[[Tensor], Tensor]
Activation = type[nn.Module] | nn.Module | Callable[..., Any]

# Elementwise functions that turn a layer's output into an activation, as torch spells them; in-place forms included.
ELEMENTWISE = frozenset(
    "relu relu6 leaky_relu elu selu celu gelu silu mish softplus softsign tanh sigmoid hardtanh hardswish hardsigmoid "
    "logsigmoid log_sigmoid tanhshrink softshrink hardshrink threshold prelu clamp clamp_min clamp_max sin".split()
)


class Elementwise:
    """An activation as a function of what stands in the place of a layer's output, which it may overwrite.

    Args:
        function: of values in the place of the output.
        of: the module that it is, or the call of a torch function with what else it was given.
        takes_rows: it takes some rows of the output as well as all of them.
    """

    __slots__ = ("_call", "_function", "_module", "takes_rows")

    def __init__(self, function: Function, of: nn.Module | Call, takes_rows: bool) -> None:
        self._function, self.takes_rows = function, takes_rows
        self._module = of if isinstance(of, nn.Module) else None
        self._call = of if isinstance(of, Call) else None

    def __call__(self, values: Tensor) -> Tensor:
        return self._function(values)

    @property
    def name(self) -> str:
        return type(self._module).__name__ if self._call is None else self._call.op.plain

    @property
    def key(self) -> str | None:
        """One for all activations that are the same function; None where values of tensors would have to be compared."""
        if self.name == "prelu":
            return self.name
        if self._call is not None:
            given: Any = [*self._call.args[1:], *self._call.kwargs.items()]
            return None if any(tensors_of(v) for v in given) else f"{self.name} {given}"
        module = self._module
        assert module is not None
        if module._buffers or module._parameters or module._modules:
            return None
        settings = {k: v for k, v in vars(module).items() if isinstance(v, (int, float, str, bool, type(None)))}
        return f"{type(module)} {settings}"

    def alone(self) -> Function:
        """The activation of a tensor of any shape, on the CPU, in its type; it overwrites nothing.

        A PReLU counts as a leaky ReLU: whatever its slopes, both are homogeneous.
        """
        if self._module is not None:
            twin = _twin(self._module)
            return lambda values: twin.forward(values.clone())
        call = self._call
        assert call is not None
        if call.op.plain == "prelu":
            return lambda values: nn.functional.leaky_relu(values, 0.25)
        return lambda values: call.func(values.clone(), *call.args[1:], **call.kwargs)


def _twin(module: nn.Module) -> nn.Module:
    """A module of the same settings, its tensors on the CPU in float64; no hook of the other, nor what one holds, is copied."""
    twin = copy.copy(module)
    for held in ("_parameters", "_buffers"):
        tensors = {k: t if t is None else t.detach().cpu().double() for k, t in vars(module)[held].items()}
        object.__setattr__(twin, held, tensors)
    object.__setattr__(twin, "_modules", {k: m if m is None else _twin(m) for k, m in module._modules.items()})
    return twin


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
        self._names = {ops.op_of(i).plain for i in items if not isinstance(i, (type, nn.Module))}

    def names_module(self, module: nn.Module) -> bool:
        return isinstance(module, self._types) or module in self._modules

    def has_op(self, op: ops.Op) -> bool:
        return op.plain in ELEMENTWISE or op.plain in self._names


def is_function_of(activation: Callable[[Tensor], Tensor], y: Tensor) -> bool:
    """Does it give one tensor of as many values, the same ones each time? Draws made in finding out are put back."""
    rng = RNGState([y.device])
    first, second = activation(y.clone()), activation(y.clone())
    rng.restore()
    return isinstance(first, Tensor) and first.numel() == y.numel() and torch.equal(first, second)
