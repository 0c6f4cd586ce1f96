"""What changes for measure="layer", row by row of the design's table, with numbers worked out by hand."""

import pytest
import torch
from paper import lsuv_
from probe import probed
from small_nets import Net, column, linear, lively
from torch import nn
from traces import bits, weights_of

X = column(1.0, 3.0)  # mean 2, std 1


def values(layer):
    return [layer.weight.item()] + ([layer.bias.item()] if layer.bias is not None else [])


def row(report, name="0"):
    return next(r for r in report.layers if r.name == name)


def test_lsuv_layer_without_mean_scales_weight_and_bias():
    # y = 4x + 6 is 10, 18: mean 14, std 4; s = 1/4 gives y = x + 1.5, which is 2.5, 4.5
    net = nn.Sequential(linear(4, 6))
    r = row(lsuv_(net, X, orthonormal=False))
    assert values(net[0]) == [1.0, 1.5]
    assert net(X).flatten().tolist() == [2.5, 4.5]
    assert (r.status, r.reason, r.scale, r.shift, r.iterations, r.uses) == ("scaled", "", 0.25, 0.0, 1, 1)
    assert (r.std_before, r.mean_before, r.std_after, r.mean_after) == (4.0, 14.0, 1.0, 3.5)


def test_lsuv_layer_without_mean_and_without_bias_scales_the_weight():
    net = nn.Sequential(linear(4))
    r = row(lsuv_(net, X, orthonormal=False))
    assert values(net[0]) == [1.0]
    assert (r.status, r.reason, r.scale) == ("scaled", "", 0.25)


def test_lsuv_layer_with_a_mean_moves_it_through_the_bias():
    # (b - mean(y)) * s + m = (6 - 14) / 4 + 5 = 3: y = x + 3 is 4, 6, which has mean 5
    net = nn.Sequential(linear(4, 6))
    r = row(lsuv_(net, X, orthonormal=False, mean=5))
    assert values(net[0]) == [1.0, 3.0]
    assert net(X).flatten().tolist() == [4.0, 6.0]
    # b <- scale * b + shift
    assert (r.scale, r.shift, r.scale * 6 + r.shift) == (0.25, 1.5, 3.0)
    assert (r.std_after, r.mean_after) == (1.0, 5.0)


def test_lsuv_layer_with_a_mean_and_another_std_reaches_both():
    # s = 2/4; (6 - 14) / 2 - 1 = -5: y = 2x - 5 is -3, 1
    net = nn.Sequential(linear(4, 6))
    lsuv_(net, X, orthonormal=False, std=2, mean=-1)
    assert values(net[0]) == [2.0, -5.0]
    assert net(X).flatten().tolist() == [-3.0, 1.0]


def test_lsuv_layer_with_a_mean_but_no_bias_is_scaled_and_says_so():
    net = nn.Sequential(linear(4))
    r = row(lsuv_(net, X, orthonormal=False, mean=0))
    assert values(net[0]) == [1.0]
    assert (r.status, r.reason, r.shift, r.mean_after) == ("scaled", "no bias: mean not moved", 0.0, 2.0)


def test_lsuv_zero_mean_moves_a_zero_bias():
    net = nn.Sequential(linear(4, 0))
    lsuv_(net, X, orthonormal=False, mean=0)
    assert values(net[0]) == [1.0, -2.0]


def test_lsuv_orthonormal_single_weight_is_plus_or_minus_the_scale():
    # 1 x 1 orthonormal is +1 or -1; x has std 1 already, so s = 1, and the bias is zero
    net = nn.Sequential(linear(4, 6))
    r = row(lsuv_(net, X))
    assert values(net[0]) in ([1.0, 0.0], [-1.0, 0.0])
    assert (r.status, r.scale) == ("scaled", 1.0)


def test_lsuv_later_layer_is_solved_on_the_corrected_signal():
    # 4x -> x; relu(1, 3) = 1, 3; 10x + 5 has std 10 -> x + 0.5
    net = nn.Sequential(linear(4), nn.ReLU(), linear(10, 5))
    report = lsuv_(net, X, orthonormal=False)
    assert values(net[0]) == [1.0]
    assert values(net[2]) == pytest.approx([1.0, 0.5], rel=1e-6)
    assert row(report, "2").scale == pytest.approx(0.1, rel=1e-6)
    # before anything changed the second layer gave 40x + 5
    assert row(report, "2").std_before == pytest.approx(40, rel=1e-6)


def test_lsuv_std_is_one_number_over_the_whole_output():
    # W = diag(1, 3) on 1, -1 and -1, 1: the output is +-1, +-3; E[y^2] = 5
    net = nn.Sequential(nn.Linear(2, 2, bias=False))
    net[0].weight.data = torch.diag(torch.tensor([1.0, 3.0]))
    report = lsuv_(net, torch.tensor([[1.0, -1.0], [-1.0, 1.0]]), orthonormal=False)
    assert report.layers[0].scale == pytest.approx(5**-0.5, rel=1e-6)
    torch.testing.assert_close(net[0].weight.detach(), torch.diag(torch.tensor([1.0, 3.0])) / 5**0.5)


def test_lsuv_layer_within_tol_is_not_touched():
    # std 1.0009 is within 1e-3, 1.0011 is not
    inside, outside = nn.Sequential(linear(1.0009, 7)), nn.Sequential(linear(1.0011, 7))
    before = weights_of(inside)
    assert row(lsuv_(inside, X, orthonormal=False)).status == "unchanged"
    assert weights_of(inside) == before
    r = row(lsuv_(outside, X, orthonormal=False))
    assert r.status == "scaled"
    assert values(outside[0]) == pytest.approx([1.0, 7 / 1.0011], rel=1e-5)


def test_lsuv_layer_within_tol_in_std_but_not_in_mean_is_moved():
    net = nn.Sequential(linear(1, 0))
    r = row(lsuv_(net, X, orthonormal=False, mean=0))
    assert r.status == "scaled"
    assert values(net[0]) == [1.0, -2.0]


def test_lsuv_wide_tol_touches_nothing_and_hands_nothing_on():
    net = lively()
    before = weights_of(net)
    report = lsuv_(net, torch.randn(64, 6), orthonormal=False, mean=0, tol=1e9)
    assert weights_of(net) == before
    assert {r.status for r in report.layers} == {"unchanged"}


def test_lsuv_second_run_changes_no_bit():
    net, x = lively().eval(), torch.randn(64, 6)
    lsuv_(net, x, mean=0)
    before = weights_of(net)
    report = lsuv_(net, x, mean=0, orthonormal=False)
    assert weights_of(net) == before
    assert {r.status for r in report.layers} == {"unchanged"}


def twice():
    """f(f(x)) for f = 2x + 1 on 1 and 3: for a scale s the two uses give 3s, 7s and 6s^2 + s, 14s^2 + s."""
    return Net(lambda net, x: net.f(net.f(x)), f=linear(2, 1))


def scale_of_twice():
    """The s for which these four values together have variance 1, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(60):
        s = (low + high) / 2
        values = torch.tensor([3 * s, 7 * s, 6 * s**2 + s, 14 * s**2 + s], dtype=torch.float64)
        low, high = (s, high) if values.std(correction=0) < 1 else (low, s)
    return s


def test_lsuv_weight_used_twice_has_std_1_over_both_uses():
    net = twice()
    r = row(lsuv_(net, X, orthonormal=False), "f")
    assert r.uses == 2
    assert r.scale == pytest.approx(scale_of_twice(), rel=1e-3)
    assert values(net.f) == pytest.approx([2 * r.scale, r.scale], rel=1e-6)
    # the row tells how the two are apart: 2s and 4s^2
    low, high = sorted([2 * r.scale, 4 * r.scale**2])
    assert r.reason == f"std {low:.3g} to {high:.3g} over 2 uses"
    assert torch.cat([net.f(X), net.f(net.f(X))]).std(correction=0).item() == pytest.approx(1, abs=1e-3)


def test_lsuv_weight_used_twice_hands_on_its_new_values_both_times():
    net = Net(lambda net, x: net.g(net.f(net.f(x))), f=linear(2, 1), g=linear(8))
    lsuv_(net, X, orthonormal=False)
    assert [s.std for s in probed(net, X)["g"]] == [pytest.approx(1, abs=1e-6)]


def test_lsuv_weight_shared_by_two_modules_is_scaled_once():
    # whatever becomes of b's own bias, c must see what will be there: its output has std 1
    a, b, c = linear(2, 3), linear(2, 4), linear(8)
    b.weight = a.weight
    net = nn.Sequential(a, b, c)
    report = lsuv_(net, X, orthonormal=False)
    assert a.weight is b.weight
    first = row(report)
    assert (first.uses, row(report, "2").uses) == (2, 1)
    assert values(a) == pytest.approx([2 * first.scale, 3 * first.scale], rel=1e-6)
    assert torch.cat([a(X), b(a(X))]).std(correction=0).item() == pytest.approx(1, abs=1e-3)
    assert probed(net, X)["2"][0].std == pytest.approx(1, abs=1e-5)


def test_lsuv_mean_of_a_weight_used_twice_belongs_to_its_first_use():
    net = Net(lambda net, x: net.f(net.f(x)), f=linear(2, 1))
    lsuv_(net, X, orthonormal=False, mean=0)
    assert net.f(X).mean().item() == pytest.approx(0, abs=1e-5)
    assert net.f(net.f(X)).mean().item() != pytest.approx(0, abs=1e-2)


def test_lsuv_optimizer_made_before_stays_valid():
    net, x = lively(), torch.randn(64, 6)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(x).square().mean().backward()
    optimizer.step()
    grads = [bits(p.grad) for p in net.parameters()]
    with pytest.warns(UserWarning, match="looks trained"):
        lsuv_(net, x)
    assert [bits(p.grad) for p in net.parameters()] == grads
    before = bits(net[0].weight)
    net(x).square().mean().backward()
    optimizer.step()
    assert bits(net[0].weight) != before


def test_lsuv_batch_is_not_changed_by_a_model_that_writes_into_it():
    net, x = Net(lambda net, x: net.f(x.mul_(2)), f=linear(4, 6)), X.clone()
    report = lsuv_(net, x, orthonormal=False)
    assert torch.equal(x, X)
    # each pass sees the same batch: 4 * 2x + 6 has std 8
    assert row(report, "f").scale == pytest.approx(1 / 8)
    assert row(report, "f").std_after == pytest.approx(1)
