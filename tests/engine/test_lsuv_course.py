"""measure="activation": the course's own loop as a slow reference, and what each kind of activation makes of it."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from paper import lsuv_
from small_nets import Net, matrix
from torch import nn

from lsuvcb import LSUVError, NotConvergedWarning
from lsuvcb.engine.solving import nonlinear
from lsuvcb.nets import ConvLayer, GeneralRelu, get_model

ACT = partial(GeneralRelu, leak=0.1, sub=0.4)


def course_loop(model: nn.Module, xb: torch.Tensor, tol: float, most: int = 200) -> None:
    """The lesson's: for each pair in order, the activation's mean goes off the bias and its std divides the weight."""
    acts = [m for m in model.modules() if isinstance(m, GeneralRelu)]
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    for act, conv in zip(acts, convs, strict=False):  # the last conv has no activation
        found = {}
        handle = act.register_forward_hook(lambda m, i, o, f=found: f.update(mean=o.mean(), std=o.std()))
        with torch.no_grad():
            for _ in range(most):
                model(xb)
                if abs(found["mean"]) < tol and abs(found["std"] - 1) < tol:
                    break
                conv.bias -= found["mean"]
                conv.weight /= found["std"]
            else:
                raise AssertionError("the reference did not converge")
        handle.remove()


@pytest.mark.parametrize("seed", range(20))
def test_activation_measure_equals_the_course_s_loop(seed):
    torch.manual_seed(seed)
    ours, xb = get_model(ACT), torch.randn(256, 1, 28, 28)
    theirs = copy.deepcopy(ours)
    course_loop(theirs, xb, tol=1e-5)
    lsuv_(ours, xb, measure="activation", mean=0.0, orthonormal=False, tol=1e-5)
    names = [name for name, _ in ours.named_parameters()][:8]  # four pairs of weight and bias
    for name in names:
        a, b = ours.get_parameter(name), theirs.get_parameter(name)
        assert (a - b).abs().max() <= 2e-3 * b.abs().max(), name


def outputs_of(model: nn.Module, x: torch.Tensor, kind: type[nn.Module]) -> list[tuple[float, float]]:
    found: list[tuple[float, float]] = []
    handles = [
        m.register_forward_hook(lambda m, i, o: found.append((o.std(correction=0).item(), o.mean().item())))
        for m in model.modules()
        if isinstance(m, kind)
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return found


REACHABLE = {
    "ReLU": (nn.ReLU, 1.0, None),
    "ReLU in place": (partial(nn.ReLU, inplace=True), 1.0, 0.5),
    "LeakyReLU": (partial(nn.LeakyReLU, 0.2), 1.0, 0.0),
    "GELU": (nn.GELU, 1.0, 0.4),
    "SiLU": (nn.SiLU, 2.0, None),
    "Tanh": (nn.Tanh, 0.5, 0.0),
    "Sigmoid": (nn.Sigmoid, 0.2, 0.5),
    "Softplus": (nn.Softplus, 1.0, None),
    "PReLU": (partial(nn.PReLU, 48), 1.0, 0.0),
    "GeneralRelu": (ACT, 1.0, 0.0),
}


@pytest.mark.parametrize("orthonormal", [False, True])
@pytest.mark.parametrize("name", REACHABLE)
def test_activation_output_reaches_its_target(name, orthonormal):
    make, std, mean = REACHABLE[name]
    model = nn.Sequential(nn.Linear(32, 48), make(), nn.Linear(48, 48), make())
    x = torch.randn(2048, 32)
    report = lsuv_(model, x, measure="activation", std=std, mean=mean, orthonormal=orthonormal)
    assert [row.status for row in report.layers] == ["scaled", "scaled"]
    for found_std, found_mean in outputs_of(model, x, type(model[1])):
        assert found_std == pytest.approx(std, abs=1e-3 * std)
        assert mean is None or found_mean == pytest.approx(mean, abs=1e-3 * std)


@pytest.mark.parametrize("make", [nn.ReLU, partial(nn.PReLU, 48)])
def test_activation_output_solved_in_parts_reaches_its_target(make, monkeypatch):
    model, x = nn.Sequential(nn.Linear(32, 48), make()), torch.randn(777, 32)
    whole = copy.deepcopy(model)
    lsuv_(whole, x, measure="activation", mean=0.5, orthonormal=False, tol=1e-6)
    monkeypatch.setattr(nonlinear, "PART", 1000)
    report = lsuv_(model, x, measure="activation", mean=0.5, orthonormal=False, tol=1e-6)
    assert outputs_of(model, x, type(model[1]))[0] == pytest.approx((1, 0.5), abs=1e-5)
    for a, b in zip(model.parameters(), whole.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)
    assert report.layers[0].iterations <= 3


def test_activation_output_solved_in_parts_is_handed_on_corrected_in_all_of_them(monkeypatch):
    monkeypatch.setattr(nonlinear, "PART", 1000)
    model, x = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 8)), torch.randn(777, 32)
    lsuv_(model, x, measure="activation", mean=0.5, orthonormal=False)
    with torch.no_grad():
        assert model(x).std(correction=0).item() == pytest.approx(1, abs=1e-3)


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x):
        x = torch.tanh(self.a(x).view(-1, 4, 4))  # a view lies between
        gate = torch.sigmoid(self.b(x.flatten(1)))
        kept = self.c(x.flatten(1))
        y = kept * gate  # c goes into a product, not an activation
        y += self.d(y)
        return F.relu(y)


def test_activation_functions_are_seen_and_gates_are_measured_at_the_layer():
    model, x = Functional(), torch.randn(512, 16)
    report = lsuv_(model, x, measure="activation", std=0.4, orthonormal=False)
    rows = {row.name: row for row in report.layers}
    assert [rows[n].reason for n in "ab"] == ["", ""]
    assert rows["c"].reason == "measured at the layer: its output goes to mul"
    assert rows["d"].reason == "measured at the layer: its output goes to add_"
    with torch.no_grad():
        tanh = torch.tanh(model.a(x))
        assert tanh.std(correction=0).item() == pytest.approx(0.4, abs=4e-4)
        assert torch.sigmoid(model.b(tanh)).std(correction=0).item() == pytest.approx(0.4, abs=4e-4)
        assert model.c(tanh).std(correction=0).item() == pytest.approx(0.4, abs=4e-4)


class QuickGELU(nn.Module):
    def forward(self, x):
        return torch.sigmoid(1.702 * x) * x


def test_activations_argument_makes_a_module_of_one_s_own_count():
    model, x = nn.Sequential(nn.Linear(8, 32), QuickGELU()), torch.randn(1024, 8)
    plain = copy.deepcopy(model)
    for net, named in (
        (plain, None),
        (model, QuickGELU),
    ):  # a module that begins with an activation counts without a name
        report = lsuv_(net, x, measure="activation", activations=named)
        assert report.layers[0].reason == ""
        assert outputs_of(net, x, QuickGELU)[0][0] == pytest.approx(1, abs=1e-3)


class Swish(nn.Module):
    """With a slope for each channel."""

    def __init__(self, channels):
        super().__init__()
        self.slope = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x):
        return x * torch.sigmoid(self.slope * x)


WITHOUT_A_BATCH = {
    "conv": lambda: (nn.Conv2d(3, 64, 3), nn.ReLU()),
    "conv without bias": lambda: (nn.Conv2d(3, 64, 3, bias=False), Swish(64)),
    "conv, own activation": lambda: (nn.Conv2d(3, 64, 3), Swish(64)),
    "transposed conv": lambda: (nn.ConvTranspose2d(3, 64, 3), nn.LeakyReLU(0.1)),
}


@pytest.mark.parametrize("case", WITHOUT_A_BATCH)
def test_activation_of_one_image_without_a_batch_dimension_reaches_its_target(case):
    layer, act = WITHOUT_A_BATCH[case]()
    mean = None if layer.bias is None else 0.4
    model, x = nn.Sequential(layer, act), torch.randn(3, 48, 48)  # the output has more values than a sample of it
    report = lsuv_(model, x, measure="activation", activations=Swish, mean=mean, orthonormal=False)
    assert [row.reason for row in report.layers if row.status == "scaled"] == [""]
    std, found_mean = outputs_of(model, x, type(act))[0]
    assert std == pytest.approx(1, abs=1e-3)
    assert mean is None or found_mean == pytest.approx(mean, abs=1e-3)


def test_activation_of_features_that_come_first_reaches_its_target():
    """addmm(b, W, x): the bias has a value for each row of the output."""
    model = Net(lambda net, x: torch.relu(torch.addmm(net.b, net.w, x)), w=matrix(256, 16), b=matrix(256, 1))
    x = torch.randn(16, 1024)
    lsuv_(model, x, measure="activation", mean=0.4, orthonormal=False)
    with torch.no_grad():
        assert model(x).std(correction=0).item() == pytest.approx(1, abs=1e-3)
        assert model(x).mean().item() == pytest.approx(0.4, abs=1e-3)


def test_activation_module_behind_a_view_with_sizes_of_its_own_reaches_its_target():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.act = nn.Linear(16, 64), nn.GELU()

        def forward(self, x):
            return self.act(self.a(x).view(len(x), 4, 16))

    model, x = Heads(), torch.randn(64, 16)
    report = lsuv_(model, x, measure="activation", mean=0.4, orthonormal=False)
    assert report.layers[0].reason == ""
    assert outputs_of(model, x, nn.GELU)[0] == pytest.approx((1, 0.4), abs=1e-3)


def test_activations_argument_that_is_no_activation_is_an_error():
    with pytest.raises(TypeError, match=r"`activations` takes module types, modules and torch functions, got 3"):
        lsuv_(nn.Linear(2, 2), torch.randn(8, 2), measure="activation", activations=[3])


def test_activation_other_consumers_see_the_corrected_output():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(16, 4)

        def forward(self, x):
            y = self.a(x)
            return self.b(torch.cat([torch.relu(y), y], dim=1))

    model, x = Both(), torch.randn(512, 8)
    lsuv_(model, x, measure="activation", mean=0.5, orthonormal=False)
    with torch.no_grad():
        assert model(x).std(correction=0).item() == pytest.approx(1, abs=1e-3)


def test_activation_mean_out_of_reach_keeps_the_best_try_and_warns():
    model, x = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4)), torch.randn(1024, 16)
    start = outputs_of(model, x, nn.ReLU)[0]
    with pytest.warns(
        NotConvergedWarning, match=r"1 of 2 layers is outside std 1, mean 0 \+/- 0.001: '0' \(Linear\)"
    ) as w:
        report = lsuv_(model, x, measure="activation", mean=0.0, orthonormal=False)
    assert "an activation with outputs in [0, inf] has no mean of 0" in str(w[0].message)
    assert "Use `mean=None`, or an activation such as GeneralRelu(sub=0.4)" in str(w[0].message)
    assert report.layers[0].status == "not converged"
    assert not report.converged
    end = outputs_of(model, x, nn.ReLU)[0]
    assert max(abs(end[0] - 1), abs(end[1])) <= max(abs(start[0] - 1), abs(start[1]))
    assert report.layers[0].iterations <= 20


def test_activation_std_out_of_reach_does_not_saturate_and_warns():
    model, x = nn.Sequential(nn.Linear(16, 64), nn.Tanh()), torch.randn(1024, 16)
    with pytest.warns(NotConvergedWarning, match=r"an activation with outputs in \[-1, 1\] has no std of 1") as w:
        lsuv_(model, x, measure="activation", orthonormal=False)
    assert 'Use a smaller `std`, or `measure="layer"`' in str(w[0].message)
    with torch.no_grad():
        assert model[0](x).std() < 1.5


def test_activation_dead_relu_without_a_bias_to_move_is_left_alone():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
    nn.init.constant_(model[0].weight, -1)
    nn.init.zeros_(model[0].bias)
    report = lsuv_(model, torch.randn(64, 4).abs(), measure="activation", orthonormal=False, verify=False)
    assert report.layers[0].reason == "constant output of its activation: no scale gives it a spread"


def test_activation_dead_relu_comes_to_life_by_its_bias():
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU()), torch.randn(512, 4).abs()
    nn.init.constant_(model[0].weight, -1)
    nn.init.zeros_(model[0].bias)
    lsuv_(model, x, measure="activation", mean=0.5, orthonormal=False)
    assert outputs_of(model, x, nn.ReLU)[0] == pytest.approx((1, 0.5), abs=1e-3)


def test_activation_within_tol_already_is_not_touched():
    torch.manual_seed(1)
    model, x = get_model(ACT), torch.randn(256, 1, 28, 28)
    lsuv_(model, x, measure="activation", mean=0.0, orthonormal=False)
    before = copy.deepcopy(model.state_dict())
    report = lsuv_(model, x, measure="activation", mean=0.0, orthonormal=False)
    assert {row.status for row in report.layers} == {"unchanged"}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_activation_module_with_dropout_inside_is_measured_at_the_layer():
    class Noisy(nn.Module):
        def forward(self, x):
            return F.dropout(F.relu(x), 0.5, training=True)

    model = nn.Sequential(nn.Linear(8, 16), Noisy())
    state = torch.get_rng_state()
    report = lsuv_(model, torch.randn(256, 8), measure="activation", orthonormal=False)
    assert report.layers[0].reason == "measured at the layer: Noisy is not elementwise"
    assert not torch.equal(state, torch.get_rng_state())  # the batch was drawn after it
    state = torch.get_rng_state()
    lsuv_(model, torch.ones(256, 8) * torch.arange(256)[:, None] / 256, measure="activation", orthonormal=False)
    assert torch.equal(state, torch.get_rng_state())


# Blocks


@pytest.mark.parametrize(("orthonormal", "mean"), [(False, 0.0), (True, 0.0), (False, None)])
def test_block_conv_layers_reach_their_target(orthonormal, mean, undisturbed):
    torch.manual_seed(0)
    model = nn.Sequential(ConvLayer(1, 8, 5), ConvLayer(8, 16), ConvLayer(16, 32), nn.Flatten(), nn.Linear(512, 10))
    x = torch.rand(128, 1, 28, 28)
    bias = [layer.bias.item() for layer in model[:3]]
    report = lsuv_(model, x, layers=ConvLayer, mean=mean, orthonormal=orthonormal)
    rows = [row for row in report.layers if row.status == "scaled"]
    assert [(row.name, row.kind) for row in rows] == [("0", "ConvLayer"), ("1", "ConvLayer"), ("2", "ConvLayer")]
    for std, found_mean in outputs_of(model, x, ConvLayer):
        assert std == pytest.approx(1, abs=1e-3)
        assert mean is None or found_mean == pytest.approx(mean, abs=1e-3)
    if mean is None:
        assert [layer.bias.item() for layer in model[:3]] == bias


class FloatBias(nn.Module):
    """A matrix and a number, as in the course's first lessons."""

    def __init__(self, n_in, n_out):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(n_out, n_in) * 0.02), 0.3

    def forward(self, x):
        return torch.relu(x @ self.weight.T) - 0.5 + self.bias


def test_block_on_one_image_without_a_batch_dimension_reaches_its_target():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(32, 3, 3, 3)), 0.0

        def forward(self, x):
            return F.relu(F.conv2d(x, self.weight)) - 0.4 + self.bias

    model, x = nn.Sequential(Shifted()), torch.randn(3, 160, 160)
    lsuv_(model, x, layers=Shifted, mean=0.0, orthonormal=False)
    assert outputs_of(model, x, Shifted)[0] == pytest.approx((1, 0), abs=1e-3)


def test_block_with_a_float_bias_reaches_its_target():
    model, x = nn.Sequential(FloatBias(16, 64), FloatBias(64, 64)), torch.randn(512, 16)
    lsuv_(model, x, layers=FloatBias, mean=0.0, orthonormal=False)
    assert isinstance(model[0].bias, float)
    for found in outputs_of(model, x, FloatBias):
        assert found == pytest.approx((1, 0), abs=1e-3)


@pytest.mark.parametrize("calls", [1, 3, 8, 20])
def test_block_interrupted_while_it_runs_is_as_before(calls, undisturbed):
    class Stops(FloatBias):
        seen = 0

        def forward(self, x):
            type(self).seen += 1
            if type(self).seen == calls:
                raise KeyboardInterrupt
            return super().forward(x)

    model, x = nn.Sequential(Stops(16, 64), Stops(64, 64)), torch.randn(256, 16)
    with undisturbed(model, weights=True), pytest.raises(KeyboardInterrupt):
        lsuv_(model, x, layers=Stops, mean=0.0)
    assert [layer.bias for layer in model] == [0.3, 0.3]


def test_block_that_gives_nan_is_an_error_and_as_before():
    class Broken(FloatBias):
        def forward(self, x):
            return super().forward(x) / 0 * 0

    model = nn.Sequential(Broken(4, 4))
    weight = model[0].weight.detach().clone()
    with pytest.raises(LSUVError, match=r"'0' \(Broken 4x4\) gave non-finite output"):
        lsuv_(model, torch.randn(16, 4), layers=Broken, orthonormal=False)
    assert torch.equal(model[0].weight, weight)
