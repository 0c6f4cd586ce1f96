"""What lsuv_ must not touch: each stands in the report with its reason, and keeps every bit. What is near it is scaled."""

import pytest
import torch
import torch.nn.functional as F
from paper import lsuv_
from probe import probed
from small_nets import Net, matrix
from torch import nn
from traces import bits, weights_of

from lsuvcb.engine import survey

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(5))
BOTH = pytest.mark.parametrize("orthonormal", [True, False])


def rows(net, batch=X, **arguments):
    return {r.name: r for r in lsuv_(net, batch, **arguments).layers}


def left_alone(net, *names, batch=X, **arguments):
    """Run lsuv_; these weights keep their bits, and the reasons that the report gives are returned."""
    before = {name: bits(net.get_parameter(name)) for name in names}
    found = rows(net, batch, **arguments)
    assert {name: bits(net.get_parameter(name)) for name in names} == before
    reports = [found[name.removesuffix(".weight")] for name in names]
    assert {r.status for r in reports} == {"left alone"}
    assert all((r.scale, r.shift) == (1.0, 0.0) for r in reports)
    return [r.reason for r in reports]


@BOTH
def test_lsuv_frozen_weight_is_left_alone(orthonormal):
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    net[0].weight.requires_grad_(False)
    before = weights_of(net)
    found = rows(net, orthonormal=orthonormal)
    assert (found["0"].status, found["0"].reason) == ("left alone", "frozen (requires_grad=False)")
    assert {k for k, v in weights_of(net).items() if v != before[k]} <= {"state_dict 2.weight", "state_dict 2.bias"}
    assert probed(net, X)["2"][0].std == pytest.approx(1, abs=1e-3)


@BOTH
def test_lsuv_frozen_bias_that_is_not_zero_keeps_its_layer(orthonormal):
    # y = s W x + b with b fixed is not s y
    net = nn.Sequential(nn.Linear(6, 8))
    net[0].bias.requires_grad_(False)
    (reason,) = left_alone(net, "0.weight", orthonormal=orthonormal)
    assert reason == "its bias is frozen (requires_grad=False)"


def test_lsuv_frozen_bias_of_zeros_does_not_keep_its_layer():
    net = nn.Sequential(nn.Linear(6, 8))
    nn.init.zeros_(net[0].bias)
    net[0].bias.requires_grad_(False)
    found = rows(net, mean=0)["0"]
    assert (found.status, found.reason) == ("scaled", "no bias: mean not moved")
    assert not net[0].bias.any()


@BOTH
def test_lsuv_head_tied_to_the_embedding_is_left_alone(orthonormal):
    net = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 9, bias=False))
    net[2].weight = net[0].weight
    (reason,) = left_alone(net, "0.weight", batch=torch.arange(9).repeat(5), orthonormal=orthonormal)
    assert reason == "used earlier in the pass, by embedding"
    assert net[2].weight is net[0].weight


@BOTH
def test_lsuv_weights_that_share_memory_are_one_weight_with_two_uses(orthonormal):
    first, second = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
    second.weight.data = first.weight.data
    net = nn.Sequential(first, nn.Tanh(), second)
    found = rows(net, orthonormal=orthonormal)
    assert found["0"].status == "scaled"
    assert found["2"].status == "left alone"
    assert "shares its memory with '0'" in found["2"].reason
    uses = torch.cat([first(X), net(X)])
    assert uses.std(correction=0).item() == pytest.approx(1, abs=1e-3)
    assert second.weight.data_ptr() == first.weight.data_ptr()


@BOTH
def test_lsuv_unused_weight_is_left_alone_and_stands_last(orthonormal):
    net = Net(lambda net, x: net.b(x), a=nn.Linear(6, 8), b=nn.Linear(6, 8))
    assert left_alone(net, "a.weight", orthonormal=orthonormal) == ["not used in this pass"]
    assert list(rows(net)) == ["b", "a"]


@BOTH
def test_lsuv_weight_of_zeros_is_left_alone(orthonormal):
    net = Net(lambda net, x: net.a(x) + net.zero(x), a=nn.Linear(6, 8), zero=nn.Linear(6, 8))
    nn.init.zeros_(net.zero.weight)
    (reason,) = left_alone(net, "zero.weight", orthonormal=orthonormal)
    assert reason.startswith("all zero")


def test_lsuv_weight_with_one_value_behind_many_zeros_is_not_taken_for_zero():
    net = nn.Sequential(nn.Linear(6, 100, bias=False))
    nn.init.zeros_(net[0].weight)
    net[0].weight.data[99, 5] = 1.0
    assert rows(net, orthonormal=False)["0"].status == "scaled"


@BOTH
def test_lsuv_constant_output_is_left_alone(orthonormal):
    net = Net(lambda net, x: net.a(x * 0 + 3) + net.b(x), a=nn.Linear(6, 1), b=nn.Linear(6, 1))
    (reason,) = left_alone(net, "a.weight", orthonormal=orthonormal, mean=0)
    assert reason.startswith("constant output")


@BOTH
@pytest.mark.parametrize("verify", [True, False])
def test_lsuv_constant_layer_hands_on_what_it_gives(verify, orthonormal):
    # c sees b(x) plus one number in each feature: another number would give it another std
    net = Net(
        lambda net, x: net.c(net.a(x * 0 + 3) + net.b(x)),
        a=nn.Linear(6, 1), b=nn.Linear(6, 5), c=nn.Linear(5, 4),
    )  # fmt: skip
    nn.init.constant_(net.a.weight, 0.5)
    left_alone(net, "a.weight", orthonormal=orthonormal, verify=verify)
    assert probed(net, X)["c"][0].std == pytest.approx(1, abs=1e-3)


@BOTH
def test_lsuv_dead_layer_is_left_alone(orthonormal):
    net = Net(lambda net, x: net.b(F.relu(-x.abs())) + net.a(x), a=nn.Linear(6, 8), b=nn.Linear(6, 8, bias=False))
    (reason,) = left_alone(net, "b.weight", orthonormal=orthonormal)
    assert reason.startswith("constant output")


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@BOTH
def test_lsuv_empty_output_is_left_alone(orthonormal):
    # an expert that no sample was sent to, and one without an output
    net = Net(
        lambda net, x: net.a(x).sum() + net.b(x[:0]).sum() + net.c(x).sum(),
        a=nn.Linear(6, 8), b=nn.Linear(6, 8), c=nn.Linear(6, 0),
    )  # fmt: skip
    reasons = left_alone(net, "b.weight", "c.weight", orthonormal=orthonormal)
    assert reasons == ["its output is empty"] * 2


@BOTH
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_lsuv_recurrent_weights_are_left_alone(kind, orthonormal):
    net = Net(lambda net, x: net.head(net.rnn(x)[0]), rnn=kind(6, 5, num_layers=2), head=nn.Linear(5, 2))
    names = [f"rnn.weight_{side}_l{layer}" for layer in (0, 1) for side in ("ih", "hh")]
    reasons = left_alone(net, *names, batch=X[:, None], orthonormal=orthonormal)
    assert set(reasons) == {"used inside a recurrent op that hides its outputs"}


@BOTH
@pytest.mark.parametrize("training", [True, False])
def test_lsuv_packed_attention_weight_is_left_alone_and_the_rest_is_scaled(training, orthonormal):
    net = nn.TransformerEncoderLayer(6, 2, 12, batch_first=True).train(training)
    nn.init.normal_(net.self_attn.out_proj.bias)
    x = torch.randn(8, 5, 6)
    (reason,) = left_alone(net, "self_attn.in_proj_weight", batch=x, orthonormal=orthonormal)
    assert "packed in_proj" in reason
    net.eval()
    lsuv_(net, x, orthonormal=False)
    seen = probed(net, x)
    assert [seen[n][0].std for n in ("self_attn.out_proj", "linear1", "linear2")] == pytest.approx([1] * 3, abs=1e-3)


class StandardisedConv(nn.Conv2d):
    def forward(self, x):
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / w.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, w, self.bias)


@BOTH
def test_lsuv_weight_standardised_before_use_is_left_alone(orthonormal):
    net = nn.Sequential(StandardisedConv(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3))
    x = torch.randn(4, 2, 8, 8)
    (reason,) = left_alone(net, "0.weight", batch=x, orthonormal=orthonormal)
    assert reason.startswith("transformed before use: conv2d works on what div made of it")
    assert probed(net, x)["2"][0].std == pytest.approx(1, abs=1e-3)


CHANGES = {
    "item set to zero": lambda w: w.__setitem__(0, 0.0),
    "item set to five": lambda w: w.__setitem__(0, 5.0),
    "times a mask": lambda w: w.mul_(torch.eye(6)),
    "plus a constant": lambda w: w.add_(1.0),
}


@BOTH
@pytest.mark.parametrize("change", CHANGES)
def test_lsuv_copy_changed_in_place_before_use_is_not_taken_for_the_weight(change, orthonormal):
    def run(net, x):
        w = net.w.clone()
        CHANGES[change](w)
        return net.a(x @ w)

    net = Net(run, w=matrix(6, 6), a=nn.Linear(6, 4))
    found = rows(net, orthonormal=orthonormal)  # a std that is missed would warn
    kept = []
    net.a.register_forward_pre_hook(lambda module, args: kept.append(args[0]))
    net(X)
    assert found["w"].status == "left alone" or kept[0].std(correction=0).item() == pytest.approx(1, abs=1e-3)
    assert probed(net, X)["a"][0].std == pytest.approx(1, abs=1e-3)


@BOTH
def test_lsuv_product_of_two_frozen_parameters_is_left_alone(orthonormal):
    # where one of them is free, it is scaled for both: see test_real_weights.py
    net = Net(lambda net, x: x @ (net.down @ net.up) + net.a(x), down=matrix(6, 2), up=matrix(2, 8), a=nn.Linear(6, 8))
    for factor in (net.down, net.up):
        factor.requires_grad_(False)
    reasons = left_alone(net, "down", "up", orthonormal=orthonormal)
    assert reasons == ["product of two parameters (matmul)"] * 2


@BOTH
def test_lsuv_lora_branch_keeps_its_zeros_and_its_base(orthonormal):
    # as peft does it: the base frozen, A drawn, B zero
    net = Net(
        lambda net, x: net.base(x) + net.b(net.a(x)),
        base=nn.Linear(6, 8), a=nn.Linear(6, 2, bias=False), b=nn.Linear(2, 8, bias=False),
    )  # fmt: skip
    net.base.requires_grad_(False)
    nn.init.zeros_(net.b.weight)
    reasons = left_alone(net, "base.weight", "b.weight", orthonormal=orthonormal)
    assert reasons[0].startswith("frozen")
    assert reasons[1].startswith("all zero")
    assert probed(net, X)["a"][0].std == pytest.approx(1, abs=1e-3)


@BOTH
def test_lsuv_merged_lora_is_left_alone(orthonormal):
    net = Net(
        lambda net, x: net.head(F.linear(x, net.w + net.b @ net.a)),
        w=matrix(8, 6), a=matrix(2, 6), b=matrix(8, 2), head=nn.Linear(8, 2),
    )  # fmt: skip
    reasons = left_alone(net, "w", "a", "b", orthonormal=orthonormal)
    assert reasons[0].startswith("transformed before use")
    assert reasons[1:] == ["product of two parameters (matmul)"] * 2


def test_lsuv_complex_weight_is_left_alone():
    net = Net(
        lambda net, x: net.a(x) + net.c(x.to(torch.complex64)).abs(),
        a=nn.Linear(6, 3),
        c=nn.Linear(6, 3, dtype=torch.complex64),
    )
    assert left_alone(net, "c.weight") == ["its weight is complex (torch.complex64)"]


def test_lsuv_integer_weight_is_left_alone():
    net = Net(lambda net, x: net.a(x) + (x.long() @ net.i), a=nn.Linear(6, 3))
    net.i = nn.Parameter(torch.ones(6, 3, dtype=torch.long), requires_grad=False)
    (reason,) = left_alone(net, "i")
    assert reason


def test_lsuv_embedding_that_renormalises_itself_is_left_alone(undisturbed):
    net, tokens = nn.Sequential(nn.Embedding(9, 6, max_norm=0.5), nn.Linear(6, 3)), torch.arange(9)
    (reason,) = left_alone(net, "0.weight", batch=tokens)
    assert "embedding" in reason
    with undisturbed(net, weights=True):
        survey(net, tokens)


def test_lsuv_norms_and_biases_have_no_row():
    net = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.BatchNorm1d(8), nn.PReLU(8), nn.Linear(8, 2))
    assert list(rows(net)) == ["0", "4"]


def test_lsuv_weight_of_more_dimensions_that_is_no_matrix_is_named():
    net = Net(
        lambda net, x: net.norm(net.a(x).reshape(-1, 2, 4)) * net.gain,
        a=nn.Linear(6, 8),
        norm=nn.LayerNorm([2, 4]),
        gain=torch.ones(2, 4),
    )
    assert left_alone(net, "norm.weight", "norm.bias", "gain") == [
        "used by layer_norm, no linear op", "used by layer_norm, no linear op", "used by mul, no linear op",
    ]  # fmt: skip


def test_lsuv_parameter_that_is_an_input_says_so():
    net = Net(lambda net, x: net.a(net.queries) + x.mean(), a=nn.Linear(6, 8), queries=matrix(5, 6))
    (reason,) = left_alone(net, "queries")
    assert "input" in reason
    assert "no linear op" not in reason


def test_lsuv_layer_left_alone_hands_on_what_it_gives():
    net = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4))
    net[0].weight.requires_grad_(False)
    expected = net[0](X).detach()
    kept = []
    net[1].register_forward_pre_hook(lambda m, args: kept.append(args[0].clone()))
    lsuv_(net, X)
    for seen in kept:
        torch.testing.assert_close(seen, expected)


def test_lsuv_everything_left_alone_changes_nothing_and_reports_it():
    net = nn.Sequential(nn.Linear(6, 8)).requires_grad_(False)
    before = weights_of(net)
    report = lsuv_(net, X)
    assert weights_of(net) == before
    assert report.summary().startswith("LSUV: no layer to scale")
    assert "1 left alone" in report.summary()
