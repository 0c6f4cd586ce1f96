"""`undisturbed` as a fixture, and the same random numbers for each test."""

import random

import numpy as np
import pytest
import torch
import traces


@pytest.fixture
def undisturbed():
    """See `traces.undisturbed`: a context manager around a call that must leave a model alone."""
    return traces.undisturbed


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the legacy global generator is the one that models and data sets use
