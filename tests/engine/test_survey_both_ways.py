"""survey: balance and gradient, by hand and by what must not change them; what the backward half leaves behind: nothing."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import survey_ranks
import torch
import torch.nn.functional as F
from small_nets import Net, column, linear, lively, matrix
from torch import nn
from torch.utils.checkpoint import checkpoint

from lsuvcb.engine import survey

# --- By hand


def test_survey_gradient_by_hand():
    # -1, 3 -> -4, 12 (std 8) -> relu -> 0, 12 -> 0.5x - 1: -1, 5 (std 3). d sum / d y: 1, 1 and, behind the relu, 0, 0.5
    net = nn.Sequential(linear(4), nn.ReLU(), linear(0.5, -1))
    found = survey(net, column(-1.0, 3.0), loss=torch.sum)
    assert [r.gradient for r in found.layers] == [pytest.approx(0.5 * 8 / (2**0.5 * 3)), 1.0]


def test_survey_gradient_is_that_of_the_loss():
    # the same net; loss 5 * second output: d / d y: 0, 5 and 0, 2.5
    net = nn.Sequential(linear(4), nn.ReLU(), linear(0.5, -1))
    found = survey(net, column(-1.0, 3.0), loss=lambda y: 5 * y[1, 0])
    assert found.layers[0].gradient == pytest.approx(2.5 * 8 / (5 * 3))


@pytest.mark.parametrize("factor", [1e-24, 1e24])  # whose squares are no numbers of float32
def test_survey_gradient_of_a_loss_of_any_size(factor):
    net, x = nn.Sequential(linear(4), nn.ReLU(), linear(0.5, -1)), column(-1.0, 3.0)
    of_sum, of_any = (survey(net, x, loss=lambda y, f=f: f * y.sum()).layers[0].gradient for f in (1, factor))
    assert of_any == pytest.approx(of_sum, rel=1e-6)


@pytest.mark.parametrize(
    ("rows", "balance"),
    [
        (((3, 4), (4, 3), (0, 5)), 1.0),
        (((1, 0), (2, 0), (3, 0)), 2 / (14 / 3) ** 0.5),
        (((0, 0), (0, 0), (3, 4)), 0.0),
        (((1, 0), (3, 0)), 2 / 5**0.5),  # the median of two is their mean
        (((0, 0), (0, 0)), 1.0),
    ],
)
def test_survey_balance_by_hand(rows, balance):
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = torch.eye(2)
    assert survey(layer, torch.tensor(rows, dtype=torch.float32)).layers[0].balance == pytest.approx(balance, abs=1e-6)


def test_survey_of_one_sample_has_no_balance():
    assert survey(nn.Linear(3, 4), torch.randn(1, 3)).layers[0].balance is None


# --- What does not change it


def orthogonal_conv_net(width, size):
    torch.manual_seed(0)
    convs = [nn.Conv2d(width if i else 3, width, 3, padding=1, padding_mode="circular") for i in range(6)]
    for conv in convs:
        nn.init.normal_(conv.weight, std=(2 / (9 * conv.in_channels)) ** 0.5)
        nn.init.zeros_(conv.bias)
    net = nn.Sequential(*(m for conv in convs for m in (conv, nn.Tanh())), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return net, torch.randn(64, 3, size, size)


def first_gradient(net, x):
    return survey(net, x).layers[0].gradient


def test_survey_gradient_does_not_change_with_the_width():
    narrow, wide = (first_gradient(*orthogonal_conv_net(width, 8)) for width in (16, 64))
    assert narrow == pytest.approx(wide, rel=0.15)


def test_survey_gradient_does_not_change_with_the_size_of_the_image():
    small, large = (first_gradient(*orthogonal_conv_net(32, size)) for size in (8, 24))
    assert small == pytest.approx(large, rel=0.15)


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.BatchNorm1d, nn.RMSNorm])
def test_survey_gradient_does_not_change_with_a_scale_that_a_norm_absorbs(norm):
    net, x = (
        nn.Sequential(nn.Linear(8, 16, bias=False), norm(16, eps=1e-12), nn.ReLU(), nn.Linear(16, 4)),
        torch.randn(64, 8),
    )
    before = first_gradient(net, x)
    net[0].weight.data *= 1000
    assert first_gradient(net, x) == pytest.approx(before, rel=1e-4)


def test_survey_gradient_of_two_calls_is_equal_and_does_not_depend_on_the_global_generator():
    net, x = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)), torch.randn(64, 8)
    first = survey(net, x)
    torch.manual_seed(99)
    assert survey(net, x).layers == first.layers


# --- Models of every kind

BLOCK = partial(nn.Sequential, nn.Linear(8, 8), nn.Tanh())


def reference(net, x, layers):
    """The gradients at the outputs of `layers`, times their std, relative to the last one's, by forward hooks and backward()."""
    sizes = {}

    def note(layer, args, y):
        std = y.detach().std(correction=0)
        y.register_hook(lambda gradient: sizes.update({layer: float(gradient.norm() * std)}))

    handles = [layer.register_forward_hook(note) for layer in layers]
    net(x).sum().backward()
    for handle in handles:
        handle.remove()
    net.zero_grad()
    sizes = [sizes[layer] for layer in layers]
    return [pytest.approx(size / sizes[-1], rel=1e-4) for size in sizes]


def deep(*, use_reentrant=None):
    blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True)) for _ in range(4))

    def run(net, x):
        x = net.embed(x)
        for block in net.blocks:
            x = block(x) if use_reentrant is None else checkpoint(block, x, use_reentrant=use_reentrant)
        return net.head(x)

    torch.manual_seed(1)
    return Net(run, embed=nn.Linear(8, 8), blocks=blocks, head=nn.Linear(8, 3))


def linears(net):
    return [net.embed, *(block[0] for block in net.blocks), net.head]


def test_survey_gradient_agrees_with_backward():
    net, x = deep(), torch.randn(64, 8)
    found = survey(net, x, loss=torch.sum)
    assert [r.gradient for r in found.layers] == reference(net, x, linears(net))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_survey_gradient_comes_back_through_checkpoints(use_reentrant, undisturbed):
    plain, net, x = deep(), deep(use_reentrant=use_reentrant), torch.randn(64, 8)
    net.load_state_dict(plain.state_dict())
    with undisturbed(net, weights=True):
        found = survey(net, x, loss=torch.sum)
    assert [r.gradient for r in found.layers] == reference(plain, x, linears(plain))
    assert found.silent == ""


def test_survey_gradient_comes_back_where_every_layer_is_inside_a_reentrant_checkpoint():
    def run(net, x):
        return checkpoint(lambda x: net.head(torch.tanh(net.first(x))), x, use_reentrant=True)

    net, x = Net(run, first=nn.Linear(8, 8), head=nn.Linear(8, 2)), torch.randn(64, 8, requires_grad=True)
    found = survey(net, x, loss=torch.sum)
    assert all(row.gradient for row in found.layers)
    assert x.grad is None
    assert all(p.grad is None for p in net.parameters())


def test_survey_gradient_reaches_frozen_layers():
    plain, net, x = deep(), deep(), torch.randn(64, 8)
    net.load_state_dict(plain.state_dict())
    net.requires_grad_(False)
    assert [r.gradient for r in survey(net, x, loss=torch.sum).layers] == reference(plain, x, linears(plain))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_survey_gradient_in_other_types(dtype):
    net, x = deep(), torch.randn(64, 8)
    exact = [r.gradient for r in survey(net, x, loss=torch.sum).layers]
    if dtype == torch.bfloat16:
        with torch.autocast("cpu", dtype):
            found = survey(net, x, loss=lambda y: y.float().sum())
    else:
        found = survey(net.to(dtype), x.to(dtype), loss=torch.sum)
    assert [r.gradient for r in found.layers] == [pytest.approx(g, rel=0.05) for g in exact]


def test_survey_of_a_compiled_model_looks_both_ways():
    net, x = deep(), torch.randn(64, 8)
    expected = [r.gradient for r in survey(net, x, loss=torch.sum).layers]
    assert [r.gradient for r in survey(torch.compile(net), x, loss=torch.sum).layers] == expected


def test_survey_shows_each_use_of_a_shared_layer_in_execution_order():
    shared = nn.Linear(8, 8, bias=False)
    shared.weight.data = torch.eye(8) / 2
    net = Net(lambda net, x: net.head(net.block(net.block(net.block(x)))), block=shared, head=nn.Linear(8, 2))
    found = survey(net, torch.randn(64, 8))
    assert [r.name for r in found.layers] == ["block", "block", "block", "head"]
    stds = [r.std for r in found.layers[:3]]
    assert stds[1:] == [pytest.approx(stds[0] / 2), pytest.approx(stds[0] / 4)]


def test_survey_of_a_block_shared_over_many_depths_sees_it_fade():
    block = nn.Linear(8, 8)
    torch.nn.init.eye_(block.weight)
    block.weight.data *= 0.4

    def run(net, x):
        for _ in range(12):
            x = net.block(x)
        return net.head(x)

    found = survey(Net(run, block=block, head=nn.Linear(8, 2)), torch.randn(64, 8))
    assert "vanishing" in found.verdict
    assert not found.healthy


def test_survey_names_a_tied_weight_by_each_name():
    net = Net(lambda net, x: net.b(net.a(x)), a=nn.Linear(8, 8), b=nn.Linear(8, 8))
    net.b.weight = net.a.weight
    found = survey(net, torch.randn(64, 8))
    assert [r.name for r in found.layers] == ["a", "b", "a", "b"]
    assert found.ties == {"b": "a"}


def test_survey_of_an_op_that_writes_into_its_first_argument_sees_its_gradient():
    def run(net, x):
        y = torch.zeros(len(x), 8).addmm_(x, net.w)
        return torch.tanh(y) @ net.v

    found = survey(Net(run, w=matrix(6, 8), v=matrix(8, 2)), torch.randn(64, 6))
    assert all(r.gradient is not None and r.gradient > 0 for r in found.layers)


# --- No gradient


def test_survey_forward_only_has_no_gradient_and_keeps_none():
    wanted = []
    net = Net(lambda net, x: (wanted.append(torch.is_grad_enabled()), net.layer(x))[1], layer=nn.Linear(8, 4))
    found = survey(net, torch.randn(64, 8), backward=False)
    assert wanted == [False]
    assert (found.layers[0].gradient, found.silent) == (None, "")
    assert "forward only" not in found.verdict


@torch.no_grad()
def _detached(net, x):
    return net.layer(x)


@pytest.mark.parametrize(
    ("run", "says"),
    [
        (_detached, "the model's output carries no gradient"),
        (lambda net, x: net.layer(x).argmax(1), "the model's output carries no gradient"),
        (lambda net, x: net.layer(x).detach(), "the model's output carries no gradient"),
    ],
)
def test_survey_of_a_model_whose_output_carries_no_gradient_is_the_forward_half_and_a_line(run, says):
    found = survey(Net(run, layer=nn.Linear(8, 4)), torch.randn(64, 8))
    assert found.layers[0].gradient is None
    assert found.layers[0].signal > 0
    assert found.silent == says
    assert f"(forward only: {says})" in str(found).replace("\n", " ")


def test_survey_in_inference_mode_is_the_forward_half_and_a_line():
    with torch.inference_mode():
        found = survey(nn.Sequential(nn.Linear(8, 4)), torch.randn(64, 8))
    assert found.silent == "inference mode is on"


class NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("this op has no backward")


def test_survey_of_a_model_that_cannot_go_back_is_the_forward_half_and_a_line(undisturbed):
    net, x = Net(lambda net, x: NoBackward.apply(net.layer(x)), layer=nn.Linear(8, 4)), torch.randn(64, 8)
    with undisturbed(net, weights=True):
        found = survey(net, x)
    assert (found.silent, found.layers[0].gradient) == ("this op has no backward", None)


@pytest.mark.parametrize(
    ("loss", "error", "says"),
    [
        (3, TypeError, "`loss` must be a function of the model's output, got 3"),
        (lambda y: y, ValueError, r"`loss` must give one number, a tensor of one value, got shape \(64, 4\)"),
        (lambda y: 1.0, ValueError, "`loss` must give one number, a tensor of one value, got a float"),
    ],
)
def test_survey_loss_that_gives_no_number_is_refused(loss, error, says, undisturbed):
    net, x = nn.Sequential(nn.Linear(8, 4)), torch.randn(64, 8)
    with undisturbed(net, weights=True), pytest.raises(error, match=says):
        survey(net, x, loss=loss)


def test_survey_loss_without_a_backward_half_is_refused():
    with pytest.raises(ValueError, match="`loss` does nothing with backward=False"):
        survey(nn.Linear(8, 4), torch.randn(64, 8), loss=torch.sum, backward=False)


def test_survey_error_in_the_forward_tells_how_to_look_without_gradients():
    def run(net, x):
        net.layer.weight.mul_(2)  # torch refuses this of a leaf that takes a gradient
        return net.layer(x)

    with pytest.raises(RuntimeError, match="leaf Variable") as error:
        survey(Net(run, layer=nn.Linear(8, 4)), torch.randn(64, 8))
    assert any("backward=False" in note for note in error.value.__notes__)


# --- Nothing is left behind


def test_survey_both_ways_leaves_gradients_and_their_hooks_alone(undisturbed):
    net, x = lively(), torch.randn(64, 6)
    net(x).sum().backward()
    kept, heard = {name: p.grad.clone() for name, p in net.named_parameters()}, []
    for p in net.parameters():
        p.register_hook(lambda g: heard.append("gradient"))
        p.register_post_accumulate_grad_hook(lambda p: heard.append("step"))
    with undisturbed(net, weights=True):
        survey(net, x)
    assert heard == []
    assert all(torch.equal(p.grad, kept[name]) for name, p in net.named_parameters())


def test_survey_through_a_reentrant_checkpoint_calls_no_optimizer_in_backward():
    net, x, heard = deep(use_reentrant=True), torch.randn(64, 8), []
    for p in net.parameters():
        p.register_post_accumulate_grad_hook(lambda p: heard.append("step"))
    survey(net, x)
    assert heard == []
    assert all(p.grad is None for p in net.parameters())
    net(x).sum().backward()
    assert len(heard) == len(list(net.parameters()))


def test_survey_both_ways_keeps_the_modes_the_buffers_and_dropouts_draws(undisturbed):
    net, x = lively(), torch.randn(64, 6)
    with undisturbed(net, weights=True):
        survey(net, x, loss=lambda y: F.dropout(y, 0.5).sum())


def test_survey_under_no_grad_looks_both_ways_and_leaves_no_grad_on():
    with torch.no_grad():
        found = survey(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)), torch.randn(64, 8))
        assert not torch.is_grad_enabled()
    assert all(r.gradient for r in found.layers)


# --- Several processes


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("survey_ranks")
    run = subprocess.run(
        [sys.executable, "-W", "ignore", str(Path(survey_ranks.__file__)), str(folder)],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("kind", ["DDP", "FSDP2"])
def test_survey_of_a_wrapped_model_looks_both_ways_at_this_ranks_batch(ranks, kind):
    for rank, found in enumerate(ranks):
        alone = survey(survey_ranks.net(), survey_ranks.batch().chunk(2)[rank])
        expected = [pytest.approx(r.gradient, rel=1e-4) for r in alone.layers]
        assert found[kind]["gradients"] == expected


@pytest.mark.parametrize("kind", ["DDP", "FSDP2"])
def test_survey_of_a_wrapped_model_leaves_no_gradient_and_the_next_step_is_as_without(ranks, kind):
    assert all(found[kind]["left"] == 0 for found in ranks)
    assert all(found[kind]["same step"] for found in ranks)
