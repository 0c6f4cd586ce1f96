"""The std that suits an activation and a depth: what n orthonormal layers with it do to signal and gradient.

For z ~ N(0, std^2), the output of such a layer, and f the activation:

    chi    = std^2 E[f'(z)^2] / E[f(z)^2]        a layer multiplies the gradient's squared norm by it, going back
    lambda = d ln E[f(z)^2] / d ln std^2         and a sample's excess over the mean length by it, going forward

(Poole et al. 2016; Schoenholz et al. 2017: the edge of chaos). n layers multiply by chi^n and lambda^n. A chi^n far below 1
costs as much as one far above: five sigmoid layers at std 1 (chi 0.15) hand back 1/13,000 of a gradient's squared norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..seeing.activations import Elementwise

MOST = 30.0  # of chi^n, 1 / chi^n and lambda^n
LOWEST, HIGHEST = 0.2, 4.0  # of the stds that are tried
_STEPS = 60  # of them, a constant factor apart, each way from 1
_STEP = 1e-3  # of the std, for the slope of the second moment
_REACH, _NODES = 10.0, 6_000  # of the grid under the bell curve: cells without a node on a kink at zero


class Slopes(NamedTuple):
    """What one layer does at one std."""

    chi: float
    lam: float


class Choice(NamedTuple):
    """The std for an activation at a depth, and which of the bounds it does not keep, since no std does: "" for none."""

    std: float
    fails: str


@cache
def _bell() -> tuple[Tensor, Tensor]:
    """The middles of the grid's cells, and the weight of each under N(0, 1)."""
    edges = torch.linspace(-_REACH, _REACH, _NODES + 1, dtype=torch.float64)
    middles = (edges[1:] + edges[:-1]) / 2
    weights = torch.exp(-middles * middles / 2)
    return middles, weights / weights.sum()


def _derivative(activation: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """What training would have for its derivative: autograd's, which sees no jump; differences where it has none."""
    with torch.enable_grad():
        x = at.clone().requires_grad_()
        y = activation(x * 1)  # it may work in place
        if y.requires_grad:
            return torch.autograd.grad(y.sum(), x)[0]
    step = 1e-6
    return (activation(at + step) - activation(at - step)) / (2 * step)


def slopes(activation: Callable[[Tensor], Tensor], std: float) -> Slopes:
    """chi and lambda of an elementwise function under N(0, std^2), on a grid in float64 on the CPU.

    >>> tanh = slopes(torch.tanh, 1.0)
    >>> round(tanh.chi, 2), round(slopes(torch.relu, 0.5).lam, 2)
    (1.18, 1.0)
    """
    nodes, weights = _bell()
    derivative, square = _derivative(activation, nodes * std), _second_moment(activation, std)
    chi = std * std * float((weights * derivative * derivative).sum()) / square
    return Slopes(chi, growth(activation, std))


def growth(activation: Callable[[Tensor], Tensor], std: float) -> float:
    """lambda alone."""
    more = _second_moment(activation, std * (1 + _STEP)) / _second_moment(activation, std / (1 + _STEP))
    return math.log(more) / (4 * math.log(1 + _STEP))


def _second_moment(activation: Callable[[Tensor], Tensor], std: float) -> float:
    nodes, weights = _bell()
    return float((weights * activation(nodes * std).square()).sum())


def choose_std(activation: Callable[[Tensor], Tensor], layers: int) -> Choice:
    """The std nearest 1, in [0.2, 4], at which `layers` layers multiply an excess by no more than 30, a gradient by no more, and
    by no less than 1 / 30.

    The bound on the excess holds for a sample of twice the mean length, too: below GELU's and SiLU's steepest std a strong
    sample grows faster than the mean, until it holds all the variance. Where no std keeps all bounds it is the one that
    comes nearest to it, and the choice says what fails there.
    """
    candidates = [1.0]
    for i in range(1, _STEPS + 1):
        candidates += [LOWEST ** (i / _STEPS), HIGHEST ** (i / _STEPS)]
    best, least = Choice(1.0, ""), math.inf
    for std in sorted(candidates, key=lambda std: abs(math.log(std))):
        chi, lam = slopes(activation, std)
        strong = max(lam, growth(activation, 2 * std))
        gradient, signal = layers * abs(math.log(max(chi, 1e-9))), layers * math.log(max(strong, 1e-9))
        if max(gradient, signal) <= math.log(MOST):
            return Choice(std, "")
        if max(gradient, signal) < least - 1e-6:
            best, least = Choice(std, "gradient" if gradient > signal else "signal"), max(gradient, signal)
    return best


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
