"""ProgressCB: what it writes to a pipe, to a terminal and into a notebook's cell."""

import contextlib
import io
import pickle
import re

import pytest
from tiny import learner, loaders, recorder

from lsuvcb.training import progress
from lsuvcb.training.events import CancelEpochException, CancelFitException
from lsuvcb.training.metrics import MetricsCB
from lsuvcb.training.progress import Lines, Notebook, ProgressCB, Terminal


class Tty(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Runs a function with an 80 column terminal for standard output; gives what it wrote there."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(f):
        stream = Tty()
        with contextlib.redirect_stdout(stream):
            f()
        return stream.getvalue()

    return run


def screen(text):
    """The lines that a terminal shows in the end: what follows a carriage return overwrites, ESC [K clears the rest."""
    lines = []
    for line in text.split("\n"):
        shown = ""
        for part in line.split("\r"):
            part, *cleared = part.split("\x1b[K")
            shown = part + "".join(cleared) if cleared else part + shown[len(part) :]
        lines.append(shown)
    return lines


ROWS = [
    "loss      epoch     train",
    "1.000     0         train",
    "0.640     0         eval",
    "0.640     1         train",
    "0.410     1         eval",
]


def test_output_to_a_pipe_is_plain_lines_and_nothing_else(capsys):
    learner([MetricsCB(), ProgressCB(plot=True)], loaders(1, 1)).fit(2)
    assert capsys.readouterr().out.splitlines() == ROWS


def test_output_to_a_pipe_without_metrics_is_nothing(capsys):
    learner([ProgressCB()]).fit(2)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("plot", [False, True])
def test_terminal_shows_a_bar_that_moves_and_leaves_the_table_alone(terminal, plot):
    learn = learner([MetricsCB(), ProgressCB(plot=plot)], loaders(1, 1))
    text = terminal(lambda: learn.fit(2))
    assert screen(text) == [*ROWS, ""]
    assert re.search(r"\repoch 1/2 train \|#+-*\| 1/1 00:00<00:00 loss 1\.000\x1b\[K", text)
    assert re.search(r"\repoch 2/2 valid \|#+-*\| 1/1 00:00<00:00 loss 0\.410\x1b\[K", text)


@pytest.mark.parametrize("error", [CancelEpochException, CancelFitException, KeyError, KeyboardInterrupt])
def test_terminal_bar_is_gone_after_a_cancelled_or_failed_fit(terminal, error):

    def also(event, learn):
        if event == "after_batch":
            raise error

    late = recorder(order=99, also=also)
    learn = learner([ProgressCB(), late])

    def fail():
        with contextlib.suppress(KeyError, KeyboardInterrupt):
            learn.fit(1)

    text = terminal(fail)
    assert "loss" in text
    assert screen(text) == [""]


def test_terminal_bar_of_a_loader_of_unknown_length_counts(terminal):
    dls = loaders()
    dls.train = (batch for batch in dls.train)
    text = terminal(lambda: learner([ProgressCB()], dls).fit(1, valid=False))
    assert "epoch 1/1 train 1/? 00:00 loss 1.000" in text


@pytest.mark.parametrize("columns", [1, 20, 40, 200])
def test_terminal_bar_fits_any_width(terminal, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    line = screen(terminal(lambda: Terminal().bar("epoch 1/3 train", 5, 10, 61.0, 0.25)))[0]
    assert len(line) < columns
    if columns == 200:
        assert line == f"epoch 1/3 train |{'#' * 20}{'-' * 20}| 5/10 01:01<01:01 loss 0.250"


def test_bar_looks_at_the_loss_a_few_times_a_second_at_most(terminal):
    text = terminal(lambda: learner([ProgressCB()], loaders(train=200, valid=1)).fit(1))
    assert 2 <= text.count("loss") < 60


def test_notebook_cell_has_table_then_bar_then_curve():
    shown = []
    view = Notebook(shown.append)
    view.row({"loss": "1.000", "<b>": "&"})
    view.bar("epoch 1/1 train", 3, 10, 2.0, 0.5)
    view.draw({"train": ([1, 2, 3], [3.0, 2.0, 1.0]), "valid": ([], [])})
    table, rest = shown[-1].split("</table>")
    assert "<th>loss</th><th>&lt;b&gt;</th>" in table
    assert "<td>1.000</td><td>&amp;</td>" in table
    assert '<progress value="3" max="10"' in rest
    assert "3/10 00:02&lt;00:04 loss 0.500" in rest
    assert '<img alt="loss by training step" src="data:image/png;base64,' in rest
    view.close()
    assert "<progress" not in shown[-1]
    assert "<img" in shown[-1]


def test_notebook_without_a_total_shows_a_bar_without_a_value():
    shown = []
    Notebook(shown.append).bar("epoch", 3, None, 3700.0, None)
    assert "<progress  style" in shown[-1]
    assert "3/? 1:01:40" in shown[-1]


def test_curve_leaves_the_users_figures_alone():
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    Notebook(lambda html: None).draw({"train": ([1], [1.0]), "valid": ([1], [2.0])})
    assert plt.get_fignums() == before


class Cell(Notebook):
    """Keeps the curves that it is asked to draw."""

    def __init__(self):
        super().__init__(lambda html: None)
        self.curves, self.closed = [], False

    def draw(self, curves):
        assert not self.closed
        self.curves.append({name: (list(x), list(y)) for name, (x, y) in curves.items()})

    def close(self):
        self.closed = True


def test_plot_draws_each_training_loss_and_each_epochs_mean_validation_loss(monkeypatch):
    cell = Cell()
    monkeypatch.setattr(progress, "_best_view", lambda: cell)
    learner([ProgressCB(plot=True)], loaders(train=2, valid=2)).fit(2)
    last = cell.curves[-1]
    # w = 0, 0.2, 0.36, 0.488, then 0.5904: losses (w - 1)^2
    assert last["train"][0] == [1, 2, 3, 4]
    assert last["train"][1] == pytest.approx([1.0, 0.64, 0.4096, 0.262144])
    assert cell.closed
    assert last["valid"][0] == [2, 4]
    assert last["valid"][1] == pytest.approx([0.4096, 0.16777216])


def test_plot_of_a_long_fit_stays_bounded_and_even(monkeypatch):
    cell = Cell()
    monkeypatch.setattr(progress, "_best_view", lambda: cell)
    learner([ProgressCB(plot=True)], loaders(train=1500, valid=1), lr=1e-4).fit(1, valid=False)
    steps = cell.curves[-1]["train"][0]
    assert steps == list(range(1, 1500, 2))


def test_log_goes_back_to_the_metrics_after_the_fit(capsys):
    metrics = MetricsCB()
    learn = learner([metrics])
    learn.fit(1, train=False, cbs=ProgressCB())
    learn.fit(1, train=False)
    assert capsys.readouterr().out.splitlines()[-1].startswith("{'loss'")
    assert "_log" not in vars(metrics)


def test_metrics_of_an_earlier_fit_do_not_get_the_table(capsys):
    learn = learner()
    learn.fit(1, train=False, cbs=MetricsCB())
    learn.fit(1, train=False, cbs=ProgressCB())
    assert capsys.readouterr().out.count("\n") == 1


def test_progress_can_be_pickled_before_and_after_a_fit(capsys):
    cb = ProgressCB(plot=True)
    pickle.loads(pickle.dumps(cb))
    learner([MetricsCB(), cb]).fit(1)
    again = pickle.loads(pickle.dumps(cb))
    learner([MetricsCB(), again]).fit(1)
    assert again.plot is True


def test_progress_lets_go_of_the_notebooks_cell_after_a_fit(monkeypatch):
    monkeypatch.setattr(progress, "_best_view", lambda: Notebook(lambda html: None))
    cb = ProgressCB()
    learner([MetricsCB(), cb]).fit(1)
    pickle.dumps(cb)  # the cell's function cannot be pickled


def test_lines_print_a_new_header_for_new_columns(capsys):
    view = Lines()
    view.row({"a": "1"})
    view.row({"a": "2"})
    view.row({"a": "3", "long name": "4"})
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        *(["a"], ["1"], ["2"]),
        *(["a", "long", "name"], ["3", "4"]),
    ]
