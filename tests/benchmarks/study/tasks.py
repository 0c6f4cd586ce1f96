"""What the nets learn: inputs, targets, a loss, and a score that is 1 at best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from lsuvcb.data import digits


@dataclass(frozen=True)
class Task:
    """Training and validation data; `score` is the accuracy, or the part of the targets' variance that is explained."""

    x: Tensor
    y: Tensor
    valid_x: Tensor
    valid_y: Tensor
    loss: Callable[[Tensor, Tensor], Tensor]
    score: Callable[[Tensor, Tensor], float]


def accuracy(out: Tensor, y: Tensor) -> float:
    return (out.argmax(1) == y).float().mean().item()


def explained(out: Tensor, y: Tensor) -> float:
    return 1 - ((out - y).square().mean() / (y - y.mean(0)).square().mean()).item()


@cache
def task(name: str) -> Task:
    dls = digits(bs=64, device="cpu")
    (x, labels), (valid_x, valid_labels) = dls.train.dataset.tensors, dls.valid.dataset.tensors
    if name == "digits":
        return Task(x, labels, valid_x, valid_labels, F.cross_entropy, accuracy)
    if name == "picture":
        mosaic = x[:64, 0].reshape(8, 8, 8, 8).permute(0, 2, 1, 3).reshape(64, 64)
        at = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, 64)] * 2, indexing="ij"), -1).reshape(-1, 2)
        grey = mosaic.reshape(-1, 1)
        return Task(at, grey, at, grey, F.mse_loss, explained)
    make = {"denoise": _denoise, "generate": _generate, "rebuild": lambda x: (x, x), "measure": _measure}[name]
    (a, b), (c, d) = make(x), make(valid_x)
    return Task(a, b, c, d, F.mse_loss, explained)


def _denoise(x: Tensor) -> tuple[Tensor, Tensor]:
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    return (x + 0.5 * noise) / 1.25**0.5, x


def _generate(x: Tensor) -> tuple[Tensor, Tensor]:
    """The image from a fixed linear code of it."""
    code = x.flatten(1) @ torch.linalg.qr(torch.randn(64, 16, generator=torch.Generator().manual_seed(0)))[0]
    return code / code.std(), x


def _measure(x: Tensor) -> tuple[Tensor, Tensor]:
    """Where the ink is, and how much of it."""
    ink = x[:, 0] - x.amin()
    total, at = ink.sum((1, 2)), torch.arange(8.0)
    found = torch.stack([(ink.sum(2) * at).sum(1) / total, (ink.sum(1) * at).sum(1) / total, total], 1)
    return x, (found - found.mean(0)) / found.std(0)
