"""What each of two processes does in test_fastai_features.py: a fit without the callback and one with it, and what they saw."""

from __future__ import annotations

import random
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from required import need_package
from torch import nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # at import, fastai's own deprecations
    need_package("fastai")
    import fastai.distributed
    from fastai.callback.core import Callback
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    from fastai.learner import Learner

    from lsuvcb.integrations.fastai import LSUVCallback


class Rows:
    """Rows of a scale that grows, so that two halves have stds of their own."""

    def __init__(self) -> None:
        self.x = torch.randn(64, 16, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.5, 2, 64)[:, None]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[i], torch.zeros(())


class Seen(Callback):
    """The batches of training."""

    def __init__(self) -> None:
        self.xs: list[torch.Tensor] = []

    def after_batch(self) -> None:
        if self.training:
            self.xs.append(self.xb[0].clone())


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))


def indices_of_rank_0(self, indices, rank):
    """DistributedDL._broadcast without its `.cuda()`, which NCCL wants and gloo does not."""
    indices = torch.tensor(indices)
    dist.broadcast(indices, rank)
    return indices.tolist()


def fitted(*cbs: Callback) -> tuple[nn.Module, list[torch.Tensor]]:
    """The model and the batches of two epochs on both ranks, at a learning rate of 0."""
    random.seed(3)
    loaders = [DataLoader(Rows(), bs=16, shuffle=shuffle, num_workers=0) for shuffle in (True, False)]
    seen = Seen()
    learn = Learner(
        DataLoaders(*loaders, device=torch.device("cpu")),
        net(),
        lambda y, _: y.square().mean(),
        lr=0.0,
        cbs=[*cbs, seen],
    )
    with learn.distrib_ctx(sync_bn=False, cpu=True), learn.no_bar(), learn.no_logging():
        learn.fit(2)
    return learn.model, seen.xs


if __name__ == "__main__":
    fastai.distributed.DistributedDL._broadcast = indices_of_rank_0
    _, plain = fitted()
    model, seen = fitted(LSUVCallback(recipe="paper", orthonormal=False))
    found = {"weights": model.state_dict(), "seen": torch.stack(seen), "plain": torch.stack(plain)}
    torch.save(found, Path(sys.argv[1]) / f"{dist.get_rank()}.pt")
