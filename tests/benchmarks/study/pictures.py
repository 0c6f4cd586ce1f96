"""The evidence as pictures. Matplotlib is imported when one is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import frontier, harm
from .results import Results
from .tables import ACTIVATIONS, NAMES, cells, reached

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OURS, OTHERS, QUIET = "#1f6f8b", "#c9c9c9", "#8a8a8a"


def plain(start: str) -> str:
    return NAMES[start].replace("`", "")


def frontier_picture(results: Results) -> Figure:
    """How deep a plain conv net may be and still train, from the quick form's starts: bars, side by side for each activation."""
    import matplotlib.pyplot as plt

    activations, starts = frontier.QUICK_ACTIVATIONS, frontier.QUICK_STARTS[::-1]
    figure, axes = plt.subplots(
        1,
        len(activations),
        figsize=(4.2 * len(activations), 0.45 * len(starts) + 1.3),
        sharey=True,
        layout="constrained",
    )
    for ax, activation in zip(axes, activations, strict=True):
        depths = [reached(results, activation, start) for start in starts]
        colors = [OURS if start == "balanced" else OTHERS for start in starts]
        ax.barh([plain(start) for start in starts], depths, color=colors, height=0.7)
        for i, depth in enumerate(depths):
            ax.text(
                depth + 1,
                i,
                str(depth) if depth else "none",
                va="center",
                color="black" if depth else QUIET,
                size="small",
            )
        ax.set(title=ACTIVATIONS.get(activation, activation), xlim=(0, 115), xlabel="layers")
        ax.spines[["top", "right"]].set_visible(False)
    figure.suptitle("The deepest plain conv net that trains (digits, accuracy 0.8 or more)", weight="bold")
    return figure


def harm_picture(results: Results) -> Figure:
    """Of the small nets and optimisers: how many are better off, and how many worse, than from PyTorch's start."""
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(7.5, 2.2), layout="constrained")
    for i, start in enumerate(harm.STARTS[:0:-1]):
        judged = list(cells(results, start).values())
        better, worse = judged.count("better"), judged.count("worse")
        ax.barh(plain(start), better, color=OURS if start == "balanced" else OTHERS)
        ax.barh(plain(start), -worse, color="#d1495b")
        ax.text(better + 0.5, i, f"{better} better", va="center", size="small")
        ax.text(-worse - 0.5, i, f"{worse} worse", va="center", ha="right", size="small")
    ax.axvline(0, color="black", lw=0.8)
    ax.set(
        title=f"{len(judged)} small nets and optimisers, against PyTorch's start", xlim=(-16, len(judged)), xticks=[]
    )
    ax.spines[["top", "right", "bottom", "left"]].set_visible(False)
    return figure
