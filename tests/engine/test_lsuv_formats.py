"""Dtypes, memory formats, autocast, compiled, wrapped and lazy models."""

import copy
import gc
import math
import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F
from paper import lsuv_
from probe import forwards, probed
from small_nets import Net, lively, matrix, relu_mlp
from torch import nn
from traces import bits, differences, traces, weights_of

from lsuvcb.engine import NotConvergedWarning, survey
from lsuvcb.engine.writing.undo import Undo

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(5))
BOTH = pytest.mark.parametrize("orthonormal", [True, False])


def stds(net, x):
    """At each module with a weight, by a hook: the output as the next module gets it."""
    found, handles = {}, []
    for name, module in net.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            handles.append(module.register_forward_hook(lambda m, a, y, n=name: found.setdefault(n, y)))
    with torch.no_grad():
        net(x)
    for handle in handles:
        handle.remove()
    return {name: y.double().std(correction=0).item() for name, y in found.items()}


@BOTH
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_lsuv_model_of_this_dtype_keeps_it_and_has_unit_std(dtype, orthonormal):
    net, x = relu_mlp(6).to(dtype), torch.randn(256, 32).to(dtype)
    report = lsuv_(net, x, orthonormal=orthonormal)
    assert {p.dtype for p in net.parameters()} == {dtype}
    tol = 1e-2 if dtype != torch.float64 else 1e-9
    assert list(stds(net, x).values()) == pytest.approx([1] * 6, abs=tol)
    assert {r.status for r in report.layers} == {"scaled"}


def test_lsuv_low_precision_has_a_floor_of_one_percent_for_tol():
    # 1.005 is off by more than tol, and bfloat16 cannot hold better
    net, x = nn.Sequential(nn.Linear(1, 1, bias=False)).bfloat16(), torch.tensor([[1.0], [-1.0]]).bfloat16()
    net[0].weight.data.fill_(1.0078125)
    before = bits(net[0].weight)
    assert lsuv_(net, x, orthonormal=False).layers[0].status == "unchanged"
    assert bits(net[0].weight) == before
    wide = copy.deepcopy(net).float()
    assert lsuv_(wide, x.float(), orthonormal=False).layers[0].status == "scaled"


@pytest.mark.parametrize("std", [0.1, 1, 30])
def test_lsuv_low_precision_reaches_other_targets_without_a_warning(std):
    report = lsuv_(relu_mlp(5).bfloat16(), torch.randn(256, 32).bfloat16(), std=std)
    assert report.converged


def test_lsuv_low_precision_draw_is_orthonormal_up_to_its_rounding():
    net = nn.Sequential(nn.Linear(32, 32)).bfloat16()
    report = lsuv_(net, torch.randn(256, 32).bfloat16())
    w = net[0].weight.detach().double() / report.layers[0].scale
    torch.testing.assert_close(w @ w.T, torch.eye(32).double(), atol=2e-2, rtol=0)


def test_lsuv_mixed_dtypes_in_one_model_are_each_kept():
    net = Net(lambda net, x: net.b(net.a(x).double()), a=nn.Linear(6, 8), b=nn.Linear(8, 4).double())
    lsuv_(net, X, mean=0.2)
    assert (net.a.weight.dtype, net.b.weight.dtype) == (torch.float32, torch.float64)
    assert list(stds(net, X).values()) == pytest.approx([1, 1], abs=1e-3)


def test_lsuv_default_dtype_of_float64_changes_nothing_else(undisturbed):
    net = lively().eval()
    torch.set_default_dtype(torch.float64)
    try:
        with undisturbed(net, draws=True):
            lsuv_(net, X)
    finally:
        torch.set_default_dtype(torch.float32)
    assert max(abs(s - 1) for s in stds(net, X).values()) < 1e-3


@BOTH
def test_lsuv_channels_last_stays_channels_last(orthonormal, undisturbed):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).to(memory_format=torch.channels_last)
    x = torch.randn(4, 3, 9, 9).to(memory_format=torch.channels_last)
    with undisturbed(net, draws=True):
        lsuv_(net, x, orthonormal=orthonormal, mean=0.1)
    assert net[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert list(stds(net, x).values()) == pytest.approx([1, 1], abs=1e-3)


@BOTH
def test_lsuv_channels_last_gives_the_values_that_contiguous_gives(orthonormal):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3))
    last = copy.deepcopy(net).to(memory_format=torch.channels_last)
    x = torch.randn(4, 3, 9, 9)
    for model in (net, last):
        lsuv_(model, x, orthonormal=orthonormal, generator=torch.Generator().manual_seed(3))
    for mine, theirs in zip(net.parameters(), last.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_lsuv_parameter_that_is_a_strided_view_keeps_its_memory(undisturbed):
    net = nn.Sequential(nn.Linear(6, 6))
    net[0].weight = nn.Parameter(torch.randn(6, 12)[:, ::2])
    with undisturbed(net, draws=True):
        lsuv_(net, X)
    assert stds(net, X)["0"] == pytest.approx(1, abs=1e-3)


# --- autocast


@BOTH
def test_lsuv_under_autocast_has_unit_std_under_autocast(orthonormal, undisturbed):
    net, x = relu_mlp(5), torch.randn(256, 32)
    with torch.autocast("cpu", torch.bfloat16), undisturbed(net, draws=True):
        lsuv_(net, x, orthonormal=orthonormal)
        assert list(stds(net, x).values()) == pytest.approx([1] * 5, abs=1e-2)
    assert {p.dtype for p in net.parameters()} == {torch.float32}


@BOTH
def test_lsuv_under_autocast_leaves_no_stale_cast_of_a_weight(orthonormal):
    # autocast keeps the casts of weights that need a gradient, made with gradients on; a loop keeps it open
    net, x = relu_mlp(3), torch.randn(256, 32)
    with torch.autocast("cpu", torch.bfloat16):
        net(x)  # fills the cache
        lsuv_(net, x, orthonormal=orthonormal)
        cached = net(x).detach()
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        torch.testing.assert_close(cached, net(x).detach())


def test_lsuv_under_autocast_leaves_gradients_to_a_later_forward():
    net, x = relu_mlp(3), torch.randn(256, 32)
    with torch.autocast("cpu", torch.bfloat16):
        lsuv_(net, x)
        net(x).float().square().mean().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_lsuv_stopped_under_autocast_leaves_no_stale_cast(monkeypatch):
    net, x = relu_mlp(2), torch.randn(64, 32)
    before = net(x.bfloat16().float()).detach()
    real = Undo.saved

    def stops(undo, changes):
        yield from real(undo, changes)
        with torch.enable_grad():
            net(x)  # casts what the commit wrote, and torch keeps the casts
        raise KeyboardInterrupt

    monkeypatch.setattr(Undo, "saved", stops)
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(KeyboardInterrupt):
            lsuv_(net, x)
        torch.testing.assert_close(net(x).float().detach(), before, atol=0.02, rtol=0.05)


# --- compiled, wrapped


class Caller(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body, self.head = body, nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.body(x))


def compiled_around(net):
    return torch.compile(Caller(net), backend="eager")


def compiled_inside(net):
    return Caller(torch.compile(net, backend="eager"))


def compiled_in_place(net):
    model = Caller(net)
    model.compile(backend="eager")
    return model


@pytest.mark.parametrize("already_run", [False, True])
@pytest.mark.parametrize("how", [compiled_around, compiled_inside, compiled_in_place])
def test_lsuv_compiled_model_is_seen_and_stays_compiled(how, already_run):
    torch._dynamo.reset()
    net = lively().eval()
    plain, model = Caller(net), how(net)
    if already_run:
        model(X)
    getattr(model, "_orig_mod", model).head = plain.head
    report = lsuv_(model, X)
    assert [r.name for r in report.layers] == ["body.0", "body.4", "body.6", "head"]
    assert list(stds(plain, X).values()) == pytest.approx([1] * 4, abs=1e-3)
    torch.testing.assert_close(model(X), plain(X))
    assert torch._dynamo.config.disable is False
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs > 0


def test_lsuv_own_forward_of_a_compiled_model_is_seen():
    torch._dynamo.reset()
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    model = torch.compile(net, backend="eager")
    model(X)
    report = lsuv_(model, X, forward=lambda m, x: m(x))
    assert [r.name for r in report.layers] == ["0", "2"]
    assert list(stds(net, X).values()) == pytest.approx([1, 1], abs=1e-3)


def test_lsuv_data_parallel_model_is_named_without_its_wrapper():
    net = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4))
    report = lsuv_(nn.DataParallel(net), X)
    assert [r.name for r in report.layers] == ["0", "1"]
    assert list(stds(net, X).values()) == pytest.approx([1, 1], abs=1e-3)


def test_lsuv_child_called_module_keeps_its_name():
    net = Net(lambda net, x: net.module(x), module=nn.Sequential(nn.Linear(6, 8)))
    assert [r.name for r in lsuv_(net, X).layers] == ["module.0"]


# --- lazy


def lazy_net():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that lazy modules may change
        return nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(4))


@BOTH
def test_lsuv_lazy_model_is_materialised_and_has_unit_std(orthonormal):
    net = lazy_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    held = [id(p) for p in net.parameters()]
    report = lsuv_(net, X, orthonormal=orthonormal)
    assert [r.name for r in report.layers] == ["0", "3"]
    assert [id(p) for p in net.parameters()] == held == [id(p) for p in optimizer.param_groups[0]["params"]]
    assert int(net[1].num_batches_tracked) == 0
    assert not net[1].running_mean.any()
    assert stds(net, X)["0"] == pytest.approx(1, abs=1e-3)


def test_lsuv_lazy_model_runs_once_more_to_be_materialised(undisturbed):
    net = lazy_net()
    with forwards(net) as calls:
        report = lsuv_(net, X, verify=False)
    assert len(calls) == report.passes == 2
    with undisturbed(net, draws=True), forwards(net) as calls:
        lsuv_(net, X, verify=False)
    assert len(calls) == 1


def test_survey_lazy_model_leaves_generators_alone():
    net, state = lazy_net(), torch.get_rng_state()
    survey(net, X)
    assert torch.equal(torch.get_rng_state(), state)


# --- far sizes


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12, 1e25])
def test_lsuv_weights_of_any_finite_size_are_brought_to_unit_std(size):
    net = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 4, bias=False))
    with torch.no_grad():
        net[0].weight.mul_(size)
    report = lsuv_(net, X, orthonormal=False)
    assert [r.status for r in report.layers] == ["scaled", "scaled"]
    assert list(stds(net, X).values()) == pytest.approx([1, 1], abs=1e-3)
    assert report.layers[0].std_before == pytest.approx(1 / report.layers[0].scale, rel=1e-3)


def test_lsuv_net_that_overflows_as_it_stands_is_brought_to_unit_std():
    net = relu_mlp(12)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(1e5)
    with warnings.catch_warnings():
        warnings.simplefilter("error", NotConvergedWarning)
        report = lsuv_(net, torch.randn(64, 32), orthonormal=False)
    assert not math.isfinite(report.layers[-1].std_before)
    assert {r.status for r in report.layers} == {"scaled"}
    assert "nan" in str(report) or "inf" in str(report)


def test_lsuv_mean_far_from_zero_is_seen_through():
    # outputs around 1e3 with std below 1: a sum of squares in float32 alone would lose all digits
    net = nn.Sequential(nn.Linear(6, 8))
    nn.init.constant_(net[0].bias, 1e3)
    lsuv_(net, X, orthonormal=False, mean=0)
    y = net(X).double()
    assert y.std(correction=0).item() == pytest.approx(1, abs=1e-3)
    assert y.mean().item() == pytest.approx(0, abs=1e-3)


# --- no trace in what the user holds


def test_lsuv_model_can_be_copied_and_saved_afterwards(tmp_path):
    net = Net(lambda net, x: F.linear(net.a(x), net.w.t()), a=nn.Linear(6, 8), w=matrix(8, 3))
    before = traces(net)
    lsuv_(net, X)
    assert differences(before, traces(net)) == []
    twin = copy.deepcopy(net)
    assert weights_of(twin) == weights_of(net)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    assert probed(twin, X)["w"][0].std == pytest.approx(1, abs=1e-3)


def test_lsuv_holds_no_reference_to_model_or_batch_afterwards():
    net, x = lively(), X.clone()
    report = lsuv_(net, x)
    held = [weakref.ref(net), weakref.ref(net[0].weight), weakref.ref(x)]
    del net, x
    gc.collect()
    assert [ref() for ref in held] == [None] * 3
    assert report.converged
