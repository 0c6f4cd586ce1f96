"""Several processes: over which of them moments are summed, draws that are equal everywhere, tensors in shards (DTensor)."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch.distributed as dist
from torch import Tensor, nn

from .select import all_modules


class Ranks:
    """The processes over which moments are summed: those of one group, or of several in turn, such as a device mesh's dimensions.

    Where ranks hold the same values (replicas), each of them counts: mean and std are the same as if one did.

    Args:
        groups: each of them is joined by all of its members at the same place of a pass.
    """

    def __init__(self, groups: Iterable[dist.ProcessGroup]) -> None:
        self.groups = list({tuple(dist.get_process_group_ranks(group)): group for group in groups}.values())
        self.size = math.prod(map(dist.get_world_size, self.groups))

    @property
    def is_first(self) -> bool:
        """Is this the rank whose generator draws for all?"""
        return all(dist.get_rank(group) == 0 for group in self.groups)

    def sum_(self, values: Tensor) -> None:
        """Make of `values` the sum over all ranks, in place."""
        for group in self.groups:
            dist.all_reduce(values, group=group)

    def max_(self, values: Tensor) -> None:
        """Make of `values` the largest of any rank, in place."""
        for group in self.groups:
            dist.all_reduce(values, op=dist.ReduceOp.MAX, group=group)

    def agree(self, state: Tensor) -> Tensor:
        """The first rank's generator state, on every rank."""
        box = [state]
        for group in self.groups:
            dist.broadcast_object_list(box, src=dist.get_global_rank(group, 0), group=group)
        return box[0]


def ranks_of(model: nn.Module, group: dist.ProcessGroup | None = None) -> Ranks | None:
    """The ranks over which moments are summed: the group given, or DDP's; and those of the meshes that hold parameters in shards.

    Without any of these nothing is communicated, so that one rank may run LSUV while the others do not: None.
    """
    if not dist.is_available() or not dist.is_initialized():
        return None
    groups = [] if group is None else [group]
    if group is None:
        wrapped = (m for m in all_modules(model) if isinstance(m, nn.parallel.DistributedDataParallel))
        groups += [module.process_group for module in wrapped][:1]
    for parameter in model.parameters():
        if (layout := layout_of(parameter)) is not None:
            groups += layout.groups()
    return Ranks(groups) if groups else None


def group_of_all(model: nn.Module, world_size: int) -> dist.ProcessGroup | None:
    """The group for a trainer that takes DDP off the model it hands out: all ranks where there are several.

    None where the model itself tells: see `ranks_of`.
    """
    return None if world_size < 2 or ranks_of(model) is not None else dist.group.WORLD


class Layout(NamedTuple):
    """How the values of a DTensor, of so many dimensions, lie on the ranks."""

    mesh: Any
    placements: tuple[Any, ...]
    ndim: int

    def groups(self, dims: Iterable[int] | None = None) -> list[dist.ProcessGroup]:
        """One for each dimension of the mesh, or for each of `dims`."""
        return [self.mesh.get_group(dim) for dim in (range(self.mesh.ndim) if dims is None else dims)]

    def of_vector(self, spatial: int) -> Layout:
        """Of one value for each feature of a tensor that lies so, whose features stand ahead of so many dimensions."""
        from torch.distributed.tensor import Replicate, Shard

        features = self.ndim - 1 - spatial
        return Layout(self.mesh, tuple(Shard(0) if p.is_shard(features) else Replicate() for p in self.placements), 1)


def layout_of(tensor: object) -> Layout | None:
    """How it lies on the ranks; None where this one has all of it."""
    if not is_sharded(tensor):
        return None
    return Layout(tensor.device_mesh, tensor.placements, tensor.ndim)  # type: ignore[attr-defined]


def parts_of(tensor: Tensor) -> set[int]:
    """In how many parts the tensor, or its values at work, may lie; 1 where it is whole."""
    layout = layout_of(tensor)
    return {1} if layout is None else {1, *layout.mesh.shape}


_WHOLE = (Tensor, nn.Parameter)  # what most tensors are: no need to look further


def is_sharded(tensor: object) -> bool:
    """Is it a DTensor? Looks only if that module was imported, which is slow."""
    if type(tensor) in _WHOLE:
        return False
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this rank holds, always the same object; the tensor itself where it is whole."""
    return tensor._local_tensor if is_sharded(tensor) else tensor  # type: ignore[attr-defined]  # to_local() makes views


def whole(tensor: Tensor) -> Tensor:
    """All values of a tensor, gathered from the ranks; the tensor itself where it is whole."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def laid_out(values: Tensor, layout: Layout | None) -> Tensor:
    """`values`, in shards or equal on all ranks, as `layout` says; whole where that is None."""
    if layout is None:
        return whole(values)
    if layout_of(values) == layout:
        return values
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole(values), layout.mesh, layout.placements, src_data_rank=None)


def reduced(value: Any) -> Any:
    """A DTensor of which each rank holds a summand, summed up; anything else as it is."""
    if not is_sharded(value) or not any(p.is_partial() for p in value.placements):
        return value
    from torch.distributed.tensor import Replicate

    return value.redistribute(placements=[Replicate() if p.is_partial() else p for p in value.placements])


def on_shards(function: Callable[[Tensor], Any], like: Tensor) -> Callable[[Tensor], Any]:
    """`function` of a DTensor that lies as `like`, as a function of the part that a rank holds; itself for any other tensor."""
    if not is_sharded(like):
        return function
    from torch.distributed.tensor import DTensor

    shape, stride, part = like.shape, like.stride(), local(like).shape
    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]

    def of_part(values: Tensor) -> Any:
        sizes: dict[str, Any] = {"shape": shape, "stride": stride} if values.shape == part else {}
        result = function(DTensor.from_local(values, mesh, placements, run_check=False, **sizes))
        return local(reduced(result)) if isinstance(result, Tensor) else result

    return of_part


def fully_sharded(model: nn.Module) -> Iterator[nn.Module]:
    """The modules on which `fully_shard` was called."""
    module = sys.modules.get("torch.distributed.fsdp")
    if module is not None and dist.is_initialized():
        yield from (m for m in all_modules(model) if isinstance(m, module.FSDPModule))


def reshard(model: nn.Module) -> None:
    """Let go of the gathered parameters of a pass: they would outlive a change to the shards."""
    for module in fully_sharded(model):
        module.reshard()  # type: ignore[operator]
