"""The committed results of the evidence suite, and what the README says of them."""

import json
import pickle
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "tests" / "benchmarks"
README = (ROOT / "README.md").read_text()


@pytest.fixture
def study(monkeypatch, digits_data):
    """The suite's package, as the command imports it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import evidence
    from study import harm, nets, paper_table, results, starts, tables, tasks

    modules = {"harm": harm, "nets": nets, "results": results, "starts": starts, "tables": tables, "tasks": tasks}
    yield {"parts": evidence.PARTS, "paper": paper_table, **modules}
    for name in [name for name in sys.modules if name.partition(".")[0] in ("study", "evidence")]:
        del sys.modules[name]


def test_readme_shows_what_the_committed_results_say(study):
    results, tables = study["results"].known(), study["tables"]
    shown = re.findall(r"<!-- evidence: (\w+) -->\n(.*?)(?:\n\n|\Z)", README, re.DOTALL)
    assert [name for name, _ in shown] == ["frontier", "harm", "sentences"]
    for name, text in shown:
        assert text.split() == tables.ALL[name](results).split(), name


@pytest.mark.parametrize("name", ["starts", "MLP", "rates", "harm", "tried", "paper", "headline", "cost", "verdict"])
def test_notebook_shows_what_the_committed_results_say(study, name):
    cells = json.loads((ROOT / "nbs" / "06_evidence.ipynb").read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    shown = ["".join(output.get("data", {}).get("text/markdown", "")) for output in outputs]
    assert study["tables"].ALL[name](study["results"].known()) in shown


def test_committed_results_are_all_that_the_quick_form_asks_for(study):
    class Asked(study["results"].Recital):
        def of(self, job, run):
            asked.append(job)
            return super().of(job, run)

    asked, results = [], Asked(study["results"].Results(study["results"].QUICK))
    for part in study["parts"].values():
        for unit in part.units(True):
            part.run(results, *unit, quick=True)
    assert {str(sorted(job.items())) for job in asked} == {str(sorted(row["job"].items())) for row in results.rows}
    assert len({row["job"]["net"] for row in results.select(part="harm")} & set(study["harm"].NETS)) == 19


def test_survey_was_right_before_training_for_nine_nets_of_ten(study):
    found = study["tables"].outcomes(study["results"].known())
    assert len(found) >= 100
    assert sum(o.said == o.did for o in found) >= 0.9 * len(found)


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
    assert found.x.mean((0, 2, 3)).abs().max() < 1e-5  # the training images are centred, by their own mean


@pytest.mark.parametrize("kept", [0, 0.001, 0.02, 0.2, 0.6, 0.9])
def test_tables_of_a_run_that_was_cut_off_show_what_is_complete(study, tmp_path, kept):
    file = tmp_path / "cut.jsonl"
    lines = study["results"].QUICK.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[: round(kept * len(lines))]))
    cut, whole = (study["results"].Results(path) for path in (file, study["results"].QUICK))
    shown = {name: make(cut) for name, make in study["tables"].ALL.items()}
    for name in ("frontier", "harm"):
        full = {line.split("|")[1]: line.split("|") for line in study["tables"].ALL[name](whole).splitlines()[2:]}
        for line in shown[name].splitlines()[2:]:
            cells = line.split("|")
            assert all(cell in (" not run ", same) for cell, same in zip(cells, full[cells[1]], strict=True)), line
    assert kept < 0.9 or (shown["frontier"] and shown["harm"])


def test_job_that_two_workers_ran_counts_once(study, tmp_path):
    file, line = tmp_path / "twice.jsonl", '{"job": {"part": "x"}, "found": 1, "seconds": 0.1}\n'
    file.write_text(2 * line)
    assert len(study["results"].Results(file).rows) == 1


def test_start_that_changes_the_head_finds_it(study):
    torch.manual_seed(0)
    net = study["nets"].HandAttention()  # whose head was registered before other layers
    study["starts"].STARTS["the head zero"](net, torch.randn(64, 1, 8, 8))
    assert not net.out.weight.any()
    assert all(proj.weight.any() for proj in net.proj)


def test_start_of_one_line_fills_a_parametrized_weight(study):
    net = study["nets"].weight_normed()
    before = net[0].weight.detach().clone()
    study["starts"].STARTS["kaiming"](net, None)
    assert not torch.equal(net[0].weight, before)


@pytest.mark.parametrize(("activation", "gain"), [("relu", 2**0.5), ("tanh", 5 / 3), ("gelu", 2**0.5), ("selu", 3 / 4)])
def test_delta_start_with_gain_has_that_of_the_activation(study, activation, gain):
    net = study["nets"].plain_conv(3, activation)
    study["starts"].STARTS["delta, gain"](net, None)
    tap = net[2].weight[:, :, 1, 1]
    assert torch.allclose(tap @ tap.T, gain**2 * torch.eye(16), atol=1e-5)
    assert net[2].weight.count_nonzero() == tap.count_nonzero()


def test_first_points_of_the_picture_are_spread_over_it(study):
    at = study["tasks"].task("picture").x
    assert (at[:512].std(0) / at.std(0) - 1).abs().max() < 0.1


@pytest.mark.parametrize(("channels", "size"), [(1, 14), (3, 16)])
@pytest.mark.parametrize("net", ["FitNet-1", "FitNet-4", "FitResNet-4"])
def test_nets_of_the_papers_table_take_both_data_sets(study, net, channels, size):
    model = study["paper"].fitnet(net, "maxout", channels, width=0.5)
    assert model(torch.randn(2, channels, size, size)).shape == (2, 10)


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
