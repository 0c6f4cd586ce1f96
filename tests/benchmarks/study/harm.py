"""Part 2: is any small net worse off for having been through it than with PyTorch's own start?"""

from __future__ import annotations

from statistics import mean, stdev

from .nets import MORE, NETS
from .results import Results
from .tasks import task
from .train import make, train

RATES = {"Adam": 1e-3, "SGD": 0.1, "SGD, momentum 0.9": 0.1}
EPOCHS, SEEDS, FRESH = 5, 4, 16
STARTS = ("pytorch", "kaiming", "paper", "balanced")
MARGIN = 0.02  # of accuracy, or of the variance explained


def units(quick: bool) -> list[tuple[str, str]]:
    """Net and optimiser: the cells. The figure counts those of NETS; those of MORE are run in the whole form, and told apart."""
    return [(net, optimiser) for net in (NETS if quick else NETS | MORE) for optimiser in RATES]


def run(results: Results, net: str, optimiser: str, quick: bool) -> None:
    """All starts of one cell."""
    judge(results, net, optimiser, STARTS)


def judge(results: Results, net: str, optimiser: str, starts: tuple[str, ...]) -> None:
    """Train from these starts, the first of them PyTorch's; those that look worse, and PyTorch's, again with fresh seeds."""
    found = {start: [score(results, net, optimiser, start, seed) for seed in range(SEEDS)] for start in starts}
    flagged = [s for s in starts[1:] if compare(found[s], found["pytorch"]) == "worse"]
    for start in ["pytorch", *flagged] if flagged else []:
        for seed in range(100, 100 + FRESH):
            score(results, net, optimiser, start, seed)


def score(results: Results, net: str, optimiser: str, start: str, seed: int) -> float | None:
    job = {"part": "harm", "net": net, "optimiser": optimiser, "start": start, "seed": seed, "epochs": EPOCHS}
    spec = (NETS | MORE)[net]

    def once() -> float | None:
        data = task(spec.task)
        return train(make(spec.make, start, data, seed), data, optimiser, RATES[optimiser], seed, EPOCHS)

    return results.of(job, once)


def compare(ours: list[float | None], theirs: list[float | None]) -> str:
    """ "better", "worse" or "equal": beyond the margin and two standard errors. A loss that was not finite counts as 0."""
    a, b = ([0.0 if s is None else s for s in scores] for scores in (ours, theirs))
    error = (stdev(a) ** 2 / len(a) + stdev(b) ** 2 / len(b)) ** 0.5
    difference = mean(a) - mean(b)
    if abs(difference) <= max(MARGIN, 2 * error):
        return "equal"
    return "better" if difference > 0 else "worse"
