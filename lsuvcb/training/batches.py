"""What the loop asks of a loader (any iterable of batches): how long it is, and what to say where it is empty."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any


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
