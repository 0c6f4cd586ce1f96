"""From the results to tables in Markdown: the README and the notebook show these, and nothing else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from itertools import product
from statistics import mean, median, stdev
from typing import Any, NamedTuple

from . import cost, frontier, harm, headline, paper_table
from .nets import MORE, NETS
from .results import Recital, Results
from .starts import TRIED

NAMES = {
    "pytorch": "PyTorch's start",
    "kaiming": "`kaiming_normal_`",
    "xavier": "`xavier_normal_`",
    "orthogonal": "`orthogonal_`",
    "delta": "delta-orthogonal",
    "delta, gain": "delta-orthogonal times `calculate_gain`",
    "lsuv 0.3": "lsuv 0.3",
    "anyinit empirical": "anyinit 0.4, empirical",
    "anyinit analytic": "anyinit 0.4, analytic",
    "paper": 'lsuvcb, `recipe="paper"`',
    "course": 'lsuvcb, `recipe="course"`',
    "balanced": "lsuvcb, the default",
}
ACTIVATIONS = {
    "relu": "ReLU",
    "gelu": "GELU",
    "silu": "SiLU",
    "general_relu": "GeneralRelu(0.1, 0.4)",
    "selu": "SELU",
    "elu": "ELU",
    "leaky_relu": "leaky ReLU",
    "mish": "Mish",
}


def table(head: list[str], rows: list[list[Any]]) -> str:
    """In Markdown; nothing where there are no rows."""
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


# Part 1

DEPTH, NOT_RUN = "deepest that trains", "not run"
KINDS = {"conv": "conv net", "MLP": "MLP"}


def reached(results: Results, activation: str, start: str, kind: str = "conv") -> int:
    """The deepest net that trains, of those that were tried; 0 for none.

    Raises:
        LookupError: the climb has not been run to its end.
    """
    return frontier.climb(Recital(results), kind, activation, start)


def frontier_table(results: Results) -> str:
    """The quick form's starts and activations."""
    return _frontier(results, DEPTH, "conv", _depth, frontier.QUICK_STARTS, frontier.QUICK_ACTIVATIONS)


def starts_table(results: Results) -> str:
    return _frontier(results, DEPTH, "conv", _depth)


def mlp_table(results: Results) -> str:
    return _frontier(results, f"MLPs: {DEPTH}", "MLP", _depth)


def rates_table(results: Results) -> str:
    """At each start's frontier: how many decades of learning rates train the net, and whether Adam does."""
    return _frontier(results, "decades of rates", "conv", _width)


def _frontier(
    results: Results, heading: str, kind: str, tell: Callable[[Results, str, str, str], str],
    starts: Iterable[str] = frontier.STARTS, activations: Iterable[str] = frontier.ACTIVATIONS,
) -> str:  # fmt: skip
    """A line for each start, a column for each activation, of which something was run to the end."""
    told: dict[tuple[str, str], str] = {}
    for start, activation in product(starts, activations):
        with suppress(LookupError):
            told[start, activation] = tell(Recital(results), kind, activation, start)
    starts = [s for s in starts if any(s == start for start, _ in told)]
    activations = [a for a in activations if any(a == activation for _, activation in told)]
    rows = [[NAMES[s], *(told.get((s, a), NOT_RUN) for a in activations)] for s in starts]
    return table([heading, *(ACTIVATIONS.get(a, a) for a in activations)], rows)


def _depth(results: Results, kind: str, activation: str, start: str) -> str:
    return str(frontier.climb(results, kind, activation, start) or "none")


def _width(results: Results, kind: str, activation: str, start: str) -> str:
    deepest = frontier.climb(results, kind, activation, start)
    if not deepest:
        return "none"
    at = results, kind, activation, start, deepest
    return f"{frontier.width(*at):.1f}{'; Adam' * frontier.adam(*at)}"


# Part 2


def cells(results: Results, start: str, nets: Iterable[str] = harm.NETS) -> dict[tuple[str, str], str]:
    """Net and optimiser -> better, equal or worse than PyTorch's start; what looks worse is looked at again with fresh seeds.

    Cells that have not been run to the end are missing.
    """
    judged = {cell: _judged(results, cell, start) for cell in product(nets, harm.RATES)}
    return {cell: word for cell, word in judged.items() if word}


def _scores(results: Results, cell: tuple[str, str], start: str, fresh: bool = False) -> list[float | None]:
    """Of the first seeds, or of the fresh ones; none where they have not been run to the end."""
    seeds = range(100, 100 + harm.FRESH) if fresh else range(harm.SEEDS)
    try:
        return [harm.score(Recital(results), *cell, start, seed) for seed in seeds]
    except LookupError:
        return []


def _judged(results: Results, cell: tuple[str, str], start: str) -> str:
    word = ""
    for fresh in (False, True):
        ours, theirs = (_scores(results, cell, which, fresh) for which in (start, "pytorch"))
        if not ours or not theirs:
            return ""
        word = harm.compare(ours, theirs)
        if word != "worse":
            return "equal" if fresh else word
    return word


def not_finite(results: Results, start: str) -> int:
    """Runs of the first seeds that ended in a loss that is no number, in cells where none of PyTorch's did."""
    return sum(score is None for cell in lost(results, start) for score in _scores(results, cell, start))


def lost(results: Results, start: str = "balanced") -> list[tuple[str, str]]:
    """The cells of the figure in which a run of the first seeds ended in nan, and none of PyTorch's start did."""
    return [
        cell
        for cell in product(harm.NETS, harm.RATES)
        if None in _scores(results, cell, start) and None not in _scores(results, cell, "pytorch")
    ]


def mean_of(results: Results, cell: tuple[str, str], start: str) -> float:
    """The mean score of the first seeds; a loss that was no number counts as 0."""
    return mean(score or 0.0 for score in _scores(results, cell, start))


def harm_table(results: Results, starts: Iterable[str] = harm.STARTS[1:]) -> str:
    rows = []
    for start in starts:
        judged = list(cells(results, start).values())
        if len(judged) == len(harm.NETS) * len(harm.RATES):
            counts = (judged.count(word) for word in ("better", "equal", "worse"))
            rows.append([NAMES.get(start, start), *counts, not_finite(results, start)])
    return table(["against PyTorch's start", "better", "equal", "worse", "runs that ended in nan"], rows)


# Part 7


def tried_table(results: Results) -> str:
    return harm_table(results, ("balanced", *TRIED))


# Part 3


def paper_rows(results: Results) -> str:
    """The quick form's nets of half the width, and those of the whole one by their data."""
    rows = []
    for data, net, start in product((None, "CIFAR-10", "Fashion-MNIST"), paper_table.NETS, paper_table.STARTS):
        runs = partial(results.select, part="paper", data=data, net=net, start=start)
        found = [runs(activation=activation) for activation in paper_table.ACTIVATIONS]
        if any(found):
            rows.append([f"{net}, {data or 'halved'}", NAMES[start], *(_converged(some) for some in found)])
    return table(["net", "start", *paper_table.ACTIVATIONS], rows)


def _converged(rows: list[dict[str, Any]]) -> str:
    """The median accuracy of the seeds, or that it is below one half."""
    if not rows:
        return "not run"
    accuracy = median(row["found"] or 0.0 for row in rows)
    return f"{accuracy:.2f}" if accuracy >= 0.5 else "n/c"


# Part 4


def headline_of(results: Results, start: str) -> tuple[int, int, float, float]:
    """Seeds, how many diverged, mean accuracy of the rest, and its standard error."""
    scores = [row["found"] for row in results.select(part="headline", start=start)]
    rest = [score for score in scores if score is not None and score >= headline.DIVERGED]
    error = stdev(rest) / len(rest) ** 0.5 if len(rest) > 1 else float("nan")
    return len(scores), len(scores) - len(rest), mean(rest) if rest else float("nan"), error


def headline_table(results: Results) -> str:
    starts = [s for s in headline.STARTS if results.select(part="headline", start=s)]
    rows = []
    for start in starts:
        seeds, diverged, accuracy, error = headline_of(results, start)
        rows.append([NAMES[start], seeds, diverged, f"{accuracy:.3f} ± {error:.3f}"])
    return table(["start", "seeds", "diverged", "accuracy of the rest"], rows)


# Part 5


def cost_table(results: Results) -> str:
    timed = results.select(part="cost", what="time")
    if not timed:
        return ""
    seconds = timed[0]["found"]
    rows = [
        [f"{name}, in epochs of the same net", f"{seconds[name] / seconds['epoch']:.2f}"]
        for name in ("start", "start and report")
    ]
    for size in cost.SIZES:
        found = [row["found"] for row in results.select(part="cost", what="batch", size=size)]
        if not found:
            continue
        spread, accuracy = (median(row[what] or 0.0 for row in found) for what in ("spread", "accuracy"))
        rows.append([f"batch of {size}: spread of a scale; accuracy", f"{100 * spread:.1f} %; {accuracy:.3f}"])
    return table(["plain conv net of 20 layers on digits", ""], rows)


# Part 6

# A net has trained that reached this accuracy, at the best optimiser or rate, with the median of its seeds; where it learns no
# classes, this part of what it reached from the best start.
LEARNS = 0.7


class Outcome(NamedTuple):
    """What was trained, whether the survey said that it would train, whether it did, and the verdict.

    `chosen_on`: the verdict's bounds were chosen on it.
    """

    name: str
    said: bool
    did: bool
    verdict: str
    chosen_on: bool


def outcomes(results: Results) -> list[Outcome]:
    runs: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in results.rows:
        if row["job"]["part"] in ("harm", "frontier"):
            runs[_subject(row["job"])].append(row)
    best = {subject: _best(rows) for subject, rows in runs.items()}
    found = []
    for row in results.select(part="verdict"):
        job, bound = row["job"], LEARNS
        if "net" in job:
            name, chosen_on = f"{job['net']}, {NAMES[job['start']]}", job["net"] in harm.NETS
            if (NETS | MORE)[job["net"]].task != "digits":
                bound *= max(best.get(_subject({**job, "start": start}), 0.0) for start in harm.STARTS)
        else:
            activation = ACTIVATIONS.get(job["activation"], job["activation"])
            name = f"{KINDS[job['kind']]}, {job['depth']} layers, {activation}, {NAMES[job['start']]}"
            chosen_on = job["activation"] in frontier.QUICK_ACTIVATIONS
        if (did := best.get(_subject(job))) is not None:
            found.append(Outcome(name, row["found"]["healthy"], did >= bound, row["found"]["verdict"], chosen_on))
    return found


def _subject(job: dict[str, Any]) -> tuple[Any, ...]:
    """The net and the start that were looked at or trained."""
    return tuple(job.get(key) for key in ("net", "kind", "activation", "depth", "start"))


def _best(runs: list[dict[str, Any]]) -> float:
    """The median of the seeds at the best optimiser and rate."""
    ways: dict[Any, list[float]] = defaultdict(list)
    for row in runs:
        ways[row["job"].get("rate"), row["job"]["optimiser"]].append(row["found"] or 0.0)
    return max(median(scores) for scores in ways.values())


def verdict_table(results: Results) -> str:
    found = outcomes(results)
    if not found:
        return ""
    right = sum(o.said == o.did for o in found)
    rows = [
        ["said to train, trained", sum(o.said and o.did for o in found)],
        ["said not to train, did not", sum(not o.said and not o.did for o in found)],
        ["said to train, did not", sum(o.said and not o.did for o in found)],
        ["said not to train, trained", sum(not o.said and o.did for o in found)],
        ["right", f"{right} of {len(found)} ({100 * right / len(found):.0f} %)"],
    ]
    return table(["the survey before training", "nets and starts"], rows)


# In words


def sentences(results: Results) -> str:
    """What the README says of it, a line each; nothing before parts 2, 4 and 6 have been run."""
    if not all(results.select(part=part) for part in ("harm", "headline", "verdict")):
        return ""
    judged = cells(results, "balanced")
    normed = [cell for cell in judged if "norm" in cell[0]]
    deep = [cell for cell in judged if cell not in normed and cell[0] not in SHALLOW]
    nan, ends = lost(results), not_finite(results, "balanced")
    stuck = mean(mean_of(results, cell, "pytorch") for cell in nan) if nan else 0.0
    more = cells(results, "balanced", harm.MORE)
    more_better = list(more.values()).count("better")
    harmed = [f"{net}, {optimiser}" for (net, optimiser), word in more.items() if word == "worse"]
    found = outcomes(results)
    right = sum(o.said == o.did for o in found)
    unseen = [o.said == o.did for o in found if not o.chosen_on]
    better, worse = (_count(judged, deep, word) for word in ("better", "worse"))
    normed_better, normed_worse = (_count(judged, normed, word) for word in ("better", "worse"))
    ours, kaiming, paper = (headline_of(results, start) for start in ("balanced", "kaiming", "paper"))
    lines = (
        *_mlps(results),
        f"- **Deep nets without norms gain** ({len(deep)} cells of five layers and more: {better} better, {worse} worse), "
        f"**nets with norms do not** ({len(normed)} cells: {normed_better} better, {normed_worse} worse).",
        f"- **Of ten further nets**, {len(more)} cells, {more_better} are better and {len(harmed)} worse: "
        f"{'; '.join(harmed)}.",
        f"- **The course's model at its rate** diverges for {ours[1]} of {ours[0]} seeds, by the paper's recipe for {paper[1]} "
        f"of {paper[0]}, from Kaiming's start for {kaiming[1]} of {kaiming[0]}; the rest reach "
        f"{ours[2]:.3f}, {paper[2]:.3f}, {kaiming[2]:.3f}.",
        f"- **A rate too high stays too high**: {ends} nans in {len(nan)} cells where PyTorch's start stays at "
        f"{stuck:.2f}.",
        f"- **`survey` says so before**: right about {right} of {len(found)} nets and starts, and about {sum(unseen)} of the "
        f"{len(unseen)} on which its bounds were not chosen.",
    )
    return "\n".join(lines)


def _mlps(results: Results) -> list[str]:
    """How deep MLPs may be, in a line; none before that has been run."""
    try:
        ours, kaiming, paper = (
            ", ".join(_depth(Recital(results), "MLP", activation, start) for activation in frontier.QUICK_ACTIVATIONS)
            for start in ("balanced", "kaiming", "paper")
        )
    except LookupError:
        return []
    return [f"- **MLPs of width 64 gain less**: in the order above, the deepest that train have {ours} layers; "
            f"Kaiming's {kaiming}; the paper's recipe's {paper}."]  # fmt: skip


SHALLOW = ("logistic regression", "MLP 2 ReLU", "LSTM and head")


def _count(judged: dict[tuple[str, str], str], some: list[tuple[str, str]], word: str) -> int:
    return sum(judged[cell] == word for cell in some)


ALL = {"frontier": frontier_table, "starts": starts_table, "MLP": mlp_table, "rates": rates_table, "harm": harm_table,
       "tried": tried_table, "paper": paper_rows, "headline": headline_table, "cost": cost_table, "verdict": verdict_table,
       "sentences": sentences}  # fmt: skip
