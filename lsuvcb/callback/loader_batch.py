"""A batch of a loader without a trace: no worker is started, and inside `rewound` no generator moves."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader


def _in_process(loader: Any) -> Any:
    """A shallow copy of a DataLoader that starts no worker and leaves the workers of the original alone."""
    if not isinstance(loader, DataLoader):
        return loader
    clone = copy.copy(loader)
    # not by setattr: a DataLoader refuses some of these once it is made
    vars(clone).update(num_workers=0, prefetch_factor=None, timeout=0, persistent_workers=False)
    vars(clone)["_DataLoader__multiprocessing_context"] = None
    return clone


@contextmanager
def drawn_here(loader: Any) -> Iterator[Iterator[Any]]:
    """The batches of `loader`, drawn in this process as far as they are asked for. Use it inside `rewound`."""
    iterator = iter(_in_process(loader))
    try:
        yield iterator
    finally:
        close = getattr(iterator, "close", None)
        if close is not None and iterator is not loader:
            close()
