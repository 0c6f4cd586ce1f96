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
        order = torch.randperm(len(at), generator=torch.Generator().manual_seed(0))  # a part of it is no stripe
        at, grey = at[order], mosaic.reshape(-1, 1)[order]
        return Task(at, grey, at, grey, F.mse_loss, explained)
    make = {"denoise": _denoise, "generate": _generate, "rebuild": _rebuild, "measure": _measure}[name]
    (a, b), (c, d) = make(x, x), make(valid_x, x)
    return Task(a, b, c, d, F.mse_loss, explained)


# Inputs and targets made of images; what is normalised is normalised by the training images' statistics.


def _rebuild(x: Tensor, train_x: Tensor) -> tuple[Tensor, Tensor]:
    return x, x


def _denoise(x: Tensor, train_x: Tensor) -> tuple[Tensor, Tensor]:
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    return (x + 0.5 * noise) / 1.25**0.5, x


def _generate(x: Tensor, train_x: Tensor) -> tuple[Tensor, Tensor]:
    """The image from a fixed linear code of it."""
    encode = torch.linalg.qr(torch.randn(64, 16, generator=torch.Generator().manual_seed(0)))[0]
    return x.flatten(1) @ encode / (train_x.flatten(1) @ encode).std(), x


def _measure(x: Tensor, train_x: Tensor) -> tuple[Tensor, Tensor]:
    """Where the ink is, and how much of it."""
    found, like = (_ink(images[:, 0] - train_x.amin()) for images in (x, train_x))
    return x, (found - like.mean(0)) / like.std(0)


def _ink(images: Tensor) -> Tensor:
    """Its centre of mass, and its sum: shape (n, 3)."""
    total, at = images.sum((1, 2)), torch.arange(8.0)
    return torch.stack([(images.sum(2) * at).sum(1) / total, (images.sum(1) * at).sum(1) / total, total], 1)
