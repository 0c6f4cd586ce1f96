"""ActivationStats: moments and histograms against plain torch, bounded records, pictures with named axes."""

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import learner, line, loaders, net
from torch import nn

from lsuvcb.engine.errors import LSUVWarning
from lsuvcb.training import activation_stats
from lsuvcb.training.activation_stats import ActivationStats, LayerStats, histogram, mean_and_std, sample_of


def full_histogram(x):
    """The course's, with what is beyond 10 in the last bin."""
    return x.float().abs().clamp(max=10).histc(40, 0, 10)


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(7, 5, generator=torch.Generator().manual_seed(0)),
        torch.randn(2_000, 300, generator=torch.Generator().manual_seed(1)).relu(),
        1000 + torch.randn(3000, generator=torch.Generator().manual_seed(2)),
        torch.zeros(5),
        torch.randn(500, dtype=torch.float64),
        torch.randn(500).half(),
        torch.randn(4, 3, 5, 6).to(memory_format=torch.channels_last),
        torch.randn(6, 8)[:, ::2],
    ],
    ids=["small", "large", "far", "zero", "double", "half", "channels_last", "strided"],
)
def test_mean_and_std_are_those_of_torch_in_float64(x):
    mean, std = mean_and_std(x)
    assert float(mean) == pytest.approx(x.double().mean().item(), rel=1e-5, abs=1e-6)
    assert float(std) == pytest.approx(x.double().std(correction=0).item(), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("size", [1e20, 1e30, 1e-22, 1e-30])
def test_std_is_exact_where_squares_leave_the_range_of_float32(size):
    x = torch.randn(5000) * size
    assert float(mean_and_std(x)[1]) == pytest.approx(x.double().std(correction=0).item(), rel=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_mean_of_an_output_that_is_not_finite_is_not_finite(bad):
    x = torch.ones(100)
    x[3] = bad
    mean, _ = mean_and_std(x)
    assert not torch.isfinite(torch.as_tensor(mean))
    assert histogram(x).sum() >= 99


@given(n=st.integers(1, 60), c=st.integers(1, 40), h=st.integers(1, 12), size=st.integers(1, 500))
@settings(deadline=None, max_examples=100)
def test_sample_is_about_as_large_as_asked_and_misses_no_channel_or_position(n, c, h, size):
    x = torch.arange(n * c * h).view(n, c, h)
    found = sample_of(x, size)
    assert len(found) == len(set(found.tolist()))
    assert len(found) <= 2 * size
    # the next spacing that shares no divisor may be a few steps away, which counts where the spacing is small
    assert min(size, x.numel()) // 2 <= len(found) or x.numel() < 16 * size
    if len(found) >= c * h:
        assert {v % (c * h) for v in found.tolist()} == set(range(c * h))


def test_histogram_of_a_small_output_is_the_exact_one():
    x = 4 * torch.randn(500, 10)
    assert torch.equal(histogram(x), full_histogram(x))
    assert histogram(x).sum() == x.numel()


def test_histogram_of_a_large_output_is_within_two_percent_in_every_bin():
    x = (3 * torch.randn(64, 32, 20, 20)).relu() + torch.arange(32).view(1, -1, 1, 1) / 10
    error = (histogram(x) - full_histogram(x)).abs().max() / x.numel()
    assert error < 0.02
    assert histogram(x).sum().item() == pytest.approx(x.numel())


def test_histogram_counts_what_is_beyond_the_limit_in_the_last_bin():
    assert histogram(torch.tensor([0.1, 0.3, -0.3, 9.9, 50.0, -1e9])).tolist() == [1.0, 2.0, *[0.0] * 37, 3.0]


# The callback


def test_stats_of_a_line_are_those_worked_by_hand():
    # y = w for every sample, and w goes 0, 0.2, 0.36
    stats = ActivationStats(nn.Linear)
    learner([stats], loaders(train=3, valid=1)).fit(1)
    record = stats.stats[""]
    assert record.mean.tolist() == pytest.approx([0.0, 0.2, 0.36])
    assert record.std.tolist() == pytest.approx([0.0, 0.0, 0.0], abs=1e-6)
    assert record.near_zero.tolist() == [1.0, 1.0, 0.0]
    assert record.steps.tolist() == [0, 1, 2]
    assert record.hist.shape == (3, 40)
    means, stds, hists = record  # as the course unpacks them, and stacks what is in them
    assert torch.equal(torch.stack(means), record.mean)
    assert torch.equal(torch.stack(stds), record.std)
    assert torch.equal(torch.stack(record[2]), torch.stack(hists))
    assert torch.equal(torch.stack(hists), record.hist)


@pytest.mark.parametrize("records", [0, 1, 3, 5])
def test_record_is_a_sequence_of_three_columns_however_many_records_it_has(records):
    stats = LayerStats("", "Identity", cap=8)
    for step in range(records):
        stats.record(step, torch.full((5,), float(step)))
    assert len(stats) == len(list(stats)) == 3
    assert [len(column) for column in stats] == [records] * 3
    assert [len(stats[i]) for i in (0, -1)] == [len(stats.steps)] * 2 == [records] * 2
    assert repr(stats) == f"LayerStats('' Identity, {records} records)"
    with pytest.raises(IndexError):
        stats[3]


def test_histograms_stay_with_their_steps_when_the_record_is_thinned():
    stats = LayerStats("", "Identity", cap=4)
    for step in range(11):
        stats.record(step, torch.full((5,), step + 0.1))  # in bin 4 step
    assert stats.steps.tolist() == [0, 4, 8]
    assert stats.hist.argmax(1).tolist() == [0, 16, 32]
    assert stats.hist.sum(1).tolist() == [5, 5, 5]
    assert stats.mean.tolist() == pytest.approx([0.1, 4.1, 8.1])


def test_stats_are_named_by_path_and_carried_by_the_hooks():
    stats = ActivationStats(nn.ReLU)
    dls = SimpleNamespace(train=[(torch.randn(6, 5), torch.randn(6, 2))] * 2, valid=None)
    learner([stats], dls, net()).fit(1, valid=False)
    assert list(stats.stats) == ["2", "5"]
    assert [(h.stats.name, h.stats.kind, len(h.stats.steps)) for h in stats] == [("2", "ReLU", 2), ("5", "ReLU", 2)]


def test_stats_without_a_selector_take_the_modules_without_children():
    assert list(ActivationStats().select(nn.Sequential(nn.Sequential(line()), nn.ReLU()))) == ["0.0", "1"]


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ({}, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ({"every": 3}, [0, 3, 6, 9]),
        ({"cap": 4}, [0, 4, 8]),
        ({"every": 2, "cap": 4}, [0, 4, 8]),
        ({"on_train": False, "on_valid": True}, [0, 1]),
        ({"on_valid": True}, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
    ],
)
def test_records_are_every_nth_batch_and_thinned_evenly(arguments, steps):
    stats = ActivationStats(nn.Linear, **arguments)
    learner([stats], loaders(train=5, valid=1)).fit(2)
    assert stats.stats[""].steps.tolist() == steps


def test_records_start_anew_with_each_fit():
    stats = ActivationStats(nn.Linear)
    learn = learner([stats])
    learn.fit(1)
    learn.fit(1)
    assert stats.stats[""].steps.tolist() == [0, 1]


def test_records_of_a_long_fit_stay_bounded():
    stats = ActivationStats(nn.Linear, cap=64)
    learner([stats], loaders(train=2000, valid=1), lr=1e-5).fit(1, valid=False)
    assert 32 <= len(stats.stats[""].steps) < 64


@pytest.mark.parametrize("wrap", [lambda y: (y, 3), lambda y: {"a": None, "y": y}, lambda y: [[y]]])
def test_output_that_is_nested_is_recorded_by_its_first_tensor(wrap):
    class Wrapping(nn.Module):
        def forward(self, x):
            return wrap(2 * x)

    record = LayerStats("w", "Wrapping", 10)
    record.record(0, Wrapping()(torch.ones(3)))
    assert record.mean.tolist() == [2.0]


@pytest.mark.parametrize("output", [None, "text", torch.ones(3, dtype=torch.long), torch.ones(0, 4)])
def test_output_without_a_floating_value_is_not_recorded(output):
    record = LayerStats("w", "W", 10)
    record.record(0, output)
    assert len(record.steps) == 0
    assert record.mean.shape == (0,)
    assert record.hist.shape == (0, 40)


def test_stats_leave_the_fit_as_it_would_be_without_them():
    x, y = torch.randn(12, 5), torch.randn(12, 2)
    dls = SimpleNamespace(train=[(x, y)] * 3, valid=[(x, y)])
    with_stats, without = net(), net()
    for model, cbs in ((without, []), (with_stats, [ActivationStats()])):
        torch.manual_seed(1)
        learner(cbs, dls, model).fit(2)
    assert all(
        torch.equal(a, b) for a, b in zip(with_stats.state_dict().values(), without.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(
    ("arguments", "text"), [({"every": 0}, "`every` must be >= 1, got 0"), ({"cap": 3}, "`cap` must be an even")]
)
def test_stats_with_bad_arguments_raise_where_they_are_made(arguments, text):
    with pytest.raises(ValueError, match=text):
        ActivationStats(**arguments)


def test_stats_survive_pickle_and_deepcopy_with_their_records():
    stats = ActivationStats(nn.Linear)
    learner([stats]).fit(1)
    for twin in (pickle.loads(pickle.dumps(stats)), copy.deepcopy(stats)):
        assert torch.equal(twin.stats[""].mean, stats.stats[""].mean)
        learner([twin], loaders(train=3)).fit(1)
        assert len(twin.stats[""].steps) == 3
    assert len(stats.stats[""].steps) == 2


# Pictures


@pytest.fixture
def recorded():
    stats = ActivationStats(nn.ReLU)
    dls = SimpleNamespace(train=[(torch.randn(6, 5), torch.randn(6, 2))] * 4, valid=None)
    learner([stats], dls, net()).fit(1, valid=False)
    yield stats
    import matplotlib.pyplot as plt

    plt.close("all")


def drawn(picture, **kw):
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    assert picture(**kw) is None  # a notebook would show a figure that is returned a second time
    (new,) = set(plt.get_fignums()) - set(before)
    figure = plt.figure(new)
    figure.canvas.draw()
    return figure


def test_plot_stats_draws_a_named_line_for_each_layer(recorded):
    figure = drawn(recorded.plot_stats)
    left, right = figure.axes[:2]
    assert (left.get_ylabel(), right.get_ylabel(), left.get_xlabel()) == ("mean", "std", "step")
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["2 ReLU", "5 ReLU"]
    assert left.lines[0].get_ydata() == pytest.approx(recorded.stats["2"].mean.numpy())
    assert right.lines[1].get_ydata() == pytest.approx(recorded.stats["5"].std.numpy())


def test_color_dim_shows_log_counts_by_step_and_magnitude(recorded):
    figure = drawn(recorded.color_dim)
    ax = figure.axes[0]
    assert (ax.get_title(), ax.get_xlabel(), ax.get_ylabel()) == ("2 ReLU", "step", "|output|")
    image = ax.images[0]
    assert image.get_extent() == [0, 4, 0, 10]
    assert image.get_array().data == pytest.approx(recorded.stats["2"].hist.T.log1p().numpy())
    assert ax.axison


def test_dead_chart_shows_the_share_near_zero_from_0_to_1(recorded):
    figure = drawn(recorded.dead_chart, figsize=(6, 3))
    assert figure.get_size_inches().tolist() == [6, 3]
    ax = figure.axes[1]
    assert (ax.get_title(), ax.get_ylabel(), ax.get_ylim()) == ("5 ReLU", "share near zero", (0, 1))
    assert ax.lines[0].get_ydata() == pytest.approx(recorded.stats["5"].near_zero.numpy())


@pytest.mark.parametrize("picture", ["plot_stats", "color_dim", "dead_chart"])
def test_picture_of_one_layer_and_picture_of_nothing(picture):
    import matplotlib.pyplot as plt

    one = ActivationStats(nn.Linear)
    with pytest.raises(RuntimeError, match=r"has recorded nothing: there must be a fit first, .*; it matched 0\."):
        getattr(one, picture)()
    learner([one]).fit(1)
    drawn(getattr(one, picture))
    plt.close("all")


def test_stats_whose_filter_matches_nothing_warn_with_advice():
    with pytest.warns(LSUVWarning, match=r"as in ActivationStats\(layers=nn.ReLU\)"):
        learner([ActivationStats(nn.Tanh)]).fit(1)


def test_constants_are_the_ones_that_the_docstrings_name():
    assert (activation_stats.BINS, activation_stats.LIMIT) == (40, 10.0)
    assert "8,000" in ActivationStats.__doc__
    assert pytest.approx(8000, rel=0.05) == activation_stats.SAMPLE
