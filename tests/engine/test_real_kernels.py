"""Outputs that are another op's weight: hypernetworks, mixed and generated kernels. The op that consumes one is the layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from paper import lsuv_
from torch import Tensor, nn

import lsuvcb
from lsuvcb.engine import LSUVReport

ONE = pytest.approx(1, abs=1e-3)
BOTH = pytest.mark.parametrize("orthonormal", [True, False])
N = 12  # the width of generated matrices


def std(y: Tensor) -> float:
    return y.detach().double().std(correction=0).item()


def rows(report: LSUVReport) -> dict[str, tuple[str, str]]:
    return {r.name: (r.status, r.reason) for r in report.layers}


def behind(op: str) -> tuple[str, str]:
    return "scaled", f"measured behind {op}, which takes its output for a kernel"


def alone(op: str) -> tuple[str, str]:
    return "left alone", f"its output becomes the kernel of {op}, in a way that is not linear in it"


class Generated(nn.Module):
    """A net on (z, x): `apply(x, gen(z))`, then a head on its activation. `made` is what `apply` gave last."""

    def __init__(self, apply: Callable[[Tensor, Tensor], Tensor], gen: nn.Module, head: int = N) -> None:
        super().__init__()
        self.apply_kernel, self.gen, self.head = apply, gen, nn.Linear(head, 3)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        self.made = self.apply_kernel(x, self.gen(z))
        return self.head(self.made.relu().flatten(2).mean(2) if self.made.ndim > 2 else self.made.relu())


class Hyper(nn.Module):
    """Four generated matrices, one applied behind the other; `between` stands between them."""

    def __init__(self, between: Callable[[Tensor], Tensor], depth: int = 4) -> None:
        super().__init__()
        self.gen, self.between = nn.ModuleList(nn.Linear(8, N * N) for _ in range(depth)), between

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        self.made = []
        for gen in self.gen:
            self.made.append(torch.bmm(gen(z).view(-1, N, N), x))
            x = self.between(self.made[-1])
        return x


def stacks(batch: int = 64) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 8), torch.randn(batch, N, 5)


@BOTH
@pytest.mark.parametrize("between", [lambda y: y, torch.relu], ids=["nothing", "relu"])
def test_hypernetwork_main_path_has_std_1_at_every_generated_layer(between, orthonormal):
    net, batch = Hyper(between), stacks()
    report = lsuv_(net, batch, orthonormal=orthonormal)
    net(*batch)
    assert [std(y) for y in net.made] == [ONE] * 4
    assert set(rows(report).values()) == {behind("bmm")}
    assert [r.std_after for r in report.layers] == [ONE] * 4


def test_hypernetwork_hidden_layers_feed_one_another_under_the_default_recipe():
    net, batch = Hyper(torch.relu), stacks()
    found = rows(lsuvcb.lsuv_(net, batch))
    net(*batch)
    assert [std(y) for y in net.made[:3]] == [ONE] * 3
    assert found["gen.3"][0] == "left alone"  # the head
    assert "the head" in found["gen.3"][1]


def test_hypernetwork_mean_is_left_where_the_bias_is_a_part_of_the_kernel():
    net, batch = Hyper(torch.relu, depth=2), stacks()
    report = lsuv_(net, batch, mean=0.5, orthonormal=False)
    net(*batch)
    assert report.converged
    assert [std(y) for y in net.made] == [ONE] * 2
    assert all(r.reason.endswith("its bias is a part of the kernel: mean not moved") for r in report.layers)


@BOTH
def test_hypernetwork_behind_a_layer_is_told_from_attention(orthonormal):
    class Stem(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.gen, self.out = nn.Linear(5, N), nn.Linear(8, N * N), nn.Linear(N, 3)

        def forward(self, z: Tensor, x: Tensor) -> Tensor:
            self.h = self.stem(x)
            self.made = torch.bmm(self.h, self.gen(z).view(-1, N, N))
            return self.out(self.made.tanh())

    net, batch = Stem(), (torch.randn(64, 8), torch.randn(64, 7, 5))
    found = rows(lsuv_(net, batch, orthonormal=orthonormal))
    net(*batch)
    assert (std(net.h), std(net.made)) == (ONE, ONE)
    assert found == {"stem": ("scaled", ""), "gen": behind("bmm"), "out": ("scaled", "")}


def test_hypernetwork_on_coordinates_of_a_buffer_has_std_1():
    class Field(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("at", torch.rand(40, 2) * 2 - 1)
            self.first, self.second, self.last = nn.Linear(8, 2 * N), nn.Linear(8, N * N), nn.Linear(8, N)

        def forward(self, z: Tensor) -> Tensor:
            a = self.at.expand(len(z), -1, -1) @ self.first(z).view(-1, 2, N)
            b = a.sin() @ self.second(z).view(-1, N, N)
            self.made = [a, b, b.sin() @ self.last(z).view(-1, N, 1)]
            return self.made[-1]

    net, z = Field(), torch.randn(64, 8)
    assert set(rows(lsuv_(net, z)).values()) == {behind("matmul")}
    net(z)
    assert [std(y) for y in net.made] == [ONE] * 3


class CondConv(nn.Module):
    """A kernel for each sample, mixed from experts by a router, and applied as one grouped convolution."""

    def __init__(self, n_in: int, n_out: int, mix: Callable[[Tensor, Tensor], Tensor], experts: int = 4) -> None:
        super().__init__()
        self.n_in, self.n_out, self.mix = n_in, n_out, mix
        self.route = nn.Linear(n_in, experts)
        self.experts = nn.Parameter(torch.randn(experts, n_out * n_in * 9) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        batch = len(x)
        routing = self.route(x.mean((2, 3))).sigmoid()
        kernel = self.mix(routing, self.experts).view(batch * self.n_out, self.n_in, 3, 3)
        y = F.conv2d(x.reshape(1, batch * self.n_in, *x.shape[2:]), kernel, padding=1, groups=batch)
        return y.view(batch, self.n_out, *x.shape[2:])


MIXES = {
    "matmul": lambda routing, experts: routing @ experts,
    "einsum": lambda routing, experts: torch.einsum("be,ek->bk", routing, experts),
    "product and sum": lambda routing, experts: (routing[:, :, None] * experts).sum(1),
}


@BOTH
@pytest.mark.parametrize("mix", MIXES)
def test_condconv_experts_are_scaled_by_the_convolution_of_their_mixture(mix, orthonormal):
    net = nn.Sequential(CondConv(3, 8, MIXES[mix]), nn.ReLU(), CondConv(8, 8, MIXES[mix]), CondConv(8, 6, MIXES[mix]))
    x = torch.randn(16, 3, 8, 8)
    report = lsuv_(net, x, orthonormal=orthonormal)
    assert report.converged
    assert [std(net[: i + 1](x)) for i in (0, 2, 3)] == [ONE] * 3
    assert {rows(report)[f"{i}.experts"][0] for i in (0, 2, 3)} == {"scaled"}


def z_for_all(*shape: int) -> tuple[Tensor, Tensor]:
    return torch.randn(8), torch.randn(*shape)


CASES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], nn.Module, int, Any]] = {
    "linear": (lambda x, w: F.linear(x, w.view(N, N)), nn.Linear(8, N * N), N, lambda: z_for_all(64, N)),
    "conv2d": (
        lambda x, w: F.conv2d(x, w.view(6, 3, 3, 3)), nn.Linear(8, 6 * 27), 6, lambda: z_for_all(16, 3, 8, 8),
    ),
    "einsum": (
        lambda x, w: torch.einsum("bij,bj->bi", w.view(-1, N, N), x[:, :, 0]), nn.Linear(8, N * N), N, stacks,
    ),
    "matmul": (
        lambda x, w: w.view(-1, 1, N, N).expand(-1, 2, -1, -1) @ x[:, None].expand(-1, 2, -1, -1),
        nn.Linear(8, N * N), 2, stacks,
    ),
    "bmm": (
        lambda x, w: torch.bmm(w.view(-1, N, N).transpose(1, 2).contiguous(), x), nn.Linear(8, N * N), N, stacks,
    ),
    "bmm of a scaled kernel": (
        lambda x, w: torch.bmm(w.view(-1, N, N) * 0.01, x), nn.Linear(8, N * N), N, stacks,
    ),
    "bmm of a kernel that a convolution generates": (
        lambda x, w: torch.bmm(w.view(-1, N, N), x), nn.Sequential(nn.Unflatten(1, (8, 1, 1)), nn.Conv2d(8, N * N, 1)), N,
        stacks,
    ),
}  # fmt: skip


@BOTH
@pytest.mark.parametrize("case", CASES)
def test_generated_kernel_is_scaled_by_what_the_op_gives(case, orthonormal):
    apply, gen, head, batch = CASES[case]
    net, batch = Generated(apply, gen, head), batch()
    report = lsuv_(net, batch, orthonormal=orthonormal)
    net(*batch)
    assert std(net.made) == ONE
    assert report.converged
    assert report.layers[0].reason.startswith("measured behind ")


def test_generated_kernel_with_a_bias_set_on_purpose_is_measured_without_it():
    # the bias holds the kernel to begin with, as HyperFan-like starts do
    net, batch = Generated(lambda x, w: torch.bmm(w.view(-1, N, N), x), nn.Linear(8, N * N)), stacks()
    nn.init.normal_(net.gen.bias)
    bias = net.gen.bias.detach().clone()
    found = rows(lsuv_(net, batch))
    assert torch.equal(net.gen.bias, bias)
    assert found["gen"] == ("scaled", behind("bmm")[1] + "; its bias was set on purpose and is kept")
    assert std(net.apply_kernel(batch[1], net.gen(batch[0]) - bias)) == ONE


def test_generated_kernel_used_twice_is_measured_where_it_is_used_first():
    def apply(x: Tensor, w: Tensor) -> Tensor:
        return torch.bmm(w.view(-1, N, N), torch.bmm(w.view(-1, N, N), x))

    net, batch = Generated(apply, nn.Linear(8, N * N)), stacks()
    assert rows(lsuv_(net, batch))["gen"] == behind("bmm")
    assert std(torch.bmm(net.gen(batch[0]).view(-1, N, N), batch[1])) == ONE


NOT_LINEAR: dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor], nn.Module, int, Any]] = {
    "tanh before the view": ("bmm", lambda x, w: torch.bmm(w.tanh().view(-1, N, N), x), nn.Linear(8, N * N), N, stacks),
    "tanh behind the view": ("bmm", lambda x, w: torch.bmm(w.view(-1, N, N).tanh(), x), nn.Linear(8, N * N), N, stacks),
    "identity added": (
        "bmm", lambda x, w: torch.bmm(w.view(-1, N, N) + torch.eye(N), x), nn.Linear(8, N * N), N, stacks,
    ),
    "tanh, convolution": (
        "conv2d", lambda x, w: F.conv2d(x, w.tanh().view(6, 3, 3, 3)), nn.Linear(8, 6 * 27), 6,
        lambda: z_for_all(16, 3, 8, 8),
    ),
    "with a bias": (
        "linear", lambda x, w: F.linear(x, w.view(N, N), torch.ones(N)), nn.Linear(8, N * N), N, lambda: z_for_all(64, N),
    ),
}  # fmt: skip


@BOTH
@pytest.mark.parametrize("case", NOT_LINEAR)
def test_kernel_that_is_not_linear_in_its_layer_is_left_alone_and_named(case, orthonormal):
    op, apply, gen, head, batch = NOT_LINEAR[case]
    net, batch = Generated(apply, gen, head), batch()
    before = [p.detach().clone() for p in gen.parameters()]
    found = rows(lsuv_(net, batch, orthonormal=orthonormal))
    assert all(map(torch.equal, gen.parameters(), before))
    assert found == {"gen": alone(op), "head": ("scaled", "")}


def test_pointnet_transform_is_left_alone_and_the_rest_is_scaled():
    class Transform(nn.Module):
        def __init__(self, k: int) -> None:
            super().__init__()
            self.k, self.conv, self.fc = k, nn.Conv1d(k, 16, 1), nn.Linear(16, k * k)

        def forward(self, x: Tensor) -> Tensor:
            pooled = self.conv(x).relu().amax(2)
            return (self.fc(pooled) + torch.eye(self.k).flatten()).view(-1, self.k, self.k)

    class PointNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.t1, self.conv, self.t2, self.head = Transform(3), nn.Conv1d(3, 8, 1), Transform(8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.bmm(x.transpose(1, 2), self.t1(x)).transpose(1, 2)
            x = self.conv(x).relu()
            x = torch.bmm(x.transpose(1, 2), self.t2(x)).transpose(1, 2)
            return self.head(x.amax(2))

    found = rows(lsuv_(PointNet(), torch.randn(32, 3, 20)))
    assert {name for name, row in found.items() if row == alone("bmm")} == {"t1.fc", "t2.fc"}
    assert {row for name, row in found.items() if name not in ("t1.fc", "t2.fc")} == {("scaled", "")}


class Attention(nn.Module):
    """Four heads of 4 features; `made` is q, k and v as their layers gave them."""

    def __init__(self, scores: Callable[[Tensor, Tensor], Tensor], contiguous: bool = False) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))
        self.scores, self.contiguous = scores, contiguous

    def heads(self, y: Tensor) -> Tensor:
        y = y.view(*y.shape[:2], 4, 4).transpose(1, 2)
        return y.contiguous() if self.contiguous else y

    def forward(self, x: Tensor) -> Tensor:
        self.made = [self.q(x), self.k(x), self.v(x)]
        q, k, v = map(self.heads, self.made)
        return self.o((self.scores(q, k) @ v).transpose(1, 2).flatten(2))


def turned(y: Tensor) -> Tensor:
    """As rotary embeddings do it."""
    angle = torch.arange(y.shape[-2])[:, None].float()
    return y * angle.cos() + y.flip(-1) * angle.sin()


SCORES = {
    "softmax": lambda q, k: (q @ k.mT / 2).softmax(-1),
    "masked": lambda q, k: (
        (q @ k.mT / 2).masked_fill(torch.ones(q.shape[-2], k.shape[-2]).triu(1) > 0, -1e9).softmax(-1)
    ),
    "turned": lambda q, k: (turned(q) @ turned(k).mT).softmax(-1),
}


@BOTH
@pytest.mark.parametrize("contiguous", [False, True])
@pytest.mark.parametrize(
    "tokens", [4, 7]
)  # as many as heads: one head's tokens are as many values as one token's heads
@pytest.mark.parametrize("scores", SCORES)
def test_attention_queries_keys_and_values_are_layers(scores, tokens, contiguous, orthonormal):
    net, x = Attention(SCORES[scores], contiguous), torch.randn(32, tokens, 16)
    assert set(rows(lsuv_(net, x, orthonormal=orthonormal)).values()) == {("scaled", "")}
    net(x)
    assert [std(y) for y in net.made] == [ONE] * 3


def test_attention_of_one_query_for_each_sample_is_no_kernel():
    class Pool(nn.Module):
        """The query is made of one row's features, as a generated kernel is, and the keys are the raw inputs."""

        def __init__(self) -> None:
            super().__init__()
            self.q, self.o = nn.Linear(16, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            self.query = self.q(x[:, 0])
            weights = (x @ self.query[:, :, None] / 4).softmax(1)
            return self.o((weights.mT @ x)[:, 0])

    net, x = Pool(), torch.randn(64, 9, 16)
    assert set(rows(lsuv_(net, x)).values()) == {("scaled", "")}
    net(x)
    assert std(net.query) == ONE


def test_input_that_only_a_generated_kernel_reads_counts_as_the_input():
    # the router reads the mean over space, whose std is small; the convolution reads the batch itself
    net, x = nn.Sequential(CondConv(3, 8, MIXES["matmul"]), nn.ReLU()), torch.randn(16, 3, 16, 16)
    assert lsuv_(net, x).input_std == pytest.approx(std(x), rel=1e-3)  # and no InputScaleWarning
