"""A layer's output on its way to the op that takes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..ranks import local
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
        factor: by what the output was multiplied on the way to it, in words; "" where by nothing.
        product: a kernel's: it is what the op that took the output for its kernel gave, or was made of that.
    """

    tensor: Tensor
    of: Function | None
    own_memory: bool
    factor: str
    product: bool = False


_NOTHING = torch.empty(0)


def _itself(values: Tensor) -> Tensor:
    return values


class Output:
    """The output y of a use, and the tensors that were made of it since.

    Attributes:
        images: y itself, its views, and what it became by factors.
        kernel: the op that took it for its kernel; its result is what counts; "" for most.
        settled: it was measured or corrected; nothing of it changes any more.
        behind_activation: the activation behind it decided what was done to it, or where it was measured.
        order: how many uses there were before.
    """

    __slots__ = ("behind_activation", "images", "kernel", "order", "settled", "use", "y")

    def __init__(self, use: Use, y: Tensor) -> None:
        self.use, self.y, self.order = use, y, 0
        self.images = [Image(y, _itself, False, "")]
        self.kernel = ""
        self.settled = False
        self.behind_activation = False

    def image(self, tensor: Tensor) -> Image | None:
        part = tensor if type(tensor) is Tensor else local(tensor)
        for image in self.images:
            if image.tensor is part:
                return image
        return None

    def add(
        self, tensor: Tensor, parent: Image, of: Function | None, factor: str = "", *, product: bool = False
    ) -> None:
        """`tensor` is `of` what `parent` is."""
        before = parent.of
        function = None if of is None or before is None else (lambda values: of(before(values)))
        own = tensor.untyped_storage().data_ptr() != self.y.untyped_storage().data_ptr()
        self.images.append(Image(tensor, function, own, _of_both(parent.factor, factor), parent.product or product))

    def measured(self, read: Tensor, *, by_activation: bool) -> Image:
        """Whose moments count: y, what its op made of a kernel, or what numbers made of it for an activation.

        Args:
            read: as which image it is read.
            by_activation: an activation reads it.
        """
        image = self.image(read)
        if self.kernel and (image is None or not image.product):
            image = next(image for image in self.images if image.product)
        numbers = image is not None and image.factor in ("", NUMBER)
        return image if image is not None and numbers and (self.kernel or by_activation) else self.images[0]

    def without(self, bias: Tensor, image: Image) -> Tensor:
        """The values of this image without a bias that is added to the output."""
        values = self.y - bias
        return values if image.of is None else image.of(values)

    def replace(self, y: Tensor) -> None:
        """From now on the output is `y`: with the bias that was added behind the op."""
        self.y, self.images = y, [Image(y, _itself, False, "")]

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
    if call.op.plain != "add" or local(tensor) is not output.y:
        return None
    if len(sources) != 1 or len(call.args) != 2 or call.kwargs:
        return None
    ((added, source),) = sources
    if use.bias is not None or use.obstacle is not None or source.part or source.weight is use.weight:
        return None
    wide = [size for size in added.shape if size > 1]
    broadcasts = added.ndim <= tensor.ndim and torch.broadcast_shapes(added.shape, tensor.shape) == tensor.shape
    return source if len(wide) <= 1 and broadcasts and added.ndim else None


NUMBER, PARAMETER, CONSTANT = "a number", "a parameter", "a constant tensor"


def factor_in(call: Call, tensor: Tensor) -> str:
    """What this op multiplies `tensor` by, where no layer gave it: a number, a scale for each channel, a mask; "" if nothing."""
    if call.op.plain not in ("mul", "multiply", "neg", "negative", *ops.QUOTIENTS):
        return ""
    if call.op.plain in ops.QUOTIENTS and call.args[0] is not tensor:
        return ""
    if not all(t is tensor or trace.source is not None for t, trace in call.traces):
        return ""
    if sum(value is tensor for value in call.args) != 1:  # a square
        return ""
    others = [t for value in call.args for t in tensors_of(value) if t is not tensor]
    if all(t.numel() == 1 for t in others):
        return NUMBER
    gains = [s.weight.tensor for _, s in call.sources]
    return PARAMETER if gains and all(max(g.shape, default=1) == g.numel() for g in gains) else CONSTANT


def _of_both(first: str, second: str) -> str:
    return next((factor for factor in (CONSTANT, PARAMETER, NUMBER) if factor in (first, second)), "")


def has_rows(y: Tensor, weight: Tensor) -> bool:
    """Is the first dimension of an input or output the batch's? An unbatched one has fewer dimensions than a conv's weight."""
    return y.ndim >= max(2, weight.ndim)
