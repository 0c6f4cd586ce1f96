"""The report as a user meets it: a line, a table, data, a picture."""

import dataclasses
import json
import math

import pytest
import torch
from paper import lsuv_
from small_nets import Net, lively, relu_mlp
from torch import nn

from lsuvcb.engine import LayerReport, LSUVReport

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(5))
DEEP = "encoder.layers.encoder_layer_{}.self_attention_with_relative_positions.output_projection.{}"


def report(*layers, **given):
    arguments = {"input_std": 1.0, "input_mean": 0.0, "passes": 3, "seconds": 0.25} | given
    return LSUVReport(list(layers), **arguments)


def scaled(name="0", **given):
    arguments = {"std_before": 0.5, "mean_before": 0.1, "std_after": 1.0, "mean_after": 0.2, "scale": 2.0, "uses": 1}
    return LayerReport(name, given.pop("kind", "Linear"), given.pop("status", "scaled"), **arguments | given)


def left(name, reason="not used in this pass", kind="Linear"):
    return LayerReport(name, kind, "left alone", reason)


def test_report_fields_are_those_of_the_design():
    assert [f.name for f in dataclasses.fields(LayerReport)] == [
        "name", "kind", "status", "reason", "target", "std_before", "mean_before", "std_after", "mean_after", "signal_after",
        "scale", "shift", "iterations", "uses",
    ]  # fmt: skip
    assert {f.name for f in dataclasses.fields(LSUVReport)} >= {
        "layers", "input_std", "input_mean", "passes", "seconds",
    }  # fmt: skip


def test_report_summary_counts_and_is_the_first_line():
    text = report(
        scaled(std_after=1.0004), scaled("1", status="unchanged"), scaled("2", status="not converged", std_after=0.9),
        left("3"), left("4"),
    )  # fmt: skip
    first = str(text).splitlines()[0]
    assert first == text.summary()
    assert "2 of 3 layers at std 1;" in first
    assert "1 not converged" in first
    assert "2 left alone" in first
    assert "3 passes, 0.25 s" in first


def test_report_says_one_pass_in_the_singular():
    assert "1 pass, " in report(scaled(), passes=1).summary()


def test_report_names_another_target():
    assert "1 of 1 layers at std 0.5, mean -2" in report(scaled(), std=0.5, mean=-2.0).summary()


@pytest.mark.parametrize("status", ["scaled", "unchanged", "not converged"])
def test_report_has_converged_unless_a_layer_says_otherwise(status):
    assert report(scaled(), left("1"), scaled(status=status)).converged is (status != "not converged")


def test_report_worst_error_is_the_largest_distance_from_the_target():
    assert report(scaled(std_after=1.25), scaled(std_after=0.5)).worst_error == 0.5
    assert report(scaled(std_after=2.25), std=2.0).worst_error == 0.25
    assert report(scaled(std_after=None)).worst_error is None
    assert report(left("0")).worst_error is None


EXTREME = [
    scaled(
        DEEP.format(i, "w" * (30 * i)), kind="AVeryLongNameOfAModuleThatSomebodyWrote", std_before=-1.234e-38,
        mean_before=-9.87e37, std_after=float("nan"), mean_after=-float("inf"), scale=-1.2345e-20,
        status="not converged", reason="measured std nan afterwards, " + "because of something " * 12, uses=123456,
    )
    for i in range(4)
]  # fmt: skip


@pytest.mark.parametrize(
    "layers",
    [
        [scaled(DEEP.format(i, "weight")) for i in range(5)],
        EXTREME,
        [*EXTREME, *(left(DEEP.format(i, "in_proj_weight"), "a reason that goes on " * 9) for i in range(9))],
        [left("x" * 300)],
        [],
    ],
    ids=["long names", "extreme numbers", "many reasons", "one endless word", "nothing"],
)
def test_report_text_fits_a_hundred_columns(layers):
    lines = str(report(*layers, passes=3, seconds=1.5)).splitlines()
    assert max(map(len, lines)) <= 100


def test_report_summary_of_a_large_run_fits_a_hundred_columns():
    counts = {"scaled": 138, "unchanged": 12, "not converged": 3}
    layers = [scaled(status=status, std_after=1 + 9.1e-5) for status, n in counts.items() for _ in range(n)]
    line = report(*layers, *(left(str(i)) for i in range(45)), seconds=123.45, mean=0.0).summary()
    assert len(line) <= 100


def test_report_table_is_aligned():
    lines = str(report(scaled("0"), scaled("body.12", scale=123.4), scaled("c", std_before=1e-9))).splitlines()[1:]
    arrows = {line.index("->") for line in lines}
    assert len(arrows) == 1
    assert [line.split()[0] for line in lines] == ["layer", "0", "body.12", "c"]


def test_report_table_has_before_after_scale_and_status():
    line = str(report(scaled("body.0", uses=3))).splitlines()[2]
    assert line.split() == ["body.0", "Linear", "0.5", "0.1", "->", "1", "0.2", "2", "scaled,", "3", "uses"]


def test_report_without_measurements_shows_dashes():
    line = str(report(scaled("0", std_before=None, mean_before=None, std_after=None, mean_after=None))).splitlines()[2]
    assert line.split() == ["0", "Linear", "-", "-", "->", "-", "-", "2", "scaled"]


def test_report_groups_what_was_left_alone_by_its_reason():
    text = str(
        report(scaled(), *(left(f"block.{i}.norm", "used by mul, no linear op") for i in range(6)), left("unused"))
    )
    text = " ".join(text.split())  # a long line is wrapped
    assert (
        "6 left alone, used by mul, no linear op: block.0.norm, block.1.norm, block.2.norm, block.3.norm and 2 more"
        in text
    )
    assert "1 left alone, not used in this pass: unused" in text


def test_report_shows_the_reason_of_a_layer_at_work():
    assert "no bias: mean not moved: conv" in str(report(scaled("conv", reason="no bias: mean not moved")))


def test_report_of_a_run_as_data_goes_through_json():
    found = lsuv_(lively(), X, mean=0.1)
    data = json.loads(json.dumps(found.to_dict()))
    assert [row["name"] for row in data["layers"]] == ["0", "4", "6"]
    assert data["layers"][0]["scale"] == found.layers[0].scale
    assert (data["passes"], data["converged"], data["std"], data["mean"]) == (3, True, 1.0, 0.1)
    assert data["worst_error"] == found.worst_error


def test_report_of_a_run_holds_plain_numbers():
    found = lsuv_(lively(), X)
    for row in found.layers:
        for name in ("std_before", "mean_before", "std_after", "mean_after", "scale", "shift"):
            assert type(getattr(row, name)) is float, name
        assert (type(row.iterations), type(row.uses)) == (int, int)
    assert found.seconds > 0


def test_report_of_a_run_without_verify_as_data_goes_through_json():
    assert json.loads(json.dumps(lsuv_(lively(), X, verify=False).to_dict()))["layers"][0]["std_after"] is None


def test_report_repr_of_a_deep_net_is_text_of_its_layers():
    text = str(lsuv_(relu_mlp(30, 6), X))
    assert len(text.splitlines()) == 32


@pytest.fixture
def picture(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    from matplotlib import pyplot

    yield pyplot
    pyplot.close("all")


def test_report_plot_draws_before_and_after_on_a_log_scale(picture):
    net = Net(lambda net, x: net.b(net.a(x)), a=nn.Linear(6, 8), b=nn.Linear(8, 4), unused=nn.Linear(2, 2))
    found = lsuv_(net, X)
    axes = found.plot()
    assert axes.get_yscale() == "log"
    drawn = [list(line.get_ydata()) for line in axes.get_lines()]
    assert [r.std_before for r in found.layers[:2]] in drawn
    assert [r.std_after for r in found.layers[:2]] in drawn


def test_report_plot_draws_into_the_axes_that_it_is_given(picture):
    _, axes = picture.subplots()
    assert lsuv_(lively(), X).plot(ax=axes) is axes


def test_report_plot_without_measurements_is_an_error_with_advice():
    with pytest.raises(ValueError, match="call `lsuv_` with verify=True"):
        lsuv_(lively(), X, verify=False).plot()


def test_report_number_that_is_not_finite_is_shown():
    assert "nan" in str(report(scaled(std_before=math.nan)))


def test_report_html_has_every_layer_and_escapes_names():
    page = report(scaled("a<b"), left("c", reason="frozen"))._repr_html_()
    assert "a&lt;b" in page
    assert "<b>LSUV: 1 of 1 layers" in page
    assert "<li>1 left alone, frozen: c</li>" in page
    assert page.count("<tr>") == 2
