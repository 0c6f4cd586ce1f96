"""The small callbacks, and the order in which all of them run."""

from collections import OrderedDict, UserDict, namedtuple
from types import SimpleNamespace

import pytest
import torch
from tiny import learner, line, loaders, recorder

from lsuvcb.training.activation_stats import ActivationStats
from lsuvcb.training.callbacks import (
    BatchTransformCB,
    DeviceCB,
    SingleBatchCB,
    TrainCB,
    default_device,
    to_device,
)
from lsuvcb.training.events import Callback
from lsuvcb.training.hooks import HooksCallback
from lsuvcb.training.learner import Learner
from lsuvcb.training.lsuv_callback import LSUVCallback
from lsuvcb.training.metrics import MetricsCB
from lsuvcb.training.progress import ProgressCB


def test_orders_are_those_of_the_design_with_room_between():
    groups = [(TrainCB,), (DeviceCB,), (Callback,), (LSUVCallback,), (HooksCallback, ActivationStats), (MetricsCB,)]
    orders = [{cls.order for cls in group} for group in [*groups, (ProgressCB,), (SingleBatchCB,)]]
    assert all(len(group) == 1 for group in orders)
    flat = [group.pop() for group in orders]
    assert flat == sorted(set(flat))
    # precision and Accelerate between the device and LSUV, lr_find between hooks and metrics
    assert LSUVCallback.order - DeviceCB.order >= 20
    assert MetricsCB.order - HooksCallback.order >= 20
    assert DeviceCB.order < BatchTransformCB.order < LSUVCallback.order


# TrainCB


def test_train_cb_with_two_inputs_gives_the_rest_to_the_loss():
    class Sum(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.line = line(1.0)

        def forward(self, a, b):
            return self.line(a) + b

    batch = (torch.ones(3, 1), 2 * torch.ones(3, 1), torch.ones(3, 1))
    learn = Learner(Sum(), SimpleNamespace(train=[batch], valid=[batch]), cbs=TrainCB(n_inp=2))
    learn.fit(1, train=False)
    assert learn.loss.item() == 4.0
    assert len(learn.xb) == 2
    assert len(learn.yb) == 1


@pytest.mark.parametrize("bad", [0, -1, 1.5])
def test_train_cb_with_bad_number_of_inputs_raises(bad):
    with pytest.raises(ValueError, match="`n_inp` must be an integer >= 1, got"):
        TrainCB(n_inp=bad)


# Devices

Pair = namedtuple("Pair", "x y")


def test_to_device_of_a_nested_batch_moves_each_tensor_and_keeps_the_rest():
    t = torch.ones(2)
    batch = {"a": [t, (t, "text")], "b": Pair(t, 3), "c": None, "d": OrderedDict(e=t)}
    moved = to_device(batch, "meta")
    assert moved["a"][0].is_meta
    assert moved["a"][1][0].is_meta
    assert moved["a"][1][1] == "text"
    assert moved["b"].x.is_meta
    assert moved["b"].y == 3
    assert type(moved["b"]) is Pair
    assert moved["c"] is None
    assert type(moved["d"]) is OrderedDict
    assert not t.is_meta


def test_to_device_of_a_mapping_with_a_to_of_its_own_uses_it():
    class BatchEncoding(UserDict):
        def to(self, device):
            return BatchEncoding({k: v.to(device) for k, v in self.items()})

    moved = to_device({"x": BatchEncoding(t=torch.ones(1))}, "meta")["x"]
    assert type(moved) is BatchEncoding
    assert moved["t"].is_meta
    assert to_device(UserDict(t=torch.ones(1)), "meta")["t"].is_meta


def test_device_cb_puts_each_batch_where_the_model_is():
    learn = learner([DeviceCB("meta")])
    learn.fit(1, valid=False)
    assert next(learn.model.parameters()).is_meta
    assert [t.device.type for t in learn.batch] == ["meta", "meta"]
    assert learn.preds.is_meta


def test_default_device_is_the_accelerator_or_the_cpu():
    found = torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "cpu"
    assert default_device().type == found
    assert DeviceCB().device == default_device()


def test_device_cb_moves_model_before_fit_and_each_batch():
    seen = []

    class Look(Callback):
        def before_fit(self, learn):
            seen.append(next(learn.model.parameters()).dtype)

        def before_batch(self, learn):
            seen.append(learn.batch[0].device.type)

    class Double(torch.nn.Linear):
        def to(self, device):
            seen.append(str(device))
            return super().to(device)

    learn = learner([Look(), DeviceCB("cpu")], model=Double(1, 1))
    learn.fit(1, valid=False)
    assert seen == ["cpu", torch.float32, "cpu", "cpu"]


# BatchTransformCB


@pytest.mark.parametrize(("on_train", "on_val"), [(True, True), (True, False), (False, True)])
def test_batch_transform_runs_where_it_is_asked_to(on_train, on_val):
    seen = []

    class Look(Callback):
        def after_predict(self, learn):
            seen.append(learn.batch[0].mean().item())

    tfm = BatchTransformCB(lambda b: (3 * b[0], b[1]), on_train=on_train, on_val=on_val)
    learner([tfm, Look()], loaders(1, 1)).fit(1)
    assert seen == [3.0 if on_train else 1.0, 3.0 if on_val else 1.0]


def test_batch_transform_that_would_do_nothing_raises():
    with pytest.raises(ValueError, match="would do nothing; set one of them"):
        BatchTransformCB(abs, on_train=False, on_val=False)
    with pytest.raises(TypeError, match="`tfm` must be a function of the batch, got 3"):
        BatchTransformCB(3)


# SingleBatchCB


def test_single_batch_ends_the_fit_after_everyone_has_seen_the_batch():
    cb = recorder(order=99)
    learn = learner([SingleBatchCB(), cb])
    learn.fit(5)
    assert cb.seen.count("before_batch") == 1
    assert cb.seen[-4:] == ["after_batch", "cleanup_batch", "cleanup_epoch", "cleanup_fit"]
    assert "after_epoch" not in cb.seen
    assert learn.model.weight.item() == pytest.approx(0.2)


# repr


@pytest.mark.parametrize(
    ("cb", "text"),
    [
        (TrainCB(2), "TrainCB(n_inp=2)"),
        (DeviceCB("cpu"), "DeviceCB(device=device(type='cpu'))"),
        (SingleBatchCB(), "SingleBatchCB()"),
        (ProgressCB(plot=True), "ProgressCB(plot=True)"),
    ],
)
def test_repr_of_a_callback_shows_its_arguments(cb, text):
    assert repr(cb) == text
