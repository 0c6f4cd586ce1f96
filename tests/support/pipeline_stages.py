"""What two gloo processes do in test_meta_start.py: a net in two pipeline stages, initialised one after the other, then run."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

from lsuvcb import lsuv_

SPLIT = 4  # where the second stage begins


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(m for _ in range(4) for m in (nn.Linear(16, 16), nn.Tanh())))


def samples() -> torch.Tensor:
    return torch.randn(64, 16, generator=torch.Generator().manual_seed(1))


def one_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.set_num_threads(1)
    own, x = net()[:SPLIT] if rank == 0 else net()[SPLIT:], samples()
    # each stage reads what the one before it gives when it is initialised
    if rank > 0:
        dist.recv(x, src=rank - 1)
    lsuv_(own, x, std=0.5, orthonormal=False)
    if rank == 0:
        with torch.no_grad():
            dist.send(own(x), dst=rank + 1)
    schedule = ScheduleGPipe(PipelineStage(own, rank, 2, torch.device("cpu")), n_microbatches=4)
    with torch.no_grad():
        output = schedule.step(samples()) if rank == 0 else schedule.step()
    torch.save({"state": own.state_dict(), "output": output}, Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(one_rank, (sys.argv[1],), nprocs=2)
