"""For all tests: pictures without a display, data and packages that may be missing (see required.py)."""

import gc

import matplotlib
import pytest
import required
import torch

matplotlib.use("Agg")


def pytest_configure() -> None:
    if unknown := required.unknown():
        raise pytest.UsageError(f"LSUVCB_REQUIRE has {sorted(unknown)}, which no test asks for")


@pytest.fixture
def digits_data() -> None:
    """The test needs scikit-learn's digits."""
    required.need_package("digits")


@pytest.fixture
def fashion_mnist_data() -> None:
    """The test needs Fashion-MNIST's files."""
    required.need_data("fashion_mnist")


@pytest.fixture
def mnist_data() -> None:
    """The test needs MNIST's files."""
    required.need_data("mnist")


@pytest.fixture(autouse=True)
def _gpu(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("gpu") and not torch.cuda.is_available():
        required.missing("gpu", "no CUDA device")


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch, tmp_path):
    """No data set is on this machine: $LSUVCB_DATA is not set, the cache is empty. The cache's folder."""
    monkeypatch.delenv("LSUVCB_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "lsuvcb"


def pytest_collection_finish() -> None:
    """What is imported by now stays: no collection of garbage (accelerate has one at each end of a fit) need walk through it."""
    gc.collect()
    gc.freeze()
