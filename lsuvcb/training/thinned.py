"""A record that stays bounded however long the run: when it is full, every other entry goes and the spacing doubles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Thinned(Generic[T]):
    """Evenly spaced entries of a series of unknown length, at most `cap` of them.

    Args:
        cap: how many entries to hold at the most; even, >= 2.

    Example:
        >>> record = Thinned(cap=4)
        >>> for i in range(10):
        ...     if record.due():
        ...         record.append(i)
        >>> list(record), record.stride
        ([0, 4, 8], 4)
    """

    def __init__(self, cap: int = 1000) -> None:
        if cap < 2 or cap % 2:
            raise ValueError(f"`cap` must be an even number >= 2, got {cap}.")
        self.cap, self.stride = cap, 1
        self._items: list[T] = []
        self._offered = 0

    def due(self) -> bool:
        """Is the next entry of the series one to `append`? Ask once for each."""
        self._offered += 1
        return (self._offered - 1) % self.stride == 0

    def append(self, item: T) -> None:
        self._items.append(item)
        if len(self._items) == self.cap:
            del self._items[1::2]
            self.stride *= 2

    def __iter__(self) -> Iterator[T]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)
