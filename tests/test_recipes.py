"""Each recipe of docs/recipes.md runs as it stands on the page, initialises its net and trains it."""

import contextlib
import re
from io import StringIO
from pathlib import Path

import pytest
import torch
from required import need_package

PAGE = (Path(__file__).parent.parent / "docs" / "recipes.md").read_text()
BEGINNING, *PARTS = re.split(r"^## (.*)\n", PAGE, flags=re.MULTILINE)
RECIPES = dict(zip(PARTS[::2], PARTS[1::2], strict=True))
# What each needs, as LSUVCB_REQUIRE calls it.
NEEDS = {
    "A plain loop": "digits",
    "Accelerate": "accelerate",
    "Lightning Fabric": "lightning",
    "skorch": "skorch",
    "Ignite": "ignite",
    "Composer": "composer",
    "Keras 3": "keras",
}

pytestmark = [
    pytest.mark.usefixtures("digits_data"),
    # composer says so of the last batch of an epoch, which is shorter
    pytest.mark.filterwarnings("ignore:Cannot split tensor of length:UserWarning"),
]


@pytest.fixture(autouse=True)
def _clean(monkeypatch, tmp_path):
    """Nothing is left in the user's folders, in the environment, or in Accelerate's state, of which a process has one."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    yield
    with contextlib.suppress(ImportError):
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(True)


def code_of(text: str) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return code


def run(recipe: str, **replaced: object) -> dict[str, object]:
    """The names that the page's beginning and one recipe leave, and what was printed, as `printed`."""
    names: dict[str, object] = {"__name__": "recipe"}
    exec(compile(code_of(BEGINNING), "docs/recipes.md", "exec"), names)
    names.update(replaced)
    printed = StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code_of(RECIPES[recipe]), f"docs/recipes.md, {recipe}", "exec"), names)
    return {**names, "printed": printed.getvalue()}


def accuracy(names) -> float:
    with torch.no_grad():
        outputs = names["net"].eval()(names["x_valid"])
    return (outputs.argmax(1) == names["y_valid"]).float().mean().item()


def test_recipes_are_all_tested():
    assert set(RECIPES) == set(NEEDS)


@pytest.mark.parametrize(
    "recipe", [pytest.param(name, marks=[pytest.mark.slow] * (name != "A plain loop")) for name in NEEDS]
)
def test_recipe_run_from_the_page_initialises_the_net_and_trains_it(recipe):
    need_package(NEEDS[recipe])
    names = run(recipe)
    report = names["report"]
    assert report.summary().startswith("LSUV: 19 of 19 layers at std 1; ")
    assert report.summary() in names["printed"]
    assert accuracy(names) > 0.8


def test_recipe_without_its_line_leaves_the_net_at_chance():
    assert accuracy(run("A plain loop", lsuv_=lambda *args: None)) < 0.2
