"""What a callback borrows of a model for one batch, and gives back: its modes, and what its own code keeps in attributes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def in_train_mode(model: nn.Module) -> Iterator[None]:
    """As each training step finds it; afterwards all modules are in the modes from before."""
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


_INTERNAL = frozenset(vars(nn.Module()))


@contextmanager
def as_before(model: nn.Module) -> Iterator[None]:
    """The attributes of all modules, and the contents of those that a step writes into, are afterwards as they were.

    Hidden states, collected outputs, the state of torchmetrics; parameters and buffers are not looked at.
    """
    held = [
        (vars(m), {k: (v, _contents(v)) for k, v in vars(m).items() if k not in _INTERNAL}) for m in model.modules()
    ]
    try:
        yield
    finally:
        for attributes, before in held:
            for name in attributes.keys() - before.keys() - _INTERNAL:
                del attributes[name]
            for name, (value, contents) in before.items():
                attributes[name] = value
                if contents is not None:
                    contents()


def _contents(value: Any) -> Callable[[], None] | None:
    """Puts back what a list, dict, set, deque or tensor holds now; None for any other value."""
    if isinstance(value, Tensor):
        return _values(value) if value.layout == torch.strided and not isinstance(value, nn.Parameter) else None
    if not isinstance(value, (list, dict, set, deque)):
        return None
    kept = value.copy()

    def put_back() -> None:
        value.clear()
        if isinstance(value, (list, deque)):
            value.extend(kept)
        else:
            value.update(kept)

    return put_back


def _values(tensor: Tensor) -> Callable[[], None]:
    kept = tensor.detach().clone()

    def put_back() -> None:
        if not torch.equal(tensor, kept):
            with torch.no_grad():
                tensor.copy_(kept)

    return put_back
