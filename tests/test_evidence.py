"""The committed results of the evidence suite, and what the README says of them."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "tests" / "benchmarks"
QUICK = BENCHMARKS / "evidence" / "quick.jsonl"
README = (ROOT / "README.md").read_text()


@pytest.fixture
def study(monkeypatch, digits_data):
    """The suite's package, as the command imports it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from study import frontier, harm, results, tables, verdict

    yield {"frontier": frontier, "harm": harm, "results": results, "tables": tables, "verdict": verdict}
    for name in [name for name in sys.modules if name.partition(".")[0] == "study"]:
        del sys.modules[name]


def test_readme_shows_what_the_committed_results_say(study):
    results, tables = study["results"].Results(QUICK), study["tables"]
    shown = re.findall(r"<!-- evidence: (\w+) -->\n(.*?)(?:\n\n|\Z)", README, re.DOTALL)
    assert [name for name, _ in shown] == ["frontier", "harm", "sentences"]
    for name, text in shown:
        assert text.split() == tables.ALL[name](results).split(), name


def test_committed_results_are_whole(study):
    results = study["results"].Results(QUICK)
    harm, frontier = study["harm"], study["frontier"]
    cells = {(row["job"]["net"], row["job"]["optimiser"]) for row in results.select(part="harm")}
    assert cells == set(harm.units(quick=True))
    assert sum(net in harm.NETS for net, _ in cells) == 57
    for start in harm.STARTS:
        first = [row for row in results.select(part="harm", start=start) if row["job"]["seed"] < 100]
        assert len(first) == len(cells) * harm.SEEDS
    reached = {
        (row["job"]["kind"], row["job"]["activation"], row["job"]["start"]) for row in results.select(part="frontier")
    }
    assert reached == set(frontier.units(quick=True))


def test_survey_was_right_before_training_for_nine_nets_of_ten(study):
    found = study["tables"].outcomes(study["results"].Results(QUICK))
    assert len(found) >= 100
    assert sum(said == did for _, said, did, _ in found) >= 0.9 * len(found)


def test_default_call_harms_no_cell_and_reaches_the_depths(study):
    results, tables = study["results"].Results(QUICK), study["tables"]
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
