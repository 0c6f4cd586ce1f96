"""Where tensors live: the best device that torch finds, and nested batches moved there, back, or collated on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils.data import default_collate


def default_device() -> torch.device:
    """The accelerator that torch finds (CUDA, MPS, XPU, ...), else the CPU."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found if found is not None else torch.device("cpu")


def to_device(batch: Any, device: torch.device | str | None = None) -> Any:
    """Every tensor in a nested `batch` on `device` (default: the best one); other values as they are.

    Tuples, named tuples, lists and mappings keep their type, and so does anything else that has a `.to(device)`.
    A copy to CUDA does not block the host: what runs there afterwards waits for it. Any other copy does.
    """
    target = torch.device(device) if device is not None else default_device()
    return _to(batch, target, target.type == "cuda")


def _to(batch: Any, device: torch.device, non_blocking: bool) -> Any:
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=non_blocking)
    if hasattr(batch, "to"):
        return batch.to(device)
    return _map(lambda item: _to(item, device, non_blocking), batch)


def _map(f: Callable[[Any], Any], batch: Any) -> Any:
    """`f` of each item of a container, in a container of the same type; anything else as it is."""
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*map(f, batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(map(f, batch))
    if isinstance(batch, dict):
        return type(batch)({key: f(value) for key, value in batch.items()})
    if isinstance(batch, Mapping):
        return {key: f(value) for key, value in batch.items()}
    return batch


def to_cpu(batch: Any) -> Any:
    """Every tensor in a nested `batch` on the CPU, detached; float16 ones as float32, which a CPU computes with."""
    if isinstance(batch, torch.Tensor):
        found = batch.detach().cpu()
        return found.float() if found.dtype == torch.float16 else found
    return _map(to_cpu, batch)


def collate_device(rows: Any) -> Any:
    """A collate function for a DataLoader without workers: `rows` as one batch, on the best device."""
    return to_device(default_collate(rows))
