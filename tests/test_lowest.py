"""`.ci/lowest`: the versions that it would install are the lowest that pyproject.toml names."""

import tomllib
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def lowest():
    """The program, as a module."""
    loader = SourceFileLoader("lowest", str(ROOT / ".ci" / "lowest"))
    module = module_from_spec(spec_from_loader("lowest", loader))
    loader.exec_module(module)
    return module


PROJECT = {
    "name": "house",
    "dependencies": ["torch>=2.6", "fastcore>=1.7"],
    "optional-dependencies": {
        "demo": ["scikit-learn>=1.3"],
        "test": ["house[demo,fast]", "pytest>=8"],
        "fast": ["numba >= 0.60.1", "fastcore>=1.10", "torch>=2.5.1"],
        "open": ["requests"],
        "capped": ["requests>=2,<3"],
    },
}


def test_lowest_pins_the_core_and_the_extra_with_those_that_it_names(lowest):
    assert lowest.pins(PROJECT, "demo") == ["torch==2.6", "fastcore==1.7", "scikit-learn==1.3"]
    pins = ["torch==2.6", "fastcore==1.10", "scikit-learn==1.3", "numba==0.60.1", "pytest==8"]
    assert lowest.pins(PROJECT, "test") == pins


@pytest.mark.parametrize(("extra", "requirement"), [("open", "requests"), ("capped", "requests>=2,<3")])
def test_lowest_refuses_a_requirement_without_a_plain_lower_bound(lowest, extra, requirement):
    with pytest.raises(ValueError, match=f"must be `name>=lowest`, got '{requirement}'"):
        lowest.pins(PROJECT, extra)


def test_lowest_has_a_pin_for_everything_that_this_project_needs(lowest):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core = {requirement.partition(">=")[0] for requirement in project["dependencies"]}
    for extra in lowest.COMMANDS:
        pins = dict(pin.split("==") for pin in lowest.pins(project, extra))
        assert core <= pins.keys()
        assert f"torch>={pins['torch']}" in project["dependencies"]
