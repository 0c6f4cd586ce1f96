"""`python -m lsuvcb`: the story it tells, and what it says to a wrong value."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

import lsuvcb
from lsuvcb import Callback
from lsuvcb.__main__ import DATA, PICTURES, main, picture_file
from lsuvcb.demo import EPOCHS, plain_net, run

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
@pytest.mark.parametrize("seed", [0, 1])
def test_the_net_trains_with_the_callback_and_from_no_other_start(seed):
    told = []
    outcome = run(seed=seed, tell=told.append, cbs=list)
    assert outcome.accuracy("PyTorch's default") <= 0.2
    assert outcome.accuracy("kaiming_normal_") <= 0.5
    assert outcome.accuracy("LSUVCallback") >= 0.8
    assert outcome.survey.layers[-1].std < 1e-6
    assert not outcome.survey.healthy
    assert outcome.report.converged
    assert outcome.survey in told
    assert outcome.report in told


def test_all_runs_see_the_same_batches_in_the_same_order():
    seen = []

    class See(Callback):
        def before_batch(self, learn):
            if learn.training:
                seen[-1].append(learn.batch[1].tolist())

    def watch():
        seen.append([])
        return [See()]

    run(epochs=1, depth=2, cbs=watch, tell=lambda *_: None)
    without, from_kaiming, with_lsuv = seen
    assert from_kaiming == without
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
    lines = [line.split() for line in out.splitlines()]
    rows = [row[2:] for row in lines if row[-1:] in (["train"], ["eval"], ["mode"])]
    assert rows == [["epoch", "mode"], ["0", "train"], ["0", "eval"]] * 3
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
        (
            ["--out", "folder.png"],
            "argument --out: must be a file that can be written, got 'folder.png': Is a directory",
        ),
        (["--data", "cifar"], "argument --data: invalid choice: 'cifar'"),
        (["--batch", "64"], "unrecognized arguments: --batch 64"),
    ],
)
def test_a_wrong_value_is_one_line_and_status_two(arguments, text, capsys, tmp_path, monkeypatch):
    (tmp_path / "folder.png").mkdir()
    monkeypatch.chdir(tmp_path)
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


@pytest.fixture
def stand_in(tmp_path):
    """Starts the demo with a torch of the test's own making: stand_in(source of its __init__.py, *arguments)."""

    started = []

    def start(source, *arguments):
        (tmp_path / "torch").mkdir()
        (tmp_path / "torch" / "__init__.py").write_text(source)
        paths = os.pathsep.join((str(tmp_path), str(Path(lsuvcb.__file__).parents[1])))
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "lsuvcb", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": paths}, cwd=tmp_path,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job would ignore it
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


REFUSES = "raise AssertionError('torch was imported')"


def test_help_does_not_wait_for_torch(stand_in):
    out, err = stand_in(REFUSES, "--help").communicate(timeout=60)
    assert out.startswith("usage: python -m lsuvcb")
    assert err == ""


@pytest.mark.parametrize("arguments", [("--epochs", "0"), ("--out", "."), ("--data", "cifar")])
def test_a_wrong_value_does_not_wait_for_torch(stand_in, arguments):
    found = stand_in(REFUSES, *arguments)
    out, err = found.communicate(timeout=60)
    assert (found.returncode, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"python -m lsuvcb: error: argument {arguments[0]}: ")


def test_interrupt_while_torch_is_imported_is_one_line(stand_in):
    found = stand_in("import time\nprint('importing', flush=True)\ntime.sleep(60)")
    assert found.stdout.readline() == "importing\n"
    found.send_signal(signal.SIGINT)
    out, err = found.communicate(timeout=60)
    assert (found.returncode, out, err) == (1, "", "\npython -m lsuvcb: interrupted\n")


@pytest.mark.parametrize("before", [None, b"an old picture"])
def test_a_picture_file_that_can_be_written_is_as_before_until_the_demo_draws(before, tmp_path):
    path = tmp_path / "demo.svg"
    if before is not None:
        path.write_bytes(before)
    assert picture_file(str(path)) == path
    assert (path.read_bytes() if path.exists() else None) == before


def test_choices_are_what_the_demo_trains_on_and_what_matplotlib_writes():
    assert set(EPOCHS) == set(DATA)
    assert set(PICTURES) <= set(Figure().canvas.get_supported_filetypes())


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
    for default in ("digits", "8 for digits, 1 for the others", "50", "lsuvcb-demo.png", "42"):
        assert f"(default: {default})" in text
