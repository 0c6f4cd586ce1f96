"""Two processes on gloo: afterwards all hold equal bits, and the scales are those of the whole batch."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import two_ranks
from paper import lsuv_

from lsuvcb import LSUVError

CASES = [(variant, kind) for variant in two_ranks.VARIANTS for kind in two_ranks.MODELS]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of the two ranks found."""
    folder = tmp_path_factory.mktemp("ranks")
    program = Path(two_ranks.__file__)
    run = subprocess.run(
        [sys.executable, "-W", "ignore", str(program), str(folder)],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(two_ranks.WORLD)]


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_ranks_hold_equal_bits_afterwards(ranks, case):
    first, second = (rank[case]["state"] for rank in ranks)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(rank[case]["converged"] for rank in ranks)


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_ranks_scale_for_the_whole_batch(ranks, case):
    variant, _ = case
    alone = two_ranks.net()
    torch.manual_seed(3)
    lsuv_(alone, two_ranks.batch(), **two_ranks.VARIANTS[variant])
    for name, value in alone.state_dict().items():
        assert torch.allclose(ranks[0][case]["state"][name], value, rtol=1e-4, atol=2e-5), name
    with torch.no_grad():
        whole = alone(two_ranks.batch())
    together = torch.cat([rank[case]["output"] for rank in ranks])
    assert torch.allclose(together, whole, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_ranks_have_no_gradients_and_only_the_first_generator_moved(ranks, case):
    variant, _ = case
    assert all(grad is None for rank in ranks for grad in rank[case]["grads"])
    assert [rank[case]["moved"] for rank in ranks] == [variant == "orthonormal", False]


def test_one_rank_alone_does_not_wait_for_the_others(ranks):
    assert ranks[0]["alone"]


def test_nan_on_one_rank_is_an_error_on_all_and_keeps_the_weights(ranks):
    for text, kept in (rank["nan"] for rank in ranks):
        assert "gave non-finite output on" in text
        assert kept


@pytest.mark.parametrize("case", ["other experts", "fewer experts"])
def test_ranks_at_different_layers_are_an_error_on_all_and_keep_the_weights(ranks, case):
    """Not replicas that drift apart, and no rank that waits for the others."""
    for text, kept in (rank[case] for rank in ranks):
        assert "the ranks are at different layers, this one at" in text
        assert "give each one samples for all of them" in text
        assert kept
    if case == "fewer experts":
        assert "this one at the end of the pass" in ranks[0][case][0]
        assert "this one at layer 'experts.3' (Linear 16 -> 16)" in ranks[1][case][0]


def test_layer_without_samples_on_one_rank_is_scaled_and_on_all_is_left_alone(ranks):
    scaled = ("scaled", "")
    for rank in ranks:
        assert rank["idle"] == [scaled, scaled, scaled, ("left alone", "its output is empty")]


def test_zeros_as_a_layers_input_leave_it_alone_where_all_ranks_have_them(ranks):
    both, one, other_empty = zip(*(rank["unfed"] for rank in ranks), strict=True)
    for found in (both, other_empty):
        assert all("its input is all zero" in reason for reason, _ in found)
    assert [reason for reason, _ in one] == ["", ""]
    torch.manual_seed(0)
    alone = torch.nn.Linear(16, 16)
    assert all(torch.equal(weight, alone.weight) for found in (both, other_empty) for _, weight in found)
    half = two_ranks.batch().chunk(2)[0]
    lsuv_(alone, torch.cat([half, half * 0]), orthonormal=False)
    assert torch.equal(one[0][1], one[1][1])
    assert torch.allclose(one[0][1], alone.weight, rtol=1e-5)


def test_fsdp1_is_an_error_with_advice():
    class FullyShardedDataParallel(torch.nn.Module):  # the name is what tells: the real one needs a process group
        def __init__(self):
            super().__init__()
            self._fsdp_wrapped_module = torch.nn.Linear(2, 2)

        def forward(self, x):
            return self._fsdp_wrapped_module(x)

    with pytest.raises(LSUVError, match=r"shard the model with torch.distributed.fsdp.fully_shard"):
        lsuv_(FullyShardedDataParallel(), torch.randn(8, 2))
