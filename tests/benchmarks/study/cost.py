"""Part 5: what the start costs beside an epoch; and the size of its batch against the spread of the scales and the accuracy."""

from __future__ import annotations

import time
from functools import partial
from statistics import median, stdev
from typing import Any

import torch

from lsuvcb import lsuv_

from .nets import plain_conv
from .results import Results
from .tasks import task
from .train import train

NET = partial(plain_conv, 20)
SIZES = (8, 32, 128, 512)
RATE, EPOCHS = 0.003, 10


def units(quick: bool) -> list[tuple[str, int]]:
    return [("time", 0), *(("batch", size) for size in SIZES)]


def run(results: Results, what: str, size: int, quick: bool) -> None:
    if what == "time":
        results.of({"part": "cost", "what": "time"}, _time)
        return
    for seed in range(5):
        job = {"part": "cost", "what": "batch", "size": size, "seed": seed}
        results.of(job, partial(_batch, size, seed))


def _time() -> dict[str, float]:
    """Seconds of an epoch, and of the start with its report and without; medians of five."""
    data, times = task("digits"), {"epoch": [], "start": [], "start and report": []}
    for _ in range(5):
        for name, call in (
            ("start", lambda net: lsuv_(net, data.x[:512], verify=False)),
            ("start and report", lambda net: lsuv_(net, data.x[:512])),
            ("epoch", lambda net: train(net, data, "SGD", RATE, 0, 1)),
        ):
            net = NET()
            start = time.perf_counter()
            call(net)
            times[name].append(time.perf_counter() - start)
    return {name: round(median(values), 4) for name, values in times.items()}


def _batch(size: int, seed: int) -> dict[str, Any]:
    """The spread of the scales of one net over eight batches (std of their logarithms, the largest of all layers'); accuracy."""
    data, logs = task("digits"), []
    for i in range(8):
        torch.manual_seed(seed)
        rows = torch.randperm(len(data.x), generator=torch.Generator().manual_seed(100 * seed + i))[:size]
        net = NET()
        report = lsuv_(net, data.x[rows], verify=False)
        logs.append([torch.tensor(layer.scale).log().item() for layer in report.layers if layer.worked])
    spread = max(stdev(layer) for layer in zip(*logs, strict=True))
    return {"spread": round(spread, 4), "accuracy": train(net, data, "SGD, momentum 0.9", RATE, seed, EPOCHS)}
