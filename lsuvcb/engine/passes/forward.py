"""How a model takes a batch: the default forward, its errors, a batch that no pass can spoil."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.data import Dataset

from ..keeping.undisturbed import devices_of
from ..select import unwrap
from ..tensors import tensors_in

Forward = Callable[[nn.Module, Any], Any]


def default_forward(model: nn.Module, batch: Any) -> Any:
    """model(**batch) for a mapping of keywords, model(*batch) for a tuple or list, else model(batch).

    DDP and DataParallel are left aside: this process alone runs its own replica. What Lightning's Fabric wraps around a model
    is not: it casts the inputs and opens autocast, as in training.
    """
    if "_forward_module" not in model._modules:
        model = unwrap(model)
    if _is_keywords(batch):
        return model(**batch)
    if isinstance(batch, (tuple, list)):
        return model(*batch)
    return model(batch)


def _is_keywords(batch: Any) -> bool:
    """Is it a mapping from a forward's keywords? One whose type has a batch size (a TensorDict) is an argument itself."""
    return isinstance(batch, Mapping) and not hasattr(type(batch), "batch_size")


def check_model(model: Any, batch: Any, name: str) -> None:
    """TypeError where the model is none, as where it and the batch stand in each other's place."""
    if isinstance(model, nn.Module):
        return
    advice = "the model comes first"
    if isinstance(batch, nn.Module):
        advice = f"write `{name}(model, batch)`, the model first"
    elif isinstance(model, type):
        advice = f"make one first: `{model.__name__}(...)`"
    raise TypeError(f"`model` must be an nn.Module, got {_shown(model)}; {advice}.")


def check_batch(model: nn.Module, batch: Any, forward: Forward | None, *, pooled: bool = False) -> None:
    """Fail before any pass where the forward cannot succeed.

    Args:
        pooled: it is one rank's part of a batch, which may be empty.

    Raises:
        TypeError: it is a loader, or something that holds no tensors; the model's forward does not take these arguments.
        ValueError: it is empty; it is on another device than the model.
    """
    check_kind(batch, forward)
    held = [] if pooled else _held(batch)
    if held and all(_has_no_rows(t) for t in held):
        shapes = ", ".join(str(tuple(t.shape)) for t in held)
        raise ValueError(f"`batch` must hold at least one sample, got shape {shapes}.")
    if forward is None:
        _check_arguments(model, batch)


def is_one_sample(batch: Any) -> bool:
    """Have all tensors of the batch one row?"""
    return {len(t) for t in _held(batch) if t.ndim} == {1}


def _held(batch: Any) -> list[Tensor]:
    return tensors_in(batch) if isinstance(batch, (Tensor, tuple, list, Mapping)) else []


def check_kind(batch: Any, forward: Forward | None) -> None:
    """TypeError where what was given as a batch is a loader of batches, or numpy's, which only a `forward` of its own takes."""
    if _gives_batches(batch):
        raise TypeError(
            f"`batch` must be one batch, got {_shown(batch)}; write `next(iter(loader))`, and of a pair the inputs: "
            "`xb, yb = next(iter(loader))`."
        )
    leaves = pytree.tree_leaves(dict(batch) if isinstance(batch, Mapping) else batch)
    arrays = [leaf for leaf in leaves if _is_array(leaf)]
    if forward is None and arrays and not any(isinstance(leaf, Tensor) for leaf in leaves):
        held = "" if arrays[0] is batch else f" of {type(arrays[0]).__name__}s"
        raise TypeError(
            f"`batch` must be made of tensors, got {_shown(batch)}{held}; write `torch.from_numpy(array).float()`."
        )


def _gives_batches(batch: Any) -> bool:
    """Is it a loader, its iterator, a data set, or a pair of loaders?"""
    if isinstance(batch, (Tensor, tuple, list, Mapping)) or hasattr(batch, "shape"):
        return False
    is_loader = hasattr(batch, "dataset") and hasattr(batch, "__iter__")
    return is_loader or isinstance(batch, (Dataset, Iterator)) or (hasattr(batch, "train") and hasattr(batch, "valid"))


def _is_array(leaf: Any) -> bool:
    return type(leaf).__module__ == "numpy" and hasattr(leaf, "shape")


def _has_no_rows(tensor: Tensor) -> bool:
    return tensor.ndim > 0 and tensor.numel() == 0


def _check_arguments(model: nn.Module, batch: Any) -> None:
    inner = unwrap(model)
    keywords = dict(batch) if _is_keywords(batch) else {}
    positional = list(batch) if isinstance(batch, (tuple, list)) else [] if _is_keywords(batch) else [batch]
    try:
        inspect.signature(inner.forward).bind(*positional, **keywords)
    except TypeError as error:
        given = f"the keywords {sorted(keywords)}" if _is_keywords(batch) else f"{len(positional)} positional arguments"
        raise TypeError(
            f"{type(inner).__name__}.forward does not take this batch, a {type(batch).__name__} given as {given} ({error}). "
            "For a loader's (inputs, targets) pair write `lsuv_(model, xb)`; "
            "for anything else give `forward=lambda model, batch: ...`."
        ) from None
    homes, away = devices_of(inner), {t.device for t in tensors_in(batch)}
    if len(homes) == 1 and away and away.isdisjoint(homes):
        home, other = homes.pop(), sorted(map(str, away))
        raise ValueError(f"`batch` is on {', '.join(other)}, the model on {home}; write `batch.to({str(home)!r})`.")


def fresh(batch: Any) -> Any:
    """A copy of the batch's containers and tensors, so that a model that writes into its input spoils no later pass.

    Of any other object that has a `clone` method (a batch of graphs) its clone.
    """
    if isinstance(batch, MutableMapping) and type(batch) is not dict:
        copied = copy.copy(batch)
        for key, value in batch.items():
            copied[key] = fresh(value)
        return copied
    return pytree.tree_map(_fresh_leaf, batch)


def _fresh_leaf(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.detach().clone().requires_grad_(leaf.requires_grad)
    return leaf.clone() if callable(getattr(leaf, "clone", None)) else leaf


def _shown(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
