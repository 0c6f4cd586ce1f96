"""A long fit stays bounded: its memory, and on a GPU its waits for the device."""

from __future__ import annotations

import gc
from types import SimpleNamespace

import psutil
import pytest
import required
import torch
import torch.nn.functional as F
from torch import nn

from lsuvcb import ActivationStats, DeviceCB, MetricsCB, ProgressCB, RecorderCB, TrainLearner
from lsuvcb.training.events import Callback
from lsuvcb.training.metrics import MulticlassAccuracy


class Memory(Callback):
    """Resident bytes after some numbers of batches."""

    order = 99

    def __init__(self, *steps):
        self.steps, self.bytes, self.n = steps, {}, 0

    def after_batch(self, learn):
        self.n += 1
        if self.n in self.steps:
            gc.collect()
            self.bytes[self.n] = psutil.Process().memory_info().rss


@pytest.mark.slow
def test_ten_thousand_batches_hold_no_more_memory_than_one_thousand():
    net = nn.Sequential(nn.Linear(16, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    batch = torch.randn(64, 16), torch.randint(0, 10, (64,))
    memory = Memory(1_000, 10_000)
    cbs = [MetricsCB(accuracy=MulticlassAccuracy()), ActivationStats(nn.ReLU), RecorderCB(), memory]
    loader = SimpleNamespace(train=[batch] * 10_000)
    TrainLearner(net, loader, F.cross_entropy, lr=0.01, cbs=cbs).fit(1, valid=False)
    # 10,000 batches of these activations are 1.3 GB
    assert memory.bytes[10_000] <= 1.05 * memory.bytes[1_000], memory.bytes


def test_memory_callback_sees_what_is_held():
    memory, held = Memory(2, 4), []

    class Hoard(Callback):
        def after_batch(self, learn):
            held.append(torch.ones(12_500_000))  # 50 MB: too large for memory that the process has to spare

    batch = torch.randn(4, 3), torch.randn(4, 1)
    TrainLearner(nn.Linear(3, 1), SimpleNamespace(train=[batch] * 4), cbs=[memory, Hoard()]).fit(1, valid=False)
    assert memory.bytes[4] - memory.bytes[2] > 3e7


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
