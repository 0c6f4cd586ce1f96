"""Everything that the README shows is run here, and prints what it shows."""

import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
NUMBER = re.compile(r"-?\d+(\.\d+)?(e[+-]\d+)?")


def shape(text: str) -> list[str]:
    """The words of each line, with a mark for each number: digits differ from one machine to the next."""
    return [" ".join(NUMBER.sub("#", line).split()) for line in text.strip().splitlines()]


def test_readme_code_run_in_order_prints_what_is_shown():
    pytest.importorskip("sklearn")
    blocks = re.findall(r"```python\n(.*?)```\n```text\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == README.count("```python")
    namespace: dict[str, object] = {}
    for code, shown in blocks:
        printed = StringIO()
        with redirect_stdout(printed):
            exec(compile(code, "README.md", "exec"), namespace)
        assert shape(printed.getvalue()) == shape(shown)


def test_readme_first_code_stands_by_line_15():
    assert README[: README.index("```python")].count("\n") + 1 <= 15


def test_readme_has_the_two_commands_as_they_are():
    lines = README.splitlines()
    assert "    pip install -e '.[demo]' && python -m lsuvcb" in lines
    assert "    pip install -e '.[test]' && pytest" in lines


def test_readme_of_the_engine_names_every_room():
    engine = ROOT / "lsuvcb" / "engine"
    rooms = {path.name + "/" * path.is_dir() for path in engine.iterdir() if path.suffix == ".py" or path.is_dir()}
    told = re.findall(r"`([a-z]+(?:/|\.py))`", (engine / "README.md").read_text())
    assert sorted(told) == sorted(rooms - {"__init__.py", "__pycache__/"})


def test_readme_paths_exist():
    section = README[README.index("## Structure") :]
    for path in re.findall(r"`((?:engine|training|tests|nbs|lsuvcb)/[\w./]+|\.ci/run)`", section):
        assert (ROOT / path).exists() or (ROOT / "lsuvcb" / path).exists(), path
