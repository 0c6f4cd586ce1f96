"""Biases that were set on purpose: kept as they are, the std is taken without them, and the row says so."""

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
KEPT = ("scaled", "its bias was set on purpose and is kept")
SCALED = ("scaled", "")


def std(y: Tensor) -> float:
    return y.detach().double().std(correction=0).item()


def rows(report: LSUVReport) -> dict[str, tuple[str, str]]:
    return {r.name: (r.status, r.reason) for r in report.layers}


def batch(rows: int = 256) -> Tensor:
    return torch.randn(rows, 16)


def detector() -> nn.Sequential:
    """A head whose bias says that one anchor in a hundred holds an object, as RetinaNet's paper sets it."""
    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 9, 1))
    nn.init.normal_(net[2].weight, std=0.01)
    nn.init.constant_(net[2].bias, -math.log(99))
    return net


@BOTH
@pytest.mark.parametrize("recipe", ["paper", "balanced"])
def test_detection_prior_is_kept_and_the_weight_is_scaled(recipe, orthonormal):
    net, x = detector(), torch.randn(8, 3, 12, 12)
    report = lsuv_(net, x, recipe=recipe, orthonormal=orthonormal, layers=nn.Conv2d)
    assert rows(report) == {"0": SCALED, "2": KEPT}
    assert torch.equal(net[2].bias, torch.full((9,), -math.log(99)))
    assert (std(net[2](net[:2](x)) + math.log(99)), report.layers[1].std_after) == (ONE, ONE)


def focal_loss(logits: Tensor) -> float:
    """Of an image without any object."""
    return (logits.sigmoid() ** 2 * F.softplus(logits)).sum().item()


def test_detection_prior_keeps_the_first_loss_small():
    net, x = detector(), torch.randn(8, 3, 12, 12)
    lsuvcb.lsuv_(net, x)
    assert focal_loss(net(x)) < 1  # with biases of zero it is some 9 * 8 * 144 * 0.25 * 0.7 = 1,800


def test_prior_of_a_part_of_the_outputs_is_kept_with_the_rest_of_the_bias():
    net, x = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 6)), batch()
    with torch.no_grad():
        net[2].bias[4] = -4.6  # objectness; the others hold a box
    bias = net[2].bias.detach().clone()
    assert rows(lsuv_(net, x)) == {"0": SCALED, "2": KEPT}
    assert torch.equal(net[2].bias, bias)
    assert std(net(x) - bias) == ONE


def time_constants(n: int) -> Tensor:
    """What softplus makes 0.001 to 0.1 of, as Mamba draws it."""
    dt = torch.exp(torch.rand(n) * math.log(100) + math.log(0.001))
    return dt + torch.log(-torch.expm1(-dt))


@BOTH
@pytest.mark.parametrize("recipe", ["paper", "balanced"])
def test_inverse_softplus_time_constants_are_kept(recipe, orthonormal):
    net = Net(
        lambda net, x: net.out(F.softplus(net.dt(F.silu(net.inner(x))))),
        inner=nn.Linear(16, 32), dt=nn.Linear(32, 32), out=nn.Linear(32, 4),
    )  # fmt: skip
    bias, x = time_constants(32), batch()
    net.dt.bias.data.copy_(bias)
    report = lsuv_(net, x, recipe=recipe, orthonormal=orthonormal)
    assert rows(report)["dt"] == KEPT
    assert torch.equal(net.dt.bias, bias)
    assert std(net.dt(F.silu(net.inner(x))) - bias) == pytest.approx(report.layers[1].target, abs=1e-3)
    steps = F.softplus(net.dt(torch.zeros(32)))
    assert 0.0009 < steps.min() < steps.max() < 0.11


FORGET = torch.cat([torch.zeros(8), torch.ones(8)])
SET: dict[str, Tensor] = {
    "a highway's closed gates": torch.full((16,), -2.0),
    "an LSTM's open forget gates": FORGET,
    "small, and all equal": torch.full((16,), 0.01),
    "ones": torch.ones(16),
    "one value beyond the bound": torch.cat([torch.zeros(15), torch.tensor([0.26])]),  # 1 / sqrt(16) = 0.25
}


@BOTH
@pytest.mark.parametrize("which", SET)
def test_bias_with_a_value_beyond_the_bound_or_all_equal_is_kept(which, orthonormal):
    net, x, bias = nn.Sequential(nn.Linear(16, 16), nn.Sigmoid(), nn.Linear(16, 4)), batch(), SET[which]
    net[0].bias.data.copy_(bias)
    assert rows(lsuv_(net, x, orthonormal=orthonormal)) == {"0": KEPT, "2": SCALED}
    assert torch.equal(net[0].bias, bias)
    assert std(net[0](x) - bias) == ONE


@BOTH
@pytest.mark.parametrize("shape", [(16,), (1, 16)])
def test_bias_that_was_set_and_is_added_behind_the_op_is_kept(shape, orthonormal):
    net = Net(
        lambda net, x: (x @ net.W + net.b).relu() @ net.V, W=matrix(16, 16), b=torch.full(shape, -2.0), V=matrix(16, 4),
    )  # fmt: skip
    x = batch()
    assert rows(lsuv_(net, x, orthonormal=orthonormal)) == {"W": KEPT, "V": SCALED}
    assert (net.b == -2).all()
    assert std(x @ net.W) == ONE


@BOTH
@pytest.mark.parametrize(
    ("kind", "n_out", "groups"), [(nn.Conv2d, 8, 8), (nn.Conv2d, 6, 1), (nn.ConvTranspose2d, 6, 1)]
)
def test_bias_of_a_convolution_that_was_set_is_kept(kind, n_out, groups, orthonormal):
    layer = kind(8, n_out, 3, groups=groups)
    nn.init.constant_(layer.bias, 3.0)
    net, x = nn.Sequential(layer, nn.ReLU()), torch.randn(8, 8, 9, 9)
    assert rows(lsuv_(net, x, orthonormal=orthonormal)) == {"0": KEPT}
    assert (layer.bias == 3).all()
    assert std(layer(x)) == ONE


def test_bias_that_was_set_moves_where_a_mean_is_asked_for():
    net, x = detector(), torch.randn(8, 3, 12, 12)
    report = lsuv_(net, x, mean=0.0)
    assert rows(report) == {"0": SCALED, "2": SCALED}
    assert (std(net(x)), net(x).mean().item()) == (ONE, pytest.approx(0, abs=1e-3))


def test_bias_that_was_set_is_kept_behind_its_activation_and_the_target_is_reached():
    net, x = nn.Sequential(nn.Linear(16, 16), nn.Softplus(), nn.Linear(16, 4)), batch()
    nn.init.constant_(net[0].bias, -1.0)
    report = lsuv_(net, x, measure="activation")
    assert rows(report)["0"] == KEPT
    assert (net[0].bias == -1).all()
    assert std(net[:2](x)) == ONE


# What is no purpose

MADE: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(16, 16),
    "one output": lambda: nn.Linear(16, 1),
    "zeros": lambda: zeroed(nn.Linear(16, 16)),
}


def zeroed(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.bias)
    return layer


@pytest.mark.parametrize("made", MADE)
def test_bias_as_torch_draws_it_is_set_to_zero_with_the_draw_and_scaled_without(made):
    layer = MADE[made]()
    net, x = nn.Sequential(layer, nn.Tanh()), batch()
    drawn = layer.bias.detach().clone()
    report = lsuv_(net, x, orthonormal=False)
    assert rows(report) == {"0": SCALED}
    assert torch.allclose(layer.bias, drawn * report.layers[0].scale)
    lsuv_(net, x)
    assert not layer.bias.any()


def test_bias_of_a_net_that_was_scaled_is_no_purpose_when_it_is_scaled_again():
    # a scaled layer's bias lies beyond torch's bound, and in one layer of some twenty beyond its weights
    for _ in range(20):
        net = nn.Sequential(*(m for _ in range(4) for m in (nn.Linear(16, 16), nn.ReLU())), nn.Linear(16, 1))
        lsuv_(net, batch(), orthonormal=False)
        found = rows(lsuv_(net, 3 * batch(), orthonormal=False))
        assert {reason for _, reason in found.values()} == {""}


def test_second_call_changes_no_bit_where_a_bias_was_kept():
    net, x = detector(), torch.randn(8, 3, 12, 12)
    lsuv_(net, x)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    report = lsuv_(net, x, orthonormal=False)
    assert {r.status for r in report.layers} == {"unchanged"}
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
