"""Two processes train as one does on the same global batches; one prints; all end with equal weights."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import accelerated_run
import pytest
import torch
from programs import SUPPORT, environment, free_port
from required import need_package
from tiny import learner, line, loaders

from lsuvcb import AcceleratorCB, MixedPrecisionCB
from lsuvcb.training.accelerator import _accelerate

LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--nproc_per_node", "2", "--standalone"],
    # --cpu would start several processes by MPI; without a GPU the script's own cpu=True puts these on the CPU
    "accelerate launch": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
                          "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(free_port())],
}  # fmt: skip


@pytest.fixture(scope="module", params=LAUNCHERS)
def ranks(request, tmp_path_factory):
    need_package("accelerate")
    out = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", *LAUNCHERS[request.param], str(SUPPORT / "accelerated_run.py"), str(out)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    found = [torch.load(out / f"rank{i}.pt", weights_only=True) for i in (0, 1)]
    return [SimpleNamespace(**result) for result in found], out


@pytest.fixture(scope="module")
def alone():
    """One process on batches of the same size as those of both together."""
    return accelerated_run.fit(2 * accelerated_run.BATCH, [])


def test_two_processes_end_with_equal_weights(ranks):
    (one, two), _ = ranks
    assert one.world == two.world == 2
    for name, value in one.weights.items():
        assert torch.equal(value, two.weights[name]), name


def test_two_processes_train_as_one_does_on_the_same_global_batches(ranks, alone):
    (one, _), _ = ranks
    for name, value in alone.model.state_dict().items():
        torch.testing.assert_close(one.weights[name], value, rtol=1e-3, atol=1e-4)


def test_in_memory_loaders_give_each_process_its_share(ranks):
    (one, two), _ = ranks
    for name, value in one.weights.items():
        torch.testing.assert_close(one.in_memory[name], value)
        assert torch.equal(one.in_memory[name], two.in_memory[name])


def test_metrics_of_two_processes_are_those_of_one(ranks, alone):
    (one, two), _ = ranks
    assert one.history == two.history
    for row, expected in zip(one.history, alone.history, strict=True):
        assert row["accuracy"] == pytest.approx(expected["accuracy"], abs=1e-6)
        if row["train"] == "train":
            assert row["loss"] == pytest.approx(expected["loss"], rel=1e-4)
        else:  # the last batch is filled up with samples that count in the loss
            assert row["loss"] == pytest.approx(expected["loss"], rel=0.05)


def test_lsuv_takes_its_moments_over_both_processes(ranks, alone):
    (one, two), _ = ranks
    assert one.lsuv == two.lsuv == pytest.approx([1.0, 1.0], abs=1e-3)
    assert one.lsuv == pytest.approx([r.std_after for r in alone.cbs[1].report.layers], abs=1e-5)


def test_one_process_prints_and_writes(ranks):
    (one, two), out = ranks
    assert two.printed == ""
    assert one.printed.count("LSUV: 2 of 2 layers") == 2
    assert len(list((out / "checkpoints").iterdir())) == 3


def test_model_is_afterwards_as_it_was(ranks):
    (one, _), _ = ranks
    assert one.kind == "Sequential"
    assert one.left == []


def test_lr_find_of_two_processes_agrees(ranks):
    (one, two), _ = ranks
    assert one.found == two.found is not None


def test_one_process_under_the_callback_trains_as_without_it(capsys):
    need_package("accelerate")
    models = [line(0.0), line(0.0)]
    for model, cbs in zip(models, ([], [AcceleratorCB(cpu=True)]), strict=True):
        learner(cbs, loaders(train=3), model, lr=0.1).fit(2)
    assert torch.equal(models[0].weight, models[1].weight)


def test_bf16_by_accelerate_ends_with_the_fit():
    need_package("accelerate")
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)  # one process has one precision
    model, dtypes = line(0.5), []
    model.register_forward_hook(lambda m, i, o: dtypes.append(torch.is_autocast_enabled("cpu")))
    learn = learner([AcceleratorCB(mixed_precision="bf16", cpu=True)], model=model)
    learn.fit(1)
    assert "forward" not in vars(model)
    AcceleratorState._reset_state(True)


def test_two_kinds_of_mixed_precision_are_an_error():
    need_package("accelerate")
    with pytest.raises(ValueError, match=r'use AcceleratorCB\(mixed_precision="bf16"\) instead'):
        learner([AcceleratorCB(cpu=True), MixedPrecisionCB()]).fit(1)


def test_accelerator_and_arguments_for_one_are_an_error():
    with pytest.raises(ValueError, match="is made already; cpu would do nothing"):
        AcceleratorCB(object(), cpu=True)


def test_several_processes_without_a_loader_to_share_are_an_error():
    cb = AcceleratorCB(SimpleNamespace(num_processes=2))
    with pytest.raises(ValueError, match=r"share of `dls.train`, which takes a DataLoader or a TensorLoader, got list"):
        learner([cb]).fit(1)


def test_without_accelerate_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ImportError, match=r"pip install 'lsuvcb\[accelerate\]'"):
        _accelerate()
