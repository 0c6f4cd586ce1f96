"""What it takes to leave no trace of a call that fails: values of weights, biases of blocks, states of generators."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..model.blocks import BlockChange
from ..model.home import Change

LARGEST_UNASKED = 2.0**16  # a scale up to here is taken to keep weights finite; beyond, they are looked at
_LARGE = 1 << 14  # values from which a weight that is only scaled is saved by its lowest bytes


class Undo:
    """Puts back, bit for bit, what a commit may have changed, wherever it was stopped."""

    def __init__(self, generator: torch.Generator | None = None) -> None:
        self._saved: list[_Copy | _LowBytes | _Bias] = []
        self._generator = generator or torch.default_generator
        self._state = self._generator.get_state()

    def saved(self, changes: list[Change | BlockChange]) -> Iterator[Change | BlockChange]:
        """The changes, each once what it replaces is saved."""
        sizes = [c.tensor.numel() if isinstance(c, Change) and _only_scaled(c) else 0 for c in changes]
        # in one piece: many small ones would cost more to come by than to fill
        for change, low in zip(changes, torch.empty(sum(sizes), dtype=torch.uint8).split(sizes), strict=True):
            if isinstance(change, BlockChange):
                self._saved.append(_Bias(change))
            else:
                self._saved.append(_LowBytes(change, low) if low.numel() else _Copy(change.tensor))
            yield change

    @torch.no_grad()
    def restore(self) -> None:
        for saved in self._saved:
            saved.restore()
        self._generator.set_state(self._state)


class _Bias:
    """A block's bias."""

    def __init__(self, change: BlockChange) -> None:
        self.block, self.value = change.block, change.block.bias

    def restore(self) -> None:
        self.block.set_bias(self.value)


class _Copy:
    """A tensor's values, in the host's memory, so that an accelerator never holds a second set of weights."""

    def __init__(self, tensor: Tensor) -> None:
        values = tensor.detach()
        self.tensor, self.values = tensor, values.clone() if values.is_cpu else values.cpu()

    def restore(self) -> None:
        self.tensor.copy_(self.values)


def _only_scaled(change: Change) -> bool:
    tensor, scale = change.tensor, change.scale
    if tensor.numel() < _LARGE or change.start is not None or not 1 / 64 <= scale <= LARGEST_UNASKED:
        return False
    return tensor.dtype == torch.float32 and tensor.is_contiguous() and not tensor.is_inference()


class _LowBytes:
    """A quarter of a copy, for a large float32 weight that is only scaled: a quarter of the memory, in less time.

    w' / s is within two units in the last place of w, so the lowest byte of w tells which of them it was. Below float32's
    normal range, w' has lost at most 1 / s of such units, which s >= 1/64 keeps within the byte's reach.
    """

    def __init__(self, change: Change, low: Tensor) -> None:
        self.change, self.version, self.low = change, change.tensor._version, low
        values = change.tensor.detach().view(-1).view(torch.int32)
        low.copy_(values if values.is_cpu else values.to(torch.uint8))  # a device sends no more than it must

    def restore(self) -> None:
        tensor, scale = self.change.tensor, self.change.scale
        if tensor._version == self.version:
            return  # torch counts writes: it was not scaled yet
        near = (tensor.detach() / scale).view(torch.int32)
        off = (self.low.view(near.shape).to(near.device).to(torch.int32) - near + 128) % 256 - 128
        tensor.copy_((near + off).view(torch.float32))
