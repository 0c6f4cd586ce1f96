"""lsuv_ against the paper's Algorithm 1, written down as it stands: module hooks, the whole model for each layer and try."""

import copy

import pytest
import torch
from paper import lsuv_
from small_nets import relu_mlp
from torch import nn

from lsuvcb.engine import orthonormal_


@torch.no_grad()
def algorithm_1(model, batch, tol_var=1e-12, t_max=10, generator=None):
    """Mishkin & Matas, arXiv:1511.06422, Algorithm 1; with a generator the orthonormal pre-initialisation too."""
    layers = in_execution_order(model, batch)
    if generator is not None:
        for layer in layers:
            orthonormal_(layer.weight, generator)
            if layer.bias is not None:
                layer.bias.zero_()
    for layer in layers:
        for _ in range(t_max):
            variance = output_of(model, layer, batch).double().var(correction=0)  # Var(B_l)
            if abs(variance - 1) < tol_var:
                break
            layer.weight /= variance.sqrt()


def in_execution_order(model, batch):
    order = []
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    handles = [m.register_forward_hook(lambda m, args, output: order.append(m)) for m in layers]
    model(batch)
    for handle in handles:
        handle.remove()
    return order


def output_of(model, layer, batch):
    seen = []
    handle = layer.register_forward_hook(lambda m, args, output: seen.append(output))
    model(batch)
    handle.remove()
    return seen[0]


class OutOfOrder(nn.Module):
    """Its layers run in another order than they are registered."""

    def __init__(self):
        super().__init__()
        self.last, self.first, self.middle = nn.Linear(6, 3), nn.Linear(8, 6), nn.Linear(6, 6)

    def forward(self, x):
        x = torch.relu(self.first(x))
        return self.last(x + torch.tanh(self.middle(x)))


def conv_net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, groups=2), nn.Tanh(),
        nn.Flatten(), nn.Linear(72, 16), nn.LeakyReLU(0.1), nn.Linear(16, 4),
    )  # fmt: skip


NETS = {"mlp": (lambda: relu_mlp(6, 8), (64, 8)), "conv": (conv_net, (16, 3, 8, 8)), "order": (OutOfOrder, (64, 8))}


@pytest.mark.parametrize("name", NETS)
def test_lsuv_orthonormal_equals_algorithm_1(name):
    make, shape = NETS[name]
    ours, x = make(), torch.randn(shape)
    paper = copy.deepcopy(ours)
    lsuv_(ours, x, generator=torch.Generator().manual_seed(3))
    algorithm_1(paper, x, generator=torch.Generator().manual_seed(3))
    for mine, theirs in zip(ours.parameters(), paper.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NETS)
def test_lsuv_of_kept_weights_without_bias_equals_algorithm_1(name):
    make, shape = NETS[name]
    ours, x = make(), torch.randn(shape)
    for module in ours.modules():
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)  # as the paper has them
    paper = copy.deepcopy(ours)
    lsuv_(ours, x, orthonormal=False)
    algorithm_1(paper, x)
    for mine, theirs in zip(ours.parameters(), paper.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
