"""The programs beside this file: how a test starts one, and how it reads what each of two processes wrote."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import torch

SUPPORT = Path(__file__).parent


def environment() -> dict[str, str]:
    """For a process that imports the library and what lies beside this file; one thread, no GPU."""
    paths = os.pathsep.join(map(str, (SUPPORT, SUPPORT.parents[1])))
    return os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def free_port() -> int:
    """A port of this machine on which nobody listens."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def run(program: ModuleType, folder: Path, *launcher: str) -> tuple[list[dict[str, torch.Tensor]], str]:
    """What the two ranks saved as `<rank>.pt` in `folder`, and what they printed.

    Args:
        launcher: a module and its arguments that starts both; none where the program does so itself.
    """
    command = [sys.executable, "-W", "ignore", *launcher, str(program.__file__), str(folder)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)], done.stdout
