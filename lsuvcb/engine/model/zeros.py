"""What the values of weights and biases tell before any pass, read from each device a few times for the whole model."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..ranks import Ranks, is_sharded, layout_of, local, whole
from ..tensors import starts_alive
from .weight import Vector, Weight

_LONGEST = 1 << 14  # values of a vector that is looked at as a bias


@torch.no_grad()
def look_at_values(weights: Iterable[Weight]) -> None:
    """Fill in `zero` of each weight, and `vector` of those that may be a bias."""
    weights = list(weights)
    _look_at_vectors([w for w in weights if _may_be_bias(w.tensor)])
    unsure = [w for w in weights if not (w.vector is not None and w.vector.square > 0) and not starts_alive(w.tensor)]
    candidates = [w for w in unsure if w.tensor.numel() and _is_plain(w.tensor)]
    for probe in (_begins_alive, _is_alive):
        found: dict[int, bool] = {}
        for device in {w.tensor.device for w in candidates}:
            here = [w for w in candidates if w.tensor.device == device]
            flags = [probe(local(w.home.values())) for w in here]
            found.update(zip(map(id, here), torch.stack(flags).tolist(), strict=True))
        _share(candidates, found)
        candidates = [w for w in candidates if not found[id(w)]]
    for weight in candidates:
        weight.zero = True


def _share(weights: list[Weight], found: dict[int, bool]) -> None:
    """What any rank found of its part of a weight in shards, on all of them."""
    spread: dict[Any, list[Weight]] = {}
    for weight in weights:
        if (layout := layout_of(weight.tensor)) is not None:
            spread.setdefault(layout.mesh, []).append(weight)
    for here in spread.values():
        flags = torch.tensor([float(found[id(w)]) for w in here], device=here[0].tensor.device)
        if (layout := layout_of(here[0].tensor)) is not None:
            Ranks(layout.groups()).max_(flags)
        found.update(zip(map(id, here), map(bool, flags.tolist()), strict=True))


def _look_at_vectors(weights: list[Weight]) -> None:
    alike: dict[Any, list[Weight]] = {}
    for weight in weights:
        alike.setdefault((weight.tensor.shape, weight.tensor.dtype, weight.tensor.device), []).append(weight)
    rows: dict[torch.device, list[Tensor]] = {}
    order: dict[torch.device, list[Weight]] = {}
    for (_, _, device), group in alike.items():
        values = torch.stack([whole(w.tensor) for w in group]).flatten(1)
        low, high = values.aminmax(dim=1)
        found = torch.stack([values.square().mean(1), torch.maximum(-low, high), (low == high).to(values.dtype)], 1)
        rows.setdefault(device, []).append(found.float())
        order.setdefault(device, []).extend(group)
    for device, parts in rows.items():
        for weight, (square, largest, equal) in zip(order[device], torch.cat(parts).tolist(), strict=True):
            weight.vector = Vector(square if square > 1e-30 else math.nan, largest, bool(equal))


def _begins_alive(values: Tensor) -> Tensor:
    return values.reshape(-1)[:64].any()


def _is_alive(values: Tensor) -> Tensor:
    return values.count_nonzero() > 0


def _may_be_bias(tensor: Tensor) -> bool:
    flat = tensor.ndim > 0 and max(tensor.shape) == tensor.numel()  # (1, channels, 1, 1) counts
    plain = flat and (type(tensor) is nn.Parameter or is_sharded(tensor)) and tensor.layout == torch.strided
    return plain and tensor.is_floating_point() and tensor.element_size() > 1 and 0 < tensor.numel() <= _LONGEST


def _is_plain(tensor: Tensor) -> bool:
    """Dense, real, floating, of two bytes at least: what can be zero on purpose, and can be asked."""
    return tensor.layout == torch.strided and tensor.is_floating_point() and tensor.element_size() > 1
