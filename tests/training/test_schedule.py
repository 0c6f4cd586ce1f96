"""Schedulers step when they should, and the record says which learning rate a batch was trained with."""

from functools import partial

import pytest
import torch
from tiny import learner, line, loaders, recorder
from torch.optim import lr_scheduler

from lsuvcb.training.events import CancelBatchException
from lsuvcb.training.metrics import MetricsCB
from lsuvcb.training.saving.checkpoint import CheckpointCB
from lsuvcb.training.schedule import BatchSchedCB, EpochSchedCB, HasLearnCB, RecorderCB

halve = partial(lr_scheduler.StepLR, step_size=1, gamma=0.5)


def lrs_of(*cbs, epochs=2, train=2, **fit):
    record = RecorderCB()
    learner([*cbs, record], loaders(train=train), lr=0.8).fit(epochs, **fit)
    return record.recs["lr"]


def test_batch_schedule_steps_after_each_training_batch_and_no_other():
    assert lrs_of(BatchSchedCB(halve)) == [0.8, 0.4, 0.2, 0.1]


def test_epoch_schedule_steps_after_each_training_epoch_and_no_other():
    assert lrs_of(EpochSchedCB(halve)) == [0.8, 0.8, 0.4, 0.4]


@pytest.mark.parametrize(
    "make",
    [
        partial(lr_scheduler.OneCycleLR, max_lr=0.5, total_steps=6),
        partial(lr_scheduler.CosineAnnealingLR, T_max=6),
        partial(lr_scheduler.LambdaLR, lr_lambda=lambda step: 1 / (1 + step)),
    ],
)
def test_batch_schedule_gives_the_rates_that_torch_s_own_loop_has(make):
    opt = torch.optim.SGD(line().parameters(), lr=0.8)
    schedule, expected = make(opt), []
    for _ in range(6):
        expected.append(opt.param_groups[0]["lr"])
        opt.step()
        schedule.step()
    assert lrs_of(BatchSchedCB(make), epochs=3) == expected


def test_schedule_starts_anew_with_each_fit():
    sched, record = BatchSchedCB(halve), RecorderCB()
    learn = learner([sched, record], loaders(train=2), lr=0.8)
    for _ in range(2):
        learn.fit(1)
        assert record.recs["lr"] == [0.8, 0.4]


def test_cancelled_batch_does_not_step_the_schedule():
    cancel = iter([True, False, False])

    def also(event, learn):
        if event == "before_batch" and learn.training and next(cancel):
            raise CancelBatchException

    assert lrs_of(BatchSchedCB(halve), recorder(also=also), epochs=1, train=3) == [0.8, 0.4]


def test_plateau_steps_by_the_validation_loss():
    # at lr 3 each step multiplies the error by -5: no epoch is better than the first
    record = RecorderCB()
    plateau = EpochSchedCB(partial(lr_scheduler.ReduceLROnPlateau, patience=0, factor=0.1))
    learn = learner([MetricsCB(), plateau, record], loaders(train=1), lr=3.0)
    learn.fit(3)
    losses = [row["loss"] for row in learn.history if row["train"] == "eval"]
    assert losses[0] < losses[1]
    assert record.recs["lr"] == pytest.approx([3.0, 3.0, 0.3])


def test_plateau_without_validation_steps_by_the_training_loss():
    record = RecorderCB()
    plateau = EpochSchedCB(partial(lr_scheduler.ReduceLROnPlateau, patience=0, factor=0.1))
    learner([MetricsCB(), plateau, record], loaders(train=1), lr=3.0).fit(3, valid=False)
    assert record.recs["lr"] == pytest.approx([3.0, 3.0, 0.3])


def test_plateau_without_metrics_is_an_error_with_advice():
    with pytest.raises(ValueError, match=r"add MetricsCB\(\)"):
        learner([EpochSchedCB(lr_scheduler.ReduceLROnPlateau)]).fit(1)


def test_schedule_that_is_none_is_an_error_when_it_is_made():
    opt = torch.optim.SGD(line().parameters(), lr=0.8)
    with pytest.raises(TypeError, match=r"`sched` must be called with an optimizer, got .*StepLR"):
        BatchSchedCB(halve(opt))


def test_fit_that_does_not_train_needs_no_scheduler():
    cb = BatchSchedCB(halve)
    learner([cb], opt_func=None).fit(1, train=False)
    assert cb.schedo is None


# RecorderCB


def test_record_by_default_is_lr_and_loss_worked_by_hand():
    # w: 0, 0.2, 0.36 at lr 0.1; loss (w - 1)^2
    record = RecorderCB()
    learner([record], loaders(train=3), lr=0.1).fit(1)
    assert record.recs["lr"] == [0.1] * 3
    assert record.recs["loss"] == pytest.approx([1.0, 0.64, 0.4096])
    assert record.steps == [0, 1, 2]


def test_record_of_one_s_own_is_a_function_of_the_callback():
    record = RecorderCB(momentum=lambda cb: cb.pg["momentum"], where=lambda cb: cb.learn.iter)
    learner([record], loaders(train=2)).fit(2)
    assert record.recs == {"momentum": [0] * 4, "where": [0, 1, 0, 1]}


def test_record_is_bounded_and_even():
    record = RecorderCB()
    learner([record], loaders(train=12_000)).fit(1)
    assert 2_500 <= len(record.steps) <= 10_000
    assert len(set(torch.tensor(record.steps).diff().tolist())) == 1


def test_record_that_is_no_function_is_an_error():
    with pytest.raises(TypeError, match=r"RecorderCB\(lr=...\) takes a function of the callback, got 0.1"):
        RecorderCB(lr=0.1)


def test_record_plot_has_one_axes_for_each_with_its_name():
    record = RecorderCB()
    learner([record], loaders(train=3)).fit(1)
    axes = record.plot().figure.axes
    assert [ax.get_ylabel() for ax in axes] == ["lr", "loss"]
    assert all(ax.get_xlabel() == "training step" for ax in axes)
    assert axes[1].lines[0].get_ydata() == pytest.approx(record.recs["loss"])


def test_has_learn_holds_the_learner_during_the_fit_alone():
    class Peek(HasLearnCB):
        def after_fit(self, learn):
            self.seen = self.learn

    cb = Peek()
    learn = learner([cb])
    learn.fit(1)
    assert cb.seen is learn
    assert cb.learn is None


def test_record_of_a_resumed_fit_is_of_its_own_optimizer(tmp_path):
    def make(*cbs):
        halving = BatchSchedCB(partial(lr_scheduler.ExponentialLR, gamma=0.5))
        return learner([halving, CheckpointCB(tmp_path), *cbs], loaders(train=2), lr=0.08)

    make().fit(1)
    record = RecorderCB()
    make(record).fit(2, resume=tmp_path)
    assert record.recs["lr"] == pytest.approx([0.02, 0.01])
