"""The lessons on how weights should be scaled: statistics, normalisation, Kaiming initialisation by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn

from ..nets import gain


def stats(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (unbiased) standard deviation of all values of `x`."""
    return x.mean(), x.std()


def normalize(x: Tensor, m: Tensor | float, s: Tensor | float) -> Tensor:
    """(x - m) / s."""
    return (x - m) / s


def normalize_to(train: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets normalised by the mean and the std of the training set."""
    m, s = stats(train)
    return normalize(train, m, s), normalize(valid, m, s)


def view_tfm(*size: int) -> Callable[[Tensor], Tensor]:
    """A function that views a batch (n, ...) as (n, *size): `view_tfm(1, 28, 28)` makes images of rows of pixels."""
    return lambda x: x.view(-1, *size)


def kaiming2(x: Tensor, a: float, use_fan_out: bool = False) -> None:
    """Fill the weight `x` of a conv, (out, in, ...), uniformly as Kaiming He et al. (2015, arXiv:1502.01852) do, in place.

    std = gain(a) / sqrt(fan), and U(-bound, bound) with bound = sqrt(3) std has that std.

    Args:
        a: slope of the leaky ReLU that follows; 0 is a plain ReLU, sqrt(5) what PyTorch's own layers use.
        use_fan_out: keep the size of the gradients instead of that of the signal.
    """
    fan = x.shape[0 if use_fan_out else 1] * x[0, 0].numel()
    bound = math.sqrt(3.0) * gain(a) / math.sqrt(fan)
    x.data.uniform_(-bound, bound)


def init_cnn(m: nn.Module, uniform: bool = False) -> None:
    """Kaiming weights (for a leaky slope of 0.1) and zero biases for every 2-d conv in `m`, in place."""
    fill = nn.init.kaiming_uniform_ if uniform else nn.init.kaiming_normal_
    for module in m.modules():
        if isinstance(module, nn.Conv2d):
            fill(module.weight, a=0.1)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
