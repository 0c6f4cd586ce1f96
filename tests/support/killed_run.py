"""A fit of a few seconds that writes checkpoints and goes on from them, as a process of its own: see test_killed.py.

python killed_run.py FOLDER OUT
"""

import sys
import time
from functools import partial

import torch
from tiny import net, seed_all
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

from lsuvcb import BatchSchedCB, CheckpointCB, DataLoaders, LSUVCallback, MetricsCB, TrainLearner
from lsuvcb.training.events import Callback

EPOCHS, BATCHES = 12, 12


class Slow(Callback):
    """Each batch takes a while, so that a kill may come at any moment of an epoch, of a write too."""

    def after_batch(self, learn):
        x = torch.ones(200, 200)
        for _ in range(20):
            x = x @ x / 200


def main(folder: str, out: str) -> None:
    torch.set_num_threads(1)
    seed_all(0)
    x = torch.randn(8 * BATCHES, 5)
    data = TensorDataset(x, x[:, :2].abs())
    generator = torch.Generator().manual_seed(1)
    dls = DataLoaders(DataLoader(data, 8, shuffle=True, generator=generator), DataLoader(data, 48))
    schedule = BatchSchedCB(partial(lr_scheduler.OneCycleLR, max_lr=0.02, total_steps=EPOCHS * BATCHES))
    cbs = [LSUVCallback(), MetricsCB(), schedule, Slow(), CheckpointCB(folder)]
    learn = TrainLearner(net(), dls, lr=0.02, cbs=cbs, opt_func=torch.optim.AdamW)
    began = time.perf_counter()
    learn.fit(EPOCHS, resume=folder)
    seconds = time.perf_counter() - began
    torch.save({"weights": learn.model.state_dict(), "history": learn.history, "seconds": seconds}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
