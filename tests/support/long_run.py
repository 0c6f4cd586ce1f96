"""A long fit in a process of its own, which has no memory to spare that could hide what it holds: see test_long_run.py.

python long_run.py BATCHES [hoard]          prints the resident bytes after a tenth of the batches and after all
"""

import gc
import json
import sys
from types import SimpleNamespace

import psutil
import torch
import torch.nn.functional as F
from torch import nn

from lsuvcb import ActivationStats, Callback, MetricsCB, RecorderCB, TrainLearner
from lsuvcb.training.metrics import MulticlassAccuracy


class Memory(Callback):
    """Resident bytes after some numbers of batches."""

    order = 99

    def __init__(self, *steps):
        self.steps, self.bytes, self.n = steps, [], 0

    def after_batch(self, learn):
        self.n += 1
        if self.n in self.steps:
            gc.collect()
            self.bytes.append(psutil.Process().memory_info().rss)


class Hoard(Callback):
    """Keeps 80 kB of each batch: what a leak looks like."""

    def __init__(self):
        self.held = []

    def after_batch(self, learn):
        self.held.append(torch.ones(20_000))


def main(batches, hoard):
    net = nn.Sequential(nn.Linear(16, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    batch = torch.randn(64, 16), torch.randint(0, 10, (64,))
    memory = Memory(batches // 10, batches)
    cbs = [MetricsCB(accuracy=MulticlassAccuracy()), ActivationStats(nn.ReLU), RecorderCB(), memory]
    dls = SimpleNamespace(train=[batch] * batches)
    TrainLearner(net, dls, F.cross_entropy, lr=0.01, cbs=cbs + [Hoard()] * hoard).fit(1, valid=False)
    print(json.dumps(memory.bytes))


if __name__ == "__main__":
    main(int(sys.argv[1]), "hoard" in sys.argv)
