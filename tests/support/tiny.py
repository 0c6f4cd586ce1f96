"""Small learners whose every number can be worked out by hand, and a callback that writes down what happens."""

import random
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from lsuvcb.training.callbacks import TrainCB
from lsuvcb.training.events import EVENTS, STEPS, Callback
from lsuvcb.training.learner import Learner


def batches(n=2, size=4):
    """n equal batches: inputs and targets all one."""
    return [(torch.ones(size, 1), torch.ones(size, 1)) for _ in range(n)]


def loaders(train=2, valid=1):
    return SimpleNamespace(train=batches(train), valid=batches(valid))


def line(weight=0.0):
    """y = weight * x. With inputs and targets of one its mse is (weight - 1)^2."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, weight)
    return model


def net(seed=0, n_in=5, n_out=2):
    """A net with dropout and batch norm, whose training draws random numbers and fills buffers."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(n_in, 8),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Dropout(0.25),
        nn.Linear(8, 8),
        nn.ReLU(),
        nn.Linear(8, n_out),
    )


def learner(cbs=(), dls=None, model=None, **kw):
    return Learner(line() if model is None else model, dls or loaders(), cbs=[TrainCB(), *cbs], **kw)


def seed_all(seed):
    """Every global generator; numpy's legacy one is the one that augmentations draw from."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)


def noise():
    """A number drawn from all of them."""
    return np.random.rand() + random.random() + torch.rand(()).item()  # noqa: NPY002


def recorder(order=0, also=None):
    """A callback that appends (event, mode) to its `seen`; `also(event, learn)` may raise."""
    seen = []

    def method(event):
        def act(self, learn):
            seen.append(event)
            if also is not None:
                also(event, learn)

        return act

    cls = type("Recorder", (Callback,), {event: method(event) for event in EVENTS} | {"order": order})
    cb = cls()
    cb.seen = seen
    return cb


__all__ = ["EVENTS", "STEPS", "batches", "learner", "line", "loaders", "net", "noise", "recorder", "seed_all"]
