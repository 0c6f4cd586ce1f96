"""The std that suits an activation and a depth: what n orthonormal layers with it do to signal and gradient.

For z ~ N(0, std^2), the output of such a layer, and f the activation:

    chi    = std^2 E[f'(z)^2] / E[f(z)^2]        a layer multiplies the gradient's squared norm by it, going back
    lambda = d ln E[f(z)^2] / d ln std^2         and a sample's excess over the mean length by it, going forward

(Poole et al. 2016; Schoenholz et al. 2017: the edge of chaos). n layers multiply by chi^n and lambda^n.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..seeing.activations import Elementwise

MOST = 30.0  # of chi^n and lambda^n
LOWEST, HIGHEST = 0.2, 4.0  # of the stds that are tried
_STEPS = 60  # of them, a constant factor apart, each way from 1
_REACH, _NODES = 10.0, 20_000  # of the grid under the bell curve: cells without a node on a kink at zero


class Slopes(NamedTuple):
    """What one layer does at one std."""

    chi: float
    lam: float


class Choice(NamedTuple):
    """The std for an activation at a depth, and which of the two bounds no std keeps: "" where it does both."""

    std: float
    fails: str


@cache
def _bell() -> tuple[Tensor, Tensor]:
    """The edges of the grid's cells, and the weight of each cell under N(0, 1)."""
    edges = torch.linspace(-_REACH, _REACH, _NODES + 1, dtype=torch.float64)
    middles = (edges[1:] + edges[:-1]) / 2
    weights = torch.exp(-middles * middles / 2)
    return edges, weights / weights.sum()


def slopes(activation: Callable[[Tensor], Tensor], std: float) -> Slopes:
    """chi and lambda of an elementwise function under N(0, std^2), on a grid in float64 on the CPU.

    >>> tanh = slopes(torch.tanh, 1.0)
    >>> round(tanh.chi, 2), round(slopes(torch.relu, 0.5).lam, 2)
    (1.18, 1.0)
    """
    edges, weights = _bell()

    def second_moment(std: float) -> float:
        values = activation(edges * std)
        middle = (values[1:] + values[:-1]) / 2
        return float((weights * middle * middle).sum())

    width = std * (edges[1] - edges[0])
    values = activation(edges * std)
    derivative = (values[1:] - values[:-1]) / width
    square = second_moment(std)
    step = 1e-3
    growth = math.log(second_moment(std * (1 + step)) / second_moment(std * (1 - step)))
    chi = std * std * float((weights * derivative * derivative).sum()) / square
    return Slopes(chi, growth / 2 / (math.log(1 + step) - math.log(1 - step)))


def choose_std(activation: Callable[[Tensor], Tensor], layers: int) -> Choice:
    """The std nearest 1, in [0.2, 4], at which `layers` layers multiply neither the gradient nor an excess by more than 30.

    Where there is none it is 1, and the choice says which bound fails there.
    """
    bound = math.log(MOST)

    def failing(std: float) -> str:
        chi, lam = (layers * math.log(max(value, 1e-9)) for value in slopes(activation, std))
        return "gradient" if chi > bound else "signal" if lam > bound else ""

    candidates = [1.0]
    for i in range(1, _STEPS + 1):
        candidates += [LOWEST ** (i / _STEPS), HIGHEST ** (i / _STEPS)]
    for std in sorted(candidates, key=lambda std: abs(math.log(std))):
        if not failing(std):
            return Choice(std, "")
    return Choice(1.0, failing(1.0))


def std_behind(activation: Elementwise, layers: int) -> Choice | None:
    """`choose_std` for an activation that was seen in a forward, kept from call to call; None where it cannot be worked out.

    A PReLU with a slope for each channel counts with their mean.
    """
    key = activation.key
    if key is not None and (key, layers) in _known:
        return _known[key, layers]
    try:
        choice = choose_std(activation.alone(), layers)
    except (RuntimeError, TypeError, ValueError, IndexError):  # it does not take the grid: bounds for each sample, say
        choice = None
    if key is not None:
        _known[key, layers] = choice
    return choice


_known: dict[tuple[str, int], Choice | None] = {}
