"""Which values of an output count: padded positions do not, where a mask says so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Mask = Tensor | str | Callable[[str, Tensor], Tensor | None]


class Counted:
    """The values that count.

    Args:
        mask: a boolean tensor over the leading dimensions (batch, time) that an output shares, the name of one in a mapping
            batch, or a function of (layer's name, output) that gives one, or None for all; None: all values count.
        batch: where a name is looked up.

    Raises:
        KeyError: the batch has no such name.
        ValueError: the mask counts nothing.
    """

    def __init__(self, mask: Mask | None, batch: Any = None) -> None:
        self._of: Callable[[str, Tensor], Tensor | None] | None = mask if callable(mask) else None
        self._mask: Tensor | None = mask if isinstance(mask, Tensor) else None
        if isinstance(mask, str):
            if not isinstance(batch, Mapping) or mask not in batch:
                names = (
                    ", ".join(map(repr, batch)) if isinstance(batch, Mapping) else f"no names ({type(batch).__name__})"
                )
                raise KeyError(f"`mask` is {mask!r}, which the batch does not have; it has {names}.")
            self._mask = torch.as_tensor(batch[mask]).bool()
        if self._mask is not None and not bool(self._mask.any()):
            raise ValueError(f"`mask` must count at least one position, got {tuple(self._mask.shape)} of False.")
        self._rows: dict[torch.device, Tensor] = {}

    @property
    def all(self) -> bool:
        """Does every value count?"""
        return self._mask is None and self._of is None

    def select(self, name: str, output: Tensor) -> Tensor:
        """The rows of `output` that count, the leading dimensions in one; `output` itself where all do."""
        mask = self._mask if self._of is None else self._of(name, output)
        if mask is None or mask.shape != output.shape[: mask.ndim]:
            return output
        rows = self._rows_of(mask, output.device)
        return output.flatten(0, mask.ndim - 1).index_select(0, rows) if output.ndim >= mask.ndim else output

    def _rows_of(self, mask: Tensor, device: torch.device) -> Tensor:
        if mask is not self._mask:
            return mask.to(device).flatten().nonzero().squeeze(1)
        if device not in self._rows:
            self._rows[device] = mask.to(device).flatten().nonzero().squeeze(1)  # one wait for all layers
        return self._rows[device]
