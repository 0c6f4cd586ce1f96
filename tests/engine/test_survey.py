"""survey: what it measures, and its verdict by the rule that its docstring gives."""

import json

import pytest
import torch
from probe import forwards, probed
from small_nets import column, linear, lively, relu_mlp
from torch import nn

from lsuvcb.engine import Survey, survey
from lsuvcb.engine.report import LayerSurvey


def of(*stds):
    return Survey([LayerSurvey(f"l{i}", "Linear", float(std), 0.0) for i, std in enumerate(stds)], 1.0, 0.0)


@pytest.mark.parametrize(
    ("stds", "says"),
    [
        ((1, 1, 1), "near unit variance; little to gain"),
        ((0.5, 2, 0.5), "near unit variance"),
        ((0.49, 1, 1), "steady, but not unit variance; lsuv_ sets it to 1"),
        ((1, 1, 2.01), "steady, but not unit variance"),
        ((3, 1, 1), "steady"),  # 1 is not below 3 / 3
        ((3.03, 1, 1), "std falls from 3.03 to 1 over 3 layers: vanishing"),
        ((1, 1, 3), "steady"),
        ((1, 1, 3.03), "std grows from 1 to 3.03 over 3 layers: exploding"),
        # medians of thirds: one outlier at either end decides nothing
        ((1, 1, 1, 1, 1, 1, 1, 1, 50), "steady"),
        ((1e-9, 1, 1, 1, 1, 1, 1, 1, 1), "steady"),
        ((0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005), "std falls from 0.5 to 0.005 over 9 layers: vanishing"),
        ((0.2,), "std between 0.2 and 0.2 over 1 layer: steady"),
        ((0.1, 1), "std grows from 0.1 to 1 over 2 layers: exploding"),
        ((1, float("nan"), 0.001), "not finite from 'l1' on: exploding; lsuv_ would help"),
        ((1, float("inf"), 1), "not finite from 'l1' on"),
        ((0, 0, 0), "every output is constant"),
        ((1, 0, 1, 1), "over 3 layers, 1 more constant: near unit variance"),
    ],
)
def test_survey_verdict_follows_its_rule(stds, says):
    assert says in of(*stds).verdict


def test_survey_measures_each_layer_by_hand():
    # 1, 3 -> 4, 12 (std 4, mean 8) -> relu -> 4, 12 -> 0.5x - 1: 1, 5 (std 2, mean 3)
    net = nn.Sequential(linear(4), nn.ReLU(), linear(0.5, -1))
    found = survey(net, column(1.0, 3.0))
    assert [(r.name, r.kind, r.std, r.mean) for r in found.layers] == [("0", "Linear", 4, 8), ("2", "Linear", 2, 3)]
    assert (found.input_std, found.input_mean) == (1.0, 2.0)


def test_survey_agrees_with_the_probe_and_runs_once(undisturbed):
    net, x = lively(), torch.randn(64, 6)
    net.eval()
    with undisturbed(net, weights=True):
        found = survey(net, x)
    with forwards(net) as calls:
        survey(net, x)
    assert len(calls) == 1
    seen = probed(net, x)
    assert {r.name: r.std for r in found.layers} == {n: pytest.approx(s[0].std, rel=1e-4) for n, s in seen.items()}


def test_survey_in_train_mode_leaves_no_trace(undisturbed):
    net, x = lively(), torch.randn(64, 6)
    with undisturbed(net, weights=True):
        survey(net, x)


def test_survey_of_a_deep_relu_net_vanishes():
    net, x = relu_mlp(30), torch.randn(64, 32)
    for layer in net[::2]:
        nn.init.zeros_(layer.bias)
    assert "over 30 layers: vanishing; lsuv_ would help" in survey(net, x).verdict


def test_survey_of_a_very_deep_net_measures_stds_far_below_float32_s_squares():
    net, x = nn.Sequential(*(nn.Linear(32, 32, bias=False) for _ in range(100))), torch.randn(64, 32)
    stds = [r.std for r in survey(net, x).layers]
    exact = [s[0].std for s in probed(net, x).values()]
    assert min(stds) < 1e-21
    assert stds == pytest.approx(exact, rel=1e-3)


def test_survey_text_has_the_verdict_first_and_fits_a_hundred_columns():
    found = Survey([LayerSurvey("a." * 80, "K" * 40, -1.5e-30, float("nan"))] * 3, None, None)
    lines = str(found).splitlines()
    assert lines[0] == f"Survey: {found.verdict}"
    assert len(lines) == 5
    assert max(map(len, lines)) <= 100


def test_survey_as_data_goes_through_json():
    found = of(1, 2)
    data = json.loads(json.dumps(found.to_dict()))
    assert data["verdict"] == found.verdict
    assert [row["std"] for row in data["layers"]] == [1.0, 2.0]


def test_survey_plot_draws_the_stds_on_a_log_scale(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    axes = of(1, 0.5, 0.25).plot()
    assert axes.get_yscale() == "log"
    assert [1.0, 0.5, 0.25] in [list(line.get_ydata()) for line in axes.get_lines()]
    pyplot.close("all")
