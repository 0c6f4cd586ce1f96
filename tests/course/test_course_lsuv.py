"""The lessons' own loops: what they promise, what they measure, and that they end."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from lsuvcb import LSUVError, NotConvergedWarning, lsuv_
from lsuvcb.course.lsuv import append_stat, find_modules, is_lin_layer, lsuv_init, lsuv_module
from lsuvcb.nets import ConvLayer, GeneralRelu, get_model
from lsuvcb.training.hooks import Hook, Hooks

X = torch.randn(64, 1, 28, 28, generator=torch.Generator().manual_seed(3))
Act = partial(GeneralRelu, leak=0.1, sub=0.4)


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return get_model(Act)


def pairs(net: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """As the lesson zips them; the last conv has no activation."""
    relus = [m for m in net.modules() if isinstance(m, GeneralRelu)]
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    return list(zip(relus, convs, strict=False))


def measured(net: nn.Module, modules: list[nn.Module], x: torch.Tensor = X) -> list[tuple[float, float]]:
    with Hooks(modules, append_stat) as hooks, torch.no_grad():
        net(x)
        return [(h.mean, h.std) for h in hooks]


def test_append_stat_takes_the_unbiased_std():
    layer = nn.Identity()
    with Hook(layer, append_stat) as hook:
        layer(torch.tensor([1.0, 2.0, 4.0, 18.0]))
    assert (hook.mean, hook.std) == pytest.approx((6.25, 7.9320), abs=1e-4)


def test_lsuv_init_brings_each_pair_to_mean_0_and_std_1():
    net = model()
    for relu, conv in pairs(net):
        lsuv_init(net, relu, conv, X)
    for mean, std in measured(net, [relu for relu, _ in pairs(net)]):
        assert (mean, std) == pytest.approx((0, 1), abs=1e-3)


def test_lsuv_init_of_all_pairs_is_lsuv_in_one_call():
    by_pairs = model()
    at_once = copy.deepcopy(by_pairs)
    for relu, conv in pairs(by_pairs):
        lsuv_init(by_pairs, relu, conv, X, tol=1e-6)
    lsuv_(at_once, X, measure="activation", mean=0, orthonormal=False, tol=1e-6, layers=[c for _, c in pairs(at_once)])
    for (_, a), (_, b) in zip(pairs(by_pairs), pairs(at_once), strict=True):
        # the lesson divides by n - 1, lsuv_ by n: they differ by one part in 2 n
        assert torch.allclose(a.weight, b.weight, rtol=1e-3, atol=1e-3 * b.weight.abs().max().item())
        assert torch.allclose(a.bias, b.bias, rtol=1e-3, atol=1e-3 * b.bias.abs().max().item())


def test_lsuv_init_leaves_the_rest_of_the_model_alone():
    net = nn.Sequential(nn.Linear(4, 8), Act(), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    before, rng = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    lsuv_init(net, net[1], net[0], torch.randn(64, 4, generator=torch.Generator().manual_seed(1)))
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"0.weight", "0.bias"}
    assert torch.equal(torch.get_rng_state(), rng)
    assert net.training
    assert not net[1]._forward_hooks


def test_lsuv_init_behind_a_plain_relu_ends_with_its_best_try_and_a_warning():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
    x = torch.randn(64, 4)
    start = max(abs(measured(net, [net[1]], x)[0][0]), abs(measured(net, [net[1]], x)[0][1] - 1))
    with pytest.warns(
        NotConvergedWarning, match=r"ReLU is outside mean 0, std 1 .* after 30 runs .* GeneralRelu\(sub=0.4\)"
    ):
        lsuv_init(net, net[1], net[0], x, max_iters=30)
    ((mean, std),) = measured(net, [net[1]], x)
    assert max(abs(mean), abs(std - 1)) <= start


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda net, x: x.fill_(float("nan")), "gives non-finite output"),
        (lambda net, x: [p.data.zero_() for p in net.parameters()], "gives a constant output"),
        (lambda net, x: net.pop(1), "does not run"),
    ],
)
def test_lsuv_init_that_cannot_go_on_says_why_and_changes_nothing(spoil, says):
    net, x = nn.Sequential(nn.Linear(4, 8), Act()), torch.randn(16, 4)
    act, layer = net[1], net[0]
    spoil(net, x)
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(LSUVError, match=says):
        lsuv_init(net, act, layer, x)
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())


def test_lsuv_init_stopped_in_the_middle_puts_the_values_back():
    net, x = nn.Sequential(nn.Linear(4, 8), Act()), torch.randn(16, 4)
    before, runs = copy.deepcopy(net.state_dict()), []

    def stop(module, inputs):
        runs.append(1)
        if len(runs) == 3:
            raise KeyboardInterrupt

    net.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        lsuv_init(net, net[1], net[0], x)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_lsuv_init_of_a_layer_without_bias_is_an_error_with_advice():
    net = nn.Sequential(nn.Linear(4, 8, bias=False), Act())
    with pytest.raises(ValueError, match=r"Linear without a bias\. `lsuv_\(model, xb, mean=None\)`"):
        lsuv_init(net, net[1], net[0], torch.randn(16, 4))


def test_lsuv_init_of_an_activation_in_the_layer_s_place_is_an_error_with_advice():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
    with pytest.raises(
        ValueError, match=r"ReLU without a weight\. Name the layer before it: `lsuv_init\(model, activation"
    ):
        lsuv_init(net, net[1], net[1], torch.randn(16, 4))


def test_lsuv_module_corrects_the_mean_first_and_leaves_it_off():
    torch.manual_seed(0)
    net = nn.Sequential(ConvLayer(1, 8, 5), ConvLayer(8, 16))
    with torch.no_grad():
        net[0].conv.bias.add_(0.3)
    for layer in find_modules(net, lambda m: isinstance(m, ConvLayer)):
        mean, std = lsuv_module(layer, X, net)
        assert std == pytest.approx(1, abs=1e-3)
        assert abs(mean) > 1e-3
        assert measured(net, [layer])[0] == pytest.approx((mean, std), rel=1e-4)


def test_find_modules_stops_at_what_it_finds_and_keeps_the_order():
    net = nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), nn.BatchNorm2d(2), nn.Linear(2, 2))
    assert [type(m).__name__ for m in find_modules(net, is_lin_layer)] == ["Conv2d", "ReLU", "Linear"]
    assert find_modules(net, lambda m: isinstance(m, nn.Sequential)) == [net]
