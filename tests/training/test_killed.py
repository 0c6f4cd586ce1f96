"""kill -9 at random moments of a fit: what is resumed ends as what was never killed."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Callable
from pathlib import Path

import killed_run
import pytest
import torch

from lsuvcb import CheckpointWarning
from lsuvcb.training.saving import checkpoint, files

pytestmark = pytest.mark.slow
KILLS = 20


def start(folder: Path, out: Path) -> multiprocessing.Process:
    process = multiprocessing.get_context("forkserver").Process(target=killed_run.main, args=(str(folder), str(out)))
    process.start()
    return process


def wait_for(what: Callable[[], object], process: multiprocessing.Process) -> None:
    deadline = time.perf_counter() + 60
    while not what() and process.is_alive() and time.perf_counter() < deadline:
        time.sleep(1e-4)


def finish(folder: Path, out: Path) -> dict[str, object]:
    process = start(folder, out)
    process.join(120)
    assert process.exitcode == 0
    return torch.load(out, weights_only=True)


def test_run_killed_at_random_moments_ends_as_one_that_was_not(tmp_path):
    multiprocessing.get_context("forkserver").set_forkserver_preload(["torch._dynamo", "lsuvcb"])  # imported once
    whole = finish(tmp_path / "whole", tmp_path / "whole.pt")
    dice, epochs = random.Random(0), []
    for i in range(KILLS):
        folder, out = tmp_path / f"run{i}", tmp_path / f"run{i}.pt"
        process = start(folder, out)
        wait_for(lambda folder=folder: folder.exists(), process)  # the fit begins
        time.sleep(dice.uniform(0, 0.9) * whole["seconds"])
        if i % 4 == 0:  # in the middle of a write
            wait_for(lambda folder=folder: list(folder.glob(".*.half")), process)
        process.kill()  # SIGKILL: nothing is tidied up
        process.join()
        for path in checkpoint.checkpoints(folder):
            files.read(path)  # raises for a corrupt one
        epochs.append(len(checkpoint.checkpoints(folder)) and files.read(checkpoint.checkpoints(folder)[0])["epoch"])
        resumed = finish(folder, out)
        assert resumed["history"] == whole["history"]
        assert all(torch.equal(resumed["weights"][k], whole["weights"][k]) for k in whole["weights"])
    assert len(set(epochs)) > 3, f"the kills came at the same few moments: {epochs}"


def test_run_whose_newest_checkpoint_is_cut_goes_on_from_the_one_before(tmp_path):
    whole = finish(tmp_path / "run", tmp_path / "whole.pt")
    newest, threads = checkpoint.checkpoints(tmp_path / "run")[0], torch.get_num_threads()
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(CheckpointWarning, match="is damaged"):
        killed_run.main(str(tmp_path / "run"), str(tmp_path / "again.pt"))
    torch.set_num_threads(threads)
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    assert all(torch.equal(again["weights"][k], whole["weights"][k]) for k in whole["weights"])
