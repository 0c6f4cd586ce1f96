"""Each argument of lsuv_ and survey: the forms that it takes, the errors and warnings with their values and advice."""

import re
import warnings
from collections import OrderedDict, namedtuple

import pytest
import torch
from paper import lsuv_
from probe import probed
from small_nets import Net, lively, matrix, relu_mlp
from torch import nn
from traces import bits, rng, weights_of

import lsuvcb
from lsuvcb.engine import (
    InputScaleWarning,
    LSUVError,
    LSUVWarning,
    NoLayersError,
    TrainedModelWarning,
    orthonormal_,
    survey,
)

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(5))


def text_of(caught):
    return "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])


# --- numbers


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"std": 0}, r"`std` must be > 0.*, got 0\."),
        ({"std": -1.5}, r"`std` must be > 0.*, got -1\.5\."),
        ({"std": float("nan")}, r"`std` must be > 0.*, got nan\."),
        ({"std": float("inf")}, r"`std` must be .*finite, got inf\."),
        ({"tol": 0}, r"`tol` must be > 0.*, got 0\."),
        ({"tol": -0.1}, r"`tol` must be > 0.*, got -0\.1\."),
        ({"tol": float("nan")}, r"`tol` must be > 0.*, got nan\."),
        ({"mean": float("nan")}, r"`mean` must be a finite number or None, got nan\."),
        ({"mean": -float("inf")}, r"`mean` must be a finite number or None, got -inf\."),
        ({"max_iters": 0}, r"`max_iters` must be >= 1, got 0\."),
        ({"measure": "layers"}, r"`measure` must be 'layer' or 'activation', got 'layers'\."),
    ],
    ids=str,
)
def test_lsuv_number_out_of_range_is_an_error_that_names_it(arguments, says, undisturbed):
    net = lively()
    with pytest.raises(ValueError, match=says), undisturbed(net):
        lsuv_(net, X, **arguments)


def test_lsuv_arguments_after_the_batch_go_by_keyword_only():
    with pytest.raises(TypeError, match="positional"):
        lsuv_(lively(), X, "layer")


@pytest.mark.parametrize("std", [0.02, 0.5, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("mean", [None, -2.0, 0])
def test_lsuv_std_and_mean_are_reached_at_every_layer(std, mean):
    net, x = (
        nn.Sequential(*(nn.Sequential(nn.Linear(16, 16), nn.LeakyReLU(0.2)) for _ in range(4))),
        torch.randn(64, 16),
    )
    report = lsuv_(net, x, std=std, mean=mean)
    assert report.converged
    assert (report.std, report.mean) == (std, mean)
    for found in probed(net, x).values():
        assert found[0].std == pytest.approx(std, rel=1e-3)
        assert mean is None or found[0].mean == pytest.approx(mean, abs=1e-3 * max(1, std))


def test_lsuv_tol_below_a_std_of_one_is_relative_to_it():
    # std 0.0100009 is off by 0.9e-6, 0.009 % of the target; 0.0102 by 2 %
    net = nn.Sequential(nn.Linear(6, 1, bias=False))
    scale = (X @ net[0].weight.detach().T).double().std(correction=0).item()
    net[0].weight.data *= 0.0102 / scale
    report = lsuv_(net, X, std=0.01, orthonormal=False)
    assert report.layers[0].status == "scaled"
    assert probed(net, X)["0"][0].std == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("std", [1e5, 1e-5])
def test_lsuv_far_target_in_float32_is_reached_without_a_warning(std):
    report = lsuv_(relu_mlp(5), torch.randn(64, 32), std=std)
    assert report.converged


# --- the draw


def test_lsuv_generator_draws_the_weights_and_nothing_else_does(undisturbed):
    first, second, x = lively(), lively(), torch.randn(64, 6)
    with undisturbed(first):  # holds torch's own generator as well
        lsuv_(first, x, generator=torch.Generator().manual_seed(7))
    lsuv_(second.eval(), x, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(first[0].weight, second[0].weight)


def test_lsuv_without_generator_follows_the_global_seed():
    nets = [lively().eval() for _ in range(2)]
    for net in nets:
        torch.manual_seed(11)
        lsuv_(net, X)
    assert weights_of(nets[0]) == weights_of(nets[1])


def test_lsuv_global_generator_advances_by_the_draw_alone():
    net = lively()  # in train mode: its dropout draws too
    torch.manual_seed(11)
    lsuv_(net, X)
    after = rng()
    torch.manual_seed(11)
    for shape in ((8, 6), (8, 8), (4, 8)):
        orthonormal_(torch.empty(shape))
    assert rng()["RNG of torch"] == after["RNG of torch"]


def test_lsuv_keeping_the_weights_draws_nothing(undisturbed):
    net, generator = lively(), torch.Generator().manual_seed(7)
    with undisturbed(net, generator):
        lsuv_(net, X, orthonormal=False, generator=generator)


def test_lsuv_dropout_masks_are_the_same_in_each_pass():
    net = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    report = lsuv_(net, X)  # another mask would measure another std, and warn
    assert [r.std_after for r in report.layers] == pytest.approx([1, 1], abs=1e-4)


def test_lsuv_without_verify_reports_no_measurement():
    report = lsuv_(lively(), X, verify=False)
    assert report.passes == 1
    assert {(r.std_before, r.mean_before, r.std_after, r.mean_after) for r in report.layers} == {(None,) * 4}
    assert report.converged


# --- layers


def selected(net, layers, **arguments):
    report = lsuv_(net, X, layers=layers, **arguments)
    others = [r for r in report.layers if r.status == "left alone"]
    assert all(r.reason == "not selected by `layers`" for r in others)
    return [r.name for r in report.layers if r.status != "left alone"]


def a_net():
    return Net(
        lambda net, x: torch.relu(net.head(net.body(x))) @ net.w,
        body=nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8)),
        head=nn.Linear(8, 4), w=matrix(4, 3),
    )  # fmt: skip


SELECTORS = {
    "a type": (lambda net: nn.Linear, ["body.0", "body.2", "head"]),
    "a tuple of types": (lambda net: (nn.Linear, Net), ["body.0", "body.2", "head", "w"]),
    "a predicate": (lambda net: lambda m: getattr(m, "out_features", 0) == 8, ["body.0", "body.2"]),
    "a list of modules": (lambda net: [net.head, net.body[0]], ["body.0", "head"]),
    "a list of names": (lambda net: ["head", "body.2"], ["body.2", "head"]),
    "a parameter's name": (lambda net: ["w"], ["w"]),
    "a mixed list": (lambda net: ["w", net.head], ["head", "w"]),
    "a tuple of names": (lambda net: ("w", "head"), ["head", "w"]),
    "the root module": (lambda net: [net], ["w"]),
}


@pytest.mark.parametrize("orthonormal", [True, False])
@pytest.mark.parametrize("form", SELECTORS)
def test_lsuv_layers_takes_this_form(form, orthonormal):
    net = a_net()
    select, expected = SELECTORS[form]
    before = weights_of(net)
    assert selected(net, select(net), orthonormal=orthonormal) == expected
    changed = {key for key, value in weights_of(net).items() if value != before[key] and not key.endswith("bias")}
    owners = {"body.0": "body.0.weight", "body.2": "body.2.weight", "head": "head.weight", "w": "w"}
    assert changed == {f"state_dict {owners[name]}" for name in expected}


@pytest.mark.parametrize("form", SELECTORS)
def test_survey_layers_takes_this_form(form):
    net = a_net()
    select, expected = SELECTORS[form]
    assert [layer.name for layer in survey(net, X, layers=select(net)).layers] == expected


def test_lsuv_names_of_a_report_select_the_same_layers():
    net = nn.Linear(6, 6)
    (name,) = selected(net, None)
    assert selected(net, [name]) == [name]


def test_lsuv_selected_layer_sees_the_others_as_they_are():
    net = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4))
    before = bits(net[0].weight)
    lsuv_(net, X, layers=["1"])
    assert bits(net[0].weight) == before
    assert probed(net, X)["1"][0].std == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("layers", "error", "says"),
    [
        ([], ValueError, "`layers` is an empty list: name at least one layer"),
        ("head", TypeError, "got 'head' (str)"),
        (3, TypeError, "got 3 (int)"),
        (["hed"], ValueError, "`layers` has 'hed', which is no module of this Net; it has 'body', 'body.0'"),
        ([nn.ReLU()], ValueError, "`layers` has ReLU, which is no module of this Net"),
        ([3], ValueError, "`layers` has int"),
        (nn.ReLU(), TypeError, "write `layers=[module]`"),
    ],
    ids=str,
)
@pytest.mark.parametrize("call", [lsuv_, survey])
def test_layers_of_another_kind_is_an_error_with_advice(call, layers, error, says, undisturbed):
    net = a_net()
    with pytest.raises(error, match=re.escape(says)), undisturbed(net):
        call(net, X, layers=layers)


@pytest.mark.parametrize("call", [lsuv_, survey])
def test_layers_that_mean_no_weight_is_an_error_that_names_what_ran(call, undisturbed):
    net, x = lively(), X.clone()
    with pytest.raises(NoLayersError) as caught, undisturbed(net):
        call(net, x, layers=nn.Conv2d)
    assert "`layers` selected no weight at work; this model's modules that ran: '0' (Linear)" in str(caught.value)
    assert "'5' (GELU)" in str(caught.value)
    assert torch.equal(x, X)


@pytest.mark.parametrize("call", [lsuv_, survey])
def test_model_without_a_weight_at_work_is_an_error_that_names_what_ran(call, undisturbed):
    net, tokens = Net(lambda net, x: net.rnn(net.emb(x)), emb=nn.Embedding(9, 4), rnn=nn.LSTM(4, 3)), torch.arange(9)
    with pytest.raises(NoLayersError) as caught, undisturbed(net):
        call(net, tokens)
    assert "no weight at work was found" in str(caught.value)
    assert "'emb' (Embedding), 'rnn' (LSTM)" in str(caught.value)
    assert isinstance(caught.value, LSUVError)


def test_lsuv_without_layers_leaves_the_batch_alone_too():
    x = X.clone()
    with pytest.raises(NoLayersError):
        lsuv_(Net(lambda net, x: x.mul_(2)), x)
    assert torch.equal(x, X)


# --- the batch


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 4), nn.Linear(4, 2)

    def forward(self, x, y=None, *, scale=1.0):
        return self.b(self.a(x) + (0 if y is None else y)) * scale


Pair = namedtuple("Pair", "x y")
Y = torch.randn(64, 4, generator=torch.Generator().manual_seed(6))
BATCHES = {
    "a tensor": (X, False),
    "a tuple": ((X, Y), True),
    "a list": ([X, Y], True),
    "a named tuple": (Pair(X, Y), True),
    "a dict": ({"x": X, "y": Y}, True),
    "an ordered dict": (OrderedDict(y=Y, x=X), True),
    "a dict with keyword-only": ({"x": X, "y": Y, "scale": 3.0}, True),
}


@pytest.mark.parametrize("form", BATCHES)
def test_lsuv_batch_takes_this_form(form):
    batch, has_y = BATCHES[form]
    net = TwoInputs()
    assert lsuv_(net, batch).converged
    seen = probed(net, X, Y) if has_y else probed(net, X)
    assert [s[0].std for s in seen.values()] == pytest.approx([1, 1], abs=1e-3)


def test_lsuv_nested_batch_goes_to_forward_as_it_is():
    kept = []

    def forward(model, batch):
        kept.append(type(batch["deep"]))
        return model(batch["deep"][1][0], y=batch["deep"][0])

    net = TwoInputs()
    assert lsuv_(net, {"deep": [Y, (X, None)], "flag": "text"}, forward=forward).converged
    assert kept == [list] * 3
    assert probed(net, X, Y)["b"][0].std == pytest.approx(1, abs=1e-3)


class AttributeDict(dict):
    __getattr__ = dict.__getitem__


def test_lsuv_forward_gets_a_mapping_of_the_batch_s_own_type():
    batch = AttributeDict(inputs=X)
    net = TwoInputs()
    assert lsuv_(net, batch, forward=lambda model, b: model(b.inputs)).converged
    assert batch.inputs is X


def test_lsuv_forward_may_use_a_part_of_the_model():
    net = TwoInputs()
    report = lsuv_(net, X, forward=lambda model, x: model.a(x))
    assert [(r.name, r.status, r.reason) for r in report.layers] == [
        ("a", "scaled", ""),
        ("b", "left alone", "not used in this pass"),
    ]


@pytest.mark.parametrize("call", [lsuv_, survey])
def test_forward_that_is_no_function_is_an_error(call):
    with pytest.raises(TypeError, match=r"`forward` must be callable as forward\(model, batch\), got 'body'"):
        call(lively(), X, forward="body")


@pytest.mark.parametrize("call", [lsuv_, survey])
def test_loader_pair_is_an_error_that_says_what_to_write(call, undisturbed):
    net, labels = lively(), torch.zeros(64, dtype=torch.long)
    with pytest.raises(TypeError) as caught, undisturbed(net):
        call(net, [X, labels])
    text = text_of(caught)
    assert "Sequential.forward does not take this batch, a list given as 2 positional arguments" in text
    assert "(inputs, targets)" in text
    assert "xb)`" in text
    assert "forward=lambda model, batch: ..." in text


@pytest.mark.parametrize(
    ("batch", "given"),
    [
        ({"z": X}, "the keywords ['z']"),
        ((), "0 positional arguments"),
        ({}, "keywords"),
        ((X, Y, X), "3 positional"),
    ],
    ids=["keyword", "empty tuple", "empty dict", "three"],
)
def test_batch_that_does_not_fit_is_an_error_that_says_how_it_was_given(batch, given):
    with pytest.raises(TypeError, match=re.escape(given)):
        lsuv_(TwoInputs(), batch)


def test_batch_on_another_device_is_an_error_with_the_cure():
    with pytest.raises(ValueError, match=r"`batch` is on meta, the model on cpu") as caught:
        lsuv_(lively(), X.to("meta"))
    assert "to('cpu')" in str(caught.value)


def test_lsuv_batch_that_requires_grad_keeps_no_graph(undisturbed):
    x = X.clone().requires_grad_()
    net = Net(lambda net, x: net.a(x), a=nn.Linear(6, 3))
    with undisturbed(net, draws=True):
        lsuv_(net, x)
    assert x.grad is None
    assert net.a.weight.grad_fn is None


def test_lsuv_inside_no_grad_and_inference_mode_works_the_same():
    nets = [lively().eval() for _ in range(3)]
    for net, mode in zip(nets, (torch.enable_grad, torch.no_grad, torch.inference_mode), strict=True):
        net.load_state_dict(nets[0].state_dict())
        with mode():
            lsuv_(net, X, generator=torch.Generator().manual_seed(1))
    assert weights_of(nets[0])
    start = [bits(net[6].weight) for net in nets]
    assert start[1] == start[2]


# --- warnings


@pytest.mark.parametrize("size", [0.1, 8.0])
def test_lsuv_input_far_from_unit_std_warns_with_its_std_and_advice(size):
    x = X / X.std(correction=0) * size
    with pytest.warns(InputScaleWarning, match=rf"the batch has std {size:.3g}; .*normalise them first") as caught:
        report = lsuvcb.lsuv_(lively(), x, recipe="paper")
    assert caught[0].filename == __file__
    assert issubclass(InputScaleWarning, LSUVWarning)
    assert report.input_std == pytest.approx(size)


@pytest.mark.parametrize("size", [0.21, 4.9])
def test_lsuv_input_near_unit_std_does_not_warn(size):
    lsuv_(lively(), X / X.std(correction=0) * size)


def test_lsuv_report_has_the_moments_of_the_first_floating_tensor():
    net = Net(lambda net, batch: net.a(batch[1]), a=nn.Linear(6, 3))
    report = lsuv_(net, {"x": [torch.arange(3), X]})
    assert report.input_std == pytest.approx(X.std(correction=0).item(), rel=1e-6)
    assert report.input_mean == pytest.approx(X.mean().item(), abs=1e-6)
    tokens = lsuv_(nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 3)), torch.arange(9))
    assert (tokens.input_std, tokens.input_mean) == (None, None)


def test_lsuv_trained_model_warns_before_its_weights_are_replaced():
    net = lively()
    net(X)
    net(X)
    with pytest.warns(
        TrainedModelWarning, match=r"'1' \(BatchNorm1d\) has counted 2 batches.*`orthonormal=False`"
    ) as caught:
        lsuvcb.lsuv_(net, X, recipe="paper")
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lsuv_(net, X, orthonormal=False)


def test_survey_warns_of_nothing_and_changes_nothing(undisturbed):
    net = lively()
    net(X)
    with undisturbed(net, weights=True):
        survey(net, X * 100)


# --- models that cannot be initialised


@pytest.mark.parametrize("call", [lsuv_, survey])
def test_meta_model_is_an_error_with_advice(call):
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(6, 3))
    with pytest.raises(
        LSUVError, match=r"parameter 'weight' of '0' \(Linear\) is on the meta device.*to_empty\(device="
    ):
        call(net, X)


@pytest.mark.parametrize("call", [lsuv_, survey])
def test_script_module_is_an_error_with_advice(call):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates its own scripting
        scripted = torch.jit.trace(nn.Linear(6, 3), X)
    net = nn.Sequential(nn.Linear(6, 6), scripted)
    with pytest.raises(LSUVError, match=r"'1' \(.*\) is a ScriptModule.*before torch\.jit"):
        call(net, X)
