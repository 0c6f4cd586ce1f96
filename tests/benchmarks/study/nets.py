"""The nets of the suite, each with its task. All take the 8x8 digits, or what is made of them, and run on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsuvcb.nets import GeneralRelu

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU, "general_relu": partial(GeneralRelu, 0.1, 0.4), "tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU,
    "selu": nn.SELU, "leaky_relu": partial(nn.LeakyReLU, 0.1), "elu": nn.ELU, "mish": nn.Mish, "sigmoid": nn.Sigmoid,
}  # fmt: skip


@dataclass(frozen=True)
class Net:
    """A net and what it learns: "digits" (10 classes), or a regression; see tasks.py."""

    make: Callable[[], nn.Module]
    task: str = "digits"


class Residual(nn.Module):
    """x + branch(x)."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.branch, self.shortcut = branch, shortcut or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.branch(x)


class Rows(nn.Module):
    """An image as a sequence of its rows."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1, 2)


class Mean(nn.Module):
    """The mean over time or space."""

    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.dims)


def plain_conv(depth: int, activation: str = "relu", width: int = 16) -> nn.Sequential:
    """The net of the depth frontier: `depth` - 1 convs, the first of stride 2, and a linear layer."""
    layers: list[nn.Module] = [nn.Conv2d(1, width, 3, 2, 1), ACTIVATIONS[activation]()]
    for _ in range(depth - 2):
        layers += [nn.Conv2d(width, width, 3, 1, 1), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * 16, 10))


def mlp(depth: int, activation: str = "relu", width: int = 64) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    for i in range(depth - 1):
        layers += [nn.Linear(width if i else 64, width), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers, nn.Linear(width if depth > 1 else 64, 10))


def strided(
    norm: Callable[[int], nn.Module] | None = None, widths: tuple[int, ...] = (16, 32, 64, 64)
) -> nn.Sequential:
    """Convs of stride 2 down to one pixel, with or without a norm, and a linear layer."""
    layers: list[nn.Module] = []
    for ni, nf in zip((1, *widths), widths, strict=False):
        layers += [nn.Conv2d(ni, nf, 3, 2, 1), *([norm(nf)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1], 10))


def conv12() -> nn.Sequential:
    """Twelve convs in three stages of other widths."""
    layers: list[nn.Module] = []
    ni = 1
    for nf, stride in ((16, 1), (32, 2), (64, 2)):
        for i in range(4):
            layers += [nn.Conv2d(ni, nf, 3, stride if i == 0 else 1, 1), nn.ReLU()]
            ni = nf
    return nn.Sequential(*layers, Mean(2, 3), nn.Linear(64, 10))


def resnet(norm: bool, blocks: int = 6, width: int = 32) -> nn.Sequential:
    def branch() -> nn.Sequential:
        def half() -> list[nn.Module]:
            return [nn.Conv2d(width, width, 3, 1, 1), *([nn.BatchNorm2d(width)] if norm else [])]

        return nn.Sequential(*half(), nn.ReLU(), *half())

    parts = [m for _ in range(blocks) for m in (Residual(branch()), nn.ReLU())]
    return nn.Sequential(nn.Conv2d(1, width, 3, 2, 1), nn.ReLU(), *parts, Mean(2, 3), nn.Linear(width, 10))


def transformer(norm_first: bool, layers: int = 4, width: int = 32) -> nn.Sequential:
    def layer() -> nn.Module:
        return nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, norm_first=norm_first, batch_first=True)

    norm = [nn.LayerNorm(width)] if norm_first else []
    return nn.Sequential(
        Rows(), nn.Linear(8, width), *(layer() for _ in range(layers)), *norm, Mean(1), nn.Linear(width, 10)
    )


class HandAttention(nn.Module):
    """Two blocks of attention written by hand, with skips and without norms."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed, self.out = nn.Linear(8, width), nn.Linear(width, 10)
        self.qkv = nn.ParameterList([nn.Parameter(torch.randn(width, 3 * width) * width**-0.5) for _ in range(2)])
        self.proj = nn.ModuleList([nn.Linear(width, width) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(1, 2))
        for weight, proj in zip(self.qkv, self.proj, strict=True):
            q, k, v = (x @ weight).chunk(3, -1)
            x = x + proj(F.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ v)
        return self.out(x.mean(1))


class LSTMHead(nn.Module):
    """An LSTM over the rows, and an MLP behind its last state."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, width, batch_first=True)
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x.flatten(1, 2))[0][:, -1])


class Shared(nn.Module):
    """One layer, used six times."""

    def __init__(self, width: int = 64, uses: int = 6) -> None:
        super().__init__()
        self.embed, self.block, self.out, self.uses = (
            nn.Linear(64, width),
            nn.Linear(width, width),
            nn.Linear(width, 10),
            uses,
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.embed(x.flatten(1)))
        for _ in range(self.uses):
            x = F.relu(self.block(x))
        return self.out(x)


class UNet(nn.Module):
    """Two levels; takes the noise off an image."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.down1 = nn.Sequential(nn.Conv2d(1, width, 3, 1, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1), nn.ReLU())
        self.down2 = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU())
        self.middle = nn.Sequential(nn.Conv2d(2 * width, 2 * width, 3, 1, 1), nn.ReLU())
        self.up = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.out = nn.Sequential(nn.Conv2d(2 * width, width, 3, 1, 1), nn.ReLU(), nn.Conv2d(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        return self.out(torch.cat([a, self.up(self.middle(self.down2(a)))], 1))


def generator(width: int = 32) -> nn.Sequential:
    """A GAN's generator: a code of 16 numbers to an image."""
    return nn.Sequential(
        nn.Linear(16, 4 * width), nn.Unflatten(1, (width, 2, 2)), nn.ReLU(),
        nn.ConvTranspose2d(width, width, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(width, 1, 4, 2, 1),
    )  # fmt: skip


def autoencoder() -> nn.Sequential:
    sizes = (64, 64, 32, 16, 32, 64)
    layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(64, 64), nn.Unflatten(1, (1, 8, 8)))


def regressor() -> nn.Sequential:
    layers = [m for i in range(4) for m in (nn.Linear(64, 64), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(64, 3))


def separable(width: int = 32) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(1, width, 3, 2, 1), nn.ReLU()]
    for _ in range(4):
        layers += [nn.Conv2d(width, width, 3, 1, 1, groups=width), nn.Conv2d(width, width, 1), nn.ReLU()]
    return nn.Sequential(*layers, Mean(2, 3), nn.Linear(width, 10))


class Excited(nn.Module):
    """A conv whose channels are weighted by a small net (squeeze and excitation)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, 1, 1)
        self.gate = nn.Sequential(Mean(2, 3), nn.Linear(width, width // 4), nn.ReLU(), nn.Linear(width // 4, width))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv(x))
        return y * torch.sigmoid(self.gate(y))[:, :, None, None]


def excited(width: int = 32) -> nn.Sequential:
    blocks = (Excited(width) for _ in range(3))
    return nn.Sequential(nn.Conv2d(1, width, 3, 2, 1), nn.ReLU(), *blocks, Mean(2, 3), nn.Linear(width, 10))


class Siren(nn.Module):
    """sin(30 W x) layers (Sitzmann et al., 2020), with that paper's start: coordinates to grey values."""

    def __init__(self, width: int = 64, factor: float = 30.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, width), nn.Linear(width, width), nn.Linear(width, width)])
        self.out, self.factor = nn.Linear(width, 1), factor
        for i, layer in enumerate([*self.layers, self.out]):
            bound = (6 / width) ** 0.5 / factor if i else 1 / 2
            nn.init.uniform_(layer.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.sin(self.factor * layer(x))
        return self.out(x)


def weight_normed() -> nn.Sequential:
    net = strided()
    for i in (0, 2, 4, 6):
        nn.utils.parametrizations.weight_norm(net[i])
    return net


def dropped() -> nn.Sequential:
    layers = [m for _ in range(3) for m in (nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.2))]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(64, 10))


# The nineteen of the figure "no harm".
NETS = {
    "logistic regression": Net(partial(mlp, 1)),
    "MLP 2 ReLU": Net(partial(mlp, 2)),
    "MLP 5 ReLU": Net(partial(mlp, 5)),
    "MLP 10 ReLU": Net(partial(mlp, 10)),
    "MLP 20 ReLU": Net(partial(mlp, 20)),
    "MLP 10 GELU": Net(partial(mlp, 10, "gelu")),
    "MLP 10 tanh": Net(partial(mlp, 10, "tanh")),
    "MLP 5 sigmoid": Net(partial(mlp, 5, "sigmoid")),
    "convs of stride 2": Net(strided),
    "convs of stride 2, batch norm": Net(partial(strided, nn.BatchNorm2d)),
    "12 convs": Net(conv12),
    "residual": Net(partial(resnet, False)),
    "residual, batch norm": Net(partial(resnet, True)),
    "transformer, pre-norm": Net(partial(transformer, True)),
    "transformer, post-norm": Net(partial(transformer, False)),
    "attention by hand": Net(HandAttention),
    "LSTM and head": Net(LSTMHead),
    "shared layer": Net(Shared),
    "6 convs, 4 of them equal": Net(partial(plain_conv, 7)),
}
MORE = {
    "U-Net": Net(UNet, "denoise"),
    "generator": Net(generator, "generate"),
    "autoencoder": Net(autoencoder, "rebuild"),
    "regression": Net(regressor, "measure"),
    "depthwise separable": Net(separable),
    "squeeze and excitation": Net(excited),
    "SIREN": Net(Siren, "picture"),
    "convs of stride 2, group norm": Net(partial(strided, partial(nn.GroupNorm, 4))),
    "convs of stride 2, weight norm": Net(weight_normed),
    "MLP with dropout": Net(dropped),
}
