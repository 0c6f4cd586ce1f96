"""Will it train? The rule of the verdict at its bounds, what it advises, and the report's own last line."""

import pytest
import torch
from small_nets import column, linear
from torch import nn

from lsuvcb import LSUVError, lsuv_, survey
from lsuvcb.engine import Survey
from lsuvcb.engine.telling.verdict import LayerSurvey


def of(n=6, **columns):
    """Layers with these columns: a number for all, or a value for each; 1 where none is given."""
    given = {"std": 1.0, "signal": 1.0, "balance": 1.0, "gradient": 1.0, "left": "", "normed": False} | columns
    rows = [{k: v[i] if isinstance(v, (list, tuple)) else v for k, v in given.items()} for i in range(n)]
    return Survey([LayerSurvey(f"l{i}", "Linear", mean=0.0, **row) for i, row in enumerate(rows)], 1.0, 0.0)


def ends(first, last):
    """Six values, the medians of whose first and last third are these."""
    return [first, first, first, last, last, last]


@pytest.mark.parametrize(
    ("columns", "healthy", "says"),
    [
        ({}, True, "near unit variance; little to gain from lsuv_"),
        ({"std": ends(1, 0.0101), "signal": ends(1, 0.0101)}, True, "vanishing; lsuv_ would help; it trains as it is"),
        (
            {"std": ends(1, 0.0099), "signal": ends(1, 0.0099)},
            False,
            "vanishing; lsuv_ would help; as it is, it will not train",
        ),
        ({"std": ends(1, 99), "signal": ends(1, 99)}, True, "exploding; lsuv_ would help; it trains as it is"),
        (
            {"std": ends(1, 101), "signal": ends(1, 101)},
            False,
            "exploding; lsuv_ would help; as it is, it will not train",
        ),
        ({"std": [1, 1, float("inf"), 1, 1, 1]}, False, "not finite from 'l2' on: exploding; lsuv_ would help"),
        ({"signal": ends(0.2, 0.0101)}, True, "it"),
        (
            {"signal": ends(0.2, 0.0099)},
            False,
            "(0.01 of the std tells samples apart in the last layers: the input is forgotten)",
        ),
        ({"balance": ends(1, 0.16)}, True, "near unit variance"),
        ({"balance": ends(1, 0.14)}, False, "(balance 0.1 in the last layers: a few samples hold all the variance)"),
        ({"gradient": ends(1 / 49, 1)}, True, "near unit variance"),
        ({"gradient": ends(1 / 51, 1)}, False, "(gradient 0.0196 in the first layers: the gradient vanishes)"),
        ({"gradient": ends(49, 1)}, True, "near unit variance"),
        ({"gradient": ends(51, 1)}, False, "(gradient 51 in the first layers: the gradient explodes)"),
        ({"gradient": [None] * 6, "balance": [None] * 6}, True, "near unit variance"),
        ({"std": 0.0}, False, "every output is constant"),
    ],
)
def test_verdict_on_training_follows_its_rule_at_the_bounds(columns, healthy, says):
    found = of(**columns)
    assert found.healthy is healthy
    assert says in found.verdict
    if healthy:
        found.assert_healthy()
    else:
        with pytest.raises(LSUVError, match="this net will not train from these weights: ") as error:
            found.assert_healthy()
        assert found.verdict in str(error.value)


@pytest.mark.parametrize(
    ("columns", "says", "never"),
    [
        # what lsuv_ has done already is not advised again
        (
            {"gradient": ends(1000, 1)},
            "its scale is level already: skip connections, normalisation",
            "lsuv_ would help",
        ),
        # what it would leave alone is not promised
        (
            {"std": ends(1, 1e-4), "signal": ends(1, 1e-4), "left": "frozen"},
            "leave its layers alone (frozen)",
            "would help",
        ),
        ({"std": 0.3, "left": "frozen"}, "steady; lsuv_ would leave it as it is", "sets it"),
        (
            {"normed": True, "left": "a norm", "std": ends(3, 0.5)},
            "normalisation keeps the scale; little to gain",
            "help",
        ),
        ({"normed": [True] * 5 + [False], "left": "left", "std": 0.4}, "normalisation keeps the scale", "sets it"),
    ],
)
def test_verdict_advises_what_can_be_done(columns, says, never):
    verdict = of(**columns).verdict
    assert says in verdict
    assert never not in verdict


def deep(activation, depth, width=16):
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, width, 3, 2, 1), activation()]
    for _ in range(depth - 2):
        layers += [nn.Conv2d(width, width, 3, 1, 1), activation()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * 16, 10)), torch.randn(256, 1, 8, 8).cumsum(2).cumsum(
        3
    ) / 5


def test_report_ends_with_what_keeps_a_net_from_training_though_its_scale_is_right():
    net, x = deep(nn.GELU, 50)
    report = lsuv_(net, x, recipe="paper")
    assert report.converged
    assert "a few samples hold all the variance" in report.outlook
    assert 'recipe="balanced"' in report.outlook
    assert " ".join(str(report).split()).endswith(report.outlook)
    assert report.outlook in report._repr_html_().replace("&quot;", '"')
    with pytest.raises(LSUVError, match="a few samples hold all the variance"):
        report.assert_healthy()


def test_report_of_a_net_that_will_train_has_no_outlook():
    net, x = deep(nn.GELU, 50)
    report = lsuv_(net, x)
    assert report.outlook == ""
    report.assert_healthy()
    assert survey(net, x).healthy


def test_report_that_measured_nothing_afterwards_says_nothing():
    net, x = deep(nn.GELU, 50)
    assert lsuv_(net, x, recipe="paper", verify=False).outlook == ""


def test_survey_of_frozen_layers_promises_nothing():
    net = nn.Sequential(*(m for _ in range(8) for m in (nn.Linear(16, 16), nn.ReLU())))
    net.requires_grad_(False)
    assert "lsuv_ would leave its layers alone (frozen" in survey(net, torch.randn(64, 16)).verdict


def test_survey_of_spectral_norm_promises_nothing():
    layers = [torch.nn.utils.parametrizations.spectral_norm(nn.Linear(16, 16)) for _ in range(8)]
    for layer in layers:
        nn.init.zeros_(layer.bias)
    net = nn.Sequential(*(m for layer in layers for m in (layer, nn.ReLU())))
    assert "lsuv_ would help" not in survey(net, torch.randn(64, 16)).verdict


def test_survey_of_a_net_with_norms_has_little_to_gain():
    net = nn.Sequential(
        *(m for _ in range(6) for m in (nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU())), nn.Linear(16, 4)
    )
    found = survey(net, torch.randn(64, 16))
    assert "normalisation keeps the scale; little to gain from lsuv_" in found.verdict
    assert [row.normed for row in found.layers] == [True] * 6 + [False]


def test_survey_after_lsuv_does_not_advise_lsuv():
    net, x = deep(nn.ReLU, 30)
    assert "lsuv_ would help" in survey(net, x).verdict
    lsuv_(net, x)
    assert "lsuv_ would help" not in survey(net, x).verdict


@pytest.mark.parametrize("depth", [10, 50])
def test_survey_after_lsuv_at_another_std_than_one_does_not_promise_one(depth):
    net, x = deep(nn.Tanh, depth)
    lsuv_(net, x, std={str(len(net) - 1): "leave", "*": 0.6})
    assert "its scale is level already; little to gain from lsuv_" in survey(net, x).verdict


def test_survey_of_one_layer_is_a_sentence():
    assert survey(linear(2), column(-1.0, 1.0)).verdict.startswith("std 2 over 1 layer: ")
