"""Part 3: the paper's table: which activations a FitNet trains with, from which start (Mishkin & Matas, section 4.1 and table 2).

Quick: the residual FitNet-4 at half the width, on Fashion-MNIST's images at half the size, a few epochs of a part of them.
Whole: FitNet-1, FitNet-4 and the residual one, CIFAR-10 where LSUVCB_DATA has it, else Fashion-MNIST.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from lsuvcb.data import fashion_mnist

from .nets import Residual
from .results import Results
from .tasks import Task, accuracy
from .train import make, train

STARTS = ("pytorch", "xavier", "kaiming", "orthogonal", "paper", "balanced")
NETS = ("FitResNet-4", "FitNet-4", "FitNet-1")
RATE, DECAY, BATCH = 0.01, 5e-4, 128  # the paper's, for FitNet-4


class Maxout(nn.Module):
    """The larger of each two channels (Goodfellow et al., 2013)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, 2)).amax(2)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "maxout": Maxout, "relu": nn.ReLU, "VLReLU": partial(nn.LeakyReLU, 1 / 3), "tanh": nn.Tanh, "sigmoid": nn.Sigmoid,
}  # fmt: skip


def units(quick: bool) -> list[tuple[str, str, str]]:
    """Net, activation, start."""
    return [(net, act, start) for net in (NETS[:1] if quick else NETS) for act in ACTIVATIONS for start in STARTS]


def run(results: Results, net: str, activation: str, start: str, quick: bool) -> None:
    epochs, seeds = (3, 1) if quick else (20, 3)
    for seed in range(seeds):
        job = {"part": "paper", "net": net, "activation": activation, "start": start, "seed": seed, "epochs": epochs,
               "quick": quick}  # fmt: skip

        def once(seed: int = seed) -> float | None:
            data = images(quick)
            factory = partial(fitnet, net, activation, channels=data.x.shape[1], width=0.5 if quick else 1.0)
            return train(make(factory, start, data, seed), data, "SGD, momentum 0.9", RATE, seed, epochs, BATCH, DECAY)

        results.of(job, once)


def images(quick: bool) -> Task:
    dls = fashion_mnist(bs=BATCH, device="cpu", download=False)
    (x, y), (valid_x, valid_y) = dls.train.dataset.tensors, dls.valid.dataset.tensors
    if quick:
        x, valid_x = F.avg_pool2d(x[:3000], 2), F.avg_pool2d(valid_x[:1000], 2)
        x, valid_x = x / x.std(), valid_x / x.std()
    return Task(x, y[: len(x)], valid_x, valid_y[: len(valid_x)], F.cross_entropy, accuracy)


def fitnet(kind: str, activation: str, channels: int, width: float) -> nn.Module:
    """FitNet-4 (17 convs), its residual form (each second conv adds to what came two before), or FitNet-1 (6 convs)."""
    double = 2 if activation == "maxout" else 1

    def conv(ni: int, nf: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(ni, nf * double, 3, 1, 1), ACTIVATIONS[activation]())

    stages = ((16, 16), (16, 16), (12, 12)) if kind == "FitNet-1" else ((32, 32, 32, 48, 48), (80,) * 6, (128,) * 6)
    layers: list[nn.Module] = [nn.Dropout(0.2)]
    ni = channels
    for sizes in stages:
        block: list[nn.Module] = []
        for size in (round(size * width) for size in sizes):
            layer = conv(ni, size)
            if kind == "FitResNet-4" and ni == size:
                layer = Residual(layer)
            block, ni = [*block, layer], size
        layers += [*block, nn.MaxPool2d(2), nn.Dropout(0.2)]
    hidden = round(500 * width)
    head = [nn.Linear(ni, hidden * double), ACTIVATIONS[activation](), nn.Dropout(0.2), nn.Linear(hidden, 10)]
    return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), *head)
