"""Weights that stand in their op by a way of their own: `x @ W + b`, multiples, masks, products of low rank."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from paper import lsuv_
from small_nets import Net, matrix
from torch import Tensor, nn
from torch.nn.utils import prune

import lsuvcb
from lsuvcb.engine import LSUVReport

ONE = pytest.approx(1, abs=1e-3)
BOTH = pytest.mark.parametrize("orthonormal", [True, False])
SCALED = ("scaled", "")
MASK = (torch.rand(16, 16, generator=torch.Generator().manual_seed(2)) > 0.6).float()
Run = Callable[[Net, Tensor], Tensor]


def std(y: Tensor) -> float:
    return y.detach().double().std(correction=0).item()


def mean(y: Tensor) -> float:
    return y.detach().double().mean().item()


def rows(report: LSUVReport) -> dict[str, tuple[str, str]]:
    return {r.name: (r.status, r.reason) for r in report.layers if r.reason != "not used in this pass"}


def batch() -> Tensor:
    return torch.randn(512, 16)


# A bias that is added right behind the op

ADDED: dict[str, Run] = {
    "x @ W + b": lambda net, x: x @ net.W + net.b,
    "b + x @ W": lambda net, x: net.b + x @ net.W,
    "in place": lambda net, x: (x @ net.W).add_(net.b),
    "+=": lambda net, x: iadd(x @ net.W, net.b),
    "torch.add": lambda net, x: torch.add(torch.mm(x, net.W), net.b),
    "einsum": lambda net, x: torch.einsum("bi,io->bo", x, net.W) + net.b,
    "linear without its own": lambda net, x: F.linear(x, net.W.t()) + net.b,
    "of another shape": lambda net, x: x @ net.W + net.b[None],
    "channels": lambda net, x: (F.conv1d(x[..., None], net.W.t()[..., None]) + net.b[:, None]).squeeze(-1),
}


def iadd(y: Tensor, b: Tensor) -> Tensor:
    y += b
    return y


def with_bias(layer: Run, width: int = 16) -> Net:
    """`layer`, a ReLU and a head; biases of mixed values, within what torch draws."""
    bias = torch.rand(width) * 0.4 - 0.1
    bias = bias.clamp(max=1 / math.sqrt(width))
    return Net(
        lambda net, x: net.head(net.layer(net, x).relu()),
        layer=layer,
        W=matrix(16, width),
        b=bias,
        head=nn.Linear(width, 4),
    )


@BOTH
@pytest.mark.parametrize("form", ADDED)
def test_bias_behind_the_op_counts_in_the_std(form, orthonormal):
    net, x = with_bias(ADDED[form]), batch()
    report = lsuv_(net, x, orthonormal=orthonormal)
    assert std(net.layer(net, x)) == ONE
    assert report.layers[0].std_after == ONE
    assert rows(report)["W"] == SCALED


@BOTH
@pytest.mark.parametrize("form", ADDED)
def test_bias_behind_the_op_moves_the_mean(form, orthonormal):
    net, x = with_bias(ADDED[form]), batch()
    report = lsuv_(net, x, mean=-0.25, orthonormal=orthonormal)
    assert (std(net.layer(net, x)), mean(net.layer(net, x))) == (ONE, pytest.approx(-0.25, abs=1e-3))
    assert rows(report)["W"] == SCALED


@BOTH
@pytest.mark.parametrize("form", ADDED)
def test_activation_behind_a_bias_that_was_added_is_found(form, orthonormal):
    net, x = with_bias(ADDED[form]), batch()
    report = lsuv_(net, x, measure="activation", mean=0.5, orthonormal=orthonormal)
    act = net.layer(net, x).relu()
    assert (std(act), mean(act)) == (ONE, pytest.approx(0.5, abs=1e-3))
    assert rows(report)["W"] == SCALED


def test_bias_behind_the_op_scales_with_its_weight():
    net, x = with_bias(ADDED["x @ W + b"]), batch()
    weight, bias = net.W.detach().clone(), net.b.detach().clone()
    scale = lsuv_(net, x, orthonormal=False).layers[0].scale
    assert torch.allclose(net.W, scale * weight)
    assert torch.allclose(net.b, scale * bias)
    assert std(x @ weight + bias) == pytest.approx(1 / scale, abs=1e-3)


@pytest.mark.parametrize(
    "added", [lambda net, x: net.p, lambda net, x: x.mean(1, keepdim=True)], ids=["positions", "signal"]
)
def test_what_is_added_behind_the_op_and_is_no_bias_stays(added):
    net = Net(
        lambda net, x: net.head(x @ net.W + added(net, x)),
        W=matrix(16, 16),
        p=torch.randn(512, 16),
        head=nn.Linear(16, 4),
    )
    before, x = net.p.detach().clone(), batch()
    lsuv_(net, x, mean=0.5)
    assert std(x @ net.W) == ONE
    assert torch.equal(net.p, before)


# Linear in the weight

LINEAR: dict[str, Run] = {
    "equalized learning rate": lambda net, x: F.linear(x, net.W * 0.25),
    "quotient": lambda net, x: F.linear(x, net.W / 4),
    "right factor": lambda net, x: x @ (net.W * 0.25),
    "mask": lambda net, x: F.linear(x, net.W * MASK),
    "mask first": lambda net, x: F.linear(x, MASK * net.W),
    "mask and number": lambda net, x: F.linear(x, net.W * MASK * 0.5),
    "masked_fill": lambda net, x: F.linear(x, net.W.masked_fill(MASK == 0, 0)),
    "where": lambda net, x: F.linear(x, torch.where(MASK > 0, net.W, 0.0)),
    "where, zeros": lambda net, x: F.linear(x, torch.where(MASK > 0, net.W, torch.zeros(16, 16))),
    "autoregressive": lambda net, x: F.linear(x, net.W.tril(-1)),
    "gain for each row": lambda net, x: F.linear(x, net.W * net.g[:, None]),
    "sum of a stack": lambda net, x: F.linear(x, (net.S * torch.tensor([0.2, 0.3, 0.5])[:, None, None]).sum(0)),
    "symmetric": lambda net, x: F.linear(x, net.W + net.W.t()),
    "skew": lambda net, x: F.linear(x, net.W - net.W.t()),
    "centred": lambda net, x: F.linear(x, net.W - net.W.mean(1, keepdim=True)),
    "multiple, one more dimension": lambda net, x: F.conv1d(x[..., None], (net.W * 0.25)[..., None]).squeeze(-1),
}  # fmt: skip


def parts(run: Run) -> Net:
    return Net(
        lambda net, x: net.head(net.layer(net, x).relu()), layer=run, W=matrix(16, 16), S=torch.randn(3, 16, 16) * 0.2,
        g=torch.rand(16) + 0.5, A=matrix(16, 4), B=matrix(4, 16), C=matrix(4, 4), A2=matrix(16, 4), B2=matrix(4, 16),
        K=matrix(4, 4), b=torch.rand(16) * 0.2, head=nn.Linear(16, 4),
    )  # fmt: skip


@BOTH
@pytest.mark.parametrize("form", LINEAR)
def test_weight_that_is_used_linearly_is_scaled(form, orthonormal):
    net, x = parts(LINEAR[form]), batch()
    report = lsuv_(net, x, orthonormal=orthonormal)
    assert std(net.layer(net, x)) == ONE
    assert rows(report) == {"S" if form == "sum of a stack" else "W": SCALED, "head": SCALED}


NOT_LINEAR: dict[str, tuple[str, Run]] = {
    "normalised": ("div", lambda net, x: F.linear(x, net.W / net.W.norm())),
    "standardised": (
        "div", lambda net, x: F.linear(x, (net.W - net.W.mean(1, keepdim=True)) / net.W.std(1, keepdim=True)),
    ),
    "identity added": ("add", lambda net, x: F.linear(x, net.W + torch.eye(16))),
    "softmax": ("softmax", lambda net, x: F.linear(x, net.W.softmax(1))),
    "ones where masked": ("where", lambda net, x: F.linear(x, torch.where(MASK > 0, net.W, 1.0))),
}  # fmt: skip


@pytest.mark.parametrize("form", NOT_LINEAR)
def test_weight_that_is_not_used_linearly_is_left_alone_and_named(form):
    op, run = NOT_LINEAR[form]
    net, x = parts(run), batch()
    before = net.W.detach().clone()
    found = rows(lsuv_(net, x))
    assert found["W"] == ("left alone", f"transformed before use: linear works on what {op} made of it")
    assert torch.equal(net.W, before)
    assert std(net(x)) == ONE


@BOTH
def test_bias_that_is_multiplied_before_use_scales_with_its_weight(orthonormal):
    # as StyleGAN's layers do it, weight and bias each with their factor
    net, x = parts(lambda net, x: F.linear(x, net.W * 0.25, bias=net.b * 0.5)), batch()
    net.b.data.clamp_(max=0.2)
    found = rows(lsuv_(net, x, orthonormal=orthonormal))
    assert std(net.layer(net, x)) == ONE
    assert found == {"W": SCALED, "head": SCALED}
    found = rows(lsuv_(net, x, mean=0.5, orthonormal=orthonormal))
    assert found["W"] == ("scaled" if orthonormal else "unchanged", "its bias is multiplied before use: mean not moved")


def test_pruned_layer_is_scaled_with_its_masks():
    net, x = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)), batch()
    for name in ("weight", "bias"):
        prune.random_unstructured(net[0], name, 0.5)
    zeros = net[0].weight_mask == 0
    assert {name: row for name, row in rows(lsuv_(net, x)).items() if row != SCALED} == {}
    assert std(net[0](x)) == ONE
    assert not net[0].weight[zeros].any()


# Products of weights

PRODUCTS: dict[str, tuple[str, str, Run]] = {
    "x @ (A @ B)": ("B", "A", lambda net, x: x @ (net.A @ net.B)),
    "linear": ("A", "B", lambda net, x: F.linear(x, net.B.t() @ net.A.t())),
    "convolution": ("B", "A", lambda net, x: F.conv1d(x[..., None], (net.A @ net.B).t()[..., None]).squeeze(-1)),
    "one einsum": ("B", "A", lambda net, x: torch.einsum("bi,ir,ro->bo", x, net.A, net.B)),
    "einsum of the two": ("B", "A", lambda net, x: x @ torch.einsum("ir,ro->io", net.A, net.B)),
    "with singular values": ("B", "A", lambda net, x: x @ ((net.A * net.g[:4]) @ net.B)),
    "Kronecker": ("K", "C", lambda net, x: F.linear(x, torch.kron(net.C, net.K))),
    "three": ("B", "A C", lambda net, x: x @ (net.A @ net.C @ net.B)),
    "elementwise of two": ("B2", "A B A2", lambda net, x: F.linear(x, (net.A @ net.B) * (net.A2 @ net.B2))),
}


@BOTH
@pytest.mark.parametrize("form", PRODUCTS)
def test_product_of_weights_is_scaled_by_one_of_them(form, orthonormal):
    one, others, run = PRODUCTS[form]
    net, x = parts(run), batch()
    before = {name: net.get_parameter(name).detach().clone() for name in others.split()}
    report = lsuv_(net, x, orthonormal=orthonormal)
    found = rows(report)
    assert std(net.layer(net, x)) == ONE
    assert found[one] == SCALED
    assert {found[name][0] for name in others.split()} == {"left alone"}
    assert all(found[name][1].startswith("product of two parameters") for name in others.split())
    assert all(torch.equal(net.get_parameter(name), value) for name, value in before.items())


@pytest.mark.parametrize("frozen", ["A", "B"])
def test_product_with_a_frozen_factor_is_scaled_by_the_other(frozen):
    net, x = parts(lambda net, x: x @ (net.A @ net.B)), batch()
    net.get_parameter(frozen).requires_grad_(False)
    found = rows(lsuv_(net, x))
    assert std(net.layer(net, x)) == ONE
    assert found["A" if frozen == "B" else "B"] == SCALED
    assert found[frozen][0] == "left alone"


def test_product_that_a_recurrence_uses_has_std_1_over_its_steps():
    def run(net: Net, x: Tensor) -> Tensor:
        h, net.made = torch.zeros(len(x), 16), []
        for _ in range(6):
            net.made.append(h @ (net.A @ net.B))
            h = torch.tanh(net.made[-1] + x)
        return h

    net, x = parts(run), batch()
    assert lsuv_(net, x).converged
    net(x)
    assert std(torch.cat(net.made)) == pytest.approx(1, abs=1.1e-3)


def test_product_of_a_weight_with_itself_is_left_alone():
    net, x = parts(lambda net, x: x @ (net.W @ net.W.t())), batch()
    assert rows(lsuv_(net, x))["W"] == ("left alone", "product of two parameters (matmul)")


def test_low_rank_update_of_a_weight_is_left_alone():
    # the sum is linear in neither: LoRA as it is merged
    net, x = parts(lambda net, x: F.linear(x, net.W + net.B.t() @ net.A.t())), batch()
    found = rows(lsuv_(net, x))
    assert {found[name][0] for name in "WAB"} == {"left alone"}


def test_queries_that_are_a_product_of_parameters_are_no_weight():
    net = Net(
        lambda net, x: net.head(((net.q @ net.W) @ x.view(8, 64, 16).mT).softmax(-1) @ x.view(8, 64, 16)),
        q=matrix(5, 16), W=matrix(16, 16), head=nn.Linear(16, 4),
    )  # fmt: skip
    found = rows(lsuv_(net, batch()))
    assert {found["q"], found["W"]} == {("left alone", "product of two parameters (matmul)")}


def test_equalized_net_is_at_its_targets_under_the_default_call():
    class Equal(nn.Module):
        def __init__(self, n_in: int, n_out: int) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(n_out, n_in) * 100), nn.Parameter(torch.zeros(n_out))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight * 0.01 / self.weight.shape[1] ** 0.5, bias=self.bias * 0.01)

    net, x = nn.Sequential(Equal(16, 32), nn.LeakyReLU(0.2), Equal(32, 32), nn.LeakyReLU(0.2), Equal(32, 4)), batch()
    report = lsuvcb.lsuv_(net, x)
    assert [r.status for r in report.layers] == ["scaled", "scaled", "left alone"]
    assert [std(net[: i + 1](x)) for i in (0, 2)] == [ONE, ONE]
