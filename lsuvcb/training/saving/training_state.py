"""All that the next epoch of a fit depends on, beside the data: as plain values, and taken over from them."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from ...engine.keeping.generators import load_states, save_states
from ...engine.keeping.undisturbed import devices_of
from ...engine.select import unwrap
from ..events import Callback
from ..loop import Loop
from .files import CheckpointError, CheckpointWarning
from .model import model_state


def training_state(learn: Loop) -> dict[str, Any]:
    """All that the next epoch depends on: see CheckpointCB."""
    grads = {name: p.grad for name, p in unwrap(learn.model).named_parameters() if p.grad is not None}
    loaders, devices = _loaders(learn), devices_of(learn.model)
    state = model_state(learn.model) | {
        "epoch": learn.epoch + 1, "history": learn.history, "grads": grads,
        "opt": learn.opt.state_dict() if getattr(learn, "opt", None) is not None else None,
        "opt_kind": type(getattr(learn, "opt", None)).__name__,
        "callbacks": {key: cb.state_dict() for key, cb in _kept(learn.cbs)},
        "generators": save_states(loaders, devices),
    }  # fmt: skip
    for key, value in {**state["callbacks"], "learn.history": learn.history, "learn.opt": state["opt"]}.items():
        _check_plain(value, key)
    return state


def load_training(learn: Loop, saved: dict[str, Any]) -> int:
    """Take over what `training_state` gave, but for the model; returns the number of epochs that are done.

    Raises:
        CheckpointError, ValueError: it is of a fit with another optimizer or other loaders.
    """
    if saved["opt"] is not None:
        here = type(learn.opt).__name__
        if saved.get("opt_kind", here) != here:
            raise CheckpointError(f"the checkpoint is of a fit with {saved['opt_kind']}, this one has {here}.")
        learn.opt.load_state_dict(saved["opt"])
    states, kept = dict(saved["callbacks"]), dict(_kept(learn.cbs))
    for key in kept.keys() & states.keys():
        kept[key].load_state_dict(states[key])
    if odd := sorted(kept.keys() ^ states.keys()):
        warnings.warn(
            f"the checkpoint was written by a fit with other callbacks: {', '.join(odd)} goes on without its state.",
            CheckpointWarning,
            stacklevel=2,
        )
    load_states(saved["generators"], _loaders(learn), devices_of(learn.model))
    learn.history = saved["history"]
    for name, p in unwrap(learn.model).named_parameters():
        p.grad = saved["grads"][name].to(p.device) if name in saved["grads"] else None
    return saved["epoch"]


def _loaders(learn: Loop) -> list[Any]:
    return [getattr(learn.dls, "train", None), getattr(learn.dls, "valid", None)]


def _kept(cbs: Iterable[Callback]) -> Iterator[tuple[str, Any]]:
    """The callbacks that have a state, by class, with a number where there are several of one."""
    seen: dict[str, int] = {}
    for cb in cbs:
        if hasattr(cb, "state_dict") and hasattr(cb, "load_state_dict"):
            name = type(cb).__name__
            seen[name] = seen.get(name, 0) + 1
            yield name if seen[name] == 1 else f"{name} {seen[name]}", cb


def _check_plain(value: Any, where: str) -> None:
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            _check_plain(item, f"{where}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            _check_plain(item, f"{where}[{i}]")
    elif type(value).__module__ == "numpy" or not isinstance(
        value, (torch.Tensor, int, float, str, bytes, type(None), torch.dtype, torch.device)
    ):
        raise TypeError(
            f"a state in a checkpoint must be made of tensors, numbers, strings, lists and dicts, got {type(value).__name__} "
            f"in {where}: it could be written, but not be read back safely."
        )
