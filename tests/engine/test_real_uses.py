"""Weights that a forward uses many times: brought to the target in the std over all their uses, or left as they were."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from paper import lsuv_
from probe import over_all, probed
from small_nets import Net
from torch import Tensor, nn

import lsuvcb
from lsuvcb import NotConvergedWarning, survey
from lsuvcb.engine import LayerReport, LSUVReport

ONE = pytest.approx(1, abs=1.1e-3)  # the pooled std is held to 1e-3; taking it is rounded, too
BOTH = pytest.mark.parametrize("orthonormal", [True, False])
RECIPES = pytest.mark.parametrize("recipe", ["paper", "balanced"])
SPREAD = re.compile(r"std \S+ to \S+ over \d+ uses")


def std(*outputs: Tensor) -> float:
    return torch.cat([y.detach().double() for y in outputs]).std(correction=0).item()


def row(report: LSUVReport, name: str) -> LayerReport:
    return next(r for r in report.layers if r.name == name)


class Recurrent(nn.Module):
    """h <- act(i(x_t) + h @ W), from a learned first state; `made` is what W gave at each step."""

    def __init__(self, act=torch.tanh, first: float = 0.01, width: int = 16, gain: float = 1.0) -> None:
        super().__init__()
        self.act, self.i = act, nn.Linear(8, width)
        self.h0 = nn.Parameter(torch.full((width,), first))
        self.W = nn.Parameter(gain * torch.randn(width, width) / width**0.5)

    def forward(self, x: Tensor) -> Tensor:
        h, self.made = self.h0.expand(len(x), -1), []
        for t in range(x.shape[1]):
            self.made.append(h @ self.W)
            h = self.act(self.i(x[:, t]) + self.made[-1])
        self.last = h
        return h


def spread(outputs: list[Tensor]) -> str:
    stds = [std(y) for y in outputs]
    return f"std {min(stds):.3g} to {max(stds):.3g} over {len(outputs)} uses"


@BOTH
@RECIPES
def test_recurrent_weight_with_a_small_first_state_has_std_1_over_all_steps(recipe, orthonormal):
    net, x = Recurrent(), torch.randn(64, 20, 8)
    report = lsuv_(net, x, recipe=recipe, orthonormal=orthonormal)
    net(x)
    assert std(*net.made) == ONE
    found = row(report, "W")
    assert (found.status, found.uses, found.reason) == ("scaled", 20, spread(net.made))
    assert std(net.made[0]) < 0.05  # it was this that decided before, and made W a hundred times as large
    assert torch.linalg.matrix_norm(net.W.detach(), 2) < 4
    assert (net.last.abs() > 0.99).float().mean() < 0.2


@BOTH
@pytest.mark.parametrize("act", [torch.relu, torch.tanh, lambda y: y], ids=["relu", "tanh", "linear"])
def test_recurrent_weight_from_a_state_of_zeros_has_std_1_over_all_steps(act, orthonormal):
    net, x = Recurrent(act, first=0.0, gain=0.5), torch.randn(64, 30, 8)
    report = lsuv_(net, x, orthonormal=orthonormal)
    net(x)
    assert report.converged
    assert (std(*net.made), row(report, "W").std_after) == (ONE, ONE)


def test_recurrent_weight_with_a_target_of_its_own_reaches_it_over_all_steps():
    net, x = Recurrent(), torch.randn(64, 20, 8)
    report = lsuv_(net, x, std={"W": 0.25, "i": 0.5})
    net(x)
    assert std(*net.made) == pytest.approx(0.25, abs=3e-4)
    assert row(report, "W").target == pytest.approx(0.25)
    assert std(*(net.i(x[:, t]) for t in range(20))) == pytest.approx(0.5, abs=6e-4)


@BOTH
def test_fixed_point_net_is_at_its_target_over_all_iterations(orthonormal):
    def solve(net: Net, x: Tensor) -> Tensor:
        z, net.made = torch.zeros(len(x), 16), []
        for _ in range(30):
            net.made.append(z @ net.W)
            z = torch.tanh(net.made[-1] + net.u(x))
        return z

    net, x = Net(solve, W=0.5 * torch.randn(16, 16) / 4, u=nn.Linear(8, 16)), torch.randn(128, 8)
    report = lsuv_(net, x, orthonormal=orthonormal)
    net(x)
    assert std(*net.made) == ONE
    assert row(report, "W").reason == spread(net.made)
    assert torch.linalg.matrix_norm(net.W.detach(), 2) < 6


def shared(depth: int, act: nn.Module) -> Net:
    def run(net: Net, x: Tensor) -> Tensor:
        for _ in range(depth):
            x = net.block(x)
        return net.head(x)

    return Net(run, block=nn.Sequential(nn.Linear(16, 16), act), head=nn.Linear(16, 4))


@BOTH
@pytest.mark.parametrize("act", [nn.ReLU(), nn.Tanh()], ids=["relu", "tanh"])
def test_block_shared_over_12_depths_has_std_1_over_them(act, orthonormal):
    net, x = shared(12, act), torch.randn(256, 16)
    report = lsuv_(net, x, orthonormal=orthonormal)
    uses = probed(net, x)["block.0"]
    assert over_all(uses) == ONE
    stds = [use.std for use in uses]
    assert row(report, "block.0").reason == f"std {min(stds):.3g} to {max(stds):.3g} over 12 uses"
    assert std(net(x)) == pytest.approx(1, abs=1e-3)  # the head saw what the last use gives


def test_survey_shows_each_use_of_a_block_that_fades_over_12_depths():
    net, x = shared(12, nn.ReLU()), torch.randn(256, 16)
    seen = survey(net, x)
    uses = [use.std for use in probed(net, x)["block.0"]]
    assert [r.std for r in seen.layers if r.name == "block.0"] == pytest.approx(uses, rel=1e-4)
    assert uses[-1] < uses[0] / 3
    assert "steady" not in seen.verdict


def test_two_shared_layers_that_feed_one_another_reach_their_targets_together():
    def run(net: Net, x: Tensor) -> Tensor:
        for _ in range(6):
            x = net.b(net.a(x).relu()).relu()
        return net.head(x)

    net, x = Net(run, a=nn.Linear(16, 32), b=nn.Linear(32, 16), head=nn.Linear(16, 4)), torch.randn(256, 16)
    assert lsuv_(net, x).converged
    assert {name: over_all(uses) for name, uses in probed(net, x).items()} == {"a": ONE, "b": ONE, "head": ONE}


def test_siamese_encoder_of_inputs_of_two_scales_has_std_1_over_both():
    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.head = nn.Linear(8, 16), nn.Linear(16, 2)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.head(self.encoder(a).relu() - self.encoder(b).relu())

    net, a = Siamese(), torch.randn(64, 8)
    report = lsuv_(net, (a, 5 * a))
    assert std(net.encoder(a), net.encoder(5 * a)) == ONE
    assert row(report, "encoder").reason == spread([net.encoder(a), net.encoder(5 * a)])


def test_weight_whose_later_use_forgets_its_scale_reaches_the_target_over_both():
    # the second use is behind a norm, so that the first one's target must be found
    def run(net: Net, x: Tensor) -> Tensor:
        return net.head(F.layer_norm(net.w(F.layer_norm(net.w(16 * x), (8,))), (8,)))

    net, x = Net(run, w=nn.Linear(8, 8, bias=False), head=nn.Linear(8, 2)), torch.randn(256, 8) / 4
    lsuv_(net, x)
    y = net.w(16 * x)
    assert std(y, net.w(F.layer_norm(y, (8,)))) == ONE
    assert std(y) > 1.05


@pytest.mark.parametrize("passes", [1, 2, 3])
def test_weight_that_does_not_arrive_keeps_its_values_and_the_rest_is_done(passes):
    net, x = Recurrent(), torch.randn(64, 20, 8)
    before = net.W.detach().clone()
    with pytest.warns(NotConvergedWarning, match="its uses did not come together at the target"):
        report = lsuv_(net, x, max_iters=passes, tol=1e-6)
    assert torch.equal(net.W, before)
    found = row(report, "W")
    assert (found.status, found.scale, found.uses) == ("not converged", 1.0, 20)
    assert found.reason == "its uses did not come together at the target; it keeps its values"
    assert report.passes <= 2 * passes + 4  # with the two that measure, and two that begin anew


def test_weight_that_arrives_is_done_beside_one_that_does_not():
    net, x = Recurrent(), torch.randn(64, 20, 8)
    with pytest.warns(NotConvergedWarning, match=r"1 of 2 layers is outside .*'W' \(Recurrent\)"):
        report = lsuv_(net, x, max_iters=3)
    assert [row(report, name).status for name in ("W", "i")] == ["not converged", "scaled"]
    net(x)
    assert std(*(net.i(x[:, t]) for t in range(20))) == ONE


def test_weights_used_once_cost_no_pass_more():
    net, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), torch.randn(64, 8)
    assert [lsuv_(net, x, verify=verify).passes for verify in (True, False)] == [3, 1]


def test_recurrent_weight_is_done_by_the_default_call():
    net, x = Recurrent(), torch.randn(64, 20, 8)
    report = lsuvcb.lsuv_(net, x)
    net(x)
    assert std(*net.made) == ONE
    assert SPREAD.fullmatch(row(report, "W").reason)
