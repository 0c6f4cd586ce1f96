"""Files that are whole or not there; fits that go on as if they had never stopped."""

import os
import random
from functools import partial

import numpy as np
import pytest
import torch
from tiny import learner, loaders, net, noise, seed_all
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, Dataset

from lsuvcb import (
    BatchSchedCB,
    Callback,
    CancelFitException,
    CheckpointCB,
    CheckpointError,
    CheckpointWarning,
    DataLoaders,
    GradientClipCB,
    LSUVCallback,
    MetricsCB,
    MixedPrecisionCB,
    MomentumLearner,
    TrainLearner,
)  # fmt: skip
from lsuvcb.callback.past import past_of
from lsuvcb.training.saving import checkpoint, files


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def clone(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


# learn.save, learn.load


def test_saved_weights_are_loaded_in_place(tmp_path):
    one, two = learner(model=net(1)), learner(model=net(2))
    identities = [id(p) for p in two.model.parameters()]
    one.save(tmp_path / "weights.pt")
    two.load(tmp_path / "weights.pt")
    assert equal(one.model.state_dict(), two.model.state_dict())
    assert [id(p) for p in two.model.parameters()] == identities


def test_load_takes_a_state_dict_that_torch_wrote(tmp_path):
    one, two = net(1), learner(model=net(2))
    torch.save(one.state_dict(), tmp_path / "weights.pt")
    two.load(tmp_path / "weights.pt")
    assert equal(one.state_dict(), two.model.state_dict())


def test_load_takes_a_state_dict_with_a_parameter_called_model(tmp_path):
    class Odd(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.model = nn.Parameter(torch.tensor([value]))

    torch.save(Odd(3.0).state_dict(), tmp_path / "weights.pt")
    learn = learner(model=Odd(0.0))
    learn.load(tmp_path / "weights.pt")
    assert learn.model.model.item() == 3.0


def test_load_remembers_that_lsuv_has_run(tmp_path, capsys):
    one = learner([LSUVCallback()], model=net(1), dls=noisy_data())
    one.fit(1)
    one.save(tmp_path / "weights.pt")
    two = learner([LSUVCallback()], model=net(2), dls=noisy_data())
    two.load(tmp_path / "weights.pt")
    before = clone(two.model)
    two.fit(1, lr=1e-30)
    assert torch.equal(before["0.weight"], two.model.state_dict()["0.weight"])


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (lambda: nn.Sequential(nn.Linear(5, 8)), r"this Sequential: it has besides 1.bias, 1.num_batches_tracked"),
        (lambda: nn.Sequential(*net(), nn.Linear(2, 2)), "it lacks 7.bias, 7.weight"),
        (lambda: net(n_in=6), "it has in another shape 0.weight"),
    ],
)
def test_load_of_another_model_s_weights_is_an_error_and_changes_nothing(other, says, tmp_path):
    learner(model=net()).save(tmp_path / "weights.pt")
    learn = learner(model=other())
    before = clone(learn.model)
    with pytest.raises(CheckpointError, match=says):
        learn.load(tmp_path / "weights.pt")
    assert equal(before, learn.model.state_dict())


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("bomb",)


def test_load_runs_no_code_of_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Bomb()}, "weights.pt")
    with pytest.raises(CheckpointError, match="cannot be read as plain values"):
        learner().load("weights.pt")
    assert not os.path.exists("bomb")


def test_load_of_a_file_that_is_not_there_says_who_writes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint .*; `learn.save\(path\)`"):
        learner().load(tmp_path / "weights.pt")


def cut(raw):
    return raw[: len(raw) // 2]


def flip(raw):
    at = raw.index(b"data/0") + 2000  # among the values of a weight
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


@pytest.mark.parametrize("damage", [cut, flip, lambda raw: b""], ids=["cut", "a flipped bit", "empty"])
def test_damaged_file_is_an_error_and_changes_nothing(damage, tmp_path):
    path, big = tmp_path / "weights.pt", nn.Linear(50, 50)
    learner(model=big).save(path)
    path.write_bytes(damage(path.read_bytes()))
    before = clone(big)
    with pytest.raises(CheckpointError, match="is damaged"):
        learner(model=big).load(path)
    assert equal(before, big.state_dict())


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_write_that_fails_leaves_the_old_file_and_no_other(error, tmp_path, monkeypatch):
    path = tmp_path / "weights.pt"
    learner(model=net(1)).save(path)
    before = path.read_bytes()

    def full(state, file):
        file.write(b"half")
        raise error

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(error):
        learner(model=net(2)).save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["weights.pt"]
    assert path.read_bytes() == before


# Going on


class Noisy(Dataset):
    """Augmented by every kind of generator, its own included."""

    def __init__(self):
        g = torch.Generator().manual_seed(0)
        self.x = torch.randn(40, 5, generator=g)
        self.own = (
            np.random.default_rng(1),
            np.random.RandomState(2),
            random.Random(3),
            torch.Generator().manual_seed(4),
        )

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        modern, legacy, python, g = self.own
        shake = modern.random() + legacy.random() + python.random() + torch.rand((), generator=g) + noise()
        return self.x[i] + 0.1 * shake, self.x[i, :2]


def noisy_data():
    generator = torch.Generator().manual_seed(6)
    data = Noisy()
    return DataLoaders(DataLoader(data, 8, shuffle=True, generator=generator), DataLoader(data, 20))


def momentum(cbs):
    return MomentumLearner(net(), noisy_data(), lr=0.02, cbs=cbs)


def adam(cbs):
    schedule = BatchSchedCB(partial(lr_scheduler.OneCycleLR, max_lr=0.02, total_steps=20))
    return TrainLearner(net(), noisy_data(), lr=0.02, cbs=[schedule, *cbs], opt_func=torch.optim.Adam)


def half_precision(cbs):
    clip = GradientClipCB(1.0)
    mixed = MixedPrecisionCB(torch.float16)
    return TrainLearner(
        net(), noisy_data(), lr=0.02, cbs=[mixed, clip, *cbs], opt_func=partial(torch.optim.SGD, momentum=0.9)
    )


class Stop(Callback):
    """Ends the fit in the middle of an epoch."""

    def __init__(self, epoch):
        self.at = epoch

    def after_batch(self, learn):
        if learn.epoch == self.at and learn.iter == 2:
            raise CancelFitException


@pytest.mark.parametrize("stop", [1, 3])
@pytest.mark.parametrize("make", [momentum, adam, half_precision])
def test_resumed_fit_ends_with_the_same_bits(make, stop, tmp_path, capsys):
    def fresh(folder):
        seed_all(3)
        return make([LSUVCallback(), MetricsCB(), CheckpointCB(tmp_path / folder)])

    whole = fresh("whole")
    whole.fit(4)
    fresh("cut").fit(4, cbs=Stop(stop))
    resumed = fresh("cut")
    seed_all(99)  # as a new process would have other states
    resumed.fit(4, resume=tmp_path / "cut")
    assert equal(whole.model.state_dict(), resumed.model.state_dict())
    assert resumed.history == whole.history
    assert torch.rand(1).item() == pytest.approx(_after(whole, fresh), abs=0)


def _after(whole, fresh):
    again = fresh("again")
    again.fit(4)
    return torch.rand(1).item()


def test_resume_of_a_fit_that_is_done_trains_no_more(tmp_path, capsys):
    learn = momentum([MetricsCB(), CheckpointCB(tmp_path)])
    learn.fit(2)
    before, history = clone(learn.model), list(learn.history)
    learn.fit(2, resume=tmp_path)
    assert equal(before, learn.model.state_dict())
    assert learn.history == history


def test_resumed_fit_runs_no_lsuv_and_says_so(tmp_path, capsys):
    momentum([LSUVCallback(), CheckpointCB(tmp_path)]).fit(1)
    capsys.readouterr()
    learn = momentum([LSUVCallback(), CheckpointCB(tmp_path)])
    learn.fit(2, resume=tmp_path)
    assert "LSUV: left alone: this run resumes from a checkpoint" in capsys.readouterr().out
    assert past_of(learn.model).trained


@pytest.mark.parametrize("wrote", [[], [LSUVCallback(force=True)]], ids=["without LSUV", "with force"])
def test_resumed_weights_are_left_alone_by_an_lsuv_callback_that_comes_later(wrote, tmp_path, capsys):
    momentum([*wrote, CheckpointCB(tmp_path)]).fit(1)
    trained = files.read(checkpoint.checkpoints(tmp_path)[0])["model"]
    capsys.readouterr()
    learn = momentum([LSUVCallback(force=bool(wrote)), CheckpointCB(tmp_path)])
    learn.fit(1, resume=tmp_path)
    assert capsys.readouterr().out.startswith("LSUV: left alone: this run resumes")
    assert equal(trained, learn.model.state_dict())
    assert not learn.resumed


def test_loaded_weights_are_left_alone_by_lsuv_unless_it_is_forced(tmp_path, capsys):
    learner(model=net(1)).save(tmp_path / "weights.pt")
    learn = momentum([LSUVCallback()])
    learn.load(tmp_path / "weights.pt")
    learn.fit(1)
    assert "LSUV: left alone: this model is trained, it seems (read from a file" in capsys.readouterr().out
    learn.fit(1, cbs=LSUVCallback(force=True, orthonormal=False))
    assert "LSUV" in capsys.readouterr().out


def test_resume_from_its_folder_by_another_path_to_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    learner([CheckpointCB("new")]).fit(1, resume=tmp_path / "new")
    assert (tmp_path / "new" / "run01-epoch0001.pt").is_file()


def test_lazy_model_is_resumed(tmp_path, capsys):
    def lazy():
        torch.manual_seed(0)
        model = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 2))
        return TrainLearner(model, noisy_data(), lr=0.02, cbs=[LSUVCallback(), CheckpointCB(tmp_path)])

    lazy().fit(1)
    learn = lazy()
    learn.fit(1, resume=tmp_path)
    assert equal(files.read(checkpoint.checkpoints(tmp_path)[0])["model"], learn.model.state_dict())


def test_numpy_s_learning_rate_is_a_plain_number_in_a_checkpoint(tmp_path):
    for epochs in (1, 2):
        learner([CheckpointCB(tmp_path)], lr=np.float64(0.01)).fit(epochs, resume=tmp_path)
    assert files.read(checkpoint.checkpoints(tmp_path)[0])["opt"]["param_groups"][0]["lr"] == 0.01


def test_resume_from_an_empty_folder_of_its_own_begins_at_the_beginning(tmp_path):
    learn = momentum([CheckpointCB(tmp_path / "new")])
    learn.fit(1, resume=tmp_path / "new")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["run01-epoch0001.pt"]


def test_resume_from_a_folder_without_checkpoints_is_an_error(tmp_path):
    learn = momentum([CheckpointCB(tmp_path / "one")])
    before = clone(learn.model)
    with pytest.raises(
        FileNotFoundError, match=r"there is no checkpoint in .*two; CheckpointCB\('.*two'\) writes them"
    ):
        learn.fit(1, resume=tmp_path / "two")
    assert equal(before, learn.model.state_dict())


def test_resume_from_weights_alone_is_an_error(tmp_path):
    learner(model=net(9)).save(tmp_path / "weights.pt")
    learn = momentum([])
    before = clone(learn.model)
    with pytest.raises(CheckpointError, match=r"holds weights alone; `learn.load\(path\)`"):
        learn.fit(1, resume=tmp_path / "weights.pt")
    assert equal(before, learn.model.state_dict())


def test_resume_of_another_model_is_an_error_before_anything_runs(tmp_path):
    momentum([CheckpointCB(tmp_path)]).fit(1)
    learn = learner([], model=nn.Linear(1, 1))
    with pytest.raises(CheckpointError, match="another model"):
        learn.fit(1, resume=tmp_path)


@pytest.mark.parametrize("by", ["folder", "file"])
def test_damaged_checkpoint_is_left_for_the_one_before_it_with_a_warning(by, tmp_path, capsys):
    whole = momentum([CheckpointCB(tmp_path / "whole")])
    whole.fit(3)
    folder = tmp_path / "cut"
    momentum([CheckpointCB(folder)]).fit(2)
    newest = folder / "run01-epoch0002.pt"
    newest.write_bytes(cut(newest.read_bytes()))
    resumed = momentum([CheckpointCB(folder)])
    with pytest.warns(CheckpointWarning, match=r"epoch0002.pt is damaged .* Resuming from .*epoch0001.pt instead"):
        resumed.fit(3, resume=folder if by == "folder" else newest)
    assert resumed.epoch == 2


def test_only_damaged_checkpoints_are_an_error(tmp_path):
    momentum([CheckpointCB(tmp_path)]).fit(1)
    (path,) = tmp_path.iterdir()
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="is damaged"):
        momentum([CheckpointCB(tmp_path)]).fit(2, resume=tmp_path)


def test_resume_with_other_callbacks_warns_of_the_state_that_has_no_taker(tmp_path):
    adam([CheckpointCB(tmp_path)]).fit(1)
    learn = TrainLearner(net(), noisy_data(), cbs=[CheckpointCB(tmp_path)], opt_func=torch.optim.Adam)
    with pytest.warns(CheckpointWarning, match="other callbacks: BatchSchedCB goes on without its state"):
        learn.fit(2, resume=tmp_path)


def test_resume_with_other_loaders_is_an_error(tmp_path):
    momentum([CheckpointCB(tmp_path)]).fit(1)
    learn = MomentumLearner(net(9), loaders(), cbs=[CheckpointCB(tmp_path)])
    before = clone(learn.model)
    with pytest.raises(ValueError, match=r"must hold the \d+ random generators that were saved, got 0"):
        learn.fit(2, resume=tmp_path)
    assert equal(before, learn.model.state_dict())
    assert not past_of(learn.model).trained


def test_resume_with_another_optimizer_is_an_error_and_changes_nothing(tmp_path):
    momentum([CheckpointCB(tmp_path)]).fit(1)
    learn = momentum([CheckpointCB(tmp_path)])
    learn.opt_func = lambda ps, lr: torch.optim.SGD([{"params": [p]} for p in ps], lr)
    before = clone(learn.model)
    with pytest.raises(ValueError, match="parameter groups"):
        learn.fit(2, resume=tmp_path)
    assert equal(before, learn.model.state_dict())


def test_resume_with_an_optimizer_of_another_kind_is_an_error_and_changes_nothing(tmp_path):
    adam([CheckpointCB(tmp_path)]).fit(1)
    learn = momentum([CheckpointCB(tmp_path)])
    before = clone(learn.model)
    with pytest.raises(CheckpointError, match="the checkpoint is of a fit with Adam, this one has SGD"):
        learn.fit(2, resume=tmp_path)
    assert equal(before, learn.model.state_dict())


# CheckpointCB


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_checkpoints_are_kept_every_so_many_epochs_the_last_one_always_and_no_more_than_keep(tmp_path):
    learner([CheckpointCB(tmp_path, every=2, keep=2)]).fit(7)
    assert names(tmp_path) == ["run01-epoch0006.pt", "run01-epoch0007.pt"]


def test_checkpoints_of_a_new_run_leave_those_of_an_older_one(tmp_path):
    cb = CheckpointCB(tmp_path, keep=1)
    learner([cb]).fit(2)
    learner([cb]).fit(3)
    assert names(tmp_path) == ["run01-epoch0002.pt", "run02-epoch0003.pt"]
    assert checkpoint.checkpoints(tmp_path)[0].name == "run02-epoch0003.pt"


def test_resumed_fit_goes_on_with_its_run(tmp_path):
    cb = CheckpointCB(tmp_path, keep=None)
    learner([cb]).fit(1)
    learner([cb]).fit(3, resume=tmp_path)
    assert names(tmp_path) == [f"run01-epoch000{i}.pt" for i in (1, 2, 3)]


def test_fit_that_goes_on_from_an_older_checkpoint_is_a_new_run_and_the_newest(tmp_path):
    cb = CheckpointCB(tmp_path, keep=None)
    learner([cb]).fit(3)
    learner([CheckpointCB(tmp_path, keep=1)]).fit(2, resume=tmp_path / "run01-epoch0001.pt")
    assert names(tmp_path) == [*(f"run01-epoch000{i}.pt" for i in (1, 2, 3)), "run02-epoch0002.pt"]
    assert checkpoint.checkpoints(tmp_path)[0].name == "run02-epoch0002.pt"


def test_fit_that_goes_on_from_another_folder_is_a_new_run_of_its_own(tmp_path):
    learner([CheckpointCB(tmp_path / "a")]).fit(1)
    learner([CheckpointCB(tmp_path / "b")]).fit(3)
    learner([CheckpointCB(tmp_path / "b", keep=1)]).fit(2, resume=tmp_path / "a")
    assert names(tmp_path / "b") == [*(f"run01-epoch000{i}.pt" for i in (1, 2, 3)), "run02-epoch0002.pt"]


class Rows(Callback):
    """Writes given rows in place of MetricsCB's."""

    order = 50

    def __init__(self, name, values):
        self.name, self.values = name, values

    def after_epoch(self, learn):
        if not learn.training:
            learn.history.append({self.name: self.values[learn.epoch], "train": "eval"})


@pytest.mark.parametrize(
    ("name", "values", "lower", "best"),
    [
        ("loss", [3.0, 1.0, 2.0], None, 2),
        ("accuracy", [0.3, 0.1, 0.2], None, 1),
        ("wer", [0.3, 0.1, 0.2], True, 2),
        ("loss", [float("nan"), 3.0, 2.0], None, 3),
    ],
)
def test_best_checkpoint_is_that_of_the_best_epoch(name, values, lower, best, tmp_path):
    learner([Rows(name, values), CheckpointCB(tmp_path, best=name, lower_is_better=lower)]).fit(3)
    assert files.read(tmp_path / "best.pt")["epoch"] == best


def test_best_value_is_remembered_by_a_resumed_fit(tmp_path):
    rows = Rows("loss", [1.0, 5.0, 4.0])
    learner([rows, CheckpointCB(tmp_path, best="loss")]).fit(1)
    learner([rows, CheckpointCB(tmp_path, best="loss")]).fit(3, resume=tmp_path)
    assert files.read(tmp_path / "best.pt")["epoch"] == 1


def test_best_that_no_row_has_is_an_error_with_those_that_are_there(tmp_path, capsys):
    with pytest.raises(ValueError, match="got 'acuracy'; they have loss"):
        learner([MetricsCB(), CheckpointCB(tmp_path, best="acuracy")]).fit(1)
    with pytest.raises(ValueError, match="add a MetricsCB"):
        learner([CheckpointCB(tmp_path, best="loss")]).fit(1)


@pytest.mark.parametrize("arguments", [{"every": 0}, {"keep": 0}])
def test_checkpoint_argument_out_of_range_is_an_error(arguments, tmp_path):
    with pytest.raises(ValueError, match="`every` and `keep` must be >= 1"):
        CheckpointCB(tmp_path, **arguments)


def test_half_files_of_a_killed_process_are_removed(tmp_path):
    (tmp_path / ".run01-epoch0001.pt.123.half").write_bytes(b"half")
    learner([CheckpointCB(tmp_path)]).fit(1)
    assert names(tmp_path) == ["run01-epoch0001.pt"]


def test_fit_without_training_writes_nothing(tmp_path):
    learner([CheckpointCB(tmp_path)]).fit(1, train=False)
    assert names(tmp_path) == []


def test_fit_without_validation_writes_behind_the_training(tmp_path):
    learner([CheckpointCB(tmp_path)]).fit(1, valid=False)
    assert names(tmp_path) == ["run01-epoch0001.pt"]


class Stateful(Callback):
    def __init__(self, value):
        self.value = value

    def state_dict(self):
        return {"value": [self.value]}

    def load_state_dict(self, state):
        self.value = state["value"][0]


def test_state_of_a_callback_of_one_s_own_is_kept_and_several_of_one_class_are_told_apart(tmp_path):
    learner([Stateful(1), Stateful(torch.tensor([2.0])), CheckpointCB(tmp_path)]).fit(1)
    a, b = Stateful(0), Stateful(0)
    learner([a, b, CheckpointCB(tmp_path)]).fit(1, resume=tmp_path)
    assert (a.value, b.value.tolist()) == (1, [2.0])


def test_state_that_could_not_be_read_back_is_an_error_that_names_it(tmp_path):
    with pytest.raises(TypeError, match=r"got complex in Stateful\['value'\]\[0\]"):
        learner([Stateful(1j), CheckpointCB(tmp_path)]).fit(1)
    with pytest.raises(TypeError, match=r"got float64 in learn.history\[0\]\['wer'\]"):
        learner([Rows("wer", [np.float64(0.5)]), CheckpointCB(tmp_path)]).fit(1)
    assert names(tmp_path) == []


def test_metric_of_numpy_s_kind_is_a_plain_number_in_history_and_checkpoint(tmp_path, capsys):
    class Half:
        def reset(self): ...

        def update(self, preds, target): ...

        def compute(self):
            return np.float64(0.5)

    learn = learner([MetricsCB(half=Half()), CheckpointCB(tmp_path)])
    learn.fit(1)
    assert type(learn.history[0]["half"]) is float
    assert files.read(next(tmp_path.iterdir()))["history"] == learn.history


def test_checkpoint_can_be_read_with_weights_only(tmp_path, capsys):
    adam([LSUVCallback(), MetricsCB(), CheckpointCB(tmp_path)]).fit(1)
    (path,) = tmp_path.iterdir()
    assert torch.load(path, weights_only=True)["epoch"] == 1
