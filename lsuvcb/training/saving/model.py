"""A model's weights and buffers: to a file, from a file, as they are now."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from ...engine.select import unwrap
from .files import CheckpointError, read, write


def model_state(model: nn.Module) -> dict[str, Any]:
    return {"model": unwrap(model).state_dict()}


def save_model(model: nn.Module, path: str | Path) -> None:
    write(path, model_state(model))


def model_copy(model: nn.Module) -> dict[str, Any]:
    """The model's weights and buffers as they are now, for `load_model` to put back."""
    return copy.deepcopy(model_state(model))


def load_model(model: nn.Module, saved: dict[str, Any]) -> None:
    """Take over the weights and buffers, in place; all or nothing.

    Raises:
        CheckpointError: names or shapes differ from those of `model`.
    """
    inner, new = unwrap(model), saved["model"]
    old = inner.state_dict()
    known = [name for name in old.keys() & new.keys() if not is_lazy(old[name])]  # a lazy one takes any shape
    shapes = [name for name in known if _shape(old[name]) != _shape(new[name])]
    wrong = {
        "lacks": sorted(old.keys() - new.keys()), "has besides": sorted(new.keys() - old.keys()),
        "has in another shape": sorted(shapes),
    }  # fmt: skip
    if any(wrong.values()):
        found = "; ".join(f"it {what} {', '.join(names[:4])}" for what, names in wrong.items() if names)
        raise CheckpointError(f"the checkpoint is of another model than this {type(inner).__name__}: {found}.")
    inner.load_state_dict(new)


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Take over the weights of a file; see `Learner.load`."""
    load_model(model, read(path))


def _shape(value: Any) -> Any:
    return getattr(value, "shape", None)
