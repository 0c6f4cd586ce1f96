"""A forward that meddles with everything it can reach; afterwards nothing of it is left."""

import random

import numpy as np
import pytest
import torch
from paper import lsuv_
from torch import nn

from lsuvcb.engine import survey
from lsuvcb.engine.keeping.undisturbed import RNGState, Snapshot
from lsuvcb.engine.keeping.undisturbed import undisturbed as library_s
from lsuvcb.engine.tensors import tensors_in

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(5))


class Meddler(nn.Module):
    """Each forward changes modes, buffers, gradients and flags, and draws from every generator; `how` says which."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.a, self.norm, self.frozen = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("none", None)
        self.frozen.weight.requires_grad_(False)

    def forward(self, x):
        MEDDLING[self.how](self)
        return self.frozen(self.norm(self.a(x)))


def rebind(net):
    net.calls = torch.ones(1)


def fill_none(net):
    net.none = torch.ones(3)


def nan_buffer(net):
    net.calls.fill_(float("nan"))


def backward(net):
    with torch.enable_grad():
        net.a.weight.square().sum().backward()


def draw(net):
    torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002


MEDDLING = {
    "eval": lambda net: net.eval(),
    "half eval": lambda net: net.norm.eval(),
    "count": lambda net: net.calls.add_(1),
    "rebind a buffer": rebind,
    "fill an empty buffer": fill_none,
    "add a buffer": lambda net: net.register_buffer("added", torch.ones(2)),
    "write NaN": nan_buffer,
    "backward": backward,
    "drop a gradient": lambda net: net.zero_grad(),
    "freeze": lambda net: net.a.requires_grad_(False),
    "thaw": lambda net: net.frozen.requires_grad_(True),
    "draw": draw,
}


@pytest.mark.parametrize("had_gradients", [False, True])
@pytest.mark.parametrize("how", MEDDLING)
def test_lsuv_forward_that_meddles_leaves_no_trace(how, had_gradients, undisturbed):
    net = Meddler(how)
    if had_gradients:
        net.a.weight.grad = torch.full_like(net.a.weight, 2.0)
    with undisturbed(net):
        report = lsuv_(net, X, orthonormal=False)
    # frozen within the forward, or used by its loss, it is left alone
    status = "left alone" if how in ("freeze", "backward") else "scaled"
    assert {r.name: r.status for r in report.layers}["a"] == status


@pytest.mark.parametrize("how", MEDDLING)
def test_survey_forward_that_meddles_leaves_no_trace(how, undisturbed):
    net = Meddler(how)
    with undisturbed(net, weights=True):
        survey(net, X)


@pytest.mark.parametrize("how", MEDDLING)
def test_lsuv_forward_that_meddles_and_fails_leaves_no_trace(how, undisturbed):
    net = Meddler(how)

    def forward(model, x):
        model(x)
        raise ValueError("late")

    with pytest.raises(ValueError, match="late"), undisturbed(net):
        lsuv_(net, X, forward=forward)


@pytest.mark.parametrize("how", ["eval", "half eval", "count", "rebind a buffer", "add a buffer"])
def test_lsuv_each_pass_starts_from_the_same_state(how):
    net, seen = Meddler(how), []

    def forward(model, x):
        state = [m.training for m in model.modules()], {name: b.clone() for name, b in model.named_buffers()}
        seen.append(repr(state))
        return model(x)

    lsuv_(net, X, forward=forward)
    assert len(seen) == 3
    assert len(set(seen)) == 1


def test_lsuv_each_pass_draws_the_same_random_numbers():
    net, seen = nn.Linear(6, 3), []

    def forward(model, x):
        seen.append((torch.rand(1).item(), random.random(), np.random.rand()))  # noqa: NPY002
        return model(x)

    lsuv_(net, X, forward=forward)
    assert len(seen) == 3
    assert len(set(seen)) == 1


def test_undisturbed_context_puts_back_what_the_block_did(undisturbed):
    net = Meddler("count")
    with undisturbed(net, weights=True), library_s(net):
        for meddle in MEDDLING.values():
            meddle(net)


def test_undisturbed_context_passes_an_error_on(undisturbed):
    net = Meddler("eval")

    def fails():
        with library_s(net):
            net(X)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"), undisturbed(net):
        fails()


def test_undisturbed_snapshot_may_be_restored_in_between():
    net = nn.Sequential(nn.BatchNorm1d(6))
    with library_s(net) as snapshot:
        assert isinstance(snapshot, Snapshot)
        for _ in range(2):
            net(X)
            assert int(net[0].num_batches_tracked) == 1
            snapshot.restore()
            assert int(net[0].num_batches_tracked) == 0


def test_rng_state_restores_as_often_as_asked():
    state, draws = RNGState(), []
    for _ in range(3):
        draws.append((torch.rand(1).item(), random.random(), np.random.rand()))  # noqa: NPY002
        state.restore()
    assert len(set(draws)) == 1


def test_tensors_in_finds_them_in_order_in_any_nest():
    a, b, c = torch.zeros(1), torch.ones(2), torch.ones(3)
    assert [t.numel() for t in tensors_in({"x": [a, (b, "text")], "y": {"z": c}, "n": None})] == [1, 2, 3]
    assert tensors_in("text") == []
