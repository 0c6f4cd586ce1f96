"""The probe and `undisturbed` can fail: a tool that never does would make every test that leans on it worthless."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from probe import forwards, probed
from small_nets import Net, lively
from torch import nn


def _append_hook(net):
    net[2].register_forward_hook(lambda *args: None)


def _replace_parameter(net):
    net[0].weight = nn.Parameter(net[0].weight.detach().clone())


def _relayout(net):
    net[0].weight.data = net[0].weight.data.t().contiguous().t()


SPOILERS = {
    "mode of '3'": lambda net: net[3].eval(),
    "buffer 'running_mean' of '1'": lambda net: net[1].running_mean.add_(1),
    "buffer 'num_batches_tracked' of '1'": lambda net: net[1].num_batches_tracked.add_(1),
    "hooks of '2'": _append_hook,
    "attributes of '2'": lambda net: setattr(net[2], "left_behind", 1),
    "parameter '0.weight'": _replace_parameter,
    "parameter '0.bias'": lambda net: net[0].bias.requires_grad_(False),
    "parameter '4.weight'": lambda net: setattr(net[4].weight, "grad", torch.zeros(8, 8)),
    "RNG of torch": lambda net: torch.rand(1),
    "RNG of numpy": lambda net: np.random.rand(),  # noqa: NPY002
    "RNG of python": lambda net: random.random(),
    "global hooks": lambda net: nn.modules.module.register_module_forward_hook(lambda *args: None),
}


def spoil(inside, change, fails):
    with inside:
        change()
        if fails:
            raise ValueError


@pytest.mark.parametrize("what", SPOILERS)
@pytest.mark.parametrize("fails", [False, True])
def test_undisturbed_fixture_notices_what_is_left_behind(what, fails, undisturbed):
    net = lively()
    try:
        with pytest.raises(AssertionError, match=what):
            spoil(undisturbed(net), lambda: SPOILERS[what](net), fails)
    finally:
        nn.modules.module._global_forward_hooks.clear()


def test_undisturbed_fixture_notices_another_memory_format(undisturbed):
    net = lively()
    with pytest.raises(AssertionError, match=r"parameter '0\.weight'"), undisturbed(net):
        _relayout(net)


def test_undisturbed_fixture_notices_weights_changed_by_a_failure(undisturbed):
    net = lively()
    with pytest.raises(AssertionError, match=r"state_dict 0\.weight"):
        spoil(undisturbed(net), net[0].weight.data.neg_, fails=True)
    spoil(undisturbed(net), net[0].weight.data.neg_, fails=False)


def test_probe_sees_bare_matrices_modules_and_views_by_name():
    net = Net(
        lambda net, x: F.linear(net.fc(x) @ net.a, net.b.t()) + torch.einsum("ni,ij->nj", x, net.a),
        fc=nn.Linear(2, 2, bias=False), a=torch.eye(2) * 2, b=torch.eye(2),
    )  # fmt: skip
    net.fc.weight.data.copy_(torch.eye(2) * 3)
    x = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])  # std 1, mean 0
    seen = probed(net, x)
    assert {name: [s.std for s in found] for name, found in seen.items()} == {"fc": [3.0], "a": [6.0, 2.0], "b": [6.0]}


def test_probe_sees_inside_attention_in_eval_mode():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    seen = probed(layer, torch.randn(2, 3, 8))
    assert set(seen) == {"self_attn.in_proj_weight", "self_attn.out_proj", "linear1", "linear2"}


def test_probe_puts_torch_back():
    linear, matmul = F.linear, vars(torch.Tensor).get("__matmul__")
    probed(nn.Linear(2, 2), torch.ones(1, 2))
    assert F.linear is linear
    assert vars(torch.Tensor).get("__matmul__") is matmul


def test_forwards_counts_each_call_of_the_model():
    net = nn.Sequential(nn.Linear(2, 2))
    with forwards(net) as calls:
        net(torch.ones(1, 2))
        net[0](torch.ones(1, 2))
        net(torch.ones(1, 2))
    assert len(calls) == 2
