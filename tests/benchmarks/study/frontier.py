"""Part 1: the deepest plain net that trains from each start, and at how wide a range of learning rates."""

from __future__ import annotations

from functools import partial
from math import log10

from . import verdict
from .nets import mlp, plain_conv
from .results import Results
from .tasks import task
from .train import make, train

DEPTHS = (10, 20, 34, 50, 70, 100)
TRAINS = 0.8  # the median accuracy of the seeds, at the best rate
RATES = (0.003, 0.001, 0.01)
ALL_RATES = (*RATES, 0.03, 0.0003)
EPOCHS, SEEDS = 10, 5
NETS = {"conv": plain_conv, "MLP": mlp}
QUICK_STARTS = ("pytorch", "kaiming", "delta, gain", "anyinit empirical", "paper", "balanced")
STARTS = ("pytorch", "xavier", "kaiming", "orthogonal", "delta", "delta, gain", "lsuv 0.3", "anyinit empirical",
          "anyinit analytic", "paper", "balanced")  # fmt: skip
QUICK_ACTIVATIONS = ("relu", "tanh", "gelu", "general_relu", "silu")
ACTIVATIONS = (*QUICK_ACTIVATIONS, "selu", "leaky_relu", "elu", "mish")


def units(quick: bool) -> list[tuple[str, str, str]]:
    """Kind of net, activation, start."""
    kinds = ("conv",) if quick else tuple(NETS)
    activations, starts = (QUICK_ACTIVATIONS, QUICK_STARTS) if quick else (ACTIVATIONS, STARTS)
    return [(kind, activation, start) for kind in kinds for activation in activations for start in starts]


def run(results: Results, kind: str, activation: str, start: str, quick: bool) -> None:
    """Climb, with a survey at each depth; where the climb ended, all learning rates, and Adam."""
    deepest = climb(results, kind, activation, start)
    for depth in DEPTHS[: DEPTHS.index(deepest) + 2 if deepest else 1]:
        job = {"kind": kind, "activation": activation, "start": start, "depth": depth}
        verdict.look(results, job, partial(NETS[kind], depth, activation), "digits")
    if deepest and not quick:
        width(results, kind, activation, start, deepest)
        adam(results, kind, activation, start, deepest)


def climb(results: Results, kind: str, activation: str, start: str) -> int:
    """The depth before the first that does not train; 0 where the first does not.

    A bisection would train fewer nets, and take longer: a depth that does not train takes thrice the runs of one that does.
    """
    deepest = 0
    for depth in DEPTHS:
        if not _trains(results, kind, activation, start, depth):
            break
        deepest = depth
    return deepest


def width(results: Results, kind: str, activation: str, start: str, depth: int) -> float:
    """Decades from the lowest learning rate that trains it to the highest."""
    rates = [rate for rate in ALL_RATES if _median(results, kind, activation, start, depth, rate) >= TRAINS]
    return log10(max(rates) / min(rates))


def adam(results: Results, kind: str, activation: str, start: str, depth: int) -> bool:
    """Does Adam train it at its own default rate?"""
    return _median(results, kind, activation, start, depth, 1e-3, optimiser="Adam") >= TRAINS


def _trains(results: Results, kind: str, activation: str, start: str, depth: int) -> bool:
    return any(_median(results, kind, activation, start, depth, rate) >= TRAINS for rate in RATES)


def _median(
    results: Results, kind: str, activation: str, start: str, depth: int, rate: float, optimiser: str = "SGD, momentum 0.9"
) -> float:  # fmt: skip
    """The median accuracy of the seeds; three that agree which side of the bound it is on are enough."""
    scores: list[float] = []
    for seed in range(SEEDS):
        job = {"part": "frontier", "kind": kind, "activation": activation, "start": start, "depth": depth, "rate": rate,
               "optimiser": optimiser, "seed": seed, "epochs": EPOCHS}  # fmt: skip

        def once(seed: int = seed) -> float | None:
            data = task("digits")
            model = make(partial(NETS[kind], depth, activation), start, data, seed)
            return train(model, data, optimiser, rate, seed, EPOCHS)

        scores.append(results.of(job, once) or 0.0)
        above = sum(score >= TRAINS for score in scores)
        if max(above, len(scores) - above) > SEEDS // 2:
            break
    return sorted(scores + ([1.0] if above > SEEDS // 2 else [0.0]) * (SEEDS - len(scores)))[SEEDS // 2]
