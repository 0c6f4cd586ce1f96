"""The pictures: what is in their axes. How they look, a person has to see."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from lsuvcb import plot
from lsuvcb.nets import GeneralRelu


def shown(ax):
    return np.asarray(ax.get_images()[0].get_array())


def line(ax, label):
    return next(line for line in ax.get_lines() if line.get_label() == label)


@pytest.mark.parametrize(("nrows", "ncols"), [(1, 1), (1, 3), (2, 2)])
def test_subplots_gives_an_array_of_axes_and_room_for_each(nrows, ncols):
    figure, axes = plot.subplots(nrows, ncols, imsize=2, suptitle="all")
    assert axes.size == nrows * ncols
    assert figure.get_size_inches().tolist() == [2 * ncols, 2 * nrows]
    assert figure.get_suptitle() == "all"


def test_subplots_takes_a_size_and_matplotlibs_arguments():
    figure, axes = plot.subplots(1, 2, figsize=(7, 4), sharey=True)
    assert figure.get_size_inches().tolist() == [7, 4]
    axes[0].set_ylim(0, 9)
    assert axes[1].get_ylim() == (0, 9)


@pytest.mark.parametrize(
    ("n", "nrows", "ncols", "shape"),
    [
        (1, None, None, 1),
        (2, None, None, 2),
        (4, None, None, (2, 2)),
        (5, None, None, (2, 3)),
        (7, None, None, (2, 4)),
        (7, 3, None, (3, 3)),
        (7, None, 2, (4, 2)),
        (3, 2, 2, (2, 2)),
    ],
)
def test_get_grid_holds_all_and_hides_the_rest(n, nrows, ncols, shape):
    _, axes = plot.get_grid(n, nrows, ncols)
    assert axes.shape == (shape if isinstance(shape, tuple) else (shape,))
    assert [ax.axison for ax in axes.flat] == [True] * n + [False] * (axes.size - n)


def test_get_grid_has_a_title_in_the_font_asked_for():
    figure, _ = plot.get_grid(2, title="Layers", weight="normal", size=9)
    assert (figure.get_suptitle(), figure._suptitle.get_weight(), figure._suptitle.get_size()) == (
        "Layers",
        "normal",
        9,
    )


def test_get_grid_of_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"^`n` must be >= 1, got 0\.$"):
        plot.get_grid(0)


def test_get_grid_that_is_too_small_is_an_error():
    with pytest.raises(ValueError, match=r"^`nrows` x `ncols` must be >= n = 5, got 2 x 2; leave one of them out\.$"):
        plot.get_grid(5, 2, 2)


@pytest.mark.parametrize("shape", [(7, 6), (1, 7, 6), (7, 6, 1), (3, 7, 6), (7, 6, 3)])
@pytest.mark.parametrize("kind", ["tensor", "array"])
def test_show_image_turns_any_layout_the_right_way(shape, kind):
    im = torch.rand(shape, requires_grad=True)
    ax = plot.show_image(im if kind == "tensor" else im.detach().numpy())
    colours = 3 in shape
    assert shown(ax).shape == ((7, 6, 3) if colours else (7, 6))
    expected = im.detach().permute(1, 2, 0) if shape == (3, 7, 6) else im.detach().squeeze()
    np.testing.assert_array_equal(shown(ax), expected)


def test_show_image_takes_a_pil_image_a_title_and_imshows_arguments():
    ax = plot.show_image(Image.new("L", (6, 4)), title="black", figsize=(2, 2), cmap="gray", noframe=False)
    assert shown(ax).shape == (4, 6)
    assert (ax.get_title(), ax.axison, list(ax.get_xticks()), list(ax.get_yticks())) == ("black", True, [], [])
    assert ax.get_images()[0].get_cmap().name == "gray"
    assert not plot.show_image(torch.zeros(2, 2), ax).axison


def test_show_images_shows_each_with_its_title():
    figure = plot.show_images(torch.arange(5.0).view(5, 1, 1, 1).expand(5, 1, 2, 2), titles=["a", "b"], imsize=1)
    axes = figure.axes
    assert [shown(ax)[0, 0] for ax in axes[:5]] == [0, 1, 2, 3, 4]
    assert [ax.get_title() for ax in axes] == ["a", "b", "", "", "", ""]
    assert figure.get_size_inches().tolist() == [3, 2]


def test_plot_func_draws_the_function():
    ax = plot.plot_func(GeneralRelu(0.1, 0.4), -4, 4, steps=5)
    curve = ax.get_lines()[-1]
    assert list(curve.get_xdata()) == [-4, -2, 0, 2, 4]
    assert list(curve.get_ydata()) == pytest.approx([-0.8, -0.6, -0.4, 1.6, 3.6])
    assert plot.plot_func(torch.sin, ax=ax) is ax


def test_plot_func_of_one_that_works_in_place_draws_it_over_its_own_arguments():
    curve = plot.plot_func(torch.nn.ReLU(inplace=True), -1, 1, steps=3).get_lines()[-1]
    assert (list(curve.get_xdata()), list(curve.get_ydata())) == ([-1, 0, 1], [0, 0, 1])


def test_plot_stds_draws_both_curves_on_a_log_scale_with_labels():
    ax = plot.plot_stds(["a", "b"], [0.1, 0.001], [1.0, 1.0])
    assert list(line(ax, "before").get_ydata()) == [0.1, 0.001]
    assert list(line(ax, "after").get_ydata()) == [1, 1]
    assert ax.get_yscale() == "log"
    assert [t.get_text() for t in ax.get_xticklabels()] == ["a", "b"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("layer, in execution order", "std of output (log scale)")
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["before", "after"]


def test_plot_stds_of_one_curve_goes_into_the_axes_given():
    _, ax = plt.subplots()
    assert plot.plot_stds(["a"], [0.1], ax=ax, target=None, title=None) is ax
    assert len(ax.get_lines()) == 1
    assert ax.get_legend() is None
    assert ax.get_title() == ""


def test_plot_stds_leaves_out_what_has_no_place_on_a_log_scale():
    ax = plot.plot_stds(list("abcd"), [1.0, 0.0, math.inf, math.nan])
    assert np.isnan(line(ax, "before").get_ydata()).tolist() == [False, True, True, True]
    ax.figure.canvas.draw()


def test_plot_stds_of_a_flat_line_shows_at_least_a_decade():
    low, high = plot.plot_stds(["a", "b"], [0.99, 1.01]).get_ylim()
    assert high / low > 8


def test_plot_stds_of_many_long_names_stays_legible():
    names = [f"encoder.layers.{i}.attention.output.dense" for i in range(100)]
    ax = plot.plot_stds(names, [1.0] * 100)
    labels = ax.get_xticklabels()
    assert len(labels) == 20
    assert labels[1].get_text() == "…ttention.output.dense"
    assert labels[0].get_rotation() == 90
    assert line(ax, "before").get_marker() == ""


def test_plot_stds_of_no_layer_is_an_empty_picture():
    axes = plot.plot_stds([], [])
    axes.figure.canvas.draw()
    assert [len(line.get_xdata()) for line in axes.lines if line.get_label() == "before"] == [0]


@pytest.mark.parametrize(
    ("before", "after", "which", "n"), [([1.0], None, "before", 1), ([1, 1], [1, 1, 1], "after", 3)]
)
def test_plot_stds_of_another_length_than_names_is_an_error(before, after, which, n):
    with pytest.raises(ValueError, match=rf"^`{which}` must have one std for each of the 2 names, got {n}\.$"):
        plot.plot_stds(["a", "b"], before, after)


def test_plot_losses_draws_a_curve_for_each_run_from_epoch_one():
    ax = plot.plot_losses({"one": [3.0, 2.0], "two": [1.0], "three": [0.5]}, chance=2.3)
    assert list(line(ax, "one").get_xdata()) == [1, 2]
    assert list(line(ax, "two").get_ydata()) == [1]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["guessing", "one", "two", "three"]
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_ylim()[0]) == ("epoch", "loss", 0)
    ax.figure.canvas.draw()
