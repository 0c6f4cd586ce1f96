"""What a Learner reads its batches from: loaders of tensors in memory, and of a Hugging Face DatasetDict."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset, default_collate


class TensorLoader:
    """Cuts tensors into batches: a DataLoader for data that is in memory, indexed a whole batch at a time.

    With the same seed it gives the batches of `DataLoader(TensorDataset(*tensors), bs, shuffle)`, and draws from the
    same generator as that would, so either can stand in for the other without changing a result.

    Args:
        tensors: one or more of the same length; batch i has rows of each, in this order, as a tuple.
        bs: rows in a batch, >= 1.
        shuffle: a new order each time the loader is iterated.
        drop_last: leave out the last batch if it is short.
        generator: draws the order (a CPU generator). None: the global one, seeded by torch.manual_seed.
        device: where the tensors are moved, once, and the batches cut. None: where they are.

    Attributes:
        dataset: the tensors as a TensorDataset, on `device`.

    Raises:
        ValueError: `bs` < 1, no tensors, or tensors of different lengths.

    Side effects: none on the tensors; every batch is a copy and may be changed in place.

    Example:
        >>> x = torch.arange(5)
        >>> [xb.tolist() for xb, yb in TensorLoader(x, x * x, bs=2)]
        [[0, 1], [2, 3], [4]]
    """

    def __init__(
        self,
        *tensors: Tensor,
        bs: int = 64,
        shuffle: bool = False,
        drop_last: bool = False,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if bs < 1:
            raise ValueError(f"`bs` must be >= 1, got {bs}.")
        lengths = [len(tensor) for tensor in tensors]
        if len(set(lengths)) != 1:
            raise ValueError(f"`tensors` must be one or more of the same length, got lengths {lengths}.")
        self.dataset = TensorDataset(*(tensor.to(device) for tensor in tensors))
        self.bs, self.shuffle, self.drop_last, self.generator = bs, shuffle, drop_last, generator

    def as_dataloader(self) -> DataLoader[Any]:
        """A DataLoader that gives the same batches, sample by sample: slower, and what other libraries know to handle."""
        return DataLoader(self.dataset, self.bs, self.shuffle, drop_last=self.drop_last, generator=self.generator)

    @property
    def batch_size(self) -> int:
        """How many samples a batch has: `bs`, under the name that a DataLoader has for it."""
        return self.bs

    @property
    def device(self) -> torch.device:
        """Where the batches are."""
        return self.dataset.tensors[0].device

    def __len__(self) -> int:
        n = len(self.dataset)
        return n // self.bs if self.drop_last else -(-n // self.bs)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        # A DataLoader draws a seed for its workers first, also when it has none.
        torch.empty((), dtype=torch.int64).random_(generator=self.generator)
        return self._batches()

    def _batches(self) -> Iterator[tuple[Tensor, ...]]:
        tensors, n, bs = self.dataset.tensors, len(self.dataset), self.bs
        generator = self.generator
        if self.shuffle and generator is None:  # as torch's RandomSampler: one global number seeds a generator
            generator = torch.Generator().manual_seed(int(torch.empty((), dtype=torch.int64).random_()))
        order = torch.randperm(n, generator=generator).to(self.device, non_blocking=True) if self.shuffle else None
        for start in range(0, len(self) * bs, bs):
            if order is None:
                yield tuple(tensor[start : start + bs].clone() for tensor in tensors)
            else:
                rows = order[start : start + bs]
                yield tuple(tensor.index_select(0, rows) for tensor in tensors)
        if self.shuffle:  # as torch's RandomSampler, which draws once more for the 0 rows that it still lacks
            torch.randperm(n, generator=generator)

    def __repr__(self) -> str:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in self.dataset.tensors)
        return (
            f"TensorLoader({shapes}, bs={self.bs}, shuffle={self.shuffle}, batches={len(self)}, device={self.device})"
        )


def collate_dict(ds: Any) -> Callable[[list[Mapping[str, Any]]], tuple[Any, ...]]:
    """A collate function that turns rows of a Hugging Face dataset into a tuple, in the order of its columns.

    Args:
        ds: a dataset with `.features`, or anything else that gives its column names when iterated.

    Raises:
        KeyError: when called with rows that lack a column.
    """
    return _ColumnsToTuple(tuple(getattr(ds, "features", ds)))


class _ColumnsToTuple:
    """A class and not a closure: worker processes get it by pickle where they are spawned."""

    def __init__(self, columns: tuple[str, ...]) -> None:
        self.columns = columns

    def __call__(self, rows: list[Mapping[str, Any]]) -> tuple[Any, ...]:
        if missing := [column for column in self.columns if column not in rows[0]]:
            raise KeyError(
                f"each row must have the columns {list(self.columns)}, got {list(rows[0])} without {missing}: let the "
                "transform keep them, or use `from_dd(..., as_tuple=False)` for batches that are dicts."
            )
        batch = default_collate([{column: row[column] for column in self.columns} for row in rows])
        return tuple(batch[column] for column in self.columns)


def inplace(f: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Makes a function that changes its argument return it too, as `with_transform` of a Hugging Face dataset wants.

    >>> @inplace
    ... def double(b): b["x"] = [2 * v for v in b["x"]]
    >>> double({"x": [1, 2]})
    {'x': [2, 4]}
    """

    @wraps(f)
    def changed(b: dict[str, Any]) -> dict[str, Any]:
        f(b)
        return b

    return changed


class DataLoaders:
    """A loader to train on and one to validate on.

    Args:
        train, valid: any iterables of batches; a Learner takes a batch as (inputs, targets).
    """

    def __init__(self, train: Any, valid: Any) -> None:
        self.train, self.valid = train, valid

    @classmethod
    def from_dd(cls, dd: Mapping[str, Any], batch_size: int, as_tuple: bool = True, **kw: Any) -> DataLoaders:
        """Loaders from a Hugging Face DatasetDict, or any mapping of dataset names to datasets of dicts.

        The training set is `dd["train"]`, shuffled; the validation set is "validation", "valid" or "test", whichever
        comes first in this list, or else the first other one. It is not shuffled, and its batches are twice as large,
        since no gradients are kept for them.

        Args:
            dd: the sets; a transform set with `with_transform` runs as rows are read.
            batch_size: rows in a training batch.
            as_tuple: give a batch as a tuple of its columns, in the order of `features`; else as a dict.
            **kw: go to both DataLoaders (num_workers, pin_memory, collate_fn, ...).

        Raises:
            ValueError: `dd` has no "train", or nothing beside it.
        """
        others = [name for name in ("validation", "valid", "test") if name in dd] + [
            name for name in dd if name != "train"
        ]
        if "train" not in dd or not others:
            raise ValueError(
                f"`dd` must have a 'train' set and one to validate on ('validation' or 'test'), got {list(dd)}."
            )
        train, valid = dd["train"], dd[others[0]]
        if as_tuple:
            kw.setdefault("collate_fn", collate_dict(train))
        return cls(
            DataLoader(train, batch_size=batch_size, shuffle=True, **kw),
            DataLoader(valid, batch_size=2 * batch_size, **kw),
        )

    def __repr__(self) -> str:
        return f"DataLoaders(train={self.train!r}, valid={self.valid!r})"
