"""What stands right behind a layer: a gate is no activation, a multiple is not the layer's own output, a sum has another std."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from paper import lsuv_
from small_nets import Net, matrix
from torch import Tensor, nn

import lsuvcb
from lsuvcb.engine import LSUVReport

ONE = pytest.approx(1, abs=1e-3)
BOTH = pytest.mark.parametrize("orthonormal", [True, False])
FACTOR = "its output is multiplied by {} behind it, which the std does not know"
Function = Callable[[Tensor], Tensor]


def std(y: Tensor) -> float:
    return y.detach().double().std(correction=0).item()


def rows(report: LSUVReport) -> dict[str, tuple[str, str]]:
    return {r.name: (r.status, r.reason) for r in report.layers}


def batch(features: int = 16) -> Tensor:
    return torch.randn(512, features)


# A factor is not the activation, nor is what has a second reader

GATED: dict[str, tuple[Function, str]] = {
    "swish": (lambda y: y * torch.sigmoid(y), "sigmoid"),
    "swish, the other way round": (lambda y: torch.sigmoid(y) * y, "sigmoid"),
    "swish with a beta": (lambda y: y * torch.sigmoid(1.7 * y), "sigmoid"),
    "mish": (lambda y: y * torch.tanh(F.softplus(y)), "softplus"),
    "tanhshrink": (lambda y: y - torch.tanh(y), "tanh"),
    "snake": (lambda y: y + torch.sin(y) ** 2, "sin"),
    "relu squared by its input": (lambda y: torch.relu(y) * y, "relu"),
    "both signs": (lambda y: torch.relu(y) - 0.1 * torch.relu(-y), "relu"),
}


@BOTH
@pytest.mark.parametrize("gate", GATED)
def test_activation_that_reads_the_output_twice_is_measured_at_the_layer(gate, orthonormal):
    act, op = GATED[gate]
    net, x = Net(lambda net, x: net.b(act(net.a(x))), a=nn.Linear(16, 16), b=nn.Linear(16, 8)), batch()
    report = lsuv_(net, x, measure="activation", orthonormal=orthonormal)
    assert report.converged
    assert report.layers[0].reason.startswith(
        f"measured at the layer: its output goes to {op}, and to another op beside it"
    )
    assert (std(net.a(x)), report.layers[0].std_after) == (ONE, ONE)
    assert std(net(x)) == ONE


@pytest.mark.parametrize("recipe", ["paper", "balanced"])
def test_multiple_that_has_a_second_reader_beside_it_is_measured_at_the_layer(recipe):
    net = Net(lambda net, x: net.b((y := net.a(x)) * torch.sigmoid(5 * y)), a=nn.Linear(16, 16), b=nn.Linear(16, 8))
    x = batch()
    assert rows(lsuv_(net, x, recipe=recipe))["a"] == ("scaled", FACTOR.format("a number"))
    assert std(net.a(x)) == ONE


def test_activation_that_reads_the_output_twice_gets_its_mean_at_the_layer():
    net, x = Net(lambda net, x: net.b((y := net.a(x)) * y.sigmoid()), a=nn.Linear(16, 16), b=nn.Linear(16, 8)), batch()
    lsuv_(net, x, measure="activation", mean=0.25)
    assert (std(net.a(x)), net.a(x).mean().item()) == (ONE, pytest.approx(0.25, abs=1e-3))


def test_activation_module_of_several_ops_has_std_1_where_it_is_named():
    class Swish(nn.Module):
        def forward(self, y: Tensor) -> Tensor:
            return y * torch.sigmoid(y)

    for given in ({}, {"activations": Swish}):  # told by being a module without parameters, or by name
        net, x = nn.Sequential(nn.Linear(16, 16), Swish(), nn.Linear(16, 8)), batch()
        assert rows(lsuv_(net, x, measure="activation", **given))["0"] == ("scaled", "")
        assert std(net[:2](x)) == ONE


# A factor behind the layer


class Sine(nn.Module):
    """A layer of a SIREN, drawn as its paper draws it."""

    def __init__(self, n_in: int, n_out: int, first: bool = False) -> None:
        super().__init__()
        self.linear, bound = nn.Linear(n_in, n_out), 1 / n_in if first else math.sqrt(6 / n_in) / 30
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        self.given = 30 * self.linear(x)
        return torch.sin(self.given)


@BOTH
@pytest.mark.parametrize("recipe", ["paper", "balanced"])
def test_siren_has_std_1_where_the_sine_reads_it(recipe, orthonormal):
    net = nn.Sequential(Sine(2, 64, first=True), Sine(64, 64), Sine(64, 64), nn.Linear(64, 1))
    x = torch.rand(512, 2) * 2 - 1
    report = lsuv_(net, x, recipe=recipe, orthonormal=orthonormal)
    net(x)
    assert [std(net[i].given) for i in range(3)] == [ONE] * 3
    assert [(r.status, r.reason, r.std_after) for r in report.layers[:3]] == [("scaled", "", ONE)] * 3


READ: dict[str, tuple[Function, Function]] = {
    "a number": (lambda y: 10 * y, torch.relu),
    "a quotient": (lambda y: y / 5, F.gelu),
    "a tensor of one value": (lambda y: y * torch.tensor(7.0), torch.tanh),
    "the other sign": (lambda y: -y, torch.relu),
    "a temperature": (lambda y: y * 20, lambda y: F.hardtanh(y)),
    "views beside it": (lambda y: (y.view(-1, 4, 4) * 3).flatten(1), torch.tanh),
}


@BOTH
@pytest.mark.parametrize("factor", READ)
def test_layer_that_a_number_scales_for_its_activation_is_measured_there(factor, orthonormal):
    scale, act = READ[factor]
    net, x = Net(lambda net, x: net.b(act(scale(net.a(x)))), a=nn.Linear(16, 16), b=nn.Linear(16, 8)), batch()
    report = lsuv_(net, x, orthonormal=orthonormal)
    assert rows(report) == {"a": ("scaled", ""), "b": ("scaled", "")}
    assert std(scale(net.a(x))) == ONE


def test_layer_that_a_learned_number_scales_for_its_activation_is_measured_there():
    net, x = (
        Net(
            lambda net, x: net.b(torch.tanh(net.a(x) * net.s.exp())),
            a=nn.Linear(16, 16),
            b=nn.Linear(16, 8),
            s=torch.tensor(2.66),
        ),
        batch(),
    )
    assert rows(lsuv_(net, x)) == {"a": ("scaled", ""), "b": ("scaled", "")}
    assert std(net.a(x) * net.s.exp()) == ONE


SAID: dict[str, tuple[str, Callable[[Net, Tensor], Tensor]]] = {
    "logit scale": ("a number", lambda net, x: net.a(x) * net.s.exp()),
    "temperature": ("a number", lambda net, x: (net.a(x) / 0.07).softmax(-1)),
    "phase": ("a number", lambda net, x: net.b(torch.sin(30 * net.a(x) + 1.5))),
    "no activation that is known": ("a number", lambda net, x: net.b(torch.cos(30 * net.a(x)))),
    "in place": ("a number", lambda net, x: net.b(net.a(x).mul_(10).relu())),
    "gain for each feature": ("a parameter", lambda net, x: net.b((net.g * net.a(x)).relu())),
    "gain for each feature, in place": ("a parameter", lambda net, x: net.b(net.a(x).mul_(net.g).relu())),
}


@pytest.mark.parametrize("recipe", ["paper", "balanced"])
@pytest.mark.parametrize("case", SAID)
def test_layer_that_is_scaled_behind_where_it_is_measured_says_so(case, recipe):
    what, run = SAID[case]
    net, x = Net(run, a=nn.Linear(16, 16), b=nn.Linear(16, 8), s=torch.tensor(2.66), g=torch.full((16,), 0.1)), batch()
    report = lsuv_(net, x, recipe=recipe, layers=["a"])  # named: done, although it may be the head
    assert report.converged
    assert (std(net.a(x)), report.layers[0].std_after) == (ONE, ONE)
    assert rows(report)["a"] == ("scaled", FACTOR.format(what))


def test_layer_that_multiplies_a_square_of_its_own_is_no_multiple():
    net, x = Net(lambda net, x: net.b(((y := net.a(x)) * y).relu()), a=nn.Linear(16, 16), b=nn.Linear(16, 8)), batch()
    assert rows(lsuv_(net, x)) == {"a": ("scaled", ""), "b": ("scaled", "")}
    assert std(net.a(x)) == ONE


@pytest.mark.parametrize("gain", [lambda net: 0.1, lambda net: net.g], ids=["number", "LayerScale"])
def test_branch_that_is_scaled_at_its_end_is_no_surprise_under_the_default_recipe(gain):
    net = Net(
        lambda net, x: net.b(x + gain(net) * net.a(x)),
        a=nn.Linear(16, 16),
        b=nn.Linear(16, 8),
        g=torch.full((16,), 0.1),
    )
    assert rows(lsuvcb.lsuv_(net, batch()))["a"] == ("scaled", "")


# A sum behind the layer

SUMS: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "edges of a KAN": lambda net, x: torch.einsum("bi,iok->biok", x, net.k).sum(-1).sum(1),
    "one edge for each pair": lambda net, x: torch.einsum("bi,io->bio", x, net.w).sum(1),
    "heads": lambda net, x: torch.einsum("bhi,hio->bho", x.view(-1, 4, 4), net.h).sum(1),
    "function": lambda net, x: torch.sum(torch.einsum("bi,io->bio", x, net.w), dim=1),
}


@pytest.mark.parametrize("recipe", ["paper", "balanced"])
@pytest.mark.parametrize("case", SUMS)
def test_layer_whose_output_is_summed_says_so(case, recipe):
    net = Net(
        lambda net, x: net.b(SUMS[case](net, x)), k=torch.randn(16, 16, 3), w=matrix(16, 16), h=torch.randn(4, 4, 16),
        b=nn.Linear(16, 8),
    )  # fmt: skip
    report = lsuv_(net, batch(), recipe=recipe)
    worked = next(r for r in report.layers if r.uses and r.name != "b")
    assert (worked.status, worked.std_after) == ("scaled", ONE)
    assert worked.reason == "its output is summed behind it (sum); the sum has another std"
