"""What a notebook's session needs between two trainings: a seed, and memory given back."""

from __future__ import annotations

import gc
import random
import sys
import traceback
from types import TracebackType
from typing import Any

import torch


def set_seed(seed: int, deterministic: bool = False) -> None:
    """Seed torch (all devices), Python's `random` and numpy's global generator.

    Args:
        deterministic: make torch refuse ops whose result varies from run to run; False allows them again.
    """
    import numpy as np

    torch.use_deterministic_algorithms(deterministic)
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the legacy generator is the one that the lessons' augmentations use


def clean_ipython_hist() -> None:
    """Let go of the outputs that IPython keeps (`_`, `Out`, ...), tensors among them; without IPython do nothing."""
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is not None:
        if shell.displayhook.do_full_cache:  # else it keeps none, and says so by an error
            shell.displayhook.flush()
            for name in ("_", "__", "___"):  # flush empties them in `user_ns` alone
                if name in shell.user_ns_hidden:
                    shell.user_ns_hidden[name] = ""
        if shell.last_execution_result is not None:  # of the cell before this one
            shell.last_execution_result.result = None
        for name in ("_i", "_ii", "_iii", *(n for n in shell.user_ns if n.startswith("_i") and n[2:].isdigit())):
            shell.user_ns[name] = ""


def clean_tb() -> None:
    """Let go of the last traceback, whose frames hold on to every tensor that they saw."""
    for name in ("last_traceback", "last_value", "last_type", "last_exc"):
        last = getattr(sys, name, None)
        found = last.__traceback__ if isinstance(last, BaseException) else last
        if isinstance(found, TracebackType):
            traceback.clear_frames(found)
        if hasattr(sys, name):
            delattr(sys, name)


def clean_mem() -> None:
    """Give memory back: IPython's history, the last traceback, Python's garbage, the accelerator's cache."""
    clean_tb()
    clean_ipython_hist()
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache() if hasattr(torch.accelerator, "empty_cache") else torch.cuda.empty_cache()
