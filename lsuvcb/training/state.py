"""What a training is made of, written to files that are whole or not there, and read back without running code."""

from __future__ import annotations

import copy
import os
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..engine.errors import LSUVWarning
from ..engine.generators import load_states, save_states
from ..engine.once import is_done, mark_done
from ..engine.select import unwrap
from ..engine.undisturbed import devices_of
from .events import Callback

if TYPE_CHECKING:
    from .learner import Learner


class CheckpointError(RuntimeError):
    """A file that is no whole checkpoint, or one of another model. Nothing was changed."""


class CheckpointWarning(LSUVWarning):
    """A damaged checkpoint was left aside for the one before it, or a part of one found no taker."""


# Files


def write(path: str | Path, state: dict[str, Any]) -> None:
    """Write `state` so that `path` holds either all of it or what it held before, whatever stops the process."""
    path = Path(path)
    half = path.with_name(f".{path.name}.{os.getpid()}.half")
    try:
        with half.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(half, path)
    finally:
        half.unlink(missing_ok=True)
    if os.name == "posix":  # the new name is on the disk, too
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read(path: str | Path) -> dict[str, Any]:
    """What `write` wrote, or a plain state_dict; on the CPU. Tensors and plain values only: no code of the file runs.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is damaged, or holds more than plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}; `learn.save(path)` and CheckpointCB write one.")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # compares each part with its checksum
        if damaged is not None:
            raise CheckpointError(f"{path} is damaged: {damaged} does not fit its checksum.")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{path} is damaged ({error}): the rest of a write that was cut off?") from None
    except Exception as error:  # torch.load raises many types for what it cannot or will not read
        if isinstance(error, (CheckpointError, OSError)):
            raise
        raise CheckpointError(f"{path} cannot be read as plain values: {type(error).__name__}: {error}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} must hold a dict of weights, got {type(state).__name__}.")
    return state if isinstance(state.get("model"), dict) else {"model": state}


# The model


def model_state(model: nn.Module) -> dict[str, Any]:
    return {"model": unwrap(model).state_dict(), "lsuv_done": is_done(model)}


def save_model(model: nn.Module, path: str | Path) -> None:
    write(path, model_state(model))


def model_copy(model: nn.Module) -> dict[str, Any]:
    """The model's weights, buffers and mark as they are now, for `load_model` to put back."""
    return copy.deepcopy(model_state(model))


def load_model(model: nn.Module, saved: dict[str, Any]) -> None:
    """Take over the weights and buffers, in place, and whether LSUV has run; all or nothing.

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
    if "lsuv_done" in saved:
        mark_done(model, saved["lsuv_done"])


def load_weights(model: nn.Module, path: str | Path) -> None:
    """What `learn.load` does: weights that somebody keeps in a file are not for LSUV to draw anew."""
    load_model(model, read(path))
    mark_done(model)


def _shape(value: Any) -> Any:
    return getattr(value, "shape", None)


# The training


def training_state(learn: Learner) -> dict[str, Any]:
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


def load_training(learn: Learner, saved: dict[str, Any]) -> int:
    """Take over what `training_state` gave, but for the model; returns the number of epochs that are done.

    Where that fails (another optimizer, other loaders) the model goes back to `saved["before"]`.
    """
    try:
        _load_training(learn, saved)
    except BaseException:
        load_model(learn.model, saved["before"])
        raise
    return saved["epoch"]


def _load_training(learn: Learner, saved: dict[str, Any]) -> None:
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


def _loaders(learn: Learner) -> list[Any]:
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
