"""What gloo processes do in test_tensor_parallel.py: LSUV on nets whose layers are shared out, and what it held and left.

Two share each layer; of four, two pairs have other samples (FSDP2 over tensor parallel).
"""

from __future__ import annotations

import gc
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from memory import changes
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from lsuvcb import LSUVError, lsuv_, survey

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from large_model import Decoder, spread

VARIANTS: dict[str, dict[str, Any]] = {
    "balanced": {},
    "paper": {"recipe": "paper"},
    "kept weights": {"orthonormal": False, "mean": 0.1},
}
BEHIND: dict[str, Any] = {"measure": "activation", "orthonormal": False, "std": 0.3}
WHOLE = 128 * 128 * 4  # bytes of a layer of `wide`


class Case(NamedTuple):
    make: Callable[[], nn.Module]
    share: Callable[[nn.Module, DeviceMesh], nn.Module]
    batch: Callable[[], torch.Tensor]


def samples(width: int = 16) -> torch.Tensor:
    return torch.randn(64, width, generator=torch.Generator().manual_seed(1)) * torch.linspace(0.5, 2, 64)[:, None]


def tokens() -> torch.Tensor:
    return torch.randint(32, (8, 16), generator=torch.Generator().manual_seed(1))


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    sizes, acts = (16, 32, 16, 32, 16, 8), (nn.ReLU, nn.GELU, nn.Tanh, nn.ReLU, nn.Identity)
    return nn.Sequential(*(m for i, act in enumerate(acts) for m in (nn.Linear(sizes[i], sizes[i + 1]), act())))


def mlp_on_purpose() -> nn.Sequential:
    """A bias that was set, a layer of zeros, and one whose first half, which the first rank holds, is zero."""
    net = mlp()
    with torch.no_grad():
        net[0].bias.fill_(3)
        net[2].bias.copy_(torch.linspace(-3, 4, 16))
        net[4].weight[:16] = 0
        net[6].weight.zero_()
    return net


def twice() -> nn.Sequential:
    """Two layers that are used twice."""
    torch.manual_seed(0)
    up, down = nn.Linear(16, 32), nn.Linear(32, 16)
    return nn.Sequential(up, nn.ReLU(), down, nn.ReLU(), up, nn.Tanh(), down, nn.ReLU(), nn.Linear(16, 8))


def wide() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(m for _ in range(7) for m in (nn.Linear(128, 128), nn.ReLU())))


def decoder() -> Decoder:
    torch.manual_seed(0)
    return Decoder(32, 16, 2, 4)


def in_turn(model: nn.Module, mesh: DeviceMesh, **output: Any) -> nn.Module:
    """Of each two layers, the first by columns and the second by rows; the last one gathers what it gives."""
    *places, last = [name for name, module in model.named_children() if isinstance(module, nn.Linear)]
    styles = [RowwiseParallel(**output) if i % 2 else ColwiseParallel(**output) for i in range(len(places))]
    plan = {**dict(zip(places, styles, strict=True)), last: ColwiseParallel(output_layouts=Replicate())}
    return parallelize_module(model, mesh, plan)


def gathered(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Every layer by columns, and every output gathered."""
    names = [name for name, module in model.named_children() if isinstance(module, nn.Linear)]
    return parallelize_module(model, mesh, {name: ColwiseParallel(output_layouts=Replicate()) for name in names})


def by_heads(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    for block in model.blocks:
        columns = dict.fromkeys(("query", "key", "value", "gate", "up"), ColwiseParallel())
        parallelize_module(block, mesh, {**columns, "out": RowwiseParallel(), "down": RowwiseParallel()})
    return model


def by_sequence(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """The norms and the stream are shared out by positions, the layers by columns and rows."""
    for block in model.blocks:
        inward = dict.fromkeys(("query", "key", "value", "gate", "up"), ColwiseParallel(input_layouts=Shard(1)))
        outward = dict.fromkeys(("out", "down"), RowwiseParallel(output_layouts=Shard(1)))
        norms = dict.fromkeys(("attention_norm", "mlp_norm"), SequenceParallel(use_local_output=True))
        parallelize_module(block, mesh, {**inward, **outward, **norms})
    ends = {
        "embedding": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
        "norm": SequenceParallel(),
        "head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
    }
    return parallelize_module(model, mesh, ends)


def by_sequence_and_data(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    by_sequence(model, mesh["tensor"])
    for module in (*model.blocks, model):
        fully_shard(module, mesh=mesh["data"])
    return model


CASES = {
    "columns and rows": Case(mlp, in_turn, samples),
    "outputs that stay DTensors": Case(
        mlp, lambda model, mesh: in_turn(model, mesh, use_local_output=False), samples
    ),
    "gathered outputs": Case(mlp, gathered, samples),
    "values set on purpose": Case(mlp_on_purpose, in_turn, samples),
    "used twice": Case(twice, in_turn, samples),
    "decoder": Case(decoder, by_heads, tokens),
    "decoder, sequence parallel": Case(decoder, by_sequence, tokens),
}  # fmt: skip
THOROUGH = ("columns and rows", "decoder, sequence parallel")  # in every variant
ON_FOUR = {
    "decoder": Case(decoder, spread, tokens),
    "decoder, sequence parallel": Case(decoder, by_sequence_and_data, tokens),
}  # fmt: skip


def rows_of(report: Any, names: str) -> list[tuple[Any, ...]]:
    return [tuple(getattr(row, name) for name in names.split()) for row in report.layers]


def initialised(model: nn.Module, batch: torch.Tensor, seed: int, **options: Any) -> dict[str, Any]:
    """What became of the model, whole."""
    torch.manual_seed(seed)
    report = lsuv_(model, batch, **options)
    state = {n: (v.full_tensor() if isinstance(v, DTensor) else v).clone() for n, v in model.state_dict().items()}
    return {"rows": rows_of(report, "name status reason scale shift"), "state": state, "passes": report.passes}


def looked_at(model: nn.Module, batch: torch.Tensor) -> list[tuple[Any, ...]]:
    return rows_of(survey(model, batch), "name std mean signal balance gradient")


def held(mesh: DeviceMesh, options: dict[str, Any]) -> list[int]:
    """Bytes that were taken and given back in a call on `wide`."""
    model = in_turn(wide(), mesh)
    with tempfile.TemporaryDirectory() as folder:
        return changes(lambda: lsuv_(model, samples(128)[:8], **options), Path(folder))


def refused(mesh: DeviceMesh, rank: int) -> tuple[str, bool]:
    """The error for a head of which the second rank's shard holds a NaN, and whether all shards are as before."""
    model = in_turn(mlp(), mesh)
    with torch.no_grad():
        model[8].weight.to_local()[0, 0] = 1.0 if rank == 0 else torch.nan
    before = [p.to_local().clone() for p in model.parameters()]
    try:
        lsuv_(model, samples(), verify=False)
    except LSUVError as error:
        after = [p.to_local() for p in model.parameters()]
        return str(error), all(a.equal(b) or a.isnan().any() for a, b in zip(after, before, strict=True))
    return "nothing raised", False


def of_two(rank: int) -> dict[str, Any]:
    mesh, found = init_device_mesh("cpu", (2,)), {}
    own = DTensor.redistribute
    for name, (make, share, batch) in CASES.items():
        for variant in VARIANTS if name in THOROUGH else ("balanced",):
            # the draws follow the first rank's generator
            options = VARIANTS[variant]
            found[name, variant] = initialised(share(make(), mesh), batch(), 3 + 14 * rank, **options)
        found[name, "survey"] = looked_at(share(make(), mesh), batch())
    found["behind"] = initialised(in_turn(mlp(), mesh), samples(), 3, **BEHIND)
    found["held, kept"] = held(mesh, {"orthonormal": False})
    found["held, drawn"] = held(mesh, {"recipe": "paper"})
    found["refused"] = refused(mesh, rank)
    found["redistribute is torch's own"] = DTensor.redistribute is own
    return found


def of_four(rank: int) -> dict[str, Any]:
    mesh, found = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor")), {}
    for name, (make, share, batch) in ON_FOUR.items():
        half = batch().chunk(2)[mesh["data"].get_local_rank()]
        found[name, "balanced"] = initialised(share(make(), mesh), half, 3 + 14 * rank)
    return found


def one_rank(rank: int, world: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    torch.set_num_threads(1)
    found = of_two(rank) if world == 2 else of_four(rank)
    dist.barrier()
    torch.save(found, Path(folder) / f"{rank}.pt")
    gc.collect()  # sharded models hold the group: they go first
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(one_rank, (int(sys.argv[1]), sys.argv[2]), nprocs=int(sys.argv[1]))
