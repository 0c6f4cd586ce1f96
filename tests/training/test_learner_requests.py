"""What a user asks a learner for: its survey, its history as a picture."""

import pytest
import torch
from test_checkpoint import clone, noisy_data
from tiny import learner, net, noise, seed_all
from torch import nn

from lsuvcb import BatchTransformCB, DeviceCB, LSUVCallback, MetricsCB, survey


def test_survey_of_a_learner_is_the_engine_s_on_the_batch_that_training_begins_with():
    seed_all(0)
    learn = learner([DeviceCB("cpu"), BatchTransformCB(lambda b: (2 * b[0], b[1]))], noisy_data(), net())
    learn.fit(0)  # nothing, but that a fit was there
    found = learn.survey()
    xb, _ = next(iter(learn.dls.train))
    learn.model.train()
    with torch.random.fork_rng():
        expected = survey(learn.model, (2 * xb,))
    assert [(r.name, r.std) for r in found.layers] == [(r.name, pytest.approx(r.std)) for r in expected.layers]


def test_survey_of_a_learner_goes_back_from_its_loss():
    learn = learner([DeviceCB("cpu")], noisy_data(), net())
    found = learn.survey()
    xb, yb = next(iter(learn.dls.train))
    learn.model.train()
    with torch.random.fork_rng():
        expected = survey(learn.model, (xb,), loss=lambda preds: learn.loss_func(preds, yb))
        other = survey(learn.model, (xb,), loss=lambda preds: preds.square().sum())
    gradients = [r.gradient for r in found.layers]
    assert gradients == [pytest.approx(r.gradient) for r in expected.layers]
    assert gradients != [pytest.approx(r.gradient) for r in other.layers]


def test_survey_takes_a_selector():
    learn = learner([], noisy_data(), net())
    assert [r.name for r in learn.survey(layers=["4"]).layers] == ["4"]


def test_survey_leaves_no_trace_and_runs_no_lsuv(capsys):
    def run(look):
        seed_all(1)
        learn = learner([LSUVCallback(), MetricsCB()], noisy_data(), net(), lr=0.01)
        if look:
            before = clone(learn.model), sorted(vars(learn))
            capsys.readouterr()
            learn.survey()
            assert all(torch.equal(v, before[0][k]) for k, v in learn.model.state_dict().items())
            assert sorted(vars(learn)) == before[1]
            assert capsys.readouterr().out == ""
        learn.fit(1)
        return learn.model.state_dict(), noise()

    (plain, drawn), (looked, again) = run(False), run(True)
    assert all(torch.equal(plain[k], looked[k]) for k in plain)
    assert drawn == again


def test_survey_of_an_empty_loader_is_an_error():
    learn = learner([], noisy_data(), net())
    learn.dls.train = []
    with pytest.raises(ValueError, match="must give at least one batch"):
        learn.survey()


def test_history_plot_has_loss_and_each_metric_for_training_and_validation(capsys):
    class Constant:
        def reset(self): ...

        def update(self, preds, target): ...

        def compute(self):
            return 0.25

    learn = learner([MetricsCB(share=Constant())], noisy_data(), nn.Linear(5, 2))
    learn.fit(3)
    figure = learn.plot_history().figure
    assert [ax.get_ylabel() for ax in figure.axes] == ["loss", "share"]
    assert [line.get_label() for line in figure.axes[0].lines] == ["training", "validation"]
    losses = [row["loss"] for row in learn.history if row["train"] == "eval"]
    assert figure.axes[0].lines[1].get_ydata() == pytest.approx(losses)
    assert figure.axes[0].lines[1].get_xdata().tolist() == [1, 2, 3]


def test_history_plot_without_rows_is_an_error_with_advice():
    with pytest.raises(ValueError, match="fit with a MetricsCB first"):
        learner().plot_history()
