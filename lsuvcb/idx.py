"""The idx files of MNIST and its kin: find them, fetch them, read them, and say clearly what is wrong with them."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

# Kind of split -> the start of its two file names, as every publisher of these sets has them.
_PREFIX = {"train": "train", "test": "t10k"}
_FILES = [f"{prefix}-{what}-ubyte" for prefix in _PREFIX.values() for what in ("images-idx3", "labels-idx1")]


def cache_folder() -> Path:
    """Where downloads are kept: `$XDG_CACHE_HOME/lsuvcb`, or `~/.cache/lsuvcb`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lsuvcb"


def read_idx(path: str | Path) -> Tensor:
    """Reads one idx file of bytes, plain or gzipped, as a uint8 tensor.

    The format: two zero bytes, the type (8: unsigned byte), the number of dimensions, each dimension as a big-endian
    int32, then the values in C order.

    Raises:
        OSError: the file is not what it should be; the message names the file, what was wrong, and what to do.
    """
    path = Path(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            raw = bytearray(file.read())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _corrupt(path, f"it cannot be read ({type(error).__name__}: {error})") from None
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise _corrupt(path, f"it must begin with the bytes 00 00 08, got {raw[:3].hex(' ') or 'nothing'}")
    start = 4 + 4 * raw[3]
    if len(raw) < start:
        raise _corrupt(path, f"its header must have {start} bytes, got {len(raw)}")
    shape = struct.unpack(f">{raw[3]}i", raw[4:start])
    if min(shape, default=0) < 0 or len(raw) - start != math.prod(shape):
        raise _corrupt(path, f"its header promises {list(shape)} values of one byte, got {len(raw) - start} bytes")
    if len(raw) == start:
        return torch.empty(shape, dtype=torch.uint8)
    return torch.frombuffer(raw, dtype=torch.uint8, offset=start).view(shape)


def read_images(name: str, *, download: bool = True) -> dict[str, tuple[Tensor, Tensor]]:
    """Reads a set of 28x28 images by its torchvision class name: "MNIST" or "FashionMNIST".

    Looks for `NAME/raw/*-ubyte` and `*-ubyte.gz` in `$LSUVCB_DATA`, then in the cache, then downloads into the cache.

    Returns:
        {"train": (images, labels), "test": (images, labels)}: uint8 (n, 28, 28), int64 (n,).

    Raises:
        FileNotFoundError: no folder has all four files, and they could not be downloaded.
        OSError: a file is truncated, is no idx file, or does not fit the others.
    """
    files = _find(name, download)
    return {
        split: _read_split(files[f"{p}-images-idx3-ubyte"], files[f"{p}-labels-idx1-ubyte"])
        for split, p in _PREFIX.items()
    }


def _read_split(image_file: Path, label_file: Path) -> tuple[Tensor, Tensor]:
    images, labels = read_idx(image_file), read_idx(label_file)
    if images.dim() != 3 or images.shape[1:] != (28, 28) or not len(images):
        raise _corrupt(image_file, f"images must have the shape (n, 28, 28) with n > 0, got {tuple(images.shape)}")
    if labels.shape != images.shape[:1]:
        raise _corrupt(
            label_file, f"labels must have the shape ({len(images)},), as the images do, got {tuple(labels.shape)}"
        )
    if labels.max() > 9:
        raise _corrupt(label_file, f"labels must be 0 to 9, got {int(labels.max())}")
    return images, labels.long()


def _look(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """The files of a set that `folder` has, by name, and the names of those that it lacks. Plain ones come first."""
    paths = {name: next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None) for name in _FILES}
    return {name: path for name, path in paths.items() if path}, [name for name, path in paths.items() if not path]


def _find(name: str, download: bool) -> dict[str, Path]:
    roots = [Path(root) for root in (os.environ.get("LSUVCB_DATA"), cache_folder()) if root]
    folders = [root / name / "raw" for root in roots]
    for folder in folders:
        found, lacking = _look(folder)
        if not lacking:
            return found
    failure = _download(name, roots[-1]) if download else "not tried (download=False)"
    found, lacking = _look(folders[-1])
    if not lacking:
        return found
    looked = "; ".join(f"{folder} lacks {', '.join(_look(folder)[1])}" for folder in folders)
    raise FileNotFoundError(
        f"{name} must be in $LSUVCB_DATA or in the cache as four idx files, plain or .gz; {looked}. "
        f"Download: {failure}. Put the four files into FOLDER/{name}/raw and set LSUVCB_DATA=FOLDER, or run `python -c "
        f"\"import torchvision; torchvision.datasets.{name}('{roots[-1]}', download=True)\"` where there is a network."
    )


def _download(name: str, root: Path) -> str:
    """Lets torchvision download into `root`; says how it went."""
    from torchvision import datasets

    try:
        getattr(datasets, name)(str(root), download=True)
    except Exception as error:  # a failing network, disk or mirror shows in many types
        return f"failed ({type(error).__name__}: {' '.join(str(error).split())})"
    return "finished"


def _corrupt(path: Path, what: str) -> OSError:
    return OSError(
        f"{path.name} in {path.parent} is no valid idx file: {what}. It may be the rest of a broken download: "
        "delete it and run again, or point LSUVCB_DATA at a folder with good files."
    )
