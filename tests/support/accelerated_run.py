"""A fit under AcceleratorCB, as torchrun and `accelerate launch` start it: see test_accelerator.py.

torchrun --nproc_per_node 2 accelerated_run.py OUT_FOLDER
"""

import contextlib
import io
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from lsuvcb import (
    AcceleratorCB,
    ActivationStats,
    CheckpointCB,
    DataLoaders,
    LSUVCallback,
    MetricsCB,
    ProgressCB,
    TrainLearner,
)
from lsuvcb.data import TensorLoader
from lsuvcb.training.metrics import MulticlassAccuracy

BATCH, N = 16, 256


def data(batch_size: int, in_memory: bool = False) -> DataLoaders:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(N + 88, 6, generator=g)
    y = (x[:, :3].argmax(1) + (x[:, 3] > 1)) % 3
    train, valid = (x[:N], y[:N]), (x[N:], y[N:])  # 88 do not divide by the batches of two processes
    if in_memory:
        return DataLoaders(TensorLoader(*train, bs=batch_size), TensorLoader(*valid, bs=batch_size))
    return DataLoaders(*(DataLoader(TensorDataset(*part), batch_size) for part in (train, valid)))


def model() -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))


def fit(batch_size: int, cbs: list, in_memory: bool = False) -> TrainLearner:
    own = [MetricsCB(accuracy=MulticlassAccuracy()), LSUVCallback(recipe="paper"), *cbs]
    learn = TrainLearner(model(), data(batch_size, in_memory), F.cross_entropy, lr=0.1, cbs=own)
    torch.manual_seed(7)
    learn.fit(3)
    return learn


def main(out: str) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        acc = AcceleratorCB(cpu=True)
        learn = fit(BATCH, [acc, ProgressCB(), ActivationStats(torch.nn.ReLU), CheckpointCB(Path(out) / "checkpoints")])
        found = learn.lr_find(max_epochs=2)
        again = fit(BATCH, [AcceleratorCB(acc.accelerator)], in_memory=True)
    rank = acc.accelerator.process_index
    result = {
        "weights": learn.model.state_dict(), "history": learn.history, "printed": printed.getvalue(), "found": found,
        "in_memory": again.model.state_dict(), "world": acc.accelerator.num_processes, "kind": type(learn.model).__name__,
        "lsuv": [r.std_after for r in learn.cbs[1].report.layers],
        "left": sorted(k for k in vars(learn.model) if "accelerate" in k or k in ("forward", "_original_forward")),
    }  # fmt: skip
    torch.save(result, Path(out) / f"rank{rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1])
