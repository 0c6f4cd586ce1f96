"""The fast.ai course's nets for small images: its activation, its conv blocks, its normalisation layers, its model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Maker = Callable[..., nn.Module]


def gain(leak: float = 0.0) -> float:
    """sqrt(2 / (1 + leak^2)): what a (leaky) ReLU of that slope takes off the root mean square (He et al., 2015, eq. 15).

    >>> round(gain(0.1), 4), round(gain(1), 4)
    (1.4072, 1.0)
    """
    return math.sqrt(2.0 / (1 + leak**2))


def init_weights(module: nn.Module, leaky: float = 0.0) -> None:
    """Kaiming-normal weights for a 1-, 2- or 3-d conv, in place; other modules are left alone. For `model.apply`.

    Args:
        module: one module, as `nn.Module.apply` hands them over.
        leaky: the slope of the leaky ReLU that follows; 0 is a plain ReLU.

    Example:
        >>> _ = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU()).apply(init_weights)
    """
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        nn.init.kaiming_normal_(module.weight, a=leaky)


class GeneralRelu(nn.Module):
    """A ReLU that may leak below zero, be shifted down by `sub`, and be cut off at `maxv`.

        y = min(leaky_relu(x, leak) - sub, maxv)

    A ReLU's output has no zero mean, whatever the scale of its input; with sub=0.4 or so it can.

    Args:
        leak: slope below zero. None: 0.
        sub: subtracted from the output; a number, or a tensor, which becomes a buffer. None: nothing is.
        maxv: the largest output. None: there is none.

    Shape: any, kept. Side effects: none on the input.

    >>> GeneralRelu(leak=0.1, sub=0.4, maxv=2.)(torch.tensor([-1., 0., 1., 5.]))
    tensor([-0.5000, -0.4000,  0.6000,  2.0000])
    """

    def __init__(self, leak: float | None = None, sub: float | Tensor | None = None, maxv: float | None = None) -> None:
        super().__init__()
        self.leak, self.maxv = leak, maxv
        if isinstance(sub, Tensor):
            self.register_buffer("sub", sub)
        else:
            self.sub = sub

    def forward(self, x: Tensor) -> Tensor:
        # The backward pass of leaky_relu needs its input only, so its output may be changed in place; relu's needs it.
        if self.leak is None:
            x = F.relu(x)
            x = x if self.sub is None else x - self.sub
        else:
            x = F.leaky_relu(x, self.leak)
            x = x if self.sub is None else x.sub_(self.sub)
        return x if self.maxv is None else x.clamp_max(self.maxv)

    def extra_repr(self) -> str:
        given = {"leak": self.leak, "sub": self.sub, "maxv": self.maxv}
        return ", ".join(f"{name}={float(value):g}" for name, value in given.items() if value is not None)


class ConvLayer(nn.Module):
    """A conv with bias and its GeneralRelu as one layer that can be moved and scaled from outside.

    `weight` is the conv's weight. `bias` is minus the activation's `sub`: adding to it moves the output by as much,
    without a change to the conv's own bias. `sub` is a buffer here, so that state_dict, `to` and checkpoints have it.

    Args:
        ni, nf: channels in and out.
        ks, stride: kernel size and stride; padding is ks // 2.
        sub: start value of the activation's `sub`.
        leak, maxv: see `GeneralRelu`.

    Shape: (n, ni, h, w) -> (n, nf, ceil(h / stride), ceil(w / stride)) for odd ks.
    """

    def __init__(
        self,
        ni: int,
        nf: int,
        ks: int = 3,
        stride: int = 2,
        sub: float = 0.0,
        leak: float | None = None,
        maxv: float | None = None,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(ni, nf, ks, stride=stride, padding=ks // 2)
        self.relu = GeneralRelu(leak, torch.tensor(float(sub)), maxv)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv(x))

    @property
    def weight(self) -> Tensor:
        """The conv's weight; `layer.weight.data /= std` scales it."""
        return self.conv.weight

    @property
    def bias(self) -> Tensor:
        """Minus `relu.sub`, one number as a tensor; setting it, to a number or a tensor, moves `relu.sub`."""
        return -self.relu.get_buffer("sub")

    @bias.setter
    def bias(self, value: float | Tensor) -> None:
        with torch.no_grad():
            self.relu.get_buffer("sub").copy_(-torch.as_tensor(value))


class LayerNorm(nn.Module):
    """The course's layer normalisation: each image to mean 0 and variance 1 over channels, height and width.

        y = (x - mean) / sqrt(var + eps) * mult + add        mult and add: one learned number each

    Args:
        nf: not used; it is there so that `conv(norm=LayerNorm)` can make one as it makes any norm.
        eps: added to the variance.

    Shape: (n, c, h, w), kept.
    """

    def __init__(self, nf: int | None = None, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.mult = nn.Parameter(torch.tensor(1.0))
        self.add = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean((1, 2, 3), keepdim=True)
        var = (x * x).mean((1, 2, 3), keepdim=True)  # on a CPU twice as fast as torch.var_mean
        return x * ((var + self.eps).rsqrt() * self.mult) + self.add


class BatchNorm(nn.Module):
    """The course's batch normalisation: each channel to mean 0 and variance 1 over the batch, height and width.

        y = (x - mean) / sqrt(var + eps) * mults + adds      mults and adds: one learned number for each channel

    Training uses the batch's own mean and variance, and moves the buffers `means` and `vars` towards them by `mom` of
    the way; evaluation uses the buffers.

    Args:
        nf: channels.
        mom: how far the buffers move at each batch (the lerp weight, as nn.BatchNorm2d's momentum).
        eps: added to the variance.

    Shape: (n, nf, h, w), kept.
    """

    means: Tensor
    vars: Tensor

    def __init__(self, nf: int, mom: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.mom, self.eps = mom, eps
        self.mults = nn.Parameter(torch.ones(nf, 1, 1))
        self.adds = nn.Parameter(torch.zeros(nf, 1, 1))
        self.register_buffer("means", torch.zeros(1, nf, 1, 1))
        self.register_buffer("vars", torch.ones(1, nf, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.means, self.vars
        if self.training:
            mean = x.mean((0, 2, 3), keepdim=True)
            var = (x - mean).square().mean((0, 2, 3), keepdim=True)
            with torch.no_grad():
                self.means.lerp_(mean.to(self.means.dtype), self.mom)
                self.vars.lerp_(var.to(self.vars.dtype), self.mom)
        return (x - mean) * ((var + self.eps).rsqrt() * self.mults) + self.adds


def conv(
    ni: int,
    nf: int,
    ks: int = 3,
    stride: int = 2,
    act: Maker | None = nn.ReLU,
    norm: Maker | None = None,
    bias: bool | None = None,
) -> nn.Sequential:
    """A conv, then `norm(nf)` and `act()` where they are given.

    Args:
        ni, nf: channels in and out.
        ks, stride: kernel size and stride; padding is ks // 2.
        act: makes the activation, without arguments. None: there is none.
        norm: makes the normalisation, given nf. None: there is none.
        bias: whether the conv has one. None: unless a batch norm follows, which would take it away again.

    Shape of the result's input and output: (n, ni, h, w) -> (n, nf, ceil(h / stride), ceil(w / stride)) for odd ks.

    >>> conv(1, 8, act=None)
    Sequential(
      (0): Conv2d(1, 8, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1))
    )
    """
    after = ([norm(nf)] if norm else []) + ([act()] if act else [])
    if bias is None:
        bias = not any(isinstance(layer, (BatchNorm, nn.modules.batchnorm._BatchNorm)) for layer in after)
    return nn.Sequential(nn.Conv2d(ni, nf, ks, stride=stride, padding=ks // 2, bias=bias), *after)


def get_model(
    act: Maker | None = nn.ReLU,
    nfs: Sequence[int] | None = None,
    norm: Maker | None = None,
    n_out: int = 10,
) -> nn.Sequential:
    """The course's classifier for 28x28 images: `conv` blocks at stride 2, a last conv without norm or act, Flatten.

    Args:
        act, norm: see `conv`.
        nfs: channels of the input and of each block's output. None: 1, 8, 16, 32, 64.
        n_out: classes.

    Shape of the model's input and output: (n, nfs[0], 28, 28) -> (n, n_out) with the default nfs; other sizes need
    as many strides as bring them to 1x1.
    """
    nfs = (1, 8, 16, 32, 64) if nfs is None else nfs
    blocks = [conv(ni, nf, act=act, norm=norm) for ni, nf in pairwise(nfs)]
    return nn.Sequential(*blocks, conv(nfs[-1], n_out, act=None), nn.Flatten())
