"""Part 6: did the survey before training say rightly whether the net would train? The outcome is that of parts 1 and 2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from lsuvcb import survey

from . import harm
from .nets import MORE, NETS
from .results import Results
from .tasks import task
from .train import make

BATCH = 512


def units(quick: bool) -> list[tuple[str]]:
    """The nets of part 2. At those of part 1, part 1 looks: at the depths that it trains."""
    return [(net,) for net in (NETS if quick else NETS | MORE)]


def run(results: Results, net: str, quick: bool) -> None:
    spec = (NETS | MORE)[net]
    for start in harm.STARTS:
        look(results, {"net": net, "start": start}, spec.make, spec.task)


def look(results: Results, job: dict[str, Any], net: Callable[[], nn.Module], data_name: str) -> None:
    """Survey a net from the start that the job names, on its task's loss."""

    def once() -> dict[str, Any]:
        data = task(data_name)
        found = survey(
            make(net, job["start"], data, 0), data.x[:BATCH], loss=lambda out: data.loss(out, data.y[:BATCH])
        )
        return {"healthy": found.healthy, "verdict": found.verdict}

    results.of({"part": "verdict", **job}, once)
