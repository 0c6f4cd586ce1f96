"""The demo: a deep plain net from three starts; PyTorch's and Kaiming's do not train it, LSUVCallback's does."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any

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

DEPTH, WIDTH, BATCH, LR, MOMENTUM = 50, 16, 64, 0.003, 0.9
EPOCHS = {"digits": 8, "mnist": 1, "fashion_mnist": 1}  # a minute, and some more, on two cores


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
    """What the demo found.

    Attributes:
        title: net, data and learning rate.
        survey: of the net as PyTorch makes it.
        histories: by start, the rows as MetricsCB writes them.
        report: LSUV's.
    """

    title: str
    survey: Survey
    histories: dict[str, list[dict[str, Any]]]
    report: LSUVReport

    def accuracy(self, start: str) -> float:
        """The last validation accuracy of a run."""
        return self.histories[start][-1]["accuracy"]


class Progress(ProgressCB):
    """A ProgressCB whose column for "train" and "eval", the model's mode, has that for its head."""

    def _log(self, row: dict[str, Any]) -> None:
        super()._log({"mode" if name == "train" else name: value for name, value in row.items()})


STARTS = ("PyTorch's default", "kaiming_normal_", "LSUVCallback")


def kaiming(net: nn.Module) -> None:
    """The one line that most people write, for each weight."""
    for parameter in net.parameters():
        nn.init.kaiming_normal_(parameter, nonlinearity="relu")


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
    depth: int = DEPTH,
    device: torch.device | str = "cpu",
    seed: int = 42,
    tell: Callable[..., None] = print,
    cbs: Callable[[], Sequence[Callback]] = lambda: [Progress()],
) -> Outcome:
    """The demo without its picture.

    Args:
        name: "digits", "mnist" or "fashion_mnist".
        epochs: of each of the three runs. None: 8 for the small digits, 1 for the others.
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
    nets = {start: copy.deepcopy(net) for start in STARTS}
    kaiming(nets["kaiming_normal_"])
    what = f"A plain net of {depth} layers (3x3 convs, {WIDTH} channels, ReLU) on {name}"
    tell(f"{what}: {len(inputs)} images to train on,")
    tell(
        f"{len(dls.valid.dataset)} to validate; SGD, lr {LR}, momentum {MOMENTUM}, batch {BATCH}; {device}, seed {seed}.\n"
    )

    tell("1. Signal and gradient by depth, as PyTorch makes the net:  survey(model, batch)\n")
    found = survey(net, inputs[:512])
    tell(found)

    lsuv, histories = LSUVCallback(), {}
    titles = (
        "Trained as it is",
        "From kaiming_normal_, the same data order and learning rate",
        "With cbs=[..., LSUVCallback()], the same again",
    )
    for i, (start, title) in enumerate(zip(STARTS, titles, strict=True), 2):
        tell(f"\n{i}. {title}\n")
        order.manual_seed(seed)
        own = [lsuv] if start == "LSUVCallback" else []
        histories[start] = fit(nets[start], dls, epochs, device, [*own, *cbs()])

    tell("\n5. What LSUVCallback did before the first step:  print(callback.report)\n")
    assert lsuv.report is not None
    tell(lsuv.report)
    return Outcome(f"{what}, SGD, lr {LR}, momentum {MOMENTUM}", found, histories, lsuv.report)


def picture(outcome: Outcome, path: Path) -> None:
    """Draws the stds by depth, before and after, and the three loss curves, side by side, into a file."""
    from matplotlib.figure import Figure  # not pyplot: a file needs no display

    from .plot import plot_losses

    figure = Figure(figsize=(13, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    figure.suptitle(outcome.title)
    outcome.report.plot(ax=left)
    losses = {
        f"{start}: validation accuracy {outcome.accuracy(start):.2f}": [
            r["loss"] for r in outcome.histories[start] if r["train"] == "train"
        ]
        for start in ("PyTorch's default", "LSUVCallback", "kaiming_normal_")
    }
    plot_losses(losses, ax=right, chance=math.log(10))
    figure.savefig(path, dpi=120)


def usable_device(name: str | None) -> torch.device:
    """The device of this name; the accelerator if there is one, else the CPU, for None.

    Raises:
        ValueError: torch cannot use it here.
    """
    if name is None:
        return default_device()
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = shorten(str(error), 90, placeholder=" ...")
        raise ValueError(f"must be a device that torch can use here, got {name!r}: {reason}") from None
    return device
