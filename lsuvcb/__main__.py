"""`python -m lsuvcb`: a deep plain net that does not train, and the same net with an LSUVCallback, which does."""

from __future__ import annotations

import argparse
import copy
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import nn, optim

from . import data
from .engine.lsuv import survey
from .engine.telling.report import LSUVReport
from .engine.telling.survey import Survey
from .training.callbacks import DeviceCB
from .training.devices import default_device
from .training.events import Callback
from .training.lsuv_callback import LSUVCallback
from .training.metrics import MetricsCB, torcheval_metrics
from .training.progress import ProgressCB
from .training.train_learner import TrainLearner

WIDTH, BATCH, LR, MOMENTUM = 16, 64, 0.01, 0.9
EPOCHS = {"digits": 12, "mnist": 1, "fashion_mnist": 1}  # half a minute, and a few minutes, on two cores
DESCRIPTION = """\
Trains a deep plain ReLU net twice, with the same seed, data order and learning
rate: as PyTorch initialises it, and with an LSUVCallback. Shows the signal by
depth, what LSUV changed and both accuracies, and draws a picture of it."""


def plain_net(depth: int, size: int, width: int = WIDTH, n_out: int = 10) -> nn.Sequential:
    """A net without skips, normalisation or biases: `depth` - 1 convs (3x3, ReLU), Flatten, a linear layer.

    With biases it trains no better, but they hold up the std of the outputs by themselves while the part of it that
    depends on the image dies out; without, the std shows what is left of the image.

    Args:
        depth: layers with a weight, >= 2.
        size: height and width of the one-channel images; the first convs have stride 2 until it is 4 or less.
        width: channels.
        n_out: classes.
    """
    layers: list[nn.Module] = []
    channels = 1
    for _ in range(depth - 1):
        stride = 2 if size > 4 else 1
        layers += [nn.Conv2d(channels, width, 3, stride, padding=1, bias=False), nn.ReLU()]
        channels, size = width, -(-size // stride)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * size * size, n_out, bias=False))


@dataclass
class Outcome:
    """What the demo found: the survey, both histories (rows as MetricsCB writes them), LSUV's report."""

    survey: Survey
    without: list[dict[str, Any]]
    with_lsuv: list[dict[str, Any]]
    report: LSUVReport

    def accuracy(self, history: list[dict[str, Any]]) -> float:
        """The last validation accuracy of a run."""
        return history[-1]["accuracy"]


def fit(net: nn.Module, dls: data.DataLoaders, epochs: int, device: torch.device, cbs: Sequence[Callback]) -> list[Any]:
    """Trains `net` in place as the demo does; returns the history."""
    learn = TrainLearner(
        net,
        dls,
        F.cross_entropy,
        lr=LR,
        cbs=[DeviceCB(device), MetricsCB(accuracy=torcheval_metrics().MulticlassAccuracy()), *cbs],
        opt_func=partial(optim.SGD, momentum=MOMENTUM),
    )
    learn.fit(epochs)
    return learn.history


def run(
    name: str = "digits",
    epochs: int | None = None,
    depth: int = 20,
    device: torch.device | str = "cpu",
    seed: int = 42,
    tell: Callable[..., None] = print,
    cbs: Callable[[], Sequence[Callback]] = lambda: [ProgressCB()],
) -> Outcome:
    """The demo without its picture.

    Args:
        name: "digits", "mnist" or "fashion_mnist".
        epochs: of each of the two runs. None: 12 for the small digits, 1 for the others.
        depth: layers with a weight, >= 2.
        device: to train on.
        seed: of the net's weights, of LSUV's and of the data order.
        tell: takes the lines of the story.
        cbs: makes each run's further callbacks.

    Side effects: sets torch's seed.
    """
    device, epochs = torch.device(device), epochs or EPOCHS[name]
    order = torch.Generator()
    dls = getattr(data, name)(bs=BATCH, device=device, generator=order)
    inputs = dls.train.dataset.tensors[0]
    torch.manual_seed(seed)
    net = plain_net(depth, inputs.shape[-1]).to(device)
    twin = copy.deepcopy(net)
    tell(
        f"A plain net of {depth} layers (3x3 convs, {WIDTH} channels, ReLU) on {name}: {len(inputs)} images to train on,"
    )
    tell(
        f"{len(dls.valid.dataset)} to validate; SGD, lr {LR}, momentum {MOMENTUM}, batch {BATCH}; {device}, seed {seed}.\n"
    )

    tell("1. The signal by depth, as PyTorch initialises the net:  survey(model, batch)\n")
    found = survey(net, inputs[:512])
    tell(found)

    tell("\n2. Trained as it is\n")
    order.manual_seed(seed)
    without = fit(net, dls, epochs, device, cbs())

    tell("\n3. The same weights, data order and learning rate; the one difference:  cbs=[..., LSUVCallback()]\n")
    order.manual_seed(seed)
    lsuv = LSUVCallback()
    with_lsuv = fit(twin, dls, epochs, device, [lsuv, *cbs()])

    tell("\n4. What LSUVCallback did before the first step:  print(callback.report)\n")
    assert lsuv.report is not None
    tell(lsuv.report)
    return Outcome(found, without, with_lsuv, lsuv.report)


def picture(outcome: Outcome, path: Path) -> None:
    """Draws the stds by depth, before and after, and the two loss curves, side by side, into a file."""
    from matplotlib.figure import Figure  # not pyplot: a file needs no display

    from .plot import plot_losses

    figure = Figure(figsize=(13, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    outcome.report.plot(ax=left)
    runs = {"PyTorch's default": outcome.without, "with LSUVCallback": outcome.with_lsuv}
    losses = {
        f"{name}: validation accuracy {outcome.accuracy(rows):.2f}": [r["loss"] for r in rows if r["train"] == "train"]
        for name, rows in runs.items()
    }
    plot_losses(losses, ax=right, chance=math.log(10))
    figure.savefig(path, dpi=120)


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line; the usage is in --help."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def at_least(least: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number >= {least}, got {text!r}")
        return int(text)

    return whole


def usable_device(text: str) -> torch.device:
    try:
        device = torch.device(text)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = shorten(str(error), 90, placeholder=" ...")
        raise argparse.ArgumentTypeError(f"must be a device that torch can use here, got {text!r}: {reason}") from None
    return device


def picture_file(text: str) -> Path:
    from matplotlib.figure import Figure

    kinds = Figure().canvas.get_supported_filetypes()
    path = Path(text)
    if path.suffix[1:].lower() not in kinds:
        raise argparse.ArgumentTypeError(f"must end in .png, .svg, .pdf or another picture format, got {text!r}")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"must be in a folder that exists, got {text!r}")
    return path


def parser() -> argparse.ArgumentParser:
    p = OneLineParser("python -m lsuvcb", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "--data",
        choices=list(EPOCHS),
        default="digits",
        help="digits comes with scikit-learn, the others are downloaded once, or read from $LSUVCB_DATA (default: %(default)s)",
    )
    p.add_argument(
        "--epochs", type=at_least(1), metavar="N", help="of each run (default: 12 for digits, 1 for the others)"
    )
    p.add_argument(
        "--depth", type=at_least(2), default=20, metavar="N", help="layers of the net (default: %(default)s)"
    )
    p.add_argument(
        "--device", type=usable_device, help="cpu, cuda, mps, ... (default: the accelerator if there is one)"
    )
    p.add_argument(
        "--out",
        type=picture_file,
        default="lsuvcb-demo.png",
        metavar="FILE",
        help="where the picture goes (default: %(default)s)",
    )
    p.add_argument(
        "--seed", type=at_least(0), default=42, metavar="N", help="of weights and data order (default: %(default)s)"
    )
    return p


def main(argv: Sequence[str] | None = None) -> None:
    """The demo from the command line. A wrong value exits with status 2, missing data with status 1."""
    args = parser().parse_args(argv)
    try:
        outcome = run(args.data, args.epochs, args.depth, args.device or default_device(), args.seed)
        picture(outcome, args.out)
    except (ImportError, OSError) as error:
        sys.exit(f"python -m lsuvcb: error: {error}")
    except KeyboardInterrupt:
        sys.exit("\npython -m lsuvcb: interrupted")
    accuracies = outcome.accuracy(outcome.without), outcome.accuracy(outcome.with_lsuv)
    print("\nValidation accuracy: {:.3f} as PyTorch initialises the net, {:.3f} with LSUVCallback.".format(*accuracies))
    print(f"Picture: {args.out}")


if __name__ == "__main__":
    main()
