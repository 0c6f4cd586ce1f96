"""`python -m lsuvcb`: the story it tells, and what it says to a wrong value."""

import subprocess
import sys

import pytest
import torch
from PIL import Image
from torch import nn

from lsuvcb import Callback
from lsuvcb.__main__ import main, plain_net, run

pytestmark = pytest.mark.usefixtures("digits_data")


@pytest.mark.parametrize(("depth", "size", "sides"), [(20, 8, 4), (20, 28, 4), (3, 28, 7), (2, 4, 4)])
def test_plain_net_has_its_depth_in_weights_and_nothing_that_helps(depth, size, sides):
    net = plain_net(depth, size)
    weights = list(net.parameters())
    assert len(weights) == depth
    assert all(p.dim() > 1 for p in weights)
    assert {type(m) for m in net} == {nn.Conv2d, nn.ReLU, nn.Flatten, nn.Linear}
    assert net[-1].in_features == 16 * sides * sides
    assert net(torch.zeros(2, 1, size, size)).shape == (2, 10)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_net_trains_with_the_callback_and_not_without(seed):
    told = []
    outcome = run(seed=seed, tell=told.append, cbs=list)
    assert outcome.accuracy(outcome.without) <= 0.2
    assert outcome.accuracy(outcome.with_lsuv) >= 0.8
    assert outcome.survey.layers[-1].std < 1e-6
    assert outcome.report.converged
    assert outcome.survey in told
    assert outcome.report in told


def test_both_runs_see_the_same_batches_in_the_same_order():
    seen = []

    class See(Callback):
        def before_batch(self, learn):
            if learn.training:
                seen[-1].append(learn.batch[1].tolist())

    def watch():
        seen.append([])
        return [See()]

    run(epochs=1, depth=2, cbs=watch, tell=lambda *_: None)
    without, with_lsuv = seen
    assert with_lsuv[0] == without[0]  # LSUV's own batch is the first
    assert with_lsuv[-len(without) :] == without


def test_the_demo_tells_its_story_and_draws_it(tmp_path, capsys):
    main(["--epochs", "1", "--depth", "4", "--out", str(tmp_path / "demo.png"), "--device", "cpu", "--seed", "7"])
    out = capsys.readouterr().out
    assert out.startswith(
        "A plain net of 4 layers (3x3 convs, 16 channels, ReLU) on digits: 1437 images to train on,\n"
    )
    assert "seed 7" in out
    assert "Survey: std " in out
    assert "LSUV: 3 of 3 layers at std 1" in out
    rows = [line.split() for line in out.splitlines() if line.endswith(("train", "eval"))]
    assert [row[2:] for row in rows if row[0] != "accuracy"] == [["0", "train"], ["0", "eval"]] * 2
    last = out.splitlines()[-2:]
    assert last[0].startswith("Validation accuracy: 0.")
    assert last[0].endswith(" with LSUVCallback.")
    assert last[1] == f"Picture: {tmp_path / 'demo.png'}"
    with Image.open(tmp_path / "demo.png") as picture:
        assert picture.size == (1560, 576)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--epochs", "0"], "argument --epochs: must be a whole number >= 1, got '0'"),
        (["--epochs", "1.5"], "argument --epochs: must be a whole number >= 1, got '1.5'"),
        (["--depth", "1"], "argument --depth: must be a whole number >= 2, got '1'"),
        (["--seed", "-1"], "argument --seed: must be a whole number >= 0, got '-1'"),
        (
            ["--device", "tpu"],
            "argument --device: must be a device that torch can use here, got 'tpu': Expected one of",
        ),
        (
            ["--out", "demo.txt"],
            "argument --out: must end in .png, .svg, .pdf or another picture format, got 'demo.txt'",
        ),
        (["--out", "no/demo.png"], "argument --out: must be in a folder that exists, got 'no/demo.png'"),
        (["--data", "cifar"], "argument --data: invalid choice: 'cifar'"),
        (["--batch", "64"], "unrecognized arguments: --batch 64"),
    ],
)
def test_a_wrong_value_is_one_line_and_status_two(arguments, text, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    out, err = capsys.readouterr()
    assert (caught.value.code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"python -m lsuvcb: error: {text}")
    assert err.endswith(" (see --help)\n")


def test_data_that_is_missing_is_one_line_and_status_one(no_data, monkeypatch, tmp_path):
    from torchvision.datasets import MNIST

    monkeypatch.setattr(MNIST, "mirrors", [(tmp_path / "nowhere").as_uri() + "/"])
    with pytest.raises(SystemExit, match=r"^python -m lsuvcb: error: MNIST must be in .*") as caught:
        main(["--data", "mnist", "--out", str(tmp_path / "x.png")])
    assert "\n" not in caught.value.code


def test_help_names_every_option_and_its_default():
    found = subprocess.run(
        [sys.executable, "-W", "error", "-m", "lsuvcb", "--help"], capture_output=True, text=True, check=True
    )
    assert found.stderr == ""
    text = " ".join(found.stdout.split())
    for part in (
        "usage: python -m lsuvcb",
        "{digits,mnist,fashion_mnist}",
        "--epochs N",
        "--depth N",
        "--device DEVICE",
    ):
        assert part in text
    for default in ("digits", "12 for digits, 1 for the others", "20", "lsuvcb-demo.png", "42"):
        assert f"(default: {default})" in text
