"""What two gloo processes do in test_survey_both_ways.py: survey a wrapped model on their half of the batch, then train."""

from __future__ import annotations

import gc
import os
import sys
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from two_ranks import WORLD, batch, net, wrapped

from lsuvcb import survey


def step(model: nn.Module, half: torch.Tensor) -> list[torch.Tensor]:
    """The gradients of one training step."""
    model(half).square().mean().backward()
    grads = [p.grad for p in model.parameters()]
    return [(g.full_tensor() if hasattr(g, "full_tensor") else g).clone() for g in grads]


def looked_at(kind: str, half: torch.Tensor) -> dict[str, Any]:
    model, untouched = wrapped(kind)[0], wrapped(kind)[0]
    # DDP as a trainer calls it: wrapped. What follows must be as if nobody had looked
    found = survey(model, half, forward=lambda model, x: model(x))
    left = sum(p.grad is not None for p in model.parameters())
    same = all(torch.equal(a, b) for a, b in zip(step(model, half), step(untouched, half), strict=True))
    return {"gradients": [row.gradient for row in found.layers], "left": left, "same step": same}


def one_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    torch.set_num_threads(1)
    half = batch().chunk(WORLD)[rank].contiguous()
    found = {kind: looked_at(kind, half) for kind in ("DDP", "FSDP2")}
    dist.barrier()
    torch.save(found, os.path.join(folder, f"{rank}.pt"))
    gc.collect()  # wrapped models hold the group: they go first
    dist.destroy_process_group()


__all__ = ["batch", "net"]

if __name__ == "__main__":
    mp.spawn(one_rank, (sys.argv[1],), nprocs=WORLD)
