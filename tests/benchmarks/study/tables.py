"""From the results to tables in Markdown: the README and the notebook show these, and nothing else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Iterable
from functools import partial
from math import log10
from statistics import mean, median, stdev
from typing import Any

from . import cost, frontier, harm, headline, paper_table
from .results import Results
from .starts import TRIED

NAMES = {
    "pytorch": "PyTorch's start",
    "kaiming": "`kaiming_normal_`",
    "xavier": "`xavier_normal_`",
    "orthogonal": "`orthogonal_`",
    "delta": "delta-orthogonal",
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

DEPTH = "deepest that trains"
KINDS = {"conv": "conv net", "MLP": "MLP"}


def reached(results: Results, activation: str, start: str, kind: str = "conv") -> int:
    """The deepest net that trains, of those that were tried; 0 for none."""
    return max(
        (d for d in frontier.DEPTHS if accuracy_at(results, activation, start, d, kind) >= frontier.TRAINS), default=0
    )


def accuracy_at(results: Results, activation: str, start: str, depth: int, kind: str = "conv") -> float:
    """The median accuracy of the seeds at the best of the three rates; 0 where that depth was not tried."""
    found = by_rate(results, activation, start, depth, kind)
    return max((accuracy for rate, accuracy in found.items() if rate in frontier.RATES), default=0.0)


def by_rate(
    results: Results, activation: str, start: str, depth: int, kind: str = "conv", optimiser: str = "SGD, momentum 0.9"
) -> dict[float, float]:
    """Learning rate -> the median accuracy of the seeds."""
    rows = results.select(
        part="frontier", kind=kind, activation=activation, start=start, depth=depth, optimiser=optimiser
    )
    found: dict[float, list[float]] = defaultdict(list)
    for row in rows:
        found[row["job"]["rate"]].append(row["found"] or 0.0)
    return {rate: median(scores) for rate, scores in found.items()}


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
    """A line for each start, a column for each activation, as far as they were run."""
    done = {(r["job"]["activation"], r["job"]["start"]) for r in results.select(part="frontier", kind=kind)}
    starts = [s for s in starts if any(start == s for _, start in done)]
    activations = [a for a in activations if any(act == a for act, _ in done)]
    rows = [
        [NAMES[s], *(tell(results, kind, a, s) if (a, s) in done else "not run" for a in activations)] for s in starts
    ]
    return table([heading, *(ACTIVATIONS.get(a, a) for a in activations)], rows)


def _depth(results: Results, kind: str, activation: str, start: str) -> str:
    return str(reached(results, activation, start, kind) or "none")


def _width(results: Results, kind: str, activation: str, start: str) -> str:
    at = activation, start, reached(results, activation, start, kind), kind
    adam = by_rate(results, *at, optimiser="Adam")
    if not adam:
        return "not run" if at[2] else "none"
    trains = [rate for rate, accuracy in by_rate(results, *at).items() if accuracy >= frontier.TRAINS]
    also = "; Adam" if max(adam.values()) >= frontier.TRAINS else ""
    return f"{log10(max(trains) / min(trains)):.1f}{also}"


# Part 2


def cells(results: Results, start: str, nets: Container[str] = harm.NETS) -> dict[tuple[str, str], str]:
    """Net and optimiser -> better, equal or worse than PyTorch's start; what looks worse is looked at again with fresh seeds."""
    return {cell: _judged(results, cell, start) for cell in _cells(results, nets)}


def _cells(results: Results, nets: Container[str] = harm.NETS) -> list[tuple[str, str]]:
    found = dict.fromkeys((r["job"]["net"], r["job"]["optimiser"]) for r in results.select(part="harm"))
    return [cell for cell in found if cell[0] in nets]


def _scores(results: Results, cell: tuple[str, str], start: str, fresh: bool) -> list[float | None]:
    rows = results.select(part="harm", net=cell[0], optimiser=cell[1], start=start)
    return [row["found"] for row in rows if (row["job"]["seed"] >= 100) == fresh]


def _judged(results: Results, cell: tuple[str, str], start: str) -> str:
    first = harm.compare(_scores(results, cell, start, False), _scores(results, cell, "pytorch", False))
    if first != "worse":
        return first
    again = harm.compare(_scores(results, cell, start, True), _scores(results, cell, "pytorch", True))
    return "worse" if again == "worse" else "equal"


def not_finite(results: Results, start: str) -> int:
    """Runs of the first seeds that ended in a loss that is no number, in cells where none of PyTorch's did."""
    quiet = [cell for cell in _cells(results) if None not in _scores(results, cell, "pytorch", False)]
    return sum(score is None for cell in quiet for score in _scores(results, cell, start, False))


def lost(results: Results) -> list[tuple[str, str]]:
    """The cells in which a run of the default call ended in nan, and none of PyTorch's start did."""
    quiet = [cell for cell in _cells(results) if None not in _scores(results, cell, "pytorch", False)]
    return [cell for cell in quiet if None in _scores(results, cell, "balanced", False)]


def mean_of(results: Results, cell: tuple[str, str], start: str) -> float:
    """The mean score of the first seeds; a loss that was no number counts as 0."""
    return mean(score or 0.0 for score in _scores(results, cell, start, False))


def harm_table(results: Results, starts: Iterable[str] = harm.STARTS[1:]) -> str:
    rows = []
    for start in starts:
        judged = list(cells(results, start).values())
        rows.append(
            [
                NAMES.get(start, start),
                *(judged.count(word) for word in ("better", "equal", "worse")),
                not_finite(results, start),
            ]
        )
    return table(["against PyTorch's start", "better", "equal", "worse", "runs that ended in nan"], rows)


# Part 7


def tried_table(results: Results) -> str:
    whole = (start for start in TRIED if all(_scores(results, cell, start, False) for cell in _cells(results)))
    return harm_table(results, ("balanced", *whole))


# Part 3


def paper_rows(results: Results) -> str:
    """The quick form's nets of half the width, and those of the whole one."""
    rows = []
    for quick in (True, False):
        for net in paper_table.NETS:
            for start in paper_table.STARTS:
                runs = partial(results.select, part="paper", net=net, start=start, quick=quick)
                found = [runs(activation=act) for act in paper_table.ACTIVATIONS]
                if any(found):
                    rows.append([net + quick * ", halved", NAMES[start], *(_converged(some) for some in found)])
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
        spread, accuracy = (median(row[what] or 0.0 for row in found) for what in ("spread", "accuracy"))
        rows.append([f"batch of {size}: spread of a scale; accuracy", f"{100 * spread:.1f} %; {accuracy:.3f}"])
    return table(["plain conv net of 20 layers on digits", ""], rows)


# Part 6

LEARNS = 0.7  # a net that reached it, at the best optimiser or rate, with the median of its seeds, has trained


def outcomes(results: Results) -> list[tuple[str, bool, bool, str]]:
    """What was trained, whether the survey said that it would train, whether it did, and the verdict."""
    found = []
    for row in results.select(part="verdict"):
        job = row["job"]
        if "net" in job:
            runs = results.select(part="harm", net=job["net"], start=job["start"])
            name = f"{job['net']}, {NAMES[job['start']]}"
        else:
            wanted = {key: job[key] for key in ("kind", "activation", "start", "depth")}
            runs = results.select(part="frontier", **wanted)
            activation = ACTIVATIONS.get(job["activation"], job["activation"])
            name = f"{KINDS[job['kind']]}, {job['depth']} layers, {activation}, {NAMES[job['start']]}"
        ways: dict[Any, list[float]] = defaultdict(list)
        for trained in runs:
            ways[trained["job"].get("rate"), trained["job"]["optimiser"]].append(trained["found"] or 0.0)
        if ways:
            best = max(median(scores) for scores in ways.values())
            found.append((name, row["found"]["healthy"], best >= LEARNS, row["found"]["verdict"]))
    return found


def verdict_table(results: Results) -> str:
    found = outcomes(results)
    right = sum(said == did for _, said, did, _ in found)
    rows = [
        ["said to train, trained", sum(said and did for _, said, did, _ in found)],
        ["said not to train, did not", sum(not said and not did for _, said, did, _ in found)],
        ["said to train, did not", sum(said and not did for _, said, did, _ in found)],
        ["said not to train, trained", sum(not said and did for _, said, did, _ in found)],
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
    right = sum(said == did for _, said, did, _ in found)
    unseen = [said == did for name, said, did, _ in found if any(word in name for word in UNSEEN)]
    unseen_right = sum(unseen)
    better, worse = (_count(judged, deep, word) for word in ("better", "worse"))
    normed_better, normed_worse = (_count(judged, normed, word) for word in ("better", "worse"))
    (seeds, ours, accuracy, _), (_, theirs, kaiming, _) = (
        headline_of(results, start) for start in ("balanced", "kaiming")
    )
    lines = (
        f"- **Deep nets without norms gain**: of {len(deep)} cells of five layers and more {better} are better, {worse} worse.",
        f"- **Nets with norms do not**: of {len(normed)} cells {normed_better} better, {normed_worse} worse; a layer "
        "right before a norm is left alone.",
        f"- **Of ten further nets**, {len(more)} cells, {more_better} are better and {len(harmed)} worse: "
        f"{'; '.join(harmed)}.",
        f"- **The course's model at its rate**: of {seeds} seeds {ours} diverge, from Kaiming's start {theirs}; the rest reach "
        f"{accuracy:.3f} and {kaiming:.3f}.",
        f"- **A rate too high stays too high**: {ends} nans in {len(nan)} cells where PyTorch's start stays at "
        f"{stuck:.2f}.",
        f"- **`survey` says so before**: right about {right} of {len(found)} nets and starts, and about {unseen_right} of the "
        f"{len(unseen)} on which its bounds were not chosen.",
    )
    return "\n".join(lines)


UNSEEN = ("GeneralRelu", "SiLU")  # what survey's bounds were not chosen on
SHALLOW = ("logistic regression", "MLP 2 ReLU", "LSTM and head")


def _count(judged: dict[tuple[str, str], str], some: list[tuple[str, str]], word: str) -> int:
    return sum(judged[cell] == word for cell in some)


ALL = {"frontier": frontier_table, "starts": starts_table, "MLP": mlp_table, "rates": rates_table, "harm": harm_table,
       "tried": tried_table, "paper": paper_rows, "headline": headline_table, "cost": cost_table, "verdict": verdict_table,
       "sentences": sentences}  # fmt: skip
