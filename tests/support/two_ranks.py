"""What two gloo processes do in test_ranks.py: each runs LSUV on its half of the batch and writes down what it got."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from paper import lsuv_
from torch import nn

from lsuvcb import LSUVError

WORLD = 2
VARIANTS: dict[str, dict[str, Any]] = {
    "kept weights": {"orthonormal": False},
    "orthonormal": {},
    "behind the activation": {"measure": "activation", "mean": 0.2, "orthonormal": False},
}
MODELS = ("group", "DDP", "FSDP2")


def batch() -> torch.Tensor:
    """Samples of a scale that grows, so that the halves have stds of their own."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(64, 16, generator=generator) * torch.linspace(0.5, 2, 64)[:, None]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 8))


def wrapped(kind: str) -> tuple[nn.Module, dict[str, Any]]:
    model = net()
    if kind == "group":
        return model, {"group": dist.group.WORLD}
    if kind == "DDP":
        return nn.parallel.DistributedDataParallel(model), {}
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (WORLD,))
    for layer in (model[0], model[2], model[4]):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh), {}


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    state = {name.removeprefix("module."): value for name, value in model.state_dict().items()}
    return {name: (v.full_tensor() if hasattr(v, "full_tensor") else v).detach().clone() for name, v in state.items()}


def one_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    torch.set_num_threads(1)
    found = results(rank)
    dist.barrier()
    torch.save(found, os.path.join(folder, f"{rank}.pt"))
    gc.collect()  # wrapped models hold the group: they go first
    dist.destroy_process_group()


def results(rank: int) -> dict[Any, Any]:
    half, found = batch().chunk(WORLD)[rank].contiguous(), {}
    for variant, options in VARIANTS.items():
        for kind in MODELS:
            model, group = wrapped(kind)
            torch.manual_seed(3 if rank == 0 else 17)  # the draws follow the first rank's generator
            rng = torch.get_rng_state()
            report = lsuv_(model, half, **group, **options)
            moved = not torch.equal(rng, torch.get_rng_state())
            with torch.no_grad():  # a stale copy of FSDP2's gathered weights would show here
                output = model(half)
            found[variant, kind] = {
                "state": state_of(model), "converged": report.converged, "moved": moved, "output": output,
                "grads": [p.grad for p in model.parameters()],
            }  # fmt: skip
    found["nan"] = refused(net(), half * float("nan") if rank == 1 else half)
    torch.manual_seed(0)
    found["other experts"] = refused(Routed(lambda x: torch.full((len(x),), rank), skip=True), half)
    found["fewer experts"] = refused(Routed(lambda x: torch.arange(len(x)) % (3 + rank), skip=True), half)
    idle = Routed(lambda x: torch.arange(len(x)) % 2 + rank, skip=False)  # 0 and 1, 1 and 2; none to the fourth
    found["idle"] = [(row.status, row.reason) for row in lsuv_(idle, half, group=dist.group.WORLD).layers]
    found["unfed"] = [unfed(half * 0), unfed(half * (1 - rank)), unfed(half[:0] if rank else half * 0)]
    if rank == 0:  # no other rank takes part: without a group this must not wait for it
        found["alone"] = lsuv_(net(), half).converged
    return found


class Routed(nn.Module):
    """Four experts; each sample goes to the one that `of` says. Without `skip`, those that get none run on nothing."""

    def __init__(self, of: Callable[[torch.Tensor], torch.Tensor], skip: bool):
        super().__init__()
        self.experts, self.of, self.skip = nn.ModuleList(nn.Linear(16, 16) for _ in range(4)), of, skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        to, y = self.of(x), torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            rows = (to == i).nonzero()[:, 0]
            if len(rows) or not self.skip:
                y = y.index_add(0, rows, expert(x[rows]))
        return y


def unfed(batch: torch.Tensor) -> tuple[str, torch.Tensor]:
    """What becomes of a layer whose input may be all zero, on this rank or on both: why it is left alone, and its weight."""
    torch.manual_seed(0)
    model = nn.Linear(16, 16)
    report = lsuv_(model, batch, group=dist.group.WORLD, orthonormal=False, verify=False)
    return report.layers[0].reason, model.weight.detach()


def refused(model: nn.Module, half: torch.Tensor) -> tuple[str, bool]:
    """The error that `lsuv_` raises on this rank, and whether all weights are as before."""
    before = state_of(model)
    try:
        lsuv_(model, half, group=dist.group.WORLD)
        return "nothing raised", False
    except LSUVError as error:
        after = state_of(model)
        return str(error), all(torch.equal(before[name], after[name]) for name in before)


if __name__ == "__main__":
    mp.spawn(one_rank, (sys.argv[1],), nprocs=WORLD)
