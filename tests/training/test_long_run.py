"""A long fit stays bounded: its memory, and on a GPU its waits for the device."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from no_gpu import Waits
from programs import SUPPORT, environment
from torch import nn

from lsuvcb import ActivationStats, DeviceCB, GradientClipCB, MetricsCB, ProgressCB, RecorderCB, TrainLearner
from lsuvcb.training.events import Callback
from lsuvcb.training.metrics import MulticlassAccuracy


def resident(*arguments: str) -> list[int]:
    """What long_run.py prints."""
    command = [sys.executable, str(SUPPORT / "long_run.py"), *arguments]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=500)
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


class WaitsOfEpochs(Callback):
    """Collects what the host would have waited for from each pass's first batch to its end, where its sums are read.

    torcheval resets a metric by copying zeros to the device, once a pass, before the first batch.
    """

    order = -99

    def __init__(self, waits):
        self.waits, self.found = waits, []

    def before_batch(self, learn):
        if learn.iter == 0:
            self.begun = len(self.waits.names)

    def after_epoch(self, learn):
        self.found.append(self.waits.names[self.begun :])


class ReadsTheLoss(Callback):
    def after_loss(self, learn):
        learn.loss.item()


def epochs_without_values(more: list[Callback]) -> list[list[str]]:
    """Two epochs on the device "meta", where a tensor has no values that could be read: the waits of each pass."""
    x, y = torch.randn(256, 16, device="meta"), torch.randint(0, 10, (256,), device="meta")
    train = [(x[i : i + 32], y[i : i + 32]) for i in range(0, 256, 32)]
    net = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
    with Waits() as waits:
        epochs, stats = WaitsOfEpochs(waits), ActivationStats(nn.ReLU)
        cbs = [
            DeviceCB("meta"),
            MetricsCB(accuracy=MulticlassAccuracy()),
            ProgressCB(),
            GradientClipCB(1.0),
            RecorderCB(lr=lambda cb: cb.pg["lr"]),
            stats,
            epochs,
        ]
        dls = SimpleNamespace(train=train, valid=train)
        TrainLearner(net, dls, F.cross_entropy, cbs=[*cbs, *more]).fit(2)
    assert len(stats.stats["2"].steps) == 16
    return epochs.found


def test_epoch_never_waits_for_a_gpu_between_its_reads(capsys):
    assert epochs_without_values([]) == [[], [], [], []]


def test_epoch_that_reads_each_loss_is_seen_to_wait(capsys):
    assert [len(waits) for waits in epochs_without_values([ReadsTheLoss()])] == [8, 8, 8, 8]


class NoWaiting(Callback):
    """Any wait of the host for the GPU raises from the first batch to after_epoch, the epoch's own read."""

    order = -99

    def before_batch(self, learn):
        torch.cuda.set_sync_debug_mode("error")

    def after_epoch(self, learn):
        torch.cuda.set_sync_debug_mode("default")

    cleanup_epoch = after_epoch


@pytest.mark.gpu
@pytest.mark.parametrize("where", ["device", "pinned"])
def test_gpu_epoch_waits_for_nothing_between_its_reads(where):
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
