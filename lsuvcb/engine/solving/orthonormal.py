"""The first step: weights drawn orthonormal, as flat matrices or in the middle tap of a kernel."""

from __future__ import annotations

import torch
from torch import Tensor


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
    gauss = _gaussian(tensor, (-(-tensor.numel() // (rows * columns)), rows, columns), generator)
    filled = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)  # whole, where `tensor` is a shard
    return filled.copy_(_orthonormal_rows(gauss).reshape(tensor.shape))


def delta_orthogonal_(
    tensor: Tensor, *, groups: int = 1, transposed: bool = False, generator: torch.Generator | None = None
) -> Tensor:
    """Fill the kernel of a convolution, in place: an orthonormal matrix in its middle tap, zeros in all others.

    With stride 1 and as many channels in as out, such a layer passes each pixel on as an orthonormal matrix does a vector, at any
    depth (Xiao et al., 2018, arXiv:1806.05393, Algorithm 1).

    Args:
        tensor: (out, in / groups, kernel...), a real floating dtype; each kernel size odd.
        groups: of the convolution; each group has a matrix of its own.
        transposed: the kernel is a transposed convolution's, (in, out / groups, kernel...); its middle tap is filled alike.
        generator: see `orthonormal_`.

    Returns:
        `tensor`.

    Raises:
        ValueError: there is no kernel, a size is even, or the first dimension does not divide by `groups`.

    Side effects:
        Fills `tensor`; advances the generator.

    Example:
        >>> w = delta_orthogonal_(torch.empty(4, 4, 3, 3), generator=torch.Generator().manual_seed(0))
        >>> bool(torch.allclose(w[:, :, 1, 1] @ w[:, :, 1, 1].T, torch.eye(4), atol=1e-6)), int((w != 0).sum())
        (True, 16)
    """
    kernel = tuple(tensor.shape[2:])
    if not kernel or any(size % 2 == 0 for size in kernel):
        raise ValueError(
            f"`tensor` must be a kernel (out, in, sizes...) with odd sizes, got shape {tuple(tensor.shape)}."
        )
    if groups < 1 or tensor.shape[0] % groups:
        raise ValueError(f"`groups` must divide the first dimension, {tensor.shape[0]}, got {groups}.")
    with torch.no_grad():
        return tensor.copy_(delta_orthogonal_like(tensor, generator, groups=groups))


def delta_orthogonal_like(tensor: Tensor, generator: torch.Generator | None = None, *, groups: int = 1) -> Tensor:
    """A new tensor of the shape, dtype and device of `tensor`, filled as `delta_orthogonal_` does."""
    rows, columns = tensor.shape[0] // groups, tensor.shape[1]
    matrices = _orthonormal_rows(_gaussian(tensor, (groups, rows, columns), generator))
    filled = torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    taps = filled.flatten(2)
    taps[:, :, taps.shape[2] // 2] = matrices.reshape(tensor.shape[:2]).to(tensor.dtype)
    return filled


def _gaussian(tensor: Tensor, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Standard normal values on the device of `tensor`, drawn where the generator is, in float32 or wider."""
    wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    device = generator.device if generator is not None else torch.device("cpu")
    return torch.randn(*shape, generator=generator, dtype=wide, device=device).to(tensor.device)


def _orthonormal_rows(gauss: Tensor) -> Tensor:
    """The Q of a QR decomposition in which R has a positive diagonal: orthonormal rows, or columns where there are more rows.

    Where one side is twice the other or more, R is the Cholesky factor of the Gram matrix: the same Q up to rounding (such a
    Gaussian matrix is well conditioned), in less time.
    """
    wide = gauss if gauss.shape[-2] < gauss.shape[-1] else gauss.mT
    if wide.shape[-1] >= 2 * wide.shape[-2]:
        factor = torch.linalg.cholesky(wide @ wide.mT)
        q = torch.linalg.solve_triangular(factor, wide, upper=False)
    else:
        q, r = torch.linalg.qr(wide.mT)
        q = (q * torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).unsqueeze(-2)).mT
    return q if wide is gauss else q.mT
