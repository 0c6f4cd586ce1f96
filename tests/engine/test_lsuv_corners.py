"""Models from corners that no other test visits: each was once disturbed, spoilt or refused without need."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from paper import lsuv_
from probe import probed
from small_nets import Net
from torch import nn
from torch.nn.utils import parametrize

from lsuvcb import LSUVError, survey
from lsuvcb.engine import NotConvergedWarning

UNFED = "constant output: its input is all zero at its first use, where no scale shows"
X = torch.randn(64, 16, generator=torch.Generator().manual_seed(5))


def reasons(model: nn.Module, batch: torch.Tensor = X, **options: object) -> dict[str, str]:
    report = lsuv_(model, batch, **options)
    return {row.name: row.reason for row in report.layers if row.status == "left alone"}


# Buffers


class Cached(nn.Module):
    """As rotary embeddings do it: a buffer that grows with the longest input, and how long it is."""

    def __init__(self):
        super().__init__()
        self.lin, self.length = nn.Linear(8, 8), 4
        self.fill()

    def fill(self):
        self.register_buffer("cos", torch.linspace(1, 2, self.length)[:, None], persistent=False)

    def forward(self, x):
        if x.shape[1] > self.length:
            self.length, self.grown = x.shape[1], True
            self.fill()
        return self.lin(x * self.cos[: x.shape[1]])


@pytest.mark.parametrize("run", [lsuv_, survey])
def test_cache_and_its_length_still_fit_each_other(run):
    model, x = Cached(), torch.randn(16, 9, 8)
    run(model, x)
    assert (model.length, len(model.cos)) == (4, 4)
    assert not hasattr(model, "grown")
    with torch.no_grad():
        assert torch.equal(model(x), copy.deepcopy(model)(x))


@pytest.mark.parametrize("kind", [torch.Tensor.to_sparse_coo, torch.Tensor.to_sparse_csr])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
def test_sparse_buffer_is_kept(kind):
    model = Net(lambda net, x: torch.sparse.mm(net.adjacent, net.lin(x)), lin=nn.Linear(16, 4))
    model.register_buffer("adjacent", kind(torch.eye(64)))
    report = lsuv_(model, X)
    assert report.converged
    assert torch.equal(model.adjacent.to_dense(), torch.eye(64))


def test_expanded_buffer_is_kept():
    model = Net(lambda net, x: net.lin(x) + net.shift.nan_to_num(), lin=nn.Linear(16, 4))
    model.register_buffer("shift", torch.tensor([float("nan")]).expand(4))
    assert lsuv_(model, X).converged


def test_sparse_batch_has_no_input_std_and_its_layers_are_measured():
    found = survey(nn.Linear(16, 4), X.relu().to_sparse())
    assert found.input_std is None
    assert found.layers[0].std > 0


# Outputs that do not depend on the weight


class Recurrent(nn.Module):
    """Its state begins with zeros, so that the first output of `hh` is the bias."""

    def __init__(self):
        super().__init__()
        self.ih, self.hh, self.out = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, x):
        h = x.new_zeros(len(x), 32)
        for t in range(x.shape[1]):
            h = torch.relu(self.ih(x[:, t]) + self.hh(h))
        self.state = h
        return self.out(h)


BIASES = {
    "as drawn": lambda b: b,
    "zero": lambda b: b * 0,
    "tiny": lambda b: b * 1e-25,  # its squares are below float32's range
    "huge": lambda b: b * 1e25,
    "large mean": lambda b: b + 100,
    "float64": lambda b: b.double(),
    "bfloat16": lambda b: b.bfloat16(),
    "none": lambda b: None,
}


@pytest.mark.parametrize("orthonormal", [True, False])
@pytest.mark.parametrize("bias", BIASES)
def test_layer_that_gives_its_bias_alone_is_left_alone(bias, orthonormal):
    """Whatever the bias: no scale for the weight follows from it."""
    torch.manual_seed(0)
    layer = nn.Linear(16, 32)
    values = BIASES[bias](layer.bias.detach())
    dtype = torch.float32 if values is None else values.dtype
    layer.bias = None if values is None else nn.Parameter(values)
    layer.weight = nn.Parameter(layer.weight.detach().to(dtype))
    weight = layer.weight.detach().clone()
    left = reasons(layer, X.to(dtype), forward=lambda model, x: model(x * 0), orthonormal=orthonormal)
    assert left == {"weight": UNFED}
    assert torch.equal(layer.weight, weight)


@pytest.mark.filterwarnings("ignore:the batch has std")
@pytest.mark.parametrize("bias", ["as drawn", "tiny", "large mean"])
def test_layer_that_gives_next_to_its_bias_alone_is_scaled(bias):
    torch.manual_seed(0)
    layer = nn.Linear(16, 32)
    layer.bias = nn.Parameter(BIASES[bias](layer.bias.detach()))
    report = lsuv_(layer, X, forward=lambda model, x: model(x * 1e-3), orthonormal=False)
    assert report.layers[0].status == "scaled"
    assert report.layers[0].std_after == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("orthonormal", [True, False])
def test_weight_whose_first_input_is_zero_is_solved_where_it_has_one(orthonormal):
    torch.manual_seed(0)
    model, x = Recurrent(), torch.randn(64, 12, 16)
    seen = []
    model.hh.register_forward_hook(lambda module, inputs, output: seen.append(output))
    assert reasons(model, x, orthonormal=orthonormal) == {}
    seen.clear()
    with torch.no_grad():
        model(x)
    assert torch.cat(seen).std(correction=0).item() == pytest.approx(1, abs=1e-3)
    assert 0.1 < model.state.std() < 10


# Two parameters over one memory, computed biases, transforms


def test_weights_that_share_memory_in_different_shapes_are_left_alone_both():
    first, second = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)
    second.weight = nn.Parameter(first.weight.data.t())
    left = reasons(nn.Sequential(first, nn.Tanh(), second, nn.Linear(16, 4)))
    assert left == {
        "0": "shares its memory with '2', in another shape",
        "2": "shares its memory with '0', in another shape",
    }


def test_weights_side_by_side_in_one_memory_are_scaled_both():
    flat = torch.randn(2 * 256)
    model = nn.Sequential(nn.Linear(16, 16, bias=False), nn.Tanh(), nn.Linear(16, 16, bias=False))
    model[0].weight.data, model[2].weight.data = flat[:256].view(16, 16), flat[256:].view(16, 16)
    assert [row.status for row in lsuv_(model, X).layers] == ["scaled", "scaled"]


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x

    def right_inverse(self, x):
        return x / 2


def test_layer_with_a_computed_bias_is_left_alone():
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4))
    parametrize.register_parametrization(model[0], "bias", Doubled())
    assert reasons(model) == {"0": "its bias is computed by Doubled"}


def test_layer_under_vmap_is_left_alone():
    model = Net(lambda net, x: net.out(torch.vmap(net.inner)(x)), inner=nn.Linear(16, 8), out=nn.Linear(8, 4))
    assert reasons(model) == {"inner": "used under torch.vmap, which hides the values that linear gives"}
    assert [row.name for row in survey(model, X).layers] == ["out"]


# Behind the activation


@pytest.mark.parametrize("mean", [None, 0.4])
def test_activation_in_a_forward_that_differentiates_reaches_its_target(mean):
    """An energy and its force."""

    def force(net, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(net.energy(x).sum(), x)[0]

    model = Net(force, energy=nn.Sequential(nn.Linear(16, 32), nn.Softplus(), nn.Linear(32, 1)))
    lsuv_(model, X, measure="activation", mean=mean, orthonormal=False)
    with torch.no_grad():
        softplus = model.energy[:2](X)
    assert softplus.std(correction=0).item() == pytest.approx(1, abs=1e-3)
    assert mean is None or softplus.mean().item() == pytest.approx(mean, abs=1e-3)


def test_activation_with_a_bound_for_each_sample_reaches_its_target():
    model, x = Net(lambda net, x: torch.clamp(net.lin(x), min=x[:, :1]), lin=nn.Linear(16, 32)), torch.randn(5000, 16)
    lsuv_(model, x, measure="activation", orthonormal=False)
    with torch.no_grad():
        assert model(x).std(correction=0).item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("act", [nn.ReLU, nn.GELU, nn.Softplus])
@pytest.mark.parametrize("seed", range(4))
def test_activation_in_low_precision_reaches_its_target(dtype, act, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(16, 64), act(), nn.Linear(64, 64), act()).to(dtype)
    report = lsuv_(model, X.to(dtype), measure="activation", mean=0.4, orthonormal=False)
    assert report.converged
    for row in report.layers:
        assert (row.std_after, row.mean_after) == (pytest.approx(1, abs=1e-2), pytest.approx(0.4, abs=1e-2))


def test_warning_of_a_layer_in_low_precision_names_the_tolerance_that_it_was_held_to():
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU()).bfloat16()
    with pytest.warns(NotConvergedWarning, match=r"outside std 1, mean 0 \+/- 0.01: '0' \(Linear\)"):
        lsuv_(model, X.bfloat16(), measure="activation", mean=0.0)


# Numbers at the end of their type


@pytest.mark.parametrize("verify", [True, False])
def test_weight_that_its_type_cannot_hold_is_an_error_and_nothing_is_changed(verify):
    model = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 4, bias=False))
    nn.init.normal_(model[1].weight, std=1e-42)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        LSUVError, match=r"layer '1' \(Linear 32 -> 4\) would need a scale of .* which torch.float32 cannot"
    ):
        lsuv_(model, X, orthonormal=False, verify=verify)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_float16_weight_takes_a_scale_beyond_float16():
    model = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 4, bias=False)).half()
    nn.init.normal_(model[1].weight, std=1e-6)
    report = lsuv_(model, X.half(), orthonormal=False)
    assert report.layers[1].scale > torch.finfo(torch.float16).max
    assert abs(probed(model, X.half())["1"][0].std - 1) < 1e-2


# The survey


def test_survey_says_where_most_weights_are_unseen():
    class Standardised(nn.Linear):
        def forward(self, x):
            w = self.weight
            return F.linear(x, (w - w.mean(1, keepdim=True)) / w.std(1, keepdim=True), self.bias)

    found = survey(nn.Sequential(Standardised(16, 16), Standardised(16, 16), nn.Linear(16, 4)), X)
    assert found.unseen == 2
    assert found.verdict.endswith("(sees 1 of 3 weights; `lsuv_` names the others and why)")
    assert "sees" not in survey(nn.Sequential(nn.Linear(16, 16), Standardised(16, 4)), X).verdict
