"""A long fit stays bounded: its memory, and on a GPU its waits for the device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import required
import torch
import torch.nn.functional as F
from torch import nn

from lsuvcb import ActivationStats, DeviceCB, MetricsCB, ProgressCB, TrainLearner
from lsuvcb.training.events import Callback
from lsuvcb.training.metrics import MulticlassAccuracy


def resident(*arguments: str) -> list[int]:
    """What long_run.py prints."""
    folder = Path(__file__).parent
    env = os.environ | {"PYTHONPATH": str(folder.parents[1])}
    command = [sys.executable, str(folder / "long_run.py"), *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_ten_thousand_batches_hold_no_more_memory_than_one_thousand():
    first, last = resident("10000")
    assert last <= 1.05 * first, (first, last)


@pytest.mark.slow
def test_a_leak_of_80_kb_a_batch_would_be_seen():
    first, last = resident("1000", "hoard")
    assert last > 1.05 * first, (first, last)


class NoWaiting(Callback):
    """Any wait of the host for the GPU raises between before_epoch and after_epoch, the epoch's own read."""

    order = -99

    def before_epoch(self, learn):
        torch.cuda.set_sync_debug_mode("error")

    def after_epoch(self, learn):
        torch.cuda.set_sync_debug_mode("default")

    cleanup_epoch = after_epoch


@pytest.mark.gpu
@pytest.mark.parametrize("where", ["device", "pinned"])
def test_gpu_epoch_waits_for_nothing_between_its_reads(where):
    if not torch.cuda.is_available():
        required.missing("gpu", "no CUDA device")
    x, y = torch.randn(256, 16), torch.randint(0, 10, (256,))
    pairs = [(x[i : i + 32], y[i : i + 32]) for i in range(0, 256, 32)]
    train = [tuple(t.cuda() if where == "device" else t.pin_memory() for t in pair) for pair in pairs]
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 10))
    cbs = [
        DeviceCB("cuda"),
        MetricsCB(accuracy=MulticlassAccuracy()),
        ProgressCB(),
        ActivationStats(nn.ReLU),
        NoWaiting(),
    ]
    learn = TrainLearner(net, SimpleNamespace(train=train, valid=train), F.cross_entropy, cbs=cbs)
    learn.fit(2)
    assert len(learn.history) == 4
