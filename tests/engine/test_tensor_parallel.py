"""Nets whose layers are shared out over gloo processes: scales, weights and surveys are those of the unsharded net."""

import subprocess
import sys
from itertools import accumulate
from pathlib import Path

import pytest
import tensor_parallel
import torch
from programs import environment
from tensor_parallel import BEHIND, CASES, ON_FOUR, THOROUGH, VARIANTS, WHOLE

pytestmark = pytest.mark.slow  # two processes, then four
RUNS = [(case, variant) for case in CASES for variant in VARIANTS if case in THOROUGH or variant == "balanced"]


def found_by(world, folder):
    """What each rank found."""
    command = [sys.executable, "-W", "ignore", tensor_parallel.__file__, str(world), str(folder)]
    run = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=240, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(world)]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return found_by(2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return found_by(4, tmp_path_factory.mktemp("four"))


def assert_as_unsharded(ranks, key, case, **options):
    alone = tensor_parallel.initialised(case.make(), case.batch(), 3, **options)
    for rank in ranks:
        here = rank[key]
        assert here["passes"] == alone["passes"]
        assert [row[:3] for row in here["rows"]] == [row[:3] for row in alone["rows"]]
        for (name, *_, scale, shift), (*_, scale_alone, shift_alone) in zip(here["rows"], alone["rows"], strict=True):
            assert scale == pytest.approx(scale_alone, rel=1e-5), name
            assert shift == pytest.approx(shift_alone, rel=1e-5, abs=1e-6), name
        for name, value in alone["state"].items():
            assert torch.allclose(here["state"][name], value, rtol=1e-5, atol=1e-6), name
            assert torch.equal(here["state"][name], ranks[0][key]["state"][name]), name


@pytest.mark.parametrize("run", RUNS, ids=": ".join)
def test_tensor_parallel_scales_and_weights_are_those_of_the_unsharded_net(two, run):
    case, variant = run
    assert_as_unsharded(two, run, CASES[case], **VARIANTS[variant])


@pytest.mark.parametrize("case", ON_FOUR)
def test_tensor_parallel_over_fsdp2_scales_and_weights_are_those_of_the_whole_batch(four, case):
    assert_as_unsharded(four, (case, "balanced"), ON_FOUR[case])


def test_tensor_parallel_behind_an_activation_ends_at_the_target_on_all_ranks_alike(two):
    alone = tensor_parallel.initialised(tensor_parallel.mlp(), tensor_parallel.samples(), 3, **BEHIND)
    first, second = (rank["behind"]["rows"] for rank in two)
    assert first == second
    for (name, status, _, scale, _), (*_, scale_alone, _) in zip(first, alone["rows"], strict=True):
        assert status == "scaled"
        assert scale == pytest.approx(scale_alone, rel=1e-4), name  # Newton's method, to a tolerance of 1e-3


@pytest.mark.parametrize("case", CASES)
def test_tensor_parallel_survey_is_that_of_the_unsharded_net(two, case):
    make, _, batch = CASES[case]
    alone = tensor_parallel.looked_at(make(), batch())
    for rank in two:
        for here, there in zip(rank[case, "survey"], alone, strict=True):
            assert here[0] == there[0]
            assert here[1:] == pytest.approx(there[1:], rel=1e-5, abs=1e-6), here[0]


def test_tensor_parallel_no_rank_takes_memory_for_a_whole_weight(two):
    for rank in two:
        assert max(rank["held, kept"]) < WHOLE


def test_tensor_parallel_draw_holds_one_layer_at_a_time(two):
    """Beside the shards of all seven draws, and of what they replace, half of each layer: a few copies of one."""
    for rank in two:
        assert max(accumulate(rank["held, drawn"])) < (7 / 2 + 7 / 2 + 5) * WHOLE
        assert max(rank["held, drawn"]) < 1.01 * WHOLE


def test_tensor_parallel_nan_in_one_shard_is_an_error_on_all_ranks_and_keeps_the_weights(two):
    for text, kept in (rank["refused"] for rank in two):
        assert (
            "layer '8' (Linear 16 -> 8) gives non-finite output: 1 of its 136 weights and biases are not finite" in text
        )
        assert kept


def test_tensor_parallel_call_leaves_torch_as_it_was(two):
    assert all(rank["redistribute is torch's own"] for rank in two)
