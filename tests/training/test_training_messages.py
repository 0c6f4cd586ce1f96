"""What a newcomer to the loop does wrong: told where the learner is made, before a weight is changed, with the way out."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import line, loaders
from torch import nn, optim

from lsuvcb import Callback, DataLoaders, Hook, LSUVCallback, MetricsCB, TrainLearner
from lsuvcb.training.metrics import MulticlassAccuracy


def learner(**given):
    return TrainLearner(**{"model": line(), "dls": loaders()} | given)


def pair():
    dls = loaders()
    return dls.train, dls.valid


CLASS = "got the class CrossEntropyLoss; write `CrossEntropyLoss()`."
TWO = "`dls` must have a `.train` and a `.valid` loader"
MAKER = "`opt_func` must be a function of parameters and `lr`"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lr": "0.1"}, "`lr` must be a number > 0, got '0.1' (str)."),
        ({"lr": True}, "`lr` must be a number > 0, got True (bool)."),
        ({"lr": [0.1]}, "`lr` must be a number > 0, got [0.1] (list)."),
        ({"loss_func": nn.CrossEntropyLoss}, f"`loss_func` must be a function of predictions and targets, {CLASS}"),
        ({"loss_func": "mse"}, "`loss_func` must be a function of predictions and targets, got 'mse'."),
        ({"model": nn.Linear}, "`model` must be a module, got the class Linear; make one first: `Linear(...)`."),
        ({"dls": pair()}, f"{TWO}, got a tuple; write `DataLoaders(train, valid)`."),
        ({"dls": pair()[0]}, f"{TWO}, got a list; write `DataLoaders(train, valid)`."),
        ({"dls": {"train": 1, "test": 2}}, f"{TWO}, got a dict; write `DataLoaders.from_dd(dls, batch_size)`."),
        ({"opt_func": "adam"}, f"{MAKER}, got 'adam'."),
        ({"opt_func": optim.SGD(line().parameters(), 0.1)}, f"{MAKER}, got a SGD; write `opt_func=SGD`, of which each fit makes "
         "its own."),
    ],
)  # fmt: skip
def test_learner_s_argument_of_a_wrong_kind_is_told_where_it_is_made(given, message):
    with pytest.raises(TypeError) as caught:
        learner(**given)
    assert str(caught.value) == message


@pytest.mark.parametrize("lr", [1, 0.1, torch.tensor(0.1), np.float32(0.1)])
def test_learner_takes_every_kind_of_number_for_a_rate(lr):
    learn = learner(lr=lr)
    learn.fit(1)
    assert learn.opt.param_groups[0]["lr"] == pytest.approx(float(lr))


def test_learner_without_loaders_or_loss_function_is_made_and_asked_for_them_later():
    with pytest.raises(
        ValueError, match=r"needs `dls.train`, got None without one; write `DataLoaders\(train, valid\)`"
    ):
        learner(dls=None).fit(1)
    half = SimpleNamespace(train=loaders().train)
    with pytest.raises(ValueError, match=r"needs `dls.valid`, got a SimpleNamespace without one; pass valid=False"):
        learner(dls=half).fit(1)
    assert learner(loss_func=None).loss_func is None


@pytest.mark.parametrize("call", [lambda learn: learn.fit(1, lr="0.1"), lambda learn: learn.lr_find(start_lr="0.1")])
def test_rate_of_a_fit_or_a_search_must_be_a_number(call):
    learn = learner()
    with pytest.raises(TypeError, match=r"`lr` must be a number > 0, got '0.1' \(str\)"):
        call(learn)
    assert learn.model.weight.item() == 0


class Replace(Callback):
    """Runs before LSUVCallback."""

    order = LSUVCallback.order - 1

    def before_fit(self, learn):
        learn.loss_func = nn.CrossEntropyLoss


@pytest.mark.parametrize("cbs", [[], [Replace()]])
def test_loss_function_that_is_a_class_is_told_before_the_model_is_changed(cbs):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    rows = [(torch.randn(32, 8), torch.randint(4, (32,)))]
    learn = TrainLearner(net, DataLoaders(rows, rows), F.cross_entropy, cbs=[LSUVCallback(), *cbs])
    if not cbs:
        learn.loss_func = nn.CrossEntropyLoss
    before = [p.clone() for p in net.parameters()]
    with pytest.raises(TypeError, match=r"got the class CrossEntropyLoss; write `CrossEntropyLoss\(\)`"):
        learn.fit(1)
    assert all(torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True))


def accuracy(preds, targets):
    return (preds.argmax(1) == targets).float().mean()


@pytest.mark.parametrize("make", [lambda: MetricsCB(accuracy), lambda: MetricsCB(right=accuracy)])
def test_metric_that_is_a_function_is_told_what_to_give_instead(make):
    with pytest.raises(TypeError) as caught:
        make()
    assert str(caught.value).endswith(
        ": a function sees one batch, a metric a whole epoch; write MulticlassAccuracy() or another of torcheval.metrics or "
        "torchmetrics, or a class with these three methods."
    )


def test_metric_that_is_something_else_is_told_what_it_must_have():
    with pytest.raises(TypeError, match=r"metric 'a' must have reset, update and compute, got 'accuracy'\.$"):
        MetricsCB(a="accuracy")
    with pytest.raises(TypeError, match=r"MulticlassAccuracy'>; write MulticlassAccuracy\(\)\.$"):
        MetricsCB(a=MulticlassAccuracy)


def test_callback_told_a_loader_for_a_batch_says_so_where_it_is_made():
    with pytest.raises(
        TypeError, match=r"`batch` must be one batch, got a DataLoaders; write `next\(iter\(loader\)\)`"
    ):
        LSUVCallback(batch=DataLoaders([], []))


def test_hook_s_kind_is_the_one_that_its_user_wrote():
    attention = nn.MultiheadAttention(4, 2)
    with Hook(attention.out_proj, lambda *_: None) as hook:
        assert hook.kind == "Linear"


class Force(nn.Module):
    """Predicts the gradient of an energy."""

    def __init__(self):
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, x):
        x = x.requires_grad_()
        return torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)[0]


def test_force_field_is_initialised_in_a_fit_and_trains():
    torch.manual_seed(0)
    net, x = Force(), torch.randn(64, 3)
    cb = LSUVCallback(std=0.5, orthonormal=False)
    learn = TrainLearner(net, DataLoaders([(x, -x)], []), lr=0.05, cbs=[cb])
    learn.fit(1, valid=False)
    first = learn.loss.item()
    assert [layer.std_after for layer in cb.report.layers] == pytest.approx([0.5, 0.5], abs=1e-3)
    learn.fit(20, valid=False)
    assert learn.loss.item() < first
