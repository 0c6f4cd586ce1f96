"""What runs inside is given back: attributes of any object, what a model's own code keeps in them, modes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def attributes_kept(*things: Any) -> Iterator[None]:
    """The attributes of each of `things` are afterwards the objects from before; what these hold is not looked at."""
    held = [(vars(thing), vars(thing).copy()) for thing in things]
    try:
        yield
    finally:
        for attributes, before in held:
            attributes.clear()
            attributes.update(before)


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Each module is afterwards in the mode, training or evaluation, that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def in_train_mode(model: nn.Module) -> Iterator[None]:
    """Every module is in train mode inside, as a training step finds it, and afterwards in the mode that it was in."""
    with modes_kept(model):
        model.train()
        yield


_INTERNAL = frozenset(vars(nn.Module()))  # what torch itself keeps in a module
_OURS = "_lsuvcb_"  # how the names of this library's own notes on a module begin


def _is_the_models(name: str) -> bool:
    return name not in _INTERNAL and not name.startswith(_OURS)


@contextmanager
def contents_kept(model: nn.Module) -> Iterator[None]:
    """The attributes of all modules, and what those hold that a step writes into, are afterwards as they were.

    Hidden states, collected outputs, the state of torchmetrics; parameters and buffers are not looked at.
    """
    held = [(vars(m), {k: (v, _contents(v)) for k, v in vars(m).items() if _is_the_models(k)}) for m in model.modules()]
    try:
        yield
    finally:
        for attributes, before in held:
            for name in [name for name in attributes if _is_the_models(name) and name not in before]:
                del attributes[name]
            for name, (value, put_back) in before.items():
                attributes[name] = value
                if put_back is not None:
                    put_back()


def _contents(value: Any) -> Callable[[], None] | None:
    """A function that puts back what a list, dict, set, deque or tensor holds now; None for any other value."""
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
