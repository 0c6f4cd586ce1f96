"""What every callback of the library must stand, found by itself: a new one is tested from the day it is there."""

import copy
import importlib
import inspect
import pickle
import pkgutil
import re
import tempfile
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from required import need_package
from tiny import net, recorder
from torch import nn

import lsuvcb.training
from lsuvcb.training.callbacks import TrainCB
from lsuvcb.training.events import (
    EVENTS,
    STEPS,
    Callback,
    CancelBatchException,
    CancelEpochException,
    CancelFitException,
)
from lsuvcb.training.learner import Learner
from lsuvcb.training.saving.resume import to_resume

# Of those that need arguments. Functions of a module, so that they pickle.


def same(batch):
    return batch


def note(hook, module, inputs, output):
    hook.seen = True


SCHED = {"sched": partial(torch.optim.lr_scheduler.StepLR, step_size=2)}
ARGUMENTS = {
    "BatchTransformCB": {"tfm": same}, "HooksCallback": {"hookfunc": note}, "GradientClipCB": {"max_norm": 1.0},
    "BaseSchedCB": SCHED, "BatchSchedCB": SCHED, "EpochSchedCB": SCHED,
}  # fmt: skip
FOLDERS: list[Path] = []  # of the test at hand, for what writes files


@pytest.fixture(autouse=True)
def _folder(tmp_path):
    FOLDERS.append(tmp_path)
    yield
    FOLDERS.clear()


def discovered():
    for module in pkgutil.iter_modules(lsuvcb.training.__path__):
        importlib.import_module(f"lsuvcb.training.{module.name}")
    found, todo = {}, [Callback]
    while todo:
        for cls in todo.pop().__subclasses__():
            todo.append(cls)
            if cls.__module__.startswith("lsuvcb.training."):
                found[cls.__name__] = cls
    return found


CALLBACKS = discovered()


def make(name):
    if name == "CheckpointCB":
        return CALLBACKS[name](tempfile.mkdtemp(dir=FOLDERS[0]))
    if name == "ResumeCB":
        folder = tempfile.mkdtemp(dir=FOLDERS[0])
        new_learner(CALLBACKS["CheckpointCB"](folder)).fit(1)
        return CALLBACKS[name](to_resume(folder, []) | {"callbacks": {}})
    if name == "AcceleratorCB":
        need_package("accelerate")
        return CALLBACKS[name](cpu=True)
    return CALLBACKS[name](**ARGUMENTS.get(name, {}))


def data():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(32, 5, generator=g), torch.randn(32, 2, generator=g)
    return SimpleNamespace(train=[(x[:16], y[:16]), (x[16:], y[16:])], valid=[(x, y)])


def new_learner(cb, model=None):
    teacher = [] if isinstance(cb, TrainCB) else [TrainCB()]
    return Learner(model or net(), data(), lr=0.01, cbs=[*teacher, cb])


def hooked(model):
    return [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks]


def test_discovery_finds_the_callbacks_of_the_design():
    assert set(CALLBACKS) >= {
        *("TrainCB", "DeviceCB", "BatchTransformCB", "SingleBatchCB", "MetricsCB", "ProgressCB"),
        *(
            "HooksCallback",
            "ActivationStats",
            "LSUVCallback",
            "LRFinderCB",
            "BatchSchedCB",
            "EpochSchedCB",
            "RecorderCB",
        ),
        *("MixedPrecisionCB", "GradientClipCB", "AcceleratorCB", "CheckpointCB"),
    }


def test_order_table_of_the_docs_is_the_callbacks_own():
    table = dict(re.findall(r"^ +(-?\d+)  (.*)$", lsuvcb.training.__doc__, re.MULTILINE))
    said = {
        name: int(order) for order, names in table.items() for name in re.findall(r"\w+(?:CB|Stats|Callback)\b", names)
    }
    inner = {"BaseSchedCB", "SurveyCB"}  # for subclasses, and for learn.survey
    assert said == {name: cls.order for name, cls in CALLBACKS.items() if name not in inner}
    assert list(map(int, table)) == sorted(map(int, table))


every = pytest.mark.parametrize("name", sorted(CALLBACKS))


@every
def test_callback_class_says_what_it_does_and_when(name):
    doc = inspect.getdoc(CALLBACKS[name])
    assert "Runs at " in doc
    said = doc.split("Runs at ", 1)[1].split("\n\n")[0]
    cls = CALLBACKS[name]
    heard = [event for event in (*EVENTS, *STEPS) if hasattr(cls, event)]
    assert [event for event in heard if event not in said] == []


@every
def test_callback_has_a_repr_and_survives_pickle_and_deepcopy(name, capsys):
    cb = make(name)
    assert repr(cb).startswith(f"{name}(")
    for twin in (pickle.loads(pickle.dumps(cb)), copy.deepcopy(cb)):
        assert repr(twin) == repr(cb)
        new_learner(twin).fit(1)
    new_learner(cb).fit(1)
    for twin in (pickle.loads(pickle.dumps(cb)), copy.deepcopy(cb)):
        assert repr(twin) == repr(cb)
        new_learner(twin).fit(1)


@every
def test_callback_serves_two_fits_and_two_learners_and_leaves_no_hook(name, capsys):
    cb, model = make(name), net()
    learn = new_learner(cb, model)
    learn.fit(2)
    learn.fit(1, train=False)
    learn.fit(1, valid=False)
    other = net(seed=1)
    new_learner(cb, other).fit(1)
    assert hooked(model) == hooked(other) == []


@every
def test_callback_adds_nothing_to_the_model(name, capsys):
    cb, model = make(name), net()
    keys = list(model.state_dict())
    forward = [m.forward for m in model.modules()]
    new_learner(cb, model).fit(1)
    assert list(model.state_dict()) == keys
    assert [m.forward for m in model.modules()] == forward


def fired_with(name, order):
    """The events that a fit fires beside this callback (SingleBatchCB ends it early), for a callback of this order."""
    cb = recorder(order)
    new_learner(make(name)).fit(1, cbs=cb)
    return [event for event in EVENTS if event in cb.seen]


LEVELS = [
    *((CancelFitException, event) for event in EVENTS if not event.startswith("cleanup")),
    *((CancelEpochException, event) for event in ("before_epoch", "after_loss", "after_batch", "after_epoch")),
    *((CancelBatchException, event) for event in ("before_batch", "after_predict", "after_batch")),
]


@every
@pytest.mark.parametrize("order", [-99, 99], ids=["first", "last"])
def test_callback_stands_a_cancel_at_every_event(name, order, capsys):
    for cancel, event in [(cancel, event) for cancel, event in LEVELS if event in fired_with(name, order)]:
        cb, model = make(name), net()
        armed = [True]

        def also(fired, learn, armed=armed, cancel=cancel, event=event):
            if armed and fired == event:
                armed.clear()
                raise cancel

        learn = new_learner(cb, model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            learn.fit(1, cbs=recorder(order, also))
            assert not armed, f"{event} was never fired"
            assert hooked(model) == [], (cancel, event)
            learn.fit(1)


class Boom(Exception):
    pass


@every
@pytest.mark.parametrize("order", [-99, 99], ids=["first", "last"])
def test_callback_stands_an_exception_in_every_event(name, order, capsys):
    for event in fired_with(name, order):
        cb, model = make(name), net()

        def also(fired, learn, event=event):
            if fired == event:
                raise Boom

        learn = new_learner(cb, model)
        with pytest.raises(Boom) as error:
            learn.fit(1, cbs=recorder(order, also))
        assert f"raised in Recorder.{event}" in error.value.__notes__
        assert hooked(model) == [], event
        learn.fit(1)


def test_contract_fails_for_a_callback_that_leaves_its_hook():
    class Leaky(Callback):
        def before_fit(self, learn):
            learn.model.register_forward_hook(lambda m, i, o: None)

    model = nn.Sequential(net())
    new_learner(Leaky(), model).fit(1)
    assert len(hooked(model)) == 1
