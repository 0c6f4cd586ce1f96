"""The notebooks run from a clean kernel, tell their story, and are committed as they ran: `pytest nbs`."""

from __future__ import annotations

from pathlib import Path

import pytest
from required import need_data, need_package

NBS = sorted(Path(__file__).parent.glob("*.ipynb"))

# What a notebook needs beside the library, and what must hold in its own names once it has run.
NEEDS = {
    "00_quickstart": ["digits"],
}
STORY = {
    "00_quickstart": [
        "found.layers[-1].std < 1e-6",
        "accuracy_without <= 0.2",
        "accuracy_with >= 0.8",
        "lsuv.report.converged and report.converged",
    ],
}

each = pytest.mark.parametrize("path", NBS, ids=lambda path: path.stem)


def read(path):
    return need_package("nbformat").read(path, as_version=4)


def run():
    need_package("nbs")
    import run

    return run


def unwanted(cells):
    """Errors and what went to stderr: warnings, too, which no reader should have to wonder about."""
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]


def test_every_notebook_has_its_story():
    assert {path.stem for path in NBS} == set(STORY) == set(NEEDS)


@each
def test_notebook_is_committed_with_the_outputs_of_its_own_code(path):
    notebook = read(path)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any(cell.outputs for cell in cells)
    assert not unwanted(cells)
    assert run().stamp_of(notebook) == run().code_of(notebook), f"stale: run `python nbs/run.py {path.stem}`"


@each
def test_notebook_runs_from_a_clean_kernel_and_tells_its_story(path, tmp_path):
    runner = run()
    for name in NEEDS[path.stem]:
        need_data(name) if name in ("mnist", "fashion_mnist") else need_package(name)
    from nbformat.v4 import new_code_cell

    notebook = read(path)
    claims = "\n".join(f"assert {claim}, {claim!r}" for claim in STORY[path.stem])
    notebook.cells.append(new_code_cell(claims))
    runner.execute(notebook, tmp_path)
    assert not unwanted(notebook.cells)


def test_stamp_changes_with_the_code_and_not_with_the_text():
    runner = run()
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

    def notebook(text, code):
        return new_notebook(cells=[new_markdown_cell(text), new_code_cell(code)])

    assert runner.code_of(notebook("a", "1")) == runner.code_of(notebook("b", "1"))
    assert runner.code_of(notebook("a", "1")) != runner.code_of(notebook("a", "2"))
