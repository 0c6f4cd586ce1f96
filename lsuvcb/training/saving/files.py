"""Files that are whole or not there, and are read back without running code."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import torch

from ...engine.errors import LSUVWarning


class CheckpointError(RuntimeError):
    """A file that is no whole checkpoint, or one of another model. Nothing was changed."""


class CheckpointWarning(LSUVWarning):
    """A damaged checkpoint was left aside for the one before it, or a part of one found no taker."""


def write(path: str | Path, state: dict[str, Any]) -> None:
    """Write `state` so that `path` holds either all of it or what it held before, whatever stops the process."""
    path = Path(path)
    half = path.with_name(f".{path.name}.{os.getpid()}.half")
    try:
        with half.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(half, path)
    finally:
        half.unlink(missing_ok=True)
    if os.name == "posix":  # the new name is on the disk, too
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read(path: str | Path) -> dict[str, Any]:
    """What `write` wrote, or a plain state_dict; on the CPU. Tensors and plain values only: no code of the file runs.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is damaged, or holds more than plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}; `learn.save(path)` and CheckpointCB write one.")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # compares each part with its checksum
        if damaged is not None:
            raise CheckpointError(f"{path} is damaged: {damaged} does not fit its checksum.")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{path} is damaged ({error}): the rest of a write that was cut off?") from None
    except Exception as error:  # torch.load raises many types for what it cannot or will not read
        if isinstance(error, (CheckpointError, OSError)):
            raise
        raise CheckpointError(f"{path} cannot be read as plain values: {type(error).__name__}: {error}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} must hold a dict of weights, got {type(state).__name__}.")
    return state if isinstance(state.get("model"), dict) else {"model": state}
