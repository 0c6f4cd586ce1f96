"""What the loop asks of a loader (any iterable of batches): is it empty, and one batch of it without a trace."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader


def length(data: Any) -> int | None:
    """How many batches or samples; None where that is unknown before iterating."""
    try:
        return len(data) if isinstance(data, Sized) else None
    except TypeError:  # a DataLoader over an IterableDataset has a __len__ that raises
        return None


def empty_loader(dls: Any, name: str) -> str:
    """The message for the loader `dls.<name>` that gave no batch."""
    loader = getattr(dls, name)
    if isinstance(loader, Iterator):
        return (
            f"`dls.{name}` must give at least one batch in every epoch, got none: it is a one-shot iterator "
            f"({type(loader).__name__}) that is used up; use a DataLoader or a list of batches."
        )
    facts = {"samples": length(getattr(loader, "dataset", None)), "batch_size": getattr(loader, "batch_size", None)}
    known = ", ".join(f"{k}: {v}" for k, v in facts.items() if v is not None)
    if getattr(loader, "drop_last", False):
        known += ", drop_last: True"
    return (
        f"`dls.{name}` must give at least one batch, got an empty {type(loader).__name__}"
        f"{f' ({known})' if known else ''}; check the data set, the batch size and drop_last."
    )


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
