"""What tells that weights were trained, and what is not mistaken for it."""

import copy
import re

import pytest
import torch
from paper import lsuv_
from small_nets import Net
from torch import nn

from lsuvcb import TrainedModelWarning
from lsuvcb.engine.model.trained import has_stepped, sign_of_training
from lsuvcb.nets import BatchNorm, LayerNorm


class OnePlusNorm(nn.Module):
    """Scales by 1 + w, as Gemma's norms do; a new one has w = 0."""

    def __init__(self, n):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n))

    def forward(self, x):
        return x * (1 + self.weight)


class Gamma(nn.LayerNorm):
    """A norm under a name of its own."""


def fill(tensor, *values):
    with torch.no_grad():
        tensor.copy_(torch.tensor(values).view(tensor.shape))


def counted(norm):
    norm.train()(torch.randn(8, 3, 2)[..., 0] if isinstance(norm, nn.BatchNorm1d) else torch.randn(8, 3, 4, 4))
    return norm


def scaled(norm, name="weight"):
    fill(getattr(norm, name), 1.0, 1.0, 1.25)
    return norm


def moved(norm, mean="running_mean"):
    fill(norm._buffers[mean], 0.0, 0.5, 0.0)
    return norm


TRAINED = {
    "batch norm that counted": (lambda: counted(nn.BatchNorm2d(3)), r"'0' \(BatchNorm2d\) has counted 1 batches"),
    "statistics without a counter": (
        lambda: moved(nn.BatchNorm1d(3, affine=False)),
        r"'0' \(BatchNorm1d\) has statistics that are not those of a new one",
    ),
    "instance norm that tracks": (lambda: moved(nn.InstanceNorm2d(3, track_running_stats=True)), "statistics"),
    "the course's batch norm": (lambda: counted(BatchNorm(3)), r"\(BatchNorm\) has statistics"),
    "layer norm": (lambda: scaled(nn.LayerNorm(3)), r"'0' \(LayerNorm\) has scales that differ from one another"),
    "group norm": (lambda: scaled(nn.GroupNorm(3, 3)), r"\(GroupNorm\) has scales"),
    "root mean square norm": (lambda: scaled(nn.RMSNorm(3)), r"\(RMSNorm\) has scales"),
    "a subclass": (lambda: scaled(OnePlusNorm(3)), r"\(OnePlusNorm\) has scales"),
    "batch norm of the batch alone": (lambda: scaled(nn.BatchNorm1d(3, track_running_stats=False)), "has scales"),
    "half precision": (lambda: scaled(nn.LayerNorm(3)).half(), "has scales"),
}


@pytest.mark.parametrize("name", TRAINED)
def test_sign_of_training_is_seen_and_named(name):
    make, words = TRAINED[name]
    model = nn.Sequential(make(), nn.Linear(3, 3))
    before = copy.deepcopy(model.state_dict())
    assert re.search(words, sign_of_training(model))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def zero_gamma():
    norm = nn.BatchNorm2d(3)
    nn.init.zeros_(norm.weight)
    return norm


def recreated():
    net = nn.Sequential(counted(nn.BatchNorm2d(3)), nn.Conv2d(3, 3, 1))
    net[0] = nn.BatchNorm2d(3)
    return net


NEW = {
    "a net without norms": lambda: nn.Linear(3, 3),
    "new norms": lambda: nn.Sequential(nn.BatchNorm2d(3), nn.LayerNorm(3), nn.GroupNorm(1, 3), nn.RMSNorm(3)),
    "a gamma that starts at zero": zero_gamma,
    "a (1 + w) norm": lambda: OnePlusNorm(3),
    "batch norms made again": recreated,
    "statistics reset": lambda: (lambda norm: norm.reset_running_stats() or norm)(counted(nn.BatchNorm2d(3))),
    "the course's norms": lambda: nn.Sequential(BatchNorm(3), LayerNorm()),
    "a norm of one feature": lambda: nn.LayerNorm(1),
    "a normalised linear layer": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)),
    "a layer scale": lambda: Net(lambda net, x: x, gamma=nn.Parameter(torch.full((3,), 1e-5))),
    "lazy norms": lambda: nn.LazyBatchNorm2d(),
    "on the meta device": lambda: nn.BatchNorm2d(3, device="meta"),
    "a matrix in a class named after norms": lambda: type("NormedLinear", (nn.Linear,), {})(3, 3),
}


@pytest.mark.parametrize("name", NEW)
def test_new_weights_are_not_mistaken_for_trained_ones(name):
    assert sign_of_training(NEW[name]()) == ""


def test_lsuv_warns_of_norms_that_look_trained_where_it_replaces_the_weights():
    net = nn.Sequential(nn.Linear(3, 3), scaled(nn.LayerNorm(3)), nn.Linear(3, 3))
    x = torch.randn(64, 3)
    with pytest.warns(TrainedModelWarning, match=r"'1' \(LayerNorm\) has scales that differ.*orthonormal=False"):
        lsuv_(net, x)
    lsuv_(net, x, orthonormal=False)  # warnings are errors here


@pytest.mark.parametrize("kind", [torch.optim.Adam, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)])
def test_optimizer_that_has_stepped_keeps_something_of_it(kind):
    layer = nn.Linear(3, 3)
    optimizer = kind(layer.parameters())
    assert not has_stepped(optimizer)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert has_stepped(optimizer)


def test_optimizers_flags_are_no_steps():
    optimizer = torch.optim.SGD(nn.Linear(3, 3).parameters(), 0.1)
    for parameter in optimizer.param_groups[0]["params"]:
        optimizer.state[parameter] = {"do_wd": False, "force_train": True}
    assert not has_stepped(optimizer)
    assert not has_stepped(None)
