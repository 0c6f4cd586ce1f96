"""Which values of an output count: padded positions do not, where a mask says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

Mask = Tensor | str | Callable[[str, Tensor], Tensor | None]


def check_mask(mask: Any) -> None:
    """TypeError where it is no mask; see Counted."""
    if mask is not None and not (isinstance(mask, (str, Tensor)) or callable(mask)):
        raise TypeError(
            "`mask` must be a boolean tensor, the name of one in the batch, or a function of (name, output), got "
            f"{type(mask).__name__}."
        )
    if isinstance(mask, Tensor) and mask.dtype != torch.bool:
        raise TypeError(f"`mask` must be a boolean tensor, got one of {mask.dtype}; write `mask.bool()`.")


class Counted:
    """The values that count.

    Args:
        mask: a boolean tensor over the leading dimensions (batch, time) that an output shares, or that it has as one (the
            positions of all samples in a row); the name of one in a mapping, which is the batch or an item of it; or a
            function of (layer's name, output) that gives one, or None for all; None: all values count.
        batch: where a name is looked up.

    Attributes:
        fits: there was an output of which only a part counts.

    Raises:
        TypeError: it is no mask.
        KeyError: the batch has no such name.
        ValueError: the mask counts nothing.
    """

    def __init__(self, mask: Mask | None, batch: Any = None) -> None:
        check_mask(mask)
        self._of: Callable[[str, Tensor], Tensor | None] | None = mask if callable(mask) else None
        self._mask: Tensor | None = mask if isinstance(mask, Tensor) else None
        if isinstance(mask, str):
            self._mask = _named(mask, batch)
        if self._mask is not None and not bool(self._mask.any()):
            raise ValueError(f"`mask` must count at least one position, got {tuple(self._mask.shape)} of False.")
        self._rows: dict[torch.device, Tensor] = {}
        self._seen: tuple[int, ...] = ()
        self.fits = False

    @property
    def all(self) -> bool:
        """Does every value count?"""
        return self._mask is None and self._of is None

    def select(self, name: str, output: Tensor) -> Tensor:
        """The rows of `output` that count, the leading dimensions in one; `output` itself where all do."""
        mask = self._mask if self._of is None else self._of(name, output)
        if mask is None:
            return output
        if mask.shape == output.shape[: mask.ndim]:
            output = output.flatten(0, mask.ndim - 1)
        elif output.ndim < 2 or len(output) != mask.numel():
            self._seen = self._seen or tuple(output.shape)
            return output
        self.fits = True
        return output.index_select(0, self._rows_of(mask, output.device))

    def samples(self, name: str, output: Tensor) -> Tensor:
        """`output` with NaN in the place of what does not count; itself where all does, or the samples are no rows of it."""
        mask = self._mask if self._of is None else self._of(name, output)
        if mask is None or mask.shape != output.shape[: mask.ndim]:
            return output
        mask = mask.to(output.device).view(*mask.shape, *([1] * (output.ndim - mask.ndim)))
        return output.masked_fill(~mask, torch.nan)

    def check_fit(self) -> None:
        """ValueError where the mask has said nothing of any output."""
        if self._mask is not None and not self.fits and self._seen:
            raise ValueError(
                f"`mask` must have the leading dimensions of an output, got shape {tuple(self._mask.shape)}, and no layer's "
                f"output begins so (the first one has shape {self._seen}); give one that does, or a function of (name, output)."
            )

    def _rows_of(self, mask: Tensor, device: torch.device) -> Tensor:
        if mask is not self._mask:
            return mask.to(device).flatten().nonzero().squeeze(1)
        if device not in self._rows:
            self._rows[device] = mask.to(device).flatten().nonzero().squeeze(1)  # one wait for all layers
        return self._rows[device]


def _named(name: str, batch: Any) -> Tensor:
    for mapping in _mappings(batch):
        if name in mapping:
            return torch.as_tensor(mapping[name]).bool()
    names = [repr(key) for mapping in _mappings(batch) for key in mapping]
    held = ", ".join(names) if names else f"no names ({type(batch).__name__})"
    raise KeyError(f"`mask` is {name!r}, which the batch does not have; it has {held}.")


def _mappings(batch: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(batch, Mapping):
        yield batch
    elif isinstance(batch, (tuple, list)):
        yield from (item for item in batch if isinstance(item, Mapping))
