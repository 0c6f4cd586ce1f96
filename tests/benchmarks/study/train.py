"""One training run of one net from one start."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn, optim

from .starts import STARTS
from .tasks import Task

OPTIMISERS: dict[str, Callable[..., optim.Optimizer]] = {
    "Adam": partial(optim.Adam, foreach=True), "SGD": partial(optim.SGD, foreach=True),
    "SGD, momentum 0.9": partial(optim.SGD, momentum=0.9, foreach=True),
}  # fmt: skip
NOT_FINITE = None  # the score of a run whose loss was not finite


def make(net: Callable[[], nn.Module], start: str, task: Task, seed: int, batch: int = 512) -> nn.Module:
    """A net of this seed, initialised on the first `batch` training samples."""
    torch.manual_seed(seed)
    model = net()
    STARTS[start](model, task.x[:batch])
    return model


def train(
    model: nn.Module, task: Task, optimiser: str, lr: float, seed: int, epochs: int, batch: int = 64, decay: float = 0.0
) -> float | None:  # fmt: skip
    """The score on the validation data, rounded; NOT_FINITE where the loss was not finite on the way."""
    order = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # of dropout
    opt = OPTIMISERS[optimiser](model.parameters(), lr=lr, weight_decay=decay)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(task.x), generator=order).split(batch):
            loss = task.loss(model(task.x[rows]), task.y[rows])
            if not torch.isfinite(loss):
                return NOT_FINITE
            opt.zero_grad()
            loss.backward()
            opt.step()
    model.eval()
    with torch.no_grad():
        out = model(task.valid_x)
    return round(task.score(out, task.valid_y), 4) if bool(torch.isfinite(out).all()) else NOT_FINITE
