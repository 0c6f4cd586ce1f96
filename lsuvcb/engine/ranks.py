"""Several processes: whose moments are summed, draws that are equal everywhere, parameters in shards (FSDP2)."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch.distributed as dist
from torch import Tensor, nn

from .select import all_modules


def group_of(model: nn.Module, group: dist.ProcessGroup | None) -> dist.ProcessGroup | None:
    """The process group over which moments are summed: the one given, or DDP's, or FSDP2's; None for one process alone.

    Without any of these nothing is communicated, so that one rank may run LSUV while the others do not.
    """
    if group is not None:
        return group
    if not dist.is_available() or not dist.is_initialized():
        return None
    for module in all_modules(model):
        if isinstance(module, nn.parallel.DistributedDataParallel):
            return module.process_group
    loaded = "torch.distributed.tensor" in sys.modules
    shards = next((p for p in model.parameters() if is_sharded(p)), None) if loaded else None
    if shards is None:
        return None
    mesh = shards.device_mesh  # type: ignore[attr-defined]
    return mesh.get_group() if mesh.ndim == 1 else dist.group.WORLD


def group_of_all(model: nn.Module, world_size: int) -> dist.ProcessGroup | None:
    """The group of a trainer that takes DDP off the model it hands out: the model's own, or all ranks where there are several."""
    return group_of(model, None) or (dist.group.WORLD if world_size > 1 else None)


def is_sharded(tensor: Tensor) -> bool:
    """Is it a DTensor? Looks only if that module was imported, which is slow."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """The part of a parameter that this rank holds, as memory that can be written; the tensor itself where it is whole."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def whole(tensor: Tensor) -> Tensor:
    """All values of a parameter, gathered from the ranks; the tensor itself where it is whole."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def shard_as(values: Tensor, parameter: Tensor) -> Tensor:
    """`values`, equal on all ranks, in the shards of `parameter`; as they are where it is whole."""
    if not is_sharded(parameter):
        return values
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(values, parameter.device_mesh, parameter.placements)  # type: ignore[attr-defined]


def fully_sharded(model: nn.Module) -> Iterator[nn.Module]:
    """The modules on which `fully_shard` was called."""
    module = sys.modules.get("torch.distributed.fsdp")
    if module is not None and dist.is_initialized():
        yield from (m for m in all_modules(model) if isinstance(m, module.FSDPModule))


def reshard(model: nn.Module) -> None:
    """Let go of the gathered parameters of a pass: they would outlive a change to the shards."""
    for module in fully_sharded(model):
        module.reshard()  # type: ignore[operator]


def agree(state: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The first rank's generator state, on every rank."""
    box = [state]
    dist.broadcast_object_list(box, src=dist.get_global_rank(group, 0), group=group)
    return box[0]
