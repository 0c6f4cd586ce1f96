"""lr_find: its curve, its suggestion, and that it leaves nothing behind."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from tiny import learner, line, loaders, net, recorder, seed_all
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

from lsuvcb import (
    ActivationStats,
    BatchSchedCB,
    DataLoaders,
    LSUVCallback,
    MetricsCB,
    MomentumLearner,
    ProgressCB,
    TrainLearner,
)
from lsuvcb.training.lr_find import LRFinderCB, suggest
from lsuvcb.training.saving.checkpoint import CheckpointCB


def data(generator=None):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(96, 5, generator=g)
    return DataLoaders(
        DataLoader(TensorDataset(x, x[:, :2].abs()), 8, shuffle=True, generator=generator),
        DataLoader(TensorDataset(x, x[:, :2].abs()), 32),
    )


def test_finder_multiplies_the_rate_until_the_loss_blows_up():
    # w' = w - 2 lr (w - 1): the error is multiplied by (1 - 2 lr) in each step
    learn = learner(dls=loaders(train=100))
    learn.lr_find(gamma=2, max_mult=3, start_lr=0.01)
    finder = learn.lr_finder
    assert finder.lrs == pytest.approx([0.01 * 2**i for i in range(len(finder.lrs))])
    error, expected = 1.0, []
    for lr in finder.lrs:
        expected.append(error**2)
        error *= 1 - 2 * lr
    assert finder.losses == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert finder.losses[-1] > 3 * min(finder.losses)
    assert all(loss <= 3 * min(finder.losses[: i + 1]) for i, loss in enumerate(finder.losses[:-1]))


def test_finder_ends_at_a_loss_that_is_no_number():
    learn = learner(dls=loaders(train=100), loss_func=lambda p, t: (p - t).mean() * float("nan"))
    assert learn.lr_find() is None
    assert len(learn.lr_finder.lrs) == 1


def test_finder_ends_after_max_epochs():
    learn = learner(dls=loaders(train=2))
    learn.lr_find(max_epochs=3)
    assert len(learn.lr_finder.lrs) == 6


@pytest.mark.parametrize("bar", [[], [ProgressCB()]], ids=["alone", "with a bar"])
def test_lr_find_logs_no_row(bar, capsys):
    class ToAService(MetricsCB):
        sent = 0

        def _log(self, row):
            type(self).sent += 1

    learn = learner([MetricsCB(), ToAService(), *bar], loaders(train=2))
    learn.lr_find(max_epochs=3)
    assert (capsys.readouterr().out, ToAService.sent) == ("", 0)
    learn.fit(1)
    assert ToAService.sent == 2
    assert not learn.rehearsing


def test_suggestion_is_where_the_loss_falls_fastest():
    lrs = [10 ** (-5 + i / 4) for i in range(25)]
    losses = [2.3 - 2 / (1 + (1e-2 / lr) ** 2) + (lr > 0.3) * 10 * lr for lr in lrs]
    assert 0.4e-2 < suggest(lrs, losses) < 1.3e-2  # the steepest point of the fall is at 1e-2 in log(lr)
    assert suggest(lrs, sorted(losses)) is None
    assert suggest([], []) is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"gamma": 1}, "`gamma` and `max_mult`"),
        ({"max_mult": 0.5}, "must be > 1"),
        ({"start_lr": 0}, "`start_lr` must be > 0"),
    ],
)
def test_arguments_out_of_range_are_errors(arguments, says):
    with pytest.raises(ValueError, match=says):
        learner().lr_find(**arguments)


def test_plot_has_a_log_scale_and_the_suggestion():
    learn = learner(dls=loaders(train=100))
    suggestion = learn.lr_find(plot=True)
    import matplotlib.pyplot as plt

    (ax,) = plt.gcf().axes
    assert ax.get_xscale() == "log"
    assert ax.get_xlabel() == "learning rate (log scale)"
    assert ax.lines[0].get_ydata() == pytest.approx(learn.lr_finder.losses)
    assert f"{suggestion:.2g}" in ax.get_legend().get_texts()[0].get_text()


# Nothing is left


def everything(learn):
    """What lr_find must leave as it was, in values that can be compared."""
    model = learn.model
    return {
        "weights": {k: v.clone() for k, v in model.state_dict().items()},
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "hooks": [len(m._forward_hooks) for m in model.modules()],
        "rng": torch.get_rng_state(),
        "learner": {k: id(v) for k, v in vars(learn).items() if k != "lr_finder"},
        "callbacks": [sorted(vars(cb)) for cb in learn.cbs],
    }


def same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert str(a[key]) == str(b[key]), key
    assert all(torch.equal(a["weights"][k], b["weights"][k]) for k in a["weights"])


def make(kind, cbs):
    dls = data(torch.Generator().manual_seed(5))
    if kind is MomentumLearner:
        return MomentumLearner(net(), dls, lr=0.05, cbs=cbs)
    return TrainLearner(net(), dls, lr=0.05, cbs=cbs, opt_func=partial(torch.optim.SGD, momentum=0.9))


def callbacks(tmp_path):
    stats = ActivationStats(torch.nn.ReLU)
    sched = BatchSchedCB(partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=24))
    return [LSUVCallback(recipe="paper"), MetricsCB(), stats, sched, CheckpointCB(tmp_path)]


@pytest.mark.parametrize("kind", [TrainLearner, MomentumLearner])
def test_fit_after_lr_find_equals_a_fit_without_it_bit_for_bit(kind, tmp_path, capsys):
    results = []
    for find in (False, True):
        seed_all(1)
        learn = make(kind, callbacks(tmp_path / str(find)))
        seed_all(2)
        if find:
            learn.lr_find()
            assert len(learn.lr_finder.lrs) > 20
        learn.fit(2)
        stats = learn.cbs[2].stats["2"]
        results.append((learn.model.state_dict(), learn.history, stats.mean.tolist(), torch.get_rng_state().tolist()))
    (plain, *rest), (found, *others) = results
    assert all(torch.equal(plain[k], found[k]) for k in plain)
    assert rest == others
    assert capsys.readouterr().out.count("LSUV: 3 of 3 layers") == 2  # once for each model


@pytest.mark.parametrize("kind", [TrainLearner, MomentumLearner])
def test_lr_find_leaves_learner_model_callbacks_and_generators_alone(kind, tmp_path, capsys):
    learn = make(kind, callbacks(tmp_path))
    learn.fit(1)
    before, history = everything(learn), copy.deepcopy(learn.history)
    records = learn.cbs[2].stats["2"].mean.tolist()
    files = sorted(p.name for p in tmp_path.iterdir())
    learn.lr_find()
    same(before, everything(learn))
    assert learn.history == history
    assert learn.cbs[2].stats["2"].mean.tolist() == records
    assert sorted(p.name for p in tmp_path.iterdir()) == files
    assert learn.cbs[3].schedo.last_epoch == 12


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("event", ["after_batch", "after_backward", "before_epoch", "cleanup_fit"])
def test_lr_find_that_fails_leaves_as_little_behind(error, event, tmp_path, capsys):
    learn = make(MomentumLearner, callbacks(tmp_path))
    learn.fit(1)
    before, seen = everything(learn), []

    def also(fired, learn):
        seen.append(fired)
        if fired == event and (seen.count(event) == 3 or event in ("before_epoch", "cleanup_fit")):
            raise error

    learn.cbs.append(recorder(also=also))
    before["callbacks"].append(sorted(vars(learn.cbs[-1])))
    with pytest.raises(error):
        learn.lr_find()
    assert event in seen
    same(before, everything(learn))


def test_lr_find_with_a_callback_that_cannot_be_copied_takes_it_along(tmp_path):
    cb = recorder()
    with open(tmp_path / "log", "w") as cb.file:
        learner([cb], loaders(train=20)).lr_find()
    assert "after_batch" in cb.seen


def test_finder_as_a_plain_callback_ends_the_fit_and_puts_the_weights_back():
    finder, model = LRFinderCB(gamma=2), line(0.25)
    learner([finder], loaders(train=100), model).fit(5)
    assert model.weight.item() == 0.25
    assert len(finder.lrs) > 5


def test_suggested_rate_trains_a_net():
    learn = make(TrainLearner, [])
    start = F.mse_loss(learn.model(learn.dls.valid.dataset.tensors[0]), learn.dls.valid.dataset.tensors[1]).item()
    learn.fit(10, lr=learn.lr_find())
    assert learn.loss.item() < start / 2
