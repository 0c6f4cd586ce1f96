"""Nets that nobody thought of: built from a random plan, each must come out at its target, or named, and undisturbed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paper import lsuv_
from probe import forwards, over_all, probe, report_name
from torch import nn

from lsuvcb import NoLayersError
from lsuvcb.nets import GeneralRelu

WIDTH, ROWS = 8, 64
LEAVES = (
    "linear", "linear without bias", "bare", "bare transposed", "relu", "tanh", "gelu", "leaky in place", "dropout",
    "layer norm", "batch norm", "zero", "frozen", "shared", "weight norm", "scaled by a parameter",
    "heads", "conv", "conv without a batch", "tanh of linear", "general relu", "silu in place",
)  # fmt: skip
leaves = st.sampled_from(LEAVES)
plans = st.recursive(
    st.lists(leaves, min_size=1, max_size=5),
    lambda inner: st.lists(
        st.one_of(leaves, st.tuples(st.sampled_from(("residual", "branches", "gate")), inner, inner)),
        min_size=1,
        max_size=4,
    ),
    max_leaves=8,
)


class Bare(nn.Module):
    """A matrix and `@`; transposed, it is used through a view."""

    def __init__(self, transposed: bool):
        super().__init__()
        self.matrix, self.transposed = nn.Parameter(torch.randn(WIDTH, WIDTH) / 3), transposed

    def forward(self, x):
        return x @ (self.matrix.T if self.transposed else self.matrix)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(1, WIDTH) + 0.5)

    def forward(self, x):
        return x * self.gamma


class Heads(nn.Module):
    """A layer whose output is viewed with sizes of its own before its activation."""

    def __init__(self):
        super().__init__()
        self.layer, self.act = nn.Linear(WIDTH, WIDTH), nn.GELU()

    def forward(self, x):
        return self.act(self.layer(x).view(len(x), 2, WIDTH // 2)).flatten(1)


class Conv(nn.Module):
    """Each sample as a picture of 2 x 4; without a batch, all of them as the channels of one."""

    def __init__(self, batched: bool):
        super().__init__()
        self.conv, self.batched = nn.Conv2d(*((1, 1) if batched else (ROWS, ROWS)), 3, padding=1), batched

    def forward(self, x):
        y = x.view(ROWS, 2, WIDTH // 2)
        return F.leaky_relu(self.conv(y.unsqueeze(1) if self.batched else y), 0.1).reshape(ROWS, WIDTH)


class TanhOfLinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return torch.tanh(self.layer(x))


class Joined(nn.Module):
    """Two branches over one input: added, multiplied, or side by side through a matrix."""

    def __init__(self, how: str, a: nn.Module, b: nn.Module):
        super().__init__()
        self.how, self.a, self.b = how, a, b
        self.mix = nn.Parameter(torch.randn(WIDTH, 2 * WIDTH) / 4) if how == "branches" else None

    def forward(self, x):
        if self.how == "residual":
            y = self.a(x)
            return y + x
        if self.how == "gate":
            return self.a(x) * torch.sigmoid(self.b(x))
        return F.linear(torch.cat([self.a(x), self.b(x)], dim=1), self.mix)


def build(plan: Any, shared: nn.Module) -> nn.Module:
    if isinstance(plan, list):
        return nn.Sequential(*(build(item, shared) for item in plan))
    if isinstance(plan, tuple):
        return Joined(plan[0], build(plan[1], shared), build(plan[2], shared))
    if plan == "shared":
        return shared
    if plan == "weight norm":
        return nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))
    if plan in ("zero", "frozen"):
        layer = nn.Linear(WIDTH, WIDTH)
        nn.init.zeros_(layer.weight) if plan == "zero" else layer.requires_grad_(False)
        return layer
    return {
        "linear": lambda: nn.Linear(WIDTH, WIDTH),
        "linear without bias": lambda: nn.Linear(WIDTH, WIDTH, bias=False),
        "bare": lambda: Bare(False),
        "bare transposed": lambda: Bare(True),
        "relu": nn.ReLU,
        "tanh": nn.Tanh,
        "gelu": nn.GELU,
        "leaky in place": lambda: nn.LeakyReLU(0.1, inplace=True),
        "dropout": lambda: nn.Dropout(0.3),
        "layer norm": lambda: nn.LayerNorm(WIDTH),
        "batch norm": lambda: nn.BatchNorm1d(WIDTH),
        "scaled by a parameter": Scaled,
        "heads": Heads,
        "conv": lambda: Conv(True),
        "conv without a batch": lambda: Conv(False),
        "tanh of linear": TanhOfLinear,
        "general relu": lambda: GeneralRelu(leak=0.1, sub=0.4),
        "silu in place": lambda: nn.SiLU(inplace=True),
    }[plan]()


def net_of(plan: Any, seed: int, dtype: torch.dtype, training: bool) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), build(plan, nn.Linear(WIDTH, WIDTH)))
    return model.to(dtype).train(training)


def settled(**ranges: Any) -> Any:
    """Hypothesis's settings and the plan, seed and modes of a net, for a test that takes them with `ranges`."""
    given_net = given(
        plan=plans,
        seed=st.integers(0, 2**16),
        dtype=st.sampled_from((torch.float32, torch.float32, torch.float64, torch.bfloat16)),
        training=st.booleans(),
        orthonormal=st.booleans(),
        **ranges,
    )
    quiet = settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    return lambda test: quiet(given_net(test))


@settled(stop=st.integers(1, 12))
def test_lsuv_random_net_holds_every_promise(undisturbed, plan, seed, dtype, training, orthonormal, stop):
    model = net_of(plan, seed, dtype, training)
    x = torch.randn(ROWS, WIDTH).to(dtype)
    interrupted_is_as_before(copy.deepcopy(model), x, orthonormal, stop)

    rng = torch.get_rng_state()
    with undisturbed(model, draws=orthonormal), forwards(model) as calls:
        report = lsuv_(model, x, orthonormal=orthonormal, verify=False)
    assert len(calls) == report.passes
    assert report.passes == 1 or any(row.uses > 1 for row in report.layers)

    torch.set_rng_state(rng)  # the same dropout as in the pass
    clone = copy.deepcopy(model)
    with torch.no_grad(), probe(clone) as seen:
        clone(x)
    tol = 3e-2 if dtype == torch.bfloat16 else 1e-3
    rows = {row.name: row for row in report.layers}
    for name, row in rows.items():
        if row.status == "left alone":
            assert row.reason
        elif name in seen:  # a weight_norm's values lie in no parameter, and the probe cannot see them
            assert abs(over_all(seen[name]) - 1) <= tol, (name, row, seen[name])
    computed = {n.split(".parametrizations")[0] for n, _ in model.named_parameters() if ".parametrizations" in n}
    matrices = {
        report_name(model, n) for n, p in model.named_parameters() if p.ndim > 1 and ".parametrizations" not in n
    }
    assert matrices | computed <= rows.keys()


@pytest.mark.filterwarnings("ignore::lsuvcb.NotConvergedWarning")
@settled(
    measure=st.sampled_from(("layer", "activation")),
    std=st.sampled_from((1.0, 0.3, 2.0)),
    mean=st.sampled_from((None, 0.0, 0.5)),
)
def test_lsuv_random_net_is_at_any_target_or_says_why_not(
    undisturbed, plan, seed, dtype, training, orthonormal, measure, std, mean
):
    model = net_of(plan, seed, dtype, training)
    x = torch.randn(ROWS, WIDTH).to(dtype)
    with undisturbed(model, draws=orthonormal), forwards(model) as calls:
        report = lsuv_(model, x, measure=measure, std=std, mean=mean, orthonormal=orthonormal)
    assert len(calls) == report.passes
    # of a layer that is left alone no reason tells that a second op reads its output, which shows late
    again = any(row.uses > 1 or "another op" in row.reason or row.status == "left alone" for row in report.layers)
    assert report.passes == 3 or (again and report.passes > 3)
    tol = (3e-2 if dtype == torch.bfloat16 else 1e-3) * std
    for row in report.layers:
        moves = mean is not None and "mean not moved" not in row.reason and row.uses == 1
        if row.status in ("scaled", "unchanged"):
            assert abs(row.std_after - std) <= tol, row
            assert not moves or abs(row.mean_after - mean) <= tol, row
        else:
            assert row.reason, row


def interrupted_is_as_before(model: nn.Module, x: torch.Tensor, orthonormal: bool, stop: int) -> None:
    before, rng = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    ran = []

    def interrupt(module: nn.Module, args: Any) -> None:
        ran.append(module)
        if len(ran) == stop:
            raise KeyboardInterrupt

    for module in model.modules():
        module.register_forward_pre_hook(interrupt)
    try:
        lsuv_(model, x, orthonormal=orthonormal)
    except KeyboardInterrupt:
        after = model.state_dict()
        assert all(torch.equal(after[name], value) for name, value in before.items())
        assert torch.equal(rng, torch.get_rng_state())
    torch.set_rng_state(rng)


def test_lsuv_net_without_a_weight_at_work_says_so():
    with pytest.raises(NoLayersError, match="no weight at work was found"):
        lsuv_(nn.Sequential(Scaled(), nn.ReLU()), torch.randn(8, WIDTH))
