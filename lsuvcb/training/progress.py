"""ProgressCB: how far the fit is, its rows as a table and its losses as a curve, wherever the output goes.

The bar, the table and the clock are drawn here because neither tqdm (4.70) nor rich (15.0) shows a fit in a notebook without
ipywidgets. The same two epochs of 60 + 20 steps, with four rows, gave:

    where            here                      tqdm                               rich (Live: Table and Progress)
    notebook         one output, 0.4 kB,       48 pieces of stderr, 7 kB;         a warning and an empty output,
                     redrawn in its place      tqdm.auto warns besides;           no row
                                               tqdm.notebook: ImportError
    terminal         rows and a bar            rows and a bar                     rows and a bar
    pipe             a line for each row,      the same with disable=None; else   the whole table, when the fit
                     as it comes               44 bars on stderr besides          has ended
    CPU for a step   0.3 us                    0.4 us                             1.7 us

So either would be one more dependency of the core, and spare no more than the class Terminal.
"""

from __future__ import annotations

import base64
import io
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from html import escape
from importlib import import_module
from typing import Any

import torch

from .batches import length
from .events import Callback
from .loop import Loop
from .metrics import MeanLoss, MetricsCB, as_text, batch_size
from .thinned import Thinned

REFRESH = 0.25  # seconds between two looks at the loss, each of which waits for the device
REDRAW = 2.0  # seconds between two drawings of the curve

Curve = tuple[Sequence[float], Sequence[float]]


class Lines:
    """Plain lines, for a pipe or a file: a header, then one line for each row."""

    plots = False

    def __init__(self) -> None:
        self._widths: dict[str, int] = {}

    def row(self, row: dict[str, str]) -> None:
        if list(row) != list(self._widths):
            self._widths = {name: max(len(name), len(value), 8) for name, value in row.items()}
            print("  ".join(name.ljust(width) for name, width in self._widths.items()).rstrip())
        print("  ".join(value.ljust(self._widths[name]) for name, value in row.items()).rstrip(), flush=True)

    def bar(self, label: str, done: int, total: int | None, seconds: float, loss: float | None) -> None: ...

    def end_bar(self) -> None: ...

    def draw(self, curves: dict[str, Curve]) -> None: ...

    def close(self) -> None: ...


class Terminal(Lines):
    """For a terminal: one line for each row, and below them a bar that moves."""

    def row(self, row: dict[str, str]) -> None:
        self.end_bar()
        super().row(row)

    def bar(self, label: str, done: int, total: int | None, seconds: float, loss: float | None) -> None:
        text = f" {_status(done, total, seconds, loss)}"
        columns = shutil.get_terminal_size().columns - 1
        room = min(40, columns - len(label) - len(text) - 3)
        if total and room >= 5:
            filled = room * done // total
            label += f" |{'#' * filled}{'-' * (room - filled)}|"
        print(f"\r{(label + text)[:columns]}\x1b[K", end="", flush=True)

    def end_bar(self) -> None:
        print("\r\x1b[K", end="", flush=True)


class Notebook(Lines):
    """A table, a bar and a curve in one output cell.

    Args:
        show: takes the HTML to be shown in place of what it showed before. Default: IPython's display.
    """

    plots = True

    def __init__(self, show: Callable[[str], None] | None = None) -> None:
        self._show = show or _cell()
        self._rows: list[dict[str, str]] = []
        self._bar = self._curve = ""

    def row(self, row: dict[str, str]) -> None:
        self._rows.append(row)
        self._render()

    def bar(self, label: str, done: int, total: int | None, seconds: float, loss: float | None) -> None:
        amount = f'value="{done}" max="{total}"' if total else ""
        status = escape(_status(done, total, seconds, loss))
        self._bar = f'<div>{escape(label)} <progress {amount} style="width:300px"></progress> {status}</div>'
        self._render()

    def end_bar(self) -> None:
        self._bar = ""

    def draw(self, curves: dict[str, Curve]) -> None:
        from matplotlib.figure import Figure  # not pyplot: it would be among the user's figures

        figure = Figure(figsize=(6, 3.5), layout="tight")
        axes = figure.add_subplot(xlabel="training step", ylabel="loss")
        for name, (x, y) in curves.items():
            if len(x):
                axes.plot(x, y, label=name, marker="o" if name == "valid" else None)
        if axes.get_lines():
            axes.legend(loc="upper right")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        png = base64.b64encode(buffer.getvalue()).decode()
        self._curve = f'<img alt="loss by training step" src="data:image/png;base64,{png}">'
        self._render()

    def close(self) -> None:
        self._bar = ""
        self._render()

    def _render(self) -> None:
        table = ""
        if self._rows:
            head = "".join(f"<th>{escape(name)}</th>" for name in self._rows[0])
            cells = ["".join(f"<td>{escape(value)}</td>" for value in row.values()) for row in self._rows]
            body = "".join(f"<tr>{row}</tr>" for row in cells)
            table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        self._show(f"{table}{self._bar}{self._curve}")


def _cell() -> Callable[[str], None]:
    ipython = import_module("IPython.display")  # there, since a notebook runs us
    handle = ipython.display(ipython.HTML(""), display_id=True)
    return lambda html: handle.update(ipython.HTML(html))


def _status(done: int, total: int | None, seconds: float, loss: float | None) -> str:
    left = f"<{_clock(seconds / done * (total - done))}" if total and done else ""
    shown = "" if loss is None else f" loss {loss:.3f}"
    return f"{done}/{total or '?'} {_clock(seconds)}{left}{shown}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"


def in_notebook() -> bool:
    """Is this process the kernel of a notebook?"""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def _best_view() -> Lines:
    if in_notebook():
        return Notebook()
    return Terminal() if sys.stdout.isatty() else Lines()


class ProgressCB(Callback):
    """Shows a bar and MetricsCB's rows: live in a notebook and in a terminal, plain lines elsewhere.

    Runs at before_fit, before_epoch, after_batch, after_epoch, cleanup_epoch and cleanup_fit.

    Args:
        plot: draw the training and validation loss as they come, in a notebook; elsewhere it has no effect.

    The loss is read from the device a few times a second, and only where there is a bar to show it.
    """

    order = MetricsCB.order + 10
    _view: Lines | None = None
    _logs_here: MetricsCB | None = None

    def __init__(self, plot: bool = False) -> None:
        self.plot = plot

    def before_fit(self, learn: Loop) -> None:
        if not learn.is_main:
            return
        self._view = _best_view()
        metrics = getattr(learn, "metrics", None)
        # A subclass with a _log of its own (to a file, to a service) keeps it.
        if isinstance(metrics, MetricsCB) and type(metrics)._log is MetricsCB._log:
            vars(metrics)["_log"], self._logs_here = self._log, metrics
        self._live = type(self._view) is not Lines
        self._curves = self.plot and self._view.plots
        self._steps, self._drawn = 0, 0.0
        self._train: Thinned[tuple[int, torch.Tensor]] = Thinned()
        self._points: dict[int, float] = {}
        self._valid: tuple[list[float], list[float]] = ([], [])
        self._valid_loss = MeanLoss()

    def _log(self, row: dict[str, Any]) -> None:
        if self._view is not None:
            self._view.row(as_text(row))

    def before_epoch(self, learn: Loop) -> None:
        if self._view is None:
            return
        self._started, self._looked = time.perf_counter(), 0.0
        self._total = length(learn.dl)
        self._valid_loss.reset()

    def after_batch(self, learn: Loop) -> None:
        if self._view is None or not self._live:
            return
        now = time.perf_counter()
        self._steps += learn.training
        if self._curves and learn.training and self._train.due():
            self._train.append((self._steps, learn.loss.detach()))
        elif self._curves and not learn.training:
            self._valid_loss.update(learn.loss, batch_size(learn.batch))
        if now - self._looked >= REFRESH:
            self._looked = now
            label = f"epoch {learn.epoch + 1}/{learn.n_epochs} {'train' if learn.training else 'valid'}"
            self._view.bar(label, learn.iter + 1, self._total, now - self._started, learn.loss.mean().item())
            if self._curves and now - self._drawn >= REDRAW:
                self._draw()

    def after_epoch(self, learn: Loop) -> None:
        if self._view is not None and self._curves:
            if not learn.training:
                self._valid[0].append(self._steps)
                self._valid[1].append(self._valid_loss.compute())
            self._draw()

    def _draw(self) -> None:
        assert self._view is not None
        self._drawn = time.perf_counter()
        new = [(x, y) for x, y in self._train if x not in self._points]
        values = torch.stack([y.mean() for _, y in new]).tolist() if new else []  # one read for all
        known = self._points | {x: value for (x, _), value in zip(new, values, strict=True)}
        self._points = {x: known[x] for x, _ in self._train}
        self._view.draw({"train": (list(self._points), list(self._points.values())), "valid": self._valid})

    def cleanup_epoch(self, learn: Loop) -> None:
        if self._view is not None:
            self._view.end_bar()

    def cleanup_fit(self, learn: Loop) -> None:
        if self._logs_here is not None:
            vars(self._logs_here).pop("_log", None)
        if self._view is not None:
            self._view.close()
        self._view = self._logs_here = None
