"""Pictures: images in a grid, a function, the signal by depth, losses. Matplotlib is imported when one is drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy import ndarray

BEFORE, AFTER, OTHER, QUIET = "#d1495b", "#1f6f8b", "#e9a23b", "#8a8a8a"
MOST_NAMES, MOST_MARKS, LONGEST = 24, 60, 22  # layers with a tick label, with a marker; characters of a label


def subplots(
    nrows: int = 1,
    ncols: int = 1,
    figsize: tuple[float, float] | None = None,
    imsize: float = 3,
    suptitle: str | None = None,
    **kwargs: Any,
) -> tuple[Figure, ndarray]:
    """A figure with axes for images of `imsize` inches; the axes are an array also when there is but one.

    Args:
        nrows, ncols: how many axes.
        figsize: width and height in inches. None: as `imsize` gives them.
        imsize: side of one image in inches.
        suptitle: above all of them.
        **kwargs: go to plt.subplots; the layout is "constrained" unless they say otherwise.
    """
    import matplotlib.pyplot as plt
    import numpy as np

    kwargs.setdefault("layout", "constrained")
    figure, axes = plt.subplots(nrows, ncols, figsize=figsize or (ncols * imsize, nrows * imsize), **kwargs)
    if suptitle is not None:
        figure.suptitle(suptitle)
    return figure, axes if nrows * ncols > 1 else np.array([axes])


def get_grid(
    n: int,
    nrows: int | None = None,
    ncols: int | None = None,
    title: str | None = None,
    weight: str = "bold",
    size: float = 14,
    **kwargs: Any,
) -> tuple[Figure, ndarray]:
    """A figure with axes for `n` images, as square a grid as can be; the axes beyond `n` are hidden.

    Args:
        n: how many, >= 1.
        nrows, ncols: one or both to fix; together they must hold n.
        title, weight, size: above all of them, and its font.
        **kwargs: go to `subplots`.

    Raises:
        ValueError: `n` < 1, or a grid that is too small.
    """
    if n < 1:
        raise ValueError(f"`n` must be >= 1, got {n}.")
    if nrows is None:
        nrows = math.isqrt(n) if ncols is None else math.ceil(n / ncols)
    if ncols is None:
        ncols = math.ceil(n / nrows)
    if nrows * ncols < n:
        raise ValueError(f"`nrows` x `ncols` must be >= n = {n}, got {nrows} x {ncols}; leave one of them out.")
    figure, axes = subplots(nrows, ncols, **kwargs)
    for ax in axes.flat[n:]:
        ax.set_axis_off()
    if title is not None:
        figure.suptitle(title, weight=weight, size=size)
    return figure, axes


def show_image(
    im: Any,
    ax: Axes | None = None,
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
    noframe: bool = True,
    **kwargs: Any,
) -> Axes:
    """Shows one image.

    Args:
        im: a tensor or array (h, w), (c, h, w) with c < 5, or (h, w, c); or a PIL image.
        ax: where. None: new axes of `figsize` inches.
        title: above it.
        noframe: hide the frame, the ticks go in any case.
        **kwargs: go to ax.imshow.
    """
    if isinstance(im, Tensor):
        im = im.detach().cpu().numpy()
    if getattr(im, "ndim", 0) == 3 and im.shape[0] < 5:
        im = im.transpose(1, 2, 0)
    if getattr(im, "ndim", 0) == 3 and im.shape[-1] == 1:
        im = im[..., 0]
    ax = ax if ax is not None else _new_axes(figsize)
    ax.imshow(im, **kwargs)
    if title is not None:
        ax.set_title(title)
    ax.set_xticks([])
    ax.set_yticks([])
    if noframe:
        ax.axis("off")
    return ax


def show_images(
    ims: Sequence[Any] | Tensor,
    nrows: int | None = None,
    ncols: int | None = None,
    titles: Iterable[str] | None = None,
    **kwargs: Any,
) -> Figure:
    """Shows several images in a grid, each with its title if `titles` has one for it. As `show_image` and `get_grid`."""
    figure, axes = get_grid(len(ims), nrows, ncols, **kwargs)
    for im, title, ax in zip_longest(ims, list(titles or [])[: len(ims)], axes.flat[: len(ims)]):
        show_image(im, ax, title=title)
    return figure


def plot_func(
    f: Callable[[Tensor], Tensor], start: float = -5.0, end: float = 5.0, steps: int = 100, ax: Axes | None = None
) -> Axes:
    """Draws y = f(x) for `steps` values of x from `start` to `end`; f maps a tensor (steps,) to one of the same shape."""
    x = torch.linspace(start, end, steps)
    with torch.no_grad():
        y = f(x.clone())  # a function may work in place
    ax = ax if ax is not None else _new_axes()
    ax.axhline(0, color=QUIET, lw=0.8)
    ax.axvline(0, color=QUIET, lw=0.8)
    ax.plot(x.numpy(), y.cpu().numpy(), color=AFTER, lw=2)
    ax.set(xlabel="x", ylabel="f(x)")
    return _quiet(ax, grid="both")


def plot_stds(
    names: Sequence[str],
    before: Sequence[float],
    after: Sequence[float] | None = None,
    *,
    signal: Sequence[float] | None = None,
    gradient: Sequence[float] | None = None,
    ax: Axes | None = None,
    target: float | None = 1.0,
    title: str | None = "Standard deviation of each layer's output",
) -> Axes:
    """Draws the std of each layer's output by depth, on a log scale.

    Args:
        names: of the layers, in execution order; all are written if they are few, else every so many.
        before, after: one std for each layer; those that are 0 or not finite have no place on a log scale and are left out.
        signal: what of `before` tells one sample from another; drawn dotted.
        gradient: that comes back to each layer, relative to the last layer's.
        ax: where. None: new axes.
        target: a line to compare with. None: no line.
        title: above it.

    Raises:
        ValueError: `before`, `after`, `signal` or `gradient` has another length than `names`.
    """
    given = {"before": before, "after": after, "signal": signal, "gradient": gradient}
    curves = {name: stds for name, stds in given.items() if stds is not None}
    words = {"signal": "what of it tells samples apart", "gradient": "gradient, relative to the last layer's"}
    if signal is not None or gradient is not None:
        words["before"] = "std"
    for name, stds in curves.items():
        if len(stds) != len(names):
            raise ValueError(f"`{name}` must have one std for each of the {len(names)} names, got {len(stds)}.")
    ax = ax if ax is not None else _new_axes((7.5, 4.2))
    if target is not None:
        ax.axhline(target, color=QUIET, lw=1, ls="--", zorder=1)
    styles = {
        "before": (BEFORE, "o", "-"),
        "after": (AFTER, "s", "-"),
        "signal": (BEFORE, "", ":"),
        "gradient": (AFTER, "v", "--"),
    }
    for name, stds in curves.items():
        shown = [std if std > 0 and math.isfinite(std) else math.nan for std in stds]
        color, marker, line = styles[name]
        marker = marker if len(names) <= MOST_MARKS else ""
        ax.plot(
            range(len(names)), shown, color=color, marker=marker, ls=line, ms=4.5, lw=1.8, label=words.get(name, name)
        )
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    if high < 10 * low:  # a flat line fills no decade: give it one, or its noise looks like a signal
        ax.set_ylim(low / 3, high * 3)
        from matplotlib.ticker import LogLocator, NullLocator

        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))  # one label for each digit would not fit
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter("{x:g}")
    ticks = range(0, len(names), math.ceil(len(names) / MOST_NAMES) or 1)
    labels = [names[i] if len(names[i]) <= LONGEST else f"…{names[i][1 - LONGEST :]}" for i in ticks]
    crowded = max(map(len, labels), default=0) * len(labels) > 60
    ax.set_xticks(ticks, labels, rotation=90 if crowded else 0, size="small")
    what = "std of output" if gradient is None else "std of output, gradient"
    ax.set(xlabel="layer, in execution order", ylabel=f"{what} (log scale)")
    if title is not None:
        ax.set_title(title)
    if len(curves) > 1:
        ax.legend(frameon=False)
    return _quiet(ax)


def plot_losses(
    losses: Mapping[str, Sequence[float]],
    *,
    ax: Axes | None = None,
    chance: float | None = None,
    title: str | None = "Training loss",
) -> Axes:
    """Draws one curve of losses by epoch for each run.

    Args:
        losses: name of the run -> its loss after epoch 1, 2, ...; the first two have the colours of before and after.
        ax: where. None: new axes.
        chance: the loss of a model that only guesses, as a line to compare with. None: no line.
        title: above it.
    """
    ax = ax if ax is not None else _new_axes((7.5, 4.2))
    if chance is not None:
        ax.axhline(chance, color=QUIET, lw=1, ls="--", zorder=1, label="guessing")
    for i, (name, values) in enumerate(losses.items()):
        color = (BEFORE, AFTER, OTHER)[i] if i < 3 else None
        ax.plot(range(1, len(values) + 1), values, color=color, marker="os^vD"[i % 5], ms=4.5, lw=1.8, label=name)
    ax.locator_params(axis="x", integer=True)
    ax.set_ylim(bottom=0)
    ax.set(xlabel="epoch", ylabel="loss")
    if title is not None:
        ax.set_title(title)
    ax.legend(frameon=False)
    return _quiet(ax)


def plot_history(history: Sequence[Mapping[str, Any]]) -> Axes:
    """Draws the loss and each metric by epoch, training and validation, side by side; returns the first axes.

    Args:
        history: rows as MetricsCB writes them.

    Raises:
        ValueError: there is no row.
    """
    if not history:
        raise ValueError("`history` has no rows: fit with a MetricsCB first.")
    names = [name for name in history[0] if name not in ("epoch", "train", "loss") and _is_number(history[0][name])]
    _, axes = get_grid(1 + len(names), nrows=1, figsize=(5.5 * (1 + len(names)), 3.8))
    for ax, name in zip(axes.flat, ["loss", *names], strict=True):
        for kind, color, label in (("train", BEFORE, "training"), ("eval", AFTER, "validation")):
            points = [(row["epoch"] + 1, row[name]) for row in history if row["train"] == kind]
            if points:
                ax.plot(*zip(*points, strict=True), color=color, marker="o", ms=4.5, lw=1.8, label=label)
        ax.locator_params(axis="x", integer=True)
        ax.set(xlabel="epoch", ylabel=name)
        ax.legend(frameon=False)
        _quiet(ax)
    return axes.flat[0]


def plot_lrs(lrs: Sequence[float], losses: Sequence[float], suggestion: float | None = None) -> Axes:
    """Draws loss by learning rate, on a log scale, and a line at the suggested rate."""
    ax = _new_axes((6.5, 4))
    ax.plot(lrs, losses, color=AFTER, lw=1.8)
    if suggestion is not None:
        ax.axvline(suggestion, color=BEFORE, lw=1.2, ls="--", label=f"suggestion: {suggestion:.2g}")
        ax.legend(frameon=False)
    ax.set_xscale("log")
    ax.set(xlabel="learning rate (log scale)", ylabel="loss")
    return _quiet(ax)


def plot_records(steps: Sequence[int], records: Mapping[str, Sequence[float]]) -> Axes:
    """Draws each series of values by training step, side by side; returns the first axes."""
    _, axes = get_grid(len(records), nrows=1, figsize=(5.5 * len(records), 3.8))
    for ax, (name, values) in zip(axes.flat, records.items(), strict=True):
        ax.plot(steps, values, color=AFTER, lw=1.4)
        ax.set(xlabel="training step", ylabel=name)
        _quiet(ax)
    return axes.flat[0]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


def _new_axes(figsize: tuple[float, float] | None = None) -> Axes:
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=figsize, layout="constrained")[1]


def _quiet(ax: Axes, grid: str = "y") -> Axes:
    ax.grid(axis=grid, color="#e3e3e3", lw=0.8)  # type: ignore[arg-type]
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    return ax
