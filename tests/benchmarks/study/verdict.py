"""Part 6: did the survey before training say rightly whether the net would train? The outcome is that of parts 1 and 2."""

from __future__ import annotations

from functools import partial
from typing import Any

from lsuvcb import survey

from . import frontier, harm
from .nets import MORE, plain_conv
from .results import Results
from .tasks import task
from .train import make

BATCH = 512


def units(quick: bool) -> list[tuple[str, ...]]:
    """A net of part 2, or the activation and the start of part 1."""
    nets = harm.NETS if quick else harm.NETS | MORE
    deep = [("conv", act, start) for kind, act, start in frontier.units(quick) if kind == "conv"]
    return [("net", net) for net in nets] + deep


def run(results: Results, kind: str, *which: str, quick: bool) -> None:
    if kind == "net":
        for start in harm.STARTS:
            _look(results, {"net": which[0], "start": start}, (harm.NETS | MORE)[which[0]].make, start, which[0])
        return
    activation, start = which
    for depth in frontier.DEPTHS:
        job = {"kind": kind, "activation": activation, "start": start, "depth": depth}
        _look(results, job, partial(plain_conv, depth, activation), start)


def _look(results: Results, job: dict[str, Any], net: Any, start: str, name: str | None = None) -> None:
    def once() -> dict[str, Any]:
        data = task("digits" if name is None else (harm.NETS | MORE)[name].task)
        found = survey(make(net, start, data, 0), data.x[:BATCH], loss=lambda out: data.loss(out, data.y[:BATCH]))
        return {"healthy": found.healthy, "verdict": found.verdict}

    results.of({"part": "verdict", **job}, once)
