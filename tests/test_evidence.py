"""The committed results of the evidence suite, and what the README says of them."""

import pickle
import re
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "tests" / "benchmarks"
README = (ROOT / "README.md").read_text()


@pytest.fixture
def study(monkeypatch, digits_data):
    """The suite's package, as the command imports it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import evidence
    from study import harm, paper_table, results, tables

    yield {"parts": evidence.PARTS, "harm": harm, "paper": paper_table, "results": results, "tables": tables}
    for name in [name for name in sys.modules if name.partition(".")[0] in ("study", "evidence")]:
        del sys.modules[name]


def test_readme_shows_what_the_committed_results_say(study):
    results, tables = study["results"].known(), study["tables"]
    shown = re.findall(r"<!-- evidence: (\w+) -->\n(.*?)(?:\n\n|\Z)", README, re.DOTALL)
    assert [name for name, _ in shown] == ["frontier", "harm", "sentences"]
    for name, text in shown:
        assert text.split() == tables.ALL[name](results).split(), name


def test_committed_results_are_all_that_the_quick_form_asks_for(study):
    class Recited(study["results"].Results):
        """Results that run nothing: what is not known of is an error."""

        def of(self, job, run):
            asked.append(job)
            return super().of(job, lambda: pytest.fail(f"not in the committed results: {job}"))

    asked, results = [], Recited(study["results"].QUICK)
    for part in study["parts"].values():
        for unit in part.units(True):
            part.run(results, *unit, quick=True)
    assert {str(sorted(job.items())) for job in asked} == {str(sorted(row["job"].items())) for row in results.rows}
    assert len({row["job"]["net"] for row in results.select(part="harm")} & set(study["harm"].NETS)) == 19


def test_survey_was_right_before_training_for_nine_nets_of_ten(study):
    found = study["tables"].outcomes(study["results"].known())
    assert len(found) >= 100
    assert sum(said == did for _, said, did, _ in found) >= 0.9 * len(found)


def test_default_call_harms_no_cell_and_reaches_the_depths(study):
    results, tables = study["results"].known(), study["tables"]
    assert "worse" not in tables.cells(results, "balanced").values()
    depths = [tables.reached(results, activation, "balanced") for activation in ("relu", "tanh", "gelu")]
    assert all(found >= wanted for found, wanted in zip(depths, (50, 100, 50), strict=True))


def test_result_that_is_known_is_not_run_again(study, tmp_path):
    file, runs = tmp_path / "some.jsonl", []
    for _ in range(2):  # the second time from the file
        results = study["results"].Results(file)
        assert results.of({"part": "x", "seed": 1}, lambda: runs.append("one") or 0.5) == 0.5
        assert results.of({"seed": 2, "part": "x"}, lambda: runs.append("two")) is None
    assert runs == ["one", "two"]
    assert [row["found"] for row in results.select(seed=2)] == [None]


def test_paper_table_reads_cifar_10_where_it_is(study, tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        images = generator.integers(0, 255, (4, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": images, "labels": [0, 1, 2, 3]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)  # the sums of the real files
    monkeypatch.setenv("LSUVCB_DATA", str(tmp_path))
    found = study["paper"].images(16, 3, "CIFAR-10")
    assert found.x.shape == (16, 3, 16, 16)
    assert found.valid_x.shape == (3, 3, 16, 16)
    assert found.y.tolist() == [0, 1, 2, 3] * 4
    assert found.x.std().item() == pytest.approx(1)
    assert found.x.mean((0, 2, 3)).abs().max() < 1e-5


def test_file_of_ones_own_knows_nothing_of_the_committed_results(study, tmp_path):
    results = study["results"]
    assert not results.known(tmp_path / "own.jsonl").rows
    committed = {str(row["job"]) for path in (results.QUICK, results.WHOLE) for row in results.Results(path).rows}
    assert {str(row["job"]) for row in results.known().rows} == committed


@pytest.mark.slow
def test_results_are_gone_on_with_and_not_run_again(study, tmp_path):
    harm, file = study["harm"], tmp_path / "some.jsonl"
    harm.run(study["results"].Results(file), "logistic regression", "SGD", quick=True)
    lines = file.read_text().splitlines()
    assert len(lines) >= len(harm.STARTS) * harm.SEEDS
    harm.run(study["results"].Results(file), "logistic regression", "SGD", quick=True)
    assert file.read_text().splitlines() == lines


@pytest.mark.parametrize(
    ("ours", "theirs", "says"),
    [
        ([0.9, 0.9], [0.5, 0.5], "better"),
        ([0.5, 0.5], [0.9, 0.9], "worse"),
        ([0.51, 0.51], [0.5, 0.5], "equal"),  # within the margin
        ([0.9, 0.1], [0.4, 0.4], "equal"),  # within two standard errors
        ([None, None], [0.3, 0.3], "worse"),  # a loss that is no number counts as 0
    ],
)
def test_cell_is_judged_beyond_the_margin_and_two_standard_errors(study, ours, theirs, says):
    assert study["harm"].compare(ours, theirs) == says
