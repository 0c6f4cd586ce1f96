"""Orthonormal and Kaiming initialisation, and the formulas behind them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def orthonormal_(tensor: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Fill `tensor`, flattened to (out, rest), with an orthonormal matrix W, in place: W W^T = I, or W^T W = I if out > rest.

    The Q of a QR decomposition of a Gaussian matrix, with the signs of R's diagonal taken in, is uniform over the
    orthonormal matrices (Saxe et al., 2014, arXiv:1312.6120; the first step of LSUV's Algorithm 1).

    Args:
        tensor: (out, ...), a real floating dtype; a 1-d tensor is one row.
        generator: draws the Gaussian on its own device; None: the global generator of the CPU, so that the same seed
            gives the same weights on every device.

    Returns:
        `tensor`. The decomposition runs in float32 or wider, on the tensor's device.

    Side effects:
        Fills `tensor`; advances the generator.

    Example:
        >>> w = orthonormal_(torch.empty(4, 2, 3, 3), torch.Generator().manual_seed(0)).flatten(1)
        >>> torch.allclose(w @ w.T, torch.eye(4), atol=1e-6)
        True
    """
    with torch.no_grad():
        return tensor.copy_(orthonormal_like(tensor, generator))


def orthonormal_like(tensor: Tensor, generator: torch.Generator | None = None, *, stacked: bool = False) -> Tensor:
    """A new tensor of the shape, dtype and device of `tensor`, filled as `orthonormal_` does.

    Args:
        stacked: (..., rows, columns) is a stack of matrices (bmm's experts), each orthonormal by itself.
    """
    if stacked:
        rows, columns = tensor.shape[-2:]
    else:
        rows = tensor.shape[0] if tensor.ndim > 1 else 1
        columns = tensor.numel() // rows
    wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    device = generator.device if generator is not None else torch.device("cpu")
    gauss = torch.randn(
        -(-tensor.numel() // (rows * columns)), rows, columns, generator=generator, dtype=wide, device=device
    )
    gauss = gauss.to(tensor.device)
    q, r = torch.linalg.qr(gauss.mT if rows < columns else gauss)
    q = q * torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).unsqueeze(-2)
    q = q.mT if rows < columns else q
    filled = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)  # whole, where `tensor` is a shard
    return filled.copy_(q.reshape(tensor.shape))


def gain(leak: float = 0.0) -> float:
    """sqrt(2 / (1 + leak^2)): what a (leaky) ReLU of that slope takes off the root mean square (He et al., 2015, eq. 15).

    >>> round(gain(0.1), 4), round(gain(1), 4)
    (1.4072, 1.0)
    """
    return math.sqrt(2.0 / (1 + leak**2))


def init_weights(module: nn.Module, leaky: float = 0.0) -> None:
    """Kaiming-normal weights for a 1-, 2- or 3-d conv, in place; other modules are left alone. For `model.apply`.

    Args:
        module: one module, as `nn.Module.apply` hands them over.
        leaky: the slope of the leaky ReLU that follows; 0 is a plain ReLU.

    Example:
        >>> _ = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU()).apply(init_weights)
    """
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        nn.init.kaiming_normal_(module.weight, a=leaky)
