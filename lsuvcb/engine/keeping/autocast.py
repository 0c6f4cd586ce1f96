"""torch.autocast: what it does at a place, and as it was afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch


@contextmanager
def autocast_kept() -> Iterator[None]:
    """torch.autocast is afterwards as it was, on the CPU and on the accelerator, whatever was entered inside and not left."""
    kinds = ["cpu"]
    if torch.accelerator.is_available() and (found := torch.accelerator.current_accelerator()) is not None:
        kinds.append(found.type)
    states = [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds]
    depth, caches = _autocast_depth(), torch.is_autocast_cache_enabled()
    try:
        yield
    finally:
        while _autocast_depth() > depth:
            torch.autocast_decrement_nesting()
        for kind, enabled, dtype in states:
            torch.set_autocast_enabled(kind, enabled)
            torch.set_autocast_dtype(kind, dtype)
        torch.set_autocast_cache_enabled(caches)
        torch.clear_autocast_cache()


Autocast = tuple[str, bool, torch.dtype]


def autocast_on(kind: str) -> Autocast:
    """What torch.autocast does at this place on this kind of device: kind, whether it is on, to which type it casts."""
    return kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)


def under(autocast: Autocast) -> AbstractContextManager[Any]:
    """What runs inside runs under this autocast, whatever is active."""
    kind, enabled, dtype = autocast
    if autocast == autocast_on(kind):
        return nullcontext()
    return torch.autocast(kind, dtype=dtype, enabled=enabled)


def _autocast_depth() -> int:
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()
