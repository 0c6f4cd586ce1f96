"""A layer's output on its way to the op that takes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..tensors import tensors_of
from . import ops
from .call import Call
from .provenance import Source
from .use import Use

Function = Callable[[Tensor], Tensor]


class Image(NamedTuple):
    """A tensor that was made of an output alone.

    Attributes:
        tensor: its values.
        of: gives them from values in the place of the output; None where that cannot be repeated (dropout).
        own_memory: it is no view of the output.
        scaled: on the way to it the output was multiplied by something.
    """

    tensor: Tensor
    of: Function | None
    own_memory: bool
    scaled: bool


_NOTHING = torch.empty(0)


def _itself(values: Tensor) -> Tensor:
    return values


class Output:
    """The output y of a use, and the tensors that were made of it since.

    Attributes:
        images: y itself, its views, and what it became by factors.
        kernel: the op that took it for its kernel; its result is what counts; "" for most.
        settled: it was measured or corrected; nothing of it changes any more.
        behind_activation: the activation behind it decided what was done to it.
        order: how many uses there were before.
    """

    __slots__ = ("behind_activation", "images", "kernel", "order", "settled", "use", "y")

    def __init__(self, use: Use, y: Tensor) -> None:
        self.use, self.y, self.order = use, y, 0
        self.images = [Image(y, _itself, False, False)]
        self.kernel = ""
        self.settled = False
        self.behind_activation = False

    def image(self, tensor: Tensor) -> Image | None:
        for image in self.images:
            if image.tensor is tensor:
                return image
        return None

    def add(self, tensor: Tensor, parent: Image, of: Function | None, scaled: bool) -> None:
        """`tensor` is `of` what `parent` is."""
        before = parent.of
        function = None if of is None or before is None else (lambda values: of(before(values)))
        own = tensor.untyped_storage().data_ptr() != self.y.untyped_storage().data_ptr()
        self.images.append(Image(tensor, function, own, parent.scaled or scaled))

    def replace(self, y: Tensor) -> None:
        """From now on the output is `y`: with the bias that was added behind the op."""
        self.y, self.images = y, [Image(y, _itself, False, False)]

    def renew(self, rescale: Callable[[Tensor], object] | None = None) -> None:
        """y has other values: so have its images now.

        Args:
            rescale: does to an image that cannot be made again what was done to y.
        """
        for image in self.images:
            if image.own_memory and image.of is not None:
                image.tensor.copy_(image.of(self.y))
            elif image.own_memory and rescale is not None:
                rescale(image.tensor)

    def close(self) -> None:
        """Let go of every tensor: y, whose trace leads here, would hold itself."""
        self.settled, self.images = True, []
        self.y = _NOTHING
        self.use.free()


def is_bias(call: Call, output: Output, tensor: Tensor) -> Source | None:
    """The parameter that this op adds to the output of an op that has none; None for any other op."""
    use, sources = output.use, call.sources
    if call.op.plain != "add" or tensor is not output.y or len(sources) != 1 or len(call.args) != 2 or call.kwargs:
        return None
    ((added, source),) = sources
    if use.bias is not None or use.obstacle is not None or source.part or source.weight is use.weight:
        return None
    wide = [size for size in added.shape if size > 1]
    broadcasts = added.ndim <= output.y.ndim and torch.broadcast_shapes(added.shape, output.y.shape) == output.y.shape
    return source if len(wide) <= 1 and broadcasts and added.ndim else None


def is_factor(call: Call, tensor: Tensor) -> bool:
    """Does this op multiply `tensor` by something that no layer gave: a number, a mask, a scale for each channel?"""
    if call.op.plain not in ("mul", "multiply", "neg", "negative", *ops.QUOTIENTS) or call.op.writes:
        return False
    if call.op.plain in ops.QUOTIENTS and call.args[0] is not tensor:
        return False
    return all(t is tensor or trace.source is not None for t, trace in call.traces)


def is_number(call: Call, tensor: Tensor) -> bool:
    """Is the factor of `is_factor` one number?"""
    return all(t is tensor or t.numel() == 1 for value in call.args for t in tensors_of(value))


def has_rows(y: Tensor, weight: Tensor) -> bool:
    """Is the first dimension of an input or output the batch's? An unbatched one has fewer dimensions than a conv's weight."""
    return y.ndim >= max(2, weight.ndim)
