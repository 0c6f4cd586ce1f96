"""Runs a program in two processes on the CPU, and reads what each rank wrote."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import torch


def run(program: ModuleType, folder: Path, *launcher: str) -> tuple[list[dict[str, torch.Tensor]], str]:
    """What the ranks saved as `<rank>.pt` in `folder`, and what they printed.

    Args:
        launcher: a module and its arguments that starts both; none where the program does so itself.
    """
    path = Path(program.__file__)
    paths = os.pathsep.join(map(str, (path.parent, path.parents[1], path.parents[2])))
    env = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-W", "ignore", *launcher, str(path), str(folder)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)], done.stdout
