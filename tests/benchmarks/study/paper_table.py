"""Part 3: the paper's table: which activations a FitNet trains with, from which start (Mishkin & Matas, section 4.1 and table 2).

Quick: the residual FitNet-4 at half the width, on Fashion-MNIST. Whole: FitNet-1, FitNet-4 and the residual one at their own
width, on CIFAR-10 where LSUVCB_DATA has it, else on Fashion-MNIST. Either way three epochs of a part of the images, at half the
size, with FitNet-4's optimiser: on a CPU the paper's 230 epochs would take weeks.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch
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
EPOCHS = 3


class Maxout(nn.Module):
    """The larger of each two channels (Goodfellow et al., 2013)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, 2)).amax(2)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "maxout": Maxout, "relu": nn.ReLU, "VLReLU": partial(nn.LeakyReLU, 1 / 3), "tanh": nn.Tanh, "sigmoid": nn.Sigmoid,
}  # fmt: skip


def units(quick: bool) -> list[tuple[str, str, str, int]]:
    """Net, activation, start, seed: a seed of all, then the next."""
    nets, seeds = (NETS[:1], 1) if quick else (NETS, 3)
    return [(net, act, start, seed) for seed in range(seeds) for net in nets for act in ACTIVATIONS for start in STARTS]


def run(results: Results, net: str, activation: str, start: str, seed: int, quick: bool) -> None:
    job = {"part": "paper", "net": net, "activation": activation, "start": start, "seed": seed, "epochs": EPOCHS,
           "quick": quick}  # fmt: skip
    if not quick:
        job["data"] = "CIFAR-10" if _cifar10_folder() else "Fashion-MNIST"

    def once() -> float | None:
        data = images(3000, 1000, job.get("data", "Fashion-MNIST"))
        factory = partial(fitnet, net, activation, channels=data.x.shape[1], width=0.5 if quick else 1.0)
        return train(make(factory, start, data, seed), data, "SGD, momentum 0.9", RATE, seed, EPOCHS, BATCH, DECAY)

    results.of(job, once)


@cache
def images(n: int, n_valid: int, name: str) -> Task:
    """The first images for training and for validation, at half their size and std 1."""
    if name == "CIFAR-10":
        (x, y), (valid_x, valid_y) = _cifar10(n, train=True), _cifar10(n_valid, train=False)
        centre = x.mean((0, 2, 3), keepdim=True)
        x, valid_x = x - centre, valid_x - centre
    else:
        dls = fashion_mnist(bs=BATCH, device="cpu", download=False)
        (x, y), (valid_x, valid_y) = dls.train.dataset.tensors, dls.valid.dataset.tensors
    x, valid_x = F.avg_pool2d(x[:n], 2), F.avg_pool2d(valid_x[:n_valid], 2)
    valid_x, x = valid_x / x.std(), x / x.std()
    return Task(x, y[:n], valid_x, valid_y[:n_valid], F.cross_entropy, accuracy)


def _cifar10_folder() -> Path | None:
    """Where LSUVCB_DATA has it, as torchvision unpacks it."""
    root = os.environ.get("LSUVCB_DATA")
    return Path(root) if root and (Path(root) / "cifar-10-batches-py").is_dir() else None


def _cifar10(n: int, train: bool) -> tuple[Tensor, Tensor]:
    """Images (n, 3, 32, 32), values 0 to 1, and labels."""
    from torchvision.datasets import CIFAR10

    found = CIFAR10(_cifar10_folder(), train=train)
    return torch.tensor(found.data[:n]).permute(0, 3, 1, 2) / 255, torch.tensor(found.targets[:n])


def fitnet(kind: str, activation: str, channels: int, width: float) -> nn.Module:
    """FitNet-4 (17 convs), its residual form (each conv that keeps its width adds to what it read), or FitNet-1 (6 convs)."""
    double = 2 if activation == "maxout" else 1

    def convs(sizes: tuple[int, ...]) -> list[nn.Module]:
        nonlocal ni
        block: list[nn.Module] = []
        for nf in (round(size * width) for size in sizes):
            conv: nn.Module = nn.Sequential(nn.Conv2d(ni, nf * double, 3, 1, 1), ACTIVATIONS[activation]())
            block, ni = [*block, Residual(conv) if kind == "FitResNet-4" and ni == nf else conv], nf
        return block

    ni = channels
    if kind == "FitNet-1":
        return nn.Sequential(
            *convs((16, 16)), nn.MaxPool2d(4, 2), *convs((16, 16)), nn.MaxPool2d(4, 2), *convs((12, 12)), nn.MaxPool2d(2),
            nn.Dropout(0.3), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(ni, 10),
        )  # fmt: skip
    layers: list[nn.Module] = [nn.Dropout(0.2)]
    for sizes in ((32, 32, 32, 48, 48), (80,) * 6, (128,) * 6):
        layers += [*convs(sizes), nn.MaxPool2d(2), nn.Dropout(0.2)]
    hidden = round(500 * width)
    head = [nn.Linear(ni, hidden * double), ACTIVATIONS[activation](), nn.Dropout(0.2), nn.Linear(hidden, 10)]
    return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), *head)
