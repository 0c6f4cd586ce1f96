"""survey: what it measures, and its verdict by the rule that its docstring gives."""

import json

import pytest
import torch
from paper import lsuv_
from probe import forwards, probed
from small_nets import column, linear, lively, relu_mlp
from torch import nn

from lsuvcb.engine import Survey, survey
from lsuvcb.engine.telling.survey import LayerSurvey


def of(*stds, signals=None):
    signals = signals or [None] * len(stds)
    rows = zip(stds, signals, strict=True)
    return Survey(
        [LayerSurvey(f"l{i}", "Linear", float(std), 0.0, signal) for i, (std, signal) in enumerate(rows)], 1.0, 0.0
    )


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
        ((0.2,), "std 0.2 over 1 layer: steady"),
        ((0.1, 1), "std grows from 0.1 to 1 over 2 layers: exploding"),
        ((1, float("nan"), 0.001), "not finite from 'l1' on: exploding; lsuv_ would help"),
        ((1, float("inf"), 1), "not finite from 'l1' on"),
        ((0, 0, 0), "every output is constant"),
        ((1, 0, 1, 1), "over 3 layers, 1 more constant: near unit variance"),
    ],
)
def test_survey_verdict_follows_its_rule(stds, says):
    assert says in of(*stds).verdict


@pytest.mark.parametrize(
    ("signals", "says"),
    [
        ((0.3, 0.1, 0.01), "steady"),  # 1/30 of it is not below 1/30
        (
            (0.3, 0.1, 0.0099),
            "but what of it tells samples apart falls from 0.3 to 0.0099: vanishing; lsuv_ would help",
        ),
        ((0.3, None, 0.0099), "what of it tells samples apart falls"),
        ((None, None, None), "steady"),
        ((0.0, 0.0, 0.0), "steady"),  # a batch of equal samples tells nothing
        ((0.3, 0.3, float("nan")), "steady"),
    ],
)
def test_survey_verdict_sees_a_signal_that_vanishes_under_a_steady_std(signals, says):
    assert says in of(0.3, 0.3, 0.3, signals=signals).verdict


def test_survey_verdict_sees_a_signal_that_vanishes_at_unit_variance():
    assert "samples apart falls from 1 to 0.001: vanishing" in of(1, 1, 1, signals=(1, 0.1, 0.001)).verdict


def test_survey_verdict_tells_the_numbers_that_its_rule_compared():
    falls = of(0.1, 9, 9, 9, 1, 1, 1, 1, 0.2)
    assert falls.verdict.startswith(
        "std falls from 9 to 1 (medians of the first and the last third) over 9 layers: van"
    )
    grows = of(9, 1, 1, 1, 1, 1, 4, 4, 4)
    assert grows.verdict.startswith(
        "std grows from 1 to 4 (medians of the first and the last third) over 9 layers: expl"
    )


def test_survey_verdict_calls_no_std_below_one_exploding():
    assert "steady" in of(0.58, 0.02, 0.01, 0.2, 0.3, 0.3, 0.4, 0.5, 0.51).verdict


def test_survey_signal_by_hand():
    # features 1 3 / 10 30 (two samples, rows): stds 4.5 and 13.5 over the samples, root mean square sqrt(101.25)
    net, x = nn.Linear(1, 2, bias=False), column(1.0, 10.0)
    net.weight.data = torch.tensor([[1.0], [3.0]])
    assert survey(net, x).layers[0].signal == pytest.approx(101.25**0.5)
    assert survey(net, x[:1]).layers[0].signal is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_survey_signal_leaves_out_what_the_features_differ_by(dtype):
    net, x = nn.Linear(8, 64).to(dtype), torch.randn(512, 8).to(dtype)
    before = survey(net, x).layers[0]
    net.bias.data = torch.arange(64, dtype=dtype)
    after = survey(net, x).layers[0]
    assert after.std > 10 * before.std
    assert after.signal == pytest.approx(before.signal, rel=0.1)


def test_survey_signal_of_one_image_without_a_batch_dimension_is_unknown():
    assert survey(nn.Conv2d(3, 4, 3), torch.randn(3, 8, 8)).layers[0].signal is None


@pytest.mark.parametrize("depth", [5, 10, 20, 50])
@pytest.mark.parametrize("act", [nn.ReLU, nn.Tanh])
def test_survey_of_a_deep_net_as_pytorch_makes_it_vanishes_and_lsuv_mends_it(depth, act):
    """Biases hold up the std while the signal dies."""
    torch.manual_seed(depth)
    net = nn.Sequential(*(m for _ in range(depth) for m in (nn.Linear(64, 64), act())))
    x = torch.randn(256, 64)
    assert "vanishing; lsuv_ would help" in survey(net, x).verdict
    lsuv_(net, x)
    assert "near unit variance" in survey(net, x).verdict


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
    assert axes.get_legend() is None
    axes = of(1, 0.5, 0.25, signals=(0.9, None, 0.1)).plot()
    assert [1.0, 0.5, 0.25] in [list(line.get_ydata()) for line in axes.get_lines()]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["std", "what of it tells samples apart"]
    pyplot.close("all")
