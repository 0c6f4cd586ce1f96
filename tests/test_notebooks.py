"""The notebooks run from a clean kernel, tell their story, and are committed as they ran."""

from pathlib import Path

import pytest
from required import need_package

NBS = sorted(Path(__file__).parents[1].glob("nbs/*.ipynb"))

# What must hold in a notebook's own names once it has run.
STORY = {
    "00_quickstart": [
        "found.layers[-1].std < 1e-6",
        "accuracy_without <= 0.2",
        "accuracy_with >= 0.8",
        "lsuv.report.converged and report.converged",
    ],
}


@pytest.fixture
def nbclient():
    return need_package("nbs")


def read(path):
    import nbformat  # which nbclient brings

    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("path", NBS, ids=lambda path: path.stem)
def test_notebook_is_committed_with_the_outputs_of_one_run_from_top_to_bottom(path, nbclient):
    cells = [cell for cell in read(path).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]


@pytest.mark.slow
@pytest.mark.parametrize("path", NBS, ids=lambda path: path.stem)
def test_notebook_runs_from_a_clean_kernel_and_tells_its_story(path, nbclient, tmp_path, monkeypatch):
    from nbformat.v4 import new_code_cell

    notebook = read(path)
    claims = "\n".join(f"assert {claim}, {claim!r}" for claim in STORY[path.stem])
    notebook.cells.append(new_code_cell(claims))
    monkeypatch.setenv("PYTHONPATH", str(path.parents[1]))
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    assert not [o for cell in notebook.cells for o in cell.get("outputs", []) if o.get("name") == "stderr"]
