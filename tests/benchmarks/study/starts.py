"""The starts that are held against one another: PyTorch's, one line of torch.nn.init, two packages, ours by recipe."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from lsuvcb import LSUVReport, lsuv_
from lsuvcb.engine import delta_orthogonal_
from lsuvcb.engine.passes.plan import RECIPES

Start = Callable[[nn.Module, Tensor], object]
_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


def each(fill: Callable[[Tensor], object]) -> Start:
    """One line for every linear layer and convolution, by the default arguments of torch.nn.init; biases stay."""

    @torch.no_grad()
    def start(model: nn.Module, x: Tensor) -> None:
        for module in model.modules():
            if isinstance(module, _LAYERS):
                filled = torch.empty_like(module.weight)
                fill(filled)
                if is_parametrized(module, "weight"):
                    module.weight = filled
                else:
                    module.weight.copy_(filled)

    return start


def _delta(weight: Tensor, gain: float = 1.0) -> None:
    plain = weight.ndim > 2 and weight.shape[0] == weight.shape[1] and max(weight.shape[2:]) > 1
    (delta_orthogonal_ if plain else nn.init.orthogonal_)(weight)
    weight.mul_(gain)


def _delta_with_gain(model: nn.Module, x: Tensor) -> None:
    """Times torch.nn.init's gain for the net's activation; ReLU's for those that it has none for."""
    names = {nn.Tanh: "tanh", nn.SELU: "selu", nn.LeakyReLU: "leaky_relu"}
    found = next((module for module in model.modules() if type(module) in names), nn.ReLU())
    gain = nn.init.calculate_gain(names.get(type(found), "relu"), getattr(found, "negative_slope", None))
    each(partial(_delta, gain=gain))(model, x)


def _lsuv_package(model: nn.Module, x: Tensor) -> None:
    from lsuv import lsuv_with_singlebatch

    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lsuv_with_singlebatch(model, x, verbose=False)


def _anyinit(mode: str) -> Start:
    def start(model: nn.Module, x: Tensor) -> None:
        import anyinit

        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            anyinit.initialize(model, mode=mode, input_spec=lambda: x)

    return start


def ours(**arguments: object) -> Callable[[nn.Module, Tensor], LSUVReport]:
    def start(model: nn.Module, x: Tensor) -> LSUVReport:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return lsuv_(model, x, verify=False, **arguments)

    return start


def headed(factor: float) -> Start:
    """The default call, and the head, which that leaves alone, times a factor."""

    def start(model: nn.Module, x: Tensor) -> None:
        report = ours()(model, x)
        with torch.no_grad():
            for layer in report.layers:
                if "the head" in layer.reason:
                    model.get_submodule(layer.name).weight.mul_(factor)

    return start


TRIED: dict[str, Start] = {
    "the head times 0.3": headed(0.3),
    "the head zero": headed(0.0),
    "std 0.5 for every layer": ours(std=0.5),
    "std 1 for every layer": ours(std=1),
    "measured behind the activation": ours(measure="activation"),
    "drawn flat, no delta": ours(orthonormal=True),
    "the weights that it has": ours(orthonormal=False),
}
STARTS: dict[str, Start] = {
    "pytorch": lambda model, x: None,
    "kaiming": each(lambda w: nn.init.kaiming_normal_(w)),
    "xavier": each(lambda w: nn.init.xavier_normal_(w)),
    "orthogonal": each(lambda w: nn.init.orthogonal_(w)),
    "delta": each(_delta),
    "delta, gain": _delta_with_gain,
    "lsuv 0.3": _lsuv_package,
    "anyinit empirical": _anyinit("empirical"),
    "anyinit analytic": _anyinit("analytic"),
    **{recipe: ours(recipe=recipe) for recipe in RECIPES},
    **TRIED,
}
