"""What two gloo processes do in test_meta_start.py: nets built on the meta device, sharded, materialised, initialised."""

from __future__ import annotations

import gc
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from memory import changes, peak
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from lsuvcb import LSUVError, lsuv_

WORLD, WIDTH, DEPTH = 2, 192, 12
LAYER = WIDTH * WIDTH * 4  # bytes
OPTIONS: dict[str, dict[str, Any]] = {"kept": {"orthonormal": False}, "drawn": {"recipe": "paper"}}


def net() -> nn.Sequential:
    return nn.Sequential(*(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()) for _ in range(DEPTH)))


def samples() -> torch.Tensor:
    return torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(1))


def materialised(value: float | None) -> nn.Module:
    """Sharded, with PyTorch's own start, or with nothing but `value`, as memory that nobody has written to may hold it."""
    with torch.device("meta"):
        model = net()
    mesh = init_device_mesh("cpu", (WORLD,))
    for module in (*model, model):
        fully_shard(module, mesh=mesh)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.to_local().normal_(0, 0.05) if value is None else parameter.to_local().fill_(value)
    return model


def initialised(value: float | None, half: torch.Tensor, rank: int) -> dict[str, Any]:
    model = materialised(value)
    torch.manual_seed(3 + rank)  # the draws follow the first rank's generator
    report = lsuv_(model, half, recipe="paper")
    state = {name: v.full_tensor().clone() for name, v in model.state_dict().items() if isinstance(v, DTensor)}
    return {
        "state": state,
        "scales": [row.scale for row in report.layers],
        "status": {row.status for row in report.layers},
    }


def results(rank: int) -> dict[str, Any]:
    half, found = samples().chunk(WORLD)[rank].contiguous(), {}
    found["reset"] = initialised(None, half, rank)
    found["not reset"] = initialised(torch.nan, half, rank)
    model = materialised(None)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        found["forward"] = peak(lambda: model(half), Path(folder))
        for name, options in OPTIONS.items():
            found[name] = changes(lambda options=options: lsuv_(model, half, **options), Path(folder))
    try:
        lsuv_(materialised(torch.nan), half)
        found["garbage"] = "nothing raised"
    except LSUVError as error:
        found["garbage"] = str(error)
    return found


def one_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    torch.set_num_threads(1)
    found = results(rank)
    dist.barrier()
    torch.save(found, Path(folder) / f"{rank}.pt")
    gc.collect()  # sharded models hold the group: they go first
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(one_rank, (sys.argv[1],), nprocs=WORLD)
