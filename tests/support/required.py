"""What a test may need beside the library, and what becomes of it where that is missing.

It is skipped, with the reason; but where `LSUVCB_REQUIRE` (a list of names with commas between) has the name of what is
missing, it fails: CI says what must be there, and no test can hide.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import pytest

DATA = {"fashion_mnist": "FashionMNIST", "mnist": "MNIST"}
PACKAGES = {
    "accelerate": "accelerate",
    "build": "build",
    "composer": "composer",
    "datasets": "datasets",
    "diffusers": "diffusers",
    "digits": "sklearn",
    "e3nn": "e3nn",
    "fastai": "fastai",
    "ignite": "ignite",
    "keras": "keras",
    "lightning": "lightning",
    "nbformat": "nbformat",
    "nbs": "nbclient",
    "open_clip": "open_clip",
    "optuna": "optuna",
    "peft": "peft",
    "pytorch_forecasting": "pytorch_forecasting",
    "segmentation_models_pytorch": "segmentation_models_pytorch",
    "skorch": "skorch",
    "tensorboard": "tensorboard",
    "timm": "timm",
    "torch_geometric": "torch_geometric",
    "torchmetrics": "torchmetrics",
    "torchrl": "torchrl",
    "transformers": "transformers",
    "twine": "twine",
}


def required() -> set[str]:
    """The names in `LSUVCB_REQUIRE`."""
    return {name.strip() for name in os.environ.get("LSUVCB_REQUIRE", "").split(",")} - {""}


def unknown() -> set[str]:
    """Those that no test asks for: a name misspelt would require nothing."""
    return required() - {*DATA, *PACKAGES, "gpu"}


def missing(name: str, reason: str) -> NoReturn:
    """Skips the test, or fails it where `name` is required."""
    if name in required():
        pytest.fail(f"{reason}, but LSUVCB_REQUIRE has {name!r}", pytrace=False)
    pytest.skip(reason, allow_module_level=True)


def need_data(name: str) -> None:
    """The files of "fashion_mnist" or "mnist" in $LSUVCB_DATA; without them no test downloads any."""
    root = os.environ.get("LSUVCB_DATA")
    if not root:
        missing(name, f"{name} needs LSUVCB_DATA, which is not set")
    folder = Path(root, DATA[name], "raw")
    if not folder.is_dir():
        missing(name, f"{name} needs the folder {folder}, which does not exist")


def need_package(name: str) -> ModuleType:
    """The package of this name in PACKAGES, imported."""
    try:
        return importlib.import_module(PACKAGES[name])
    except ModuleNotFoundError as error:
        if error.name != PACKAGES[name]:
            raise  # it is there and broken
        missing(name, f"{name} needs the package {PACKAGES[name]}, which is not installed")
