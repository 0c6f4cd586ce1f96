"""Nets small enough to work out by hand, and one that has a bit of everything that a forward may touch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """A net from a function: Net(lambda net, x: x @ net.w, w=matrix). Tensors become parameters, modules children."""

    def __init__(self, run: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            is_plain = isinstance(part, Tensor) and not isinstance(part, nn.Parameter)
            setattr(self, name, nn.Parameter(part) if is_plain else part)

    def forward(self, x: Any) -> Any:
        return self.run(self, x)


def matrix(rows: int, columns: int, size: float = 0.3) -> Tensor:
    return torch.randn(rows, columns) * size


def column(*values: float) -> Tensor:
    """A batch of samples with one feature."""
    return torch.tensor(values)[:, None]


def linear(weight: float, bias: float | None = None) -> nn.Linear:
    """y = weight * x + bias on one feature."""
    layer = nn.Linear(1, 1, bias=bias is not None)
    with torch.no_grad():
        layer.weight.fill_(weight)
        if bias is not None:
            layer.bias.fill_(bias)
    return layer


def lively(width: int = 8) -> nn.Sequential:
    """In train mode it draws random numbers, counts batches, and keeps a running mean."""
    return nn.Sequential(
        nn.Linear(6, width),
        nn.BatchNorm1d(width),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(width, width),
        nn.GELU(),
        nn.Linear(width, 4, bias=False),
    )


def relu_mlp(depth: int, width: int = 32) -> nn.Sequential:
    layers = [(nn.Linear(width, width), nn.ReLU()) for _ in range(depth)]
    return nn.Sequential(*(module for pair in layers for module in pair))
