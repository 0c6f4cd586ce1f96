"""Part 4: the course's model at the course's learning rate, from many seeds: how often it diverges, and what the rest reaches."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn, optim

from lsuvcb.data import fashion_mnist
from lsuvcb.nets import GeneralRelu, get_model, init_weights

from .results import Results
from .starts import STARTS as ALL
from .tasks import accuracy

STARTS = ("pytorch", "kaiming", "paper", "course", "balanced")
RATE, MOMENTUM, EPOCHS, BATCH = 0.2, 0.85, 3, 1024
DIVERGED = 0.5  # an accuracy below it


def units(quick: bool) -> list[tuple[str, int]]:
    """Start and seed."""
    return [(start, seed) for start in STARTS for seed in range(8 if quick else 32)]


def run(results: Results, start: str, seed: int, quick: bool) -> None:
    job = {"part": "headline", "start": start, "seed": seed, "rate": RATE, "momentum": MOMENTUM, "epochs": EPOCHS}
    results.of(job, lambda: _train(start, seed))


def _train(start: str, seed: int) -> float:
    dls = fashion_mnist(bs=BATCH, device="cpu", download=False)
    (x, y), (valid_x, valid_y) = dls.train.dataset.tensors, dls.valid.dataset.tensors
    torch.manual_seed(seed)
    model = get_model(partial(GeneralRelu, leak=0.1, sub=0.4))
    order = torch.Generator().manual_seed(seed)
    if start == "kaiming":  # as the lesson has it
        model.apply(partial(init_weights, leaky=0.1))
    else:
        ALL[start](model, x[torch.randperm(len(x), generator=order)[:BATCH]])
    opt = optim.SGD(model.parameters(), RATE)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x), generator=order).split(BATCH):
            loss = F.cross_entropy(model(x[rows]), y[rows])
            loss.backward()
            opt.step()
            _slow_down(model)
    with torch.no_grad():
        return round(accuracy(model(valid_x), valid_y), 4)


def _slow_down(model: nn.Module) -> None:
    """MomentumLearner's momentum: the gradient of the last batch is kept in part."""
    for p in model.parameters():
        p.grad.mul_(MOMENTUM)
