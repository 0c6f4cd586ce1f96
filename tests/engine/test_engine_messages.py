"""What a newcomer does wrong, and models that LSUV can do little for: the message says what must hold and what to do next."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from paper import lsuv_
from small_nets import Net, matrix, relu_mlp
from torch import nn
from torch.func import functional_call, grad, hessian, stack_module_state, vmap
from torch.nn.utils import prune
from torch.utils.data import DataLoader, TensorDataset

import lsuvcb
from lsuvcb import DataLoaders, NoLayersError, NotConvergedWarning, survey
from lsuvcb.engine.model.off_target import outside
from lsuvcb.engine.select import kind_of
from lsuvcb.engine.solving.newton import Try
from lsuvcb.engine.solving.nonlinear import missed
from lsuvcb.engine.solving.target import Target
from lsuvcb.loaders import TensorLoader


def batch(rows=256, columns=8):
    return torch.randn(rows, columns)


def std_of(module, run):
    """The population std of what `module` gives at its first call in `run()`, as a hook of our own sees it."""
    seen = []
    with torch.no_grad():
        handle = module.register_forward_hook(lambda m, args, y: seen.append(y))
        run()
        handle.remove()
    return seen[0].std(correction=0).item()


def row(report, name):
    return next(layer for layer in report.layers if layer.name == name)


# Wrong arguments


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net, x: lsuvcb.lsuv_(x, net), "must be an nn.Module, got a Tensor; write `lsuv_(model, batch)`, the model first"),
        (lambda net, x: survey(x, net), "must be an nn.Module, got a Tensor; write `survey(model, batch)`, the model first"),
        (lambda net, x: lsuvcb.lsuv_(nn.ReLU, x), "must be an nn.Module, got the class ReLU; make one first: `ReLU(...)`"),
        (lambda net, x: lsuvcb.lsuv_([net], x), "must be an nn.Module, got a list; the model comes first"),
    ],
)  # fmt: skip
def test_model_that_is_none_is_one_sentence_with_the_way_out(call, message):
    with pytest.raises(TypeError) as caught:
        call(relu_mlp(2, 8), batch())
    assert str(caught.value) == f"`model` {message}."


PAIRS = [(torch.ones(4, 8), torch.ones(4))] * 2
LOADERS = {
    "DataLoader": lambda: DataLoader(TensorDataset(*PAIRS[0]), 2),
    "_SingleProcessDataLoaderIter": lambda: iter(DataLoader(TensorDataset(*PAIRS[0]), 2)),
    "generator": lambda: (pair for pair in PAIRS),
    "TensorLoader": lambda: TensorLoader(*PAIRS[0], bs=2),
    "TensorDataset": lambda: TensorDataset(*PAIRS[0]),
    "DataLoaders": lambda: DataLoaders(PAIRS, PAIRS),
}


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("call", [lsuvcb.lsuv_, survey, lambda net, x: lsuvcb.LSUVCallback(batch=x)])
def test_batch_that_gives_batches_is_one_sentence_that_takes_one(kind, call):
    with pytest.raises(TypeError) as caught:
        call(relu_mlp(2, 8), LOADERS[kind]())
    assert str(caught.value) == (
        f"`batch` must be one batch, got a {kind}; write `next(iter(loader))`, and of a pair the inputs: "
        "`xb, yb = next(iter(loader))`."
    )


ARRAYS = {
    "ndarray": np.ones((4, 8)),
    "list of ndarrays": [np.ones((4, 8))],
    "dict of ndarrays": {"input": np.ones((4, 8))},
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_batch_of_numpy_arrays_is_one_sentence_that_makes_tensors(kind):
    for call in (lsuvcb.lsuv_, survey, lambda net, x: lsuvcb.LSUVCallback(batch=x)):
        with pytest.raises(TypeError) as caught:
            call(relu_mlp(2, 8), ARRAYS[kind])
        assert str(caught.value) == (
            f"`batch` must be made of tensors, got a {kind}; write `torch.from_numpy(array).float()`."
        )


def test_batch_of_numpy_arrays_is_a_matter_of_a_forward_of_its_own():
    net, array = relu_mlp(2, 8), batch().numpy()
    report = lsuv_(net, array, forward=lambda model, batch: model(torch.from_numpy(batch)))
    assert report.converged
    assert std_of(net[0], lambda: net(torch.from_numpy(array))) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("call", [lsuvcb.lsuv_, lambda net, x, **given: lsuvcb.LSUVCallback(**given)])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"std": "1"}, '`std` must be a number > 0, "auto", or a mapping from layers to numbers, got \'1\' (str).'),
        ({"std": np.ones(2)}, '`std` must be a number > 0, "auto", or a mapping from layers to numbers, got array([1., 1.]) '
         "(ndarray)."),
        ({"std": {"0": np.ones(2)}}, "`std['0']` must be a number > 0, \"auto\" or \"leave\", got array([1., 1.]) (ndarray)."),
        ({"tol": "0.1"}, "`tol` must be a number > 0, got '0.1' (str)."),
        ({"generator": 42}, "`generator` must be a torch.Generator or None, got 42; write `torch.Generator().manual_seed(42)`."),
    ],
)  # fmt: skip
def test_argument_of_a_wrong_kind_is_told_with_its_kind(call, given, message):
    with pytest.raises(TypeError) as caught:
        call(relu_mlp(2, 8), batch(), **given)
    assert str(caught.value) == message


@pytest.mark.parametrize("call", [lsuvcb.lsuv_, lambda net, x, **given: lsuvcb.LSUVCallback(**given)])
def test_argument_that_there_is_none_of_is_told_with_the_one_that_may_be_meant(call):
    with pytest.raises(TypeError, match="has no argument 'tolerance'; did you mean 'tol'"):
        call(relu_mlp(2, 8), batch(), tolerance=1)


# torch.func


def plain_inside(net, x):
    """The layer works inside vmap, on a tensor that is not batched."""
    return net.out(vmap(lambda v: v * net.inner(net.data).mean())(x))


def whole_batch_inside(net, x):
    return net.out(vmap(lambda v: v + net.inner(x).mean(0))(x))


@pytest.mark.parametrize("run", [plain_inside, whole_batch_inside])
@pytest.mark.parametrize("recipe", ["paper", "balanced"])
@pytest.mark.parametrize("randomness", ["error", "different"])
def test_draw_inside_vmap_is_that_of_a_layer_outside(run, recipe, randomness):
    x, data = batch(), batch(16)
    net = Net(run, inner=nn.Linear(8, 8), out=nn.Linear(8, 4))
    net.data = data
    wrapped = Net(lambda m, x: vmap(lambda _: net(x), randomness=randomness)(torch.zeros(2))[0], net=net)
    report = lsuvcb.lsuv_(wrapped, x, recipe=recipe)
    assert row(report, "net.inner").status == "scaled"
    weight = net.inner.weight.detach()
    gram = weight @ weight.T
    assert torch.allclose(gram / gram[0, 0], torch.eye(8), atol=1e-5)  # orthonormal, but for the scale
    assert std_of(net.inner, lambda: net(x)) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    "run",
    [
        lambda v, net: F.linear(input=v, weight=net.inner.weight),
        lambda v, net: torch.einsum("i,oi->o", [v, net.inner.weight]),
        lambda v, net: torch.einsum("i,oi->o", v, net.inner.weight),
    ],
)
def test_batched_argument_is_seen_wherever_it_stands_in_the_call(run):
    net = Net(lambda net, x: net.out(vmap(lambda v: run(v, net))(x)), inner=nn.Linear(8, 8), out=nn.Linear(8, 4))
    assert row(lsuv_(net, batch()), "inner").reason.startswith("used under torch.vmap, which hides the values that ")


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # hessian imports it
def test_layer_whose_first_use_is_plain_is_solved_by_it_although_vmap_follows():
    def laplace(net, x):
        energy = lambda v: net.out(net.inner(v).tanh()).sum()  # noqa: E731
        return net.out(net.inner(x).tanh()) + vmap(lambda v: hessian(energy)(v).trace())(x)[:, None]

    net, x = Net(laplace, inner=nn.Linear(8, 8), out=nn.Linear(8, 1)), batch(32)
    assert [layer.status for layer in lsuv_(net, x).layers] == ["scaled", "scaled"]
    for layer in (net.inner, net.out):
        assert std_of(layer, lambda: net(x)) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    "run",
    [
        lambda net, x: net.out(vmap(F.relu)(net.inner(x))),
        lambda net, x: net.out(vmap(lambda v, h: v * F.relu(h), in_dims=(0, None))(x, net.inner(x).mean(0))),
    ],
)
def test_output_that_is_read_inside_vmap_is_not_taken_for_the_head_s(run):
    net = Net(run, inner=nn.Linear(8, 8), out=nn.Linear(8, 4))
    report = lsuvcb.lsuv_(net, batch())
    assert [(layer.name, layer.status) for layer in report.layers] == [("inner", "scaled"), ("out", "left alone")]


class Ensemble(nn.Module):
    """Three nets at once: a member's parameters are slices that vmap makes."""

    def __init__(self):
        super().__init__()
        self.one = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4)).requires_grad_(False)
        stacked, _ = stack_module_state([nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4)) for _ in range(3)])
        self.members = nn.ParameterDict({name.replace(".", "_"): value for name, value in stacked.items()})

    def forward(self, x):
        members = {name.replace("_", "."): value for name, value in self.members.items()}
        return vmap(lambda member, x: functional_call(self.one, member, (x,)), in_dims=(0, None))(members, x)


@pytest.mark.parametrize("call", [lsuvcb.lsuv_, survey])
def test_ensemble_s_parameters_that_go_through_vmap_are_named_with_the_reason(call):
    with pytest.raises(NoLayersError) as caught:
        call(Ensemble(), batch())
    assert (
        "(left alone, used under torch.vmap, which hands the ops other tensors in its place: 'members.0_weight', "
        "'members.0_bias', 'members.2_weight', 'members.2_bias'; not used in this pass: 'one.0', 'one.2')"
    ) in str(caught.value)


def test_parameter_that_another_transform_wraps_is_named_with_the_reason():
    def fast_weights(net, x):
        step = grad(lambda w: (x @ w).square().mean())(net.w)
        return net.out(x @ step)

    net = Net(fast_weights, w=matrix(8, 8), out=nn.Linear(8, 4))
    reason = "used under a torch.func transform, which hands the ops other tensors in its place"
    assert row(lsuv_(net, batch()), "w").reason == reason


# A forward that takes gradients


def force(net, x):
    """Minus the gradient of an energy: a force field."""
    x = x.requires_grad_()
    return -torch.autograd.grad(net.out(net.inner(x).tanh()).sum(), x)[0]


def by_backward(net, x):
    x = x.detach().requires_grad_()
    net.out(net.inner(x).tanh()).sum().backward()
    return x.grad


def by_a_parameter(net, x):
    return x + torch.autograd.grad(net.out(net.inner(x).tanh()).sum(), net.inner.weight)[0].mean()


@pytest.mark.parametrize("run", [force, by_backward, by_a_parameter])
@pytest.mark.parametrize("options", [{}, {"measure": "activation", "std": 0.5, "orthonormal": False}])
def test_forward_that_takes_gradients_is_initialised(run, options):
    net, x = Net(run, inner=nn.Linear(8, 8), out=nn.Linear(8, 1)), batch()
    report = lsuv_(net, x, **options)
    assert report.converged
    assert [p.grad for p in net.parameters()] == [None] * 4
    assert not x.requires_grad
    target = 1 if not options else 0.5
    with torch.no_grad():
        y = net.inner(x)
        read = y.tanh() if options else y
    assert read.std(correction=0).item() == pytest.approx(target, abs=1e-3)


def test_forward_that_takes_none_is_run_without_gradients():
    modes = []
    net = Net(lambda net, x: (modes.append(torch.is_grad_enabled()), net.out(x))[1], out=nn.Linear(8, 4))
    lsuv_(net, batch())
    assert modes == [False] * 3


def test_forward_whose_gradient_is_refused_with_gradients_too_raises_torch_s_error_with_our_notes(undisturbed):
    net = Net(lambda net, x: torch.autograd.grad(net.out(x).detach().sum(), x), out=nn.Linear(8, 4))
    x = batch()
    with pytest.raises(RuntimeError, match="does not require grad") as caught, undisturbed(net):
        lsuv_(net, x)
    assert "No weight was changed." in caught.value.__notes__


# Weights that are no plain ones


SPARSE = {"coo": lambda w: w.to_sparse(), "csr": lambda w: w.to_sparse_csr()}


@pytest.mark.parametrize("layout", SPARSE)
@pytest.mark.parametrize("recipe", ["paper", "balanced"])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_sparse_weight_is_scaled_and_not_drawn(layout, recipe):
    dense = torch.diag(torch.linspace(0.5, 2, 8))
    net = Net(lambda net, x: net.out((net.w @ x.T).T.relu()), w=SPARSE[layout](dense), out=nn.Linear(8, 4))
    x = batch()
    report = lsuvcb.lsuv_(net, x, recipe=recipe)
    after = net.w.detach()
    assert after.layout == SPARSE[layout](dense).layout
    assert torch.equal(after.to_dense() != 0, dense != 0)
    ratios = after.to_dense().diagonal() / dense.diagonal()
    assert torch.allclose(ratios, ratios[0].expand(8), rtol=1e-6)
    assert (after.to_dense() @ x.T).std(correction=0).item() == pytest.approx(1, abs=1e-3)
    assert row(report, "w").reason == "a sparse weight, which takes no orthonormal draw: only scaled"


class Fake(nn.Linear):
    def forward(self, x):
        return F.linear(x, torch.fake_quantize_per_tensor_affine(self.weight, 0.01, 0, -128, 127), self.bias)


class Straight(nn.Linear):
    """Ternary weights, with the gradient of the plain ones."""

    def forward(self, x):
        size = self.weight.abs().mean()
        ternary = (self.weight / size).round().clamp(-1, 1) * size
        return F.linear(x, self.weight + (ternary - self.weight).detach(), self.bias)


class Bayesian(nn.Module):
    def __init__(self, n_in, n_out):
        super().__init__()
        self.mu, self.rho = nn.Parameter(matrix(n_out, n_in)), nn.Parameter(torch.full((n_out, n_in), -3.0))

    def forward(self, x):
        return F.linear(x, self.mu + F.softplus(self.rho) * torch.randn_like(self.mu))


class Sampled(Bayesian):
    def forward(self, x):
        return F.linear(x, torch.distributions.Normal(self.mu, F.softplus(self.rho)).rsample())


class Learned(nn.Linear):
    """A mask that is learned."""

    def __init__(self, n_in, n_out):
        super().__init__(n_in, n_out)
        self.score = nn.Parameter(torch.zeros(n_out, n_in))

    def forward(self, x):
        return F.linear(x, self.weight * self.score.sigmoid(), self.bias)


TRANSFORMED = {
    Fake: ("fake_quantize_per_tensor_affine", ["0", "2"]),
    Straight: ("add", ["0", "2"]),
    Bayesian: ("add", ["0.mu", "0.rho", "2.mu", "2.rho"]),
    Sampled: ("add", ["0.mu", "0.rho", "2.mu", "2.rho"]),
    Learned: ("mul", ["0", "0.score", "2", "2.score"]),
}


@pytest.mark.parametrize("kind", TRANSFORMED)
@pytest.mark.parametrize("call", [lsuvcb.lsuv_, survey])
def test_net_of_weights_that_are_transformed_before_use_is_told_the_reason(kind, call):
    op, names = TRANSFORMED[kind]
    net = nn.Sequential(kind(8, 8), nn.ReLU(), kind(8, 4))
    with pytest.raises(NoLayersError) as caught:
        call(net, batch())
    assert str(caught.value) == (
        f"no weight at work was found (left alone, transformed before use: linear works on what {op} made of it: "
        f"{', '.join(map(repr, names))}); this model's modules that ran: '0' ({kind.__name__}), '1' (ReLU), "
        f"'2' ({kind.__name__})."
    )


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:Please use quant_min and quant_max")
def test_net_prepared_for_quantization_aware_training_is_told_the_reason_and_stays_as_it_was(undisturbed):
    from torch.ao.quantization import get_default_qat_qconfig, prepare_qat

    net = nn.Sequential(relu_mlp(2, 8)).train()
    net.qconfig = get_default_qat_qconfig("x86")
    net = prepare_qat(net)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(
        NoLayersError, match=r"works on what fused_moving_avg_obs_fake_quant made of it: '0.0', '0.2'\)"
    ):
        lsuv_(net, batch())
    after = net.state_dict()
    assert {name: value.shape for name, value in after.items()} == {name: value.shape for name, value in before.items()}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    net(batch())


def pruned():
    net = relu_mlp(2, 8)
    for layer in (net[0], net[2]):
        prune.l1_unstructured(layer, "weight", 0.3)
    return net


def test_pruned_net_is_scaled_and_stays_pruned():
    net, x = pruned(), batch()
    zeros = [layer.weight_mask == 0 for layer in (net[0], net[2])]
    report = lsuv_(net, x)
    assert [(layer.name, layer.status) for layer in report.layers] == [
        ("0.weight_orig", "scaled"),
        ("2.weight_orig", "scaled"),
    ]
    for layer, zero in zip((net[0], net[2]), zeros, strict=True):
        assert std_of(layer, lambda: net(x)) == pytest.approx(1, abs=1e-3)
        assert int(zero.sum()) == 19  # 30 % of 64
        assert bool((layer.weight[zero] == 0).all())


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Net(lambda net, x: net.rnn(x)[0], rnn=nn.LSTM(8, 8)), "used inside a recurrent op that hides its outputs: "
         "'rnn.weight_ih_l0', 'rnn.weight_hh_l0'"),
        (Net(lambda net, x: net.table(x[:, 0].long()), table=nn.Embedding(9, 8)), "a look-up table (embedding), no linear op: "
         "'table'"),
        (Net(lambda net, x: x + net.w, w=torch.ones(256, 8)), "used by add, no linear op: 'w'"),
    ],
)  # fmt: skip
def test_error_for_no_layers_has_the_reason_of_each_weight_and_sends_nowhere_that_raises_alike(model, reason):
    for call in (lsuvcb.lsuv_, survey):
        with pytest.raises(NoLayersError) as caught:
            call(model, batch().abs())
        assert f"(left alone, {reason})" in str(caught.value)
        assert "survey" not in str(caught.value)


# Names


def test_attention_s_projection_is_a_linear_to_its_user():
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    net = Net(lambda net, x: net.attention(x, x, x)[0], attention=attention)
    report = lsuv_(net, torch.randn(16, 4, 8))
    assert row(report, "attention.out_proj").kind == "Linear"
    assert kind_of(attention.out_proj) == "Linear"
    assert kind_of(nn.utils.parametrizations.weight_norm(nn.Conv1d(1, 1, 1))) == "Conv1d"
    with pytest.raises(NoLayersError, match=r"'net.attention' \(MultiheadAttention\)"):
        lsuv_(nn.ModuleDict({"net": net}), torch.randn(16, 4, 8), layers=nn.Conv2d, forward=lambda m, x: m["net"](x))


def test_report_and_survey_at_a_prompt_are_their_tables():
    net, x = relu_mlp(2, 8), batch()
    found = survey(net, x)
    report = lsuv_(net, x)
    assert repr(found) == str(found)
    assert repr(report) == str(report)
    assert repr(report).startswith("LSUV: 2 of 2 layers at std 1")


# What was measured afterwards


def chaotic(times):
    """Each step of the logistic map doubles an error."""

    def run(net, x):
        h = net.first(x).sigmoid()
        for _ in range(times):
            h = 3.99 * h * (1 - h)
        return net.last(h)

    return Net(run, first=nn.Linear(8, 8), last=nn.Linear(8, 8))


def test_net_that_amplifies_rounding_is_not_asked_whether_it_is_random():
    net, x = chaotic(40), batch(64)
    with pytest.warns(NotConvergedWarning) as caught:
        report = lsuv_(net, x, tol=1e-5)
    assert report.passes == 3
    assert (
        "not as in the pass: the net amplifies rounding, keeps a state of its own, or draws"
        in row(report, "last").reason
    )
    message = str(caught[0].message)
    assert message.endswith(" Use a larger `tol`, or float64 for model and batch.")
    assert "the same each time" not in message


def test_forward_that_is_another_each_time_is_told_what_was_measured():
    drawn = np.random.default_rng(0)

    def run(net, x):
        return net.last(net.first(x).relu() * torch.from_numpy(drawn.random(64, dtype=np.float32))[:, None])

    net, x = Net(run, first=nn.Linear(8, 8), last=nn.Linear(8, 8)), batch(64)
    with pytest.warns(NotConvergedWarning, match="or draws from a generator that is not torch's"):
        report = lsuv_(net, x)
    assert row(report, "first").status == "scaled"
    words = row(report, "last").reason.split()
    assert float(words[2]) == pytest.approx(row(report, "last").std_after, rel=1e-2)
    assert words[1] == "std"


def test_value_outside_is_shown_with_the_digits_that_tell():
    assert outside(1.00123, 1.0, 1e-3) == "1.0012"
    assert outside(0.9989, 1.0, 1e-3) == "0.9989"
    assert outside(1.4142, 1.41, 1e-3) == "1.414"
    assert outside(0.5, 1.0, 1e-3) == "0.5"
    assert outside(0.70711, None, 1e-3) == "0.707"
    reason = missed(Try(1.0, 0.0, 1.0012, -0.0021), 20, Target(1.0, 0.0), 1e-3)
    assert str(reason) == "std 1.0012, mean -0.0021 after 20 evaluations"
