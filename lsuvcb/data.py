"""Loaders that a Learner takes, and three sets of small images to try things on.

The sets are in memory, on one device, and cut into batches there: reading 60,000 images one by one through a transform
costs as much as two epochs of training a small net.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .idx import read_images
from .loaders import DataLoaders, TensorLoader, collate_dict, inplace

__all__ = ["DataLoaders", "TensorLoader", "collate_dict", "digits", "fashion_mnist", "inplace", "mnist"]

Pair = tuple[Tensor, Tensor]


def digits(
    bs: int = 64,
    *,
    normalize: bool = True,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
    drop_last: bool = False,
) -> DataLoaders:
    """scikit-learn's 1,797 handwritten digits, (n, 1, 8, 8): on disk with scikit-learn, no download.

    1,437 of them, always the same ones, are there to train on, 360 to validate on. The arguments are `mnist`'s.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError("`digits()` reads its images from scikit-learn: pip install 'lsuvcb[demo]'") from None
    bunch = load_digits()
    images, labels = torch.from_numpy(bunch.images).float() / 16, torch.from_numpy(bunch.target).long()
    # The set is sorted by writer: mixed once, with a seed of its own, so that both parts have all writers.
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, labels = images[order].unsqueeze(1), labels[order]
    train, valid = (images[:1437], labels[:1437]), (images[1437:], labels[1437:])
    return _loaders(train, valid, bs, normalize, device, generator, drop_last)


def mnist(
    bs: int = 1024,
    *,
    split: int | None = None,
    normalize: bool = True,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
    drop_last: bool = False,
    download: bool = True,
) -> DataLoaders:
    """MNIST's handwritten digits, (n, 1, 28, 28): 60,000 to train on, the 10,000 test images to validate on.

    The files are looked for as `MNIST/raw/*-ubyte` or `*-ubyte.gz` in `$LSUVCB_DATA`, then in the user's cache
    folder, and then downloaded into that by torchvision.

    Args:
        bs: images in a training batch; validation batches have twice as many, since no gradients are kept for them.
        split: train on the first `split` training images and validate on the rest of them, as the fast.ai course of
            2019 does with `split=50_000`; the test images are then not used. None: validate on the test images.
        normalize: subtract the training images' mean and divide by their std, one number each over all pixels;
            False leaves pixels in [0, 1].
        device: where the images are kept and batches cut. None: the accelerator if there is one, else the CPU.
        generator: draws the training order. None: the global one.
        drop_last: leave out the last training batch if it is short.
        download: False never touches the network.

    Returns:
        DataLoaders of TensorLoaders: batches (images, labels), float32 (bs, 1, 28, 28) and int64 (bs,).

    Raises:
        FileNotFoundError: the files are in no folder and could not be downloaded.
        OSError: a file is corrupt.
        ValueError: `split` leaves one of the two parts empty.
    """
    return _idx_loaders("MNIST", bs, split, normalize, device, generator, drop_last, download)


def fashion_mnist(
    bs: int = 1024,
    *,
    split: int | None = None,
    normalize: bool = True,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
    drop_last: bool = False,
    download: bool = True,
) -> DataLoaders:
    """Fashion-MNIST's pictures of clothes, (n, 1, 28, 28): 60,000 to train on, the 10,000 test images to validate on.

    The files are looked for as `FashionMNIST/raw/*-ubyte` or `*-ubyte.gz` in `$LSUVCB_DATA`, then in the user's cache
    folder, and then downloaded into that by torchvision.

    Args:
        bs, split, normalize, device, generator, drop_last, download: as for `mnist`.

    Returns:
        DataLoaders of TensorLoaders: batches (images, labels), float32 (bs, 1, 28, 28) and int64 (bs,).

    Raises:
        FileNotFoundError: the files are in no folder and could not be downloaded.
        OSError: a file is corrupt.
        ValueError: `split` leaves one of the two parts empty.
    """
    return _idx_loaders("FashionMNIST", bs, split, normalize, device, generator, drop_last, download)


def _idx_loaders(
    name: str, bs: int, split: int | None, normalize: bool, device: Any, generator: Any, drop_last: bool, download: bool
) -> DataLoaders:
    sets = {k: (images.unsqueeze(1), labels) for k, (images, labels) in read_images(name, download=download).items()}
    train, valid = sets["train"], sets["test"]
    if split is not None:
        images, labels = train
        if not 0 < split < len(images):
            raise ValueError(f"`split` must be > 0 and < {len(images)}, the number of training images, got {split}.")
        train, valid = (images[:split], labels[:split]), (images[split:], labels[split:])
    train, valid = ((images / 255, labels) for images, labels in (train, valid))
    return _loaders(train, valid, bs, normalize, device, generator, drop_last)


def _loaders(
    train: Pair, valid: Pair, bs: int, normalize: bool, device: Any, generator: Any, drop_last: bool
) -> DataLoaders:
    if device is None:
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    if normalize:
        std, mean = torch.std_mean(train[0], correction=0)
        for images, _ in (train, valid):
            images.sub_(mean).div_(std)
    return DataLoaders(
        TensorLoader(*train, bs=bs, shuffle=True, drop_last=drop_last, generator=generator, device=device),
        TensorLoader(*valid, bs=2 * bs, device=device),
    )
