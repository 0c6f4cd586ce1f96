"""`undisturbed` as a fixture, and the same random numbers for each test."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
import traces
import zoo_results


@pytest.fixture
def undisturbed():
    """See `traces.undisturbed`: a context manager around a call that must leave a model alone."""
    return traces.undisturbed


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the legacy global generator is the one that models and data sets use


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The table of the zoo: see test_zoo.py."""
    zoo = config.stash.get(zoo_results.KEY, {})
    if not zoo:
        return
    reasons = sum((left for _, left in zoo.values()), Counter())
    write = terminalreporter.write_line
    write(f"torchvision: {len(zoo)} models, {sum(scaled for scaled, _ in zoo.values())} weights at their target")
    for reason, count in reasons.most_common():
        write(f"{count:8d} left alone: {reason}")
