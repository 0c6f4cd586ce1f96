"""Models that no device holds whole: sharded before they have values, in pipeline stages, and the example of the docs."""

import re
import subprocess
import sys
from itertools import accumulate
from pathlib import Path

import meta_start
import pipeline_stages
import pytest
import torch
from meta_start import DEPTH, LAYER, WORLD
from programs import environment, run

from lsuvcb import lsuv_

pytestmark = pytest.mark.slow  # each starts two processes or four
EXAMPLE = Path(__file__).parents[2] / "examples" / "large_model.py"


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return run(meta_start, tmp_path_factory.mktemp("meta"))[0]


@pytest.fixture(scope="module")
def alone():
    """The net on one device, with the whole batch."""
    model = meta_start.net()
    torch.manual_seed(3)
    report = lsuv_(model, meta_start.samples(), recipe="paper")
    return model.state_dict(), [row.scale for row in report.layers]


@pytest.mark.parametrize("start", ["reset", "not reset"])
def test_meta_start_gives_all_ranks_the_weights_of_one_device(ranks, alone, start):
    state, scales = alone
    for rank in ranks:
        assert rank[start]["status"] == {"scaled"}
        assert rank[start]["scales"] == pytest.approx(scales, rel=1e-5)
        for name, value in rank[start]["state"].items():
            assert torch.equal(value, ranks[0][start]["state"][name]), name
            assert torch.allclose(value, state[name], rtol=1e-5, atol=2e-5), name  # QR on another number of threads


def test_meta_start_that_draws_nothing_holds_a_forward_s_memory_and_a_layer_s(ranks):
    for rank in ranks:
        assert max(accumulate(rank["kept"])) < rank["forward"] + 1.5 * LAYER


def test_meta_start_that_draws_holds_the_shards_again_and_one_layer_s_draw(ranks):
    """Of the layer at hand a few copies, five of them the QR decomposition's; the draws of other layers are shards by then."""
    shards = DEPTH * LAYER / WORLD
    for rank in ranks:
        assert max(accumulate(rank["drawn"])) < rank["forward"] + 1.02 * shards + 8.5 * LAYER
        assert max(rank["drawn"]) < 1.01 * LAYER


def test_meta_start_what_is_left_as_it_was_and_has_no_values_is_an_error(ranks):
    for rank in ranks:
        assert re.match(
            r"layer '11.0' \(Linear 192 -> 192\) gives non-finite output: 37056 of its 37056", rank["garbage"]
        )


def test_pipeline_stages_initialised_in_order_are_those_of_the_undivided_net(tmp_path):
    first, second = run(pipeline_stages, tmp_path)[0]
    model = pipeline_stages.net()
    lsuv_(model, pipeline_stages.samples(), std=0.5, orthonormal=False)
    split = pipeline_stages.SPLIT
    for stage, state in ((model[:split], first["state"]), (model[split:], second["state"])):
        for name, value in stage.state_dict().items():
            assert torch.allclose(state[name], value, rtol=1e-5, atol=1e-7), name
    with torch.no_grad():
        assert torch.allclose(second["output"], model(pipeline_stages.samples()), atol=1e-5)


@pytest.mark.parametrize(("processes", "tensor_parallel"), [(2, 1), (2, 2), (4, 2)])
def test_example_of_a_large_model_trains(processes, tensor_parallel):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*launcher, str(EXAMPLE), "--tensor-parallel", str(tensor_parallel), "--depth", "2", "--steps", "3"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    said, *steps = (line for line in done.stdout.splitlines() if not line.startswith("[Gloo]"))  # torch 2.8's own
    at = "std 0.447 to 1"  # 1 / sqrt(5) ends the fourth branch
    assert said.startswith(f"LSUV: 14 of 14 layers at {at}; worst error ")
    losses = [float(line.split()[-1]) for line in steps]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
