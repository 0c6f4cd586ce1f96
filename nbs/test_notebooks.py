"""The notebooks run from a clean kernel, tell their story, and are committed as they ran: `pytest nbs`."""

from __future__ import annotations

from pathlib import Path

import pytest
from required import need_data, need_package

NBS = sorted(Path(__file__).parent.glob("*.ipynb"))

# What a notebook needs beside the library, and what must hold in its own names once it has run.
NEEDS = {
    "00_quickstart": ["digits"],
    "01_initialization": ["fashion_mnist"],
    "02_lsuv_callback_runner": ["mnist"],
    "03_kaiming": ["mnist"],
    "04_resnet18": ["fashion_mnist"],
    "05_loop_tour": ["digits"],
    "06_evidence": ["digits"],
    "07_other_trainers": ["digits", "fastai", "lightning", "tensorboard", "transformers"],
}
STORY = {
    "00_quickstart": [
        "found.layers[-1].std < 1e-6",
        "accuracy_without <= 0.2",
        "accuracy_with >= 0.8",
        "lsuv.report.converged and report.converged",
        "all(off <= 1e-3 and ours == 1 < theirs for _, _, theirs, ours, off in rows)",
    ],
    "01_initialization": [
        "products[1.0].isnan().all() and (products[0.01] == 0).all() and 0.1 < products[0.1].std() < 10",
        "abs(variance - 47.1875) < 1e-4 and abs(mad - 5.875) < 1e-6",
        "len(step1) == 5",  # a lottery: no bound
        "max(step6)[0] >= 0.845 - 0.03",  # on raw inputs a lottery, too: the best of its seeds
        "middle(step7)[0] >= 0.843 - 0.03",
        "step8[0] >= 0.866 - 0.03",
        "step9[0] >= 0.85",
        "step10[0] >= 0.868 - 0.03 and step11[0] >= 0.868 - 0.03",
        "step12[0] >= 0.884 - 0.03 and step12b[0] >= 0.89",
        "all(abs(mean) <= 1e-3 and abs(std - 1) <= 1e-3 for mean, std in after)",
        "closer <= 1e-4 and same and runs.calls > 20 * (report.passes - 2)",
    ],
    "02_lsuv_callback_runner": [
        "accuracy_with >= 0.95",
        "all(abs(s - 1) <= 1e-3 for s in (*loop_stds, *stds_after, *kaiming_stds))",
        "min(loop_means) > 0.01",  # the lesson's loop leaves them too high
        "all(abs(m) <= 1e-3 for m in (*means_after, *kaiming_means))",
        "report.converged and runs.calls > 5 * report.passes",
    ],
    "03_kaiming": [
        "(fan_in, fan_out) == (25, 800)",
        "[f'{gain(a):.8f}' for a in lesson_gains] == ['1.00000000', '1.41421356', '1.41414286', '1.40719509', '0.57735027']",
        "max(differences) == 0 and same_weights",
        "all(abs(off) < 3 for off in away.values())",  # within sampling error of the lesson's
        "by_depth[0][-1] < 0.05 < 0.5 < by_depth[1][-1]",
    ],
    "04_resnet18": [
        "(len(worked), len(no_bias), len(refusals)) == (21, 20, 2) and in_order",
        "all(abs(layer.std_after - 1) <= 1e-3 for layer in worked)",
        "registered != reported",
        "change < 0.01 * before.std()",  # batch normalisation takes the scales out again
        "accuracy_default <= 0.2 and accuracy_lsuv >= 0.5",
    ],
    "05_loop_tour": [
        "listen.heard[0] == 'before_fit' and listen.heard[-1] == 'cleanup_fit' and len(listen.heard) == 28",
        "same_bits",
        "resumed.history == whole.history",
        "fresh.history[-1]['accuracy'] >= 0.8 and scheduled.history[-1]['accuracy'] >= 0.9",
        "half.preds.dtype == torch.bfloat16",
    ],
    "06_evidence": [
        "len(results.rows) > 1500",
        "'worse' not in tables.cells(results, 'balanced').values()",
        "all(tables.not_finite(results, start) for start in tables.TRIED)",
        "tables.reached(results, 'relu', 'kaiming') < 50 <= tables.reached(results, 'relu', 'balanced')",
        "tables.reached(results, 'general_relu', 'balanced') < tables.reached(results, 'general_relu', 'delta, gain')",
        "tables.reached(results, 'relu', 'balanced', 'MLP') < tables.reached(results, 'relu', 'paper', 'MLP')",
        "0.1 < p < 0.5",  # a few seeds more or less are noise
        "sum(o.said == o.did for o in outcomes) >= 0.9 * len(outcomes)",
    ],
    "07_other_trainers": [
        "found.layers[-1].std < 1e-6",
        "len(accuracies) == 6",
        "all(value <= 0.3 for (_, which), value in accuracies.items() if which == 'without')",
        "all(value >= 0.85 for (_, which), value in accuracies.items() if which == 'with')",
        "[min(values) < 1.8 for _, values in curves.values()] == [False, True]",  # Lightning's search
        "learn.recorder.lsuv_figures['lsuv/layers_at_target'] == 19",
        "first['step'] == 0 and first['lsuv/std_before/net.36'] < 1e-6 and abs(first['lsuv/std_after/net.36'] - 1) <= 1e-3",
        "len(on_board) == 6 + 2 * 20",
        "entry['step'] == 0 and abs(entry['lsuv/std_after/net.36'] - 1) <= 1e-3",
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
