"""`LSUVCallback(log=True)`: the figures of the report go where each trainer's own go, once; without it, nowhere."""

from __future__ import annotations

import csv
import warnings

import pytest
import torch
import torch.nn.functional as F
from required import need_package
from signatures import arguments
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lsuvcb
from lsuvcb.engine import LayerReport, LSUVReport

pytestmark = pytest.mark.filterwarnings("ignore")  # the packages' own deprecations, Lightning's advice


def trainer_callback(name):
    need_package(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(f"lsuvcb.integrations.{name}").LSUVCallback


def data():
    g = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(96, 16, generator=g), torch.randint(0, 4, (96,), generator=g))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.body, self.head = nn.Sequential(nn.Linear(16, 32), nn.ReLU()), nn.Linear(32, 4)

    def forward(self, x):
        return self.head(self.body(x))


NAMES = {
    *(f"lsuv/{name}" for name in ("layers_at_target", "layers_not_converged", "layers_left_alone", "worst_error")),
    *(f"lsuv/{name}" for name in ("passes", "seconds")),
    *(f"lsuv/std_{when}/{layer}" for when in ("before", "after") for layer in ("body.0", "head")),
}


def ours(figures):
    """Those of the report among a trainer's figures, in single precision, as TensorBoard keeps them."""
    return {name: pytest.approx(value, rel=1e-6) for name, value in figures.items() if "lsuv/" in name}


def on_the_board(folder):
    """Every scalar in the event files: name -> its (step, value)s."""
    need_package("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for file in folder.rglob("events.out.tfevents.*"):
        events = EventAccumulator(str(file))
        events.Reload()
        for name in events.Tags()["scalars"]:
            found.setdefault(name, []).extend((event.step, event.value) for event in events.Scalars(name))
    return found


# The figures, and the argument


def test_figures_of_a_report_are_flat_numbers_without_what_was_not_measured():
    report = LSUVReport(
        [
            LayerReport("a", "Linear", "scaled", target=1.0, std_before=0.5, std_after=1.25),
            LayerReport("b.0", "Conv2d", "unchanged", target=2.0, std_before=2.0, std_after=2.0),
            LayerReport("c", "Linear", "not converged", target=1.0, std_before=0.25, std_after=0.5),
            LayerReport("rnn.weight_hh_l0", "LSTM", "left alone", "its output is hidden"),
            LayerReport("tied", "Linear", "scaled", target=1.0, std_before=0.5, std_after=1.25),
        ],
        input_std=1.0, input_mean=0.0, passes=3, seconds=0.5, ties={"tied": "a"},
    )  # fmt: skip
    assert report.to_log() == {
        "lsuv/layers_at_target": 2.0, "lsuv/layers_not_converged": 1.0, "lsuv/layers_left_alone": 1.0,
        "lsuv/worst_error": 0.5, "lsuv/passes": 3.0, "lsuv/seconds": 0.5,
        "lsuv/std_before/a": 0.5, "lsuv/std_before/b.0": 2.0, "lsuv/std_before/c": 0.25,
        "lsuv/std_after/a": 1.25, "lsuv/std_after/b.0": 2.0, "lsuv/std_after/c": 0.5,
    }  # fmt: skip
    assert {type(value) for value in report.to_log().values()} == {float}


def test_figures_of_an_unverified_report_are_those_that_it_has():
    net, x = Net(), data().tensors[0]
    assert set(lsuvcb.lsuv_(net, x, verify=False).to_log()) == {
        "lsuv/layers_at_target", "lsuv/layers_not_converged", "lsuv/layers_left_alone", "lsuv/passes", "lsuv/seconds",
    }  # fmt: skip


@pytest.mark.parametrize("trainer", ["fastai", "lightning", "transformers"])
def test_log_is_an_argument_of_each_trainers_callback(trainer):
    callback = trainer_callback(trainer)
    assert ("log", False) in arguments(callback)
    assert repr(callback(log=True, std=0.5)) == "LSUVCallback(log=True, std=0.5)"
    with pytest.raises(
        TypeError, match=r"`log` must be True or False, got 'logs'; with `log=True` the figures go where"
    ):
        callback(log="logs")


def test_log_is_no_argument_where_the_loop_keeps_no_log():
    assert "log" not in dict(arguments(lsuvcb.LSUVCallback))
    with pytest.raises(TypeError, match="LSUVCallback has no argument 'log'"):
        lsuvcb.LSUVCallback(log=True)


# Lightning


def lightning_fit(folder, *callbacks, loggers=("csv",), **options):
    need_package("lightning")
    import lightning.pytorch as pl
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.lr = Net(), 0.1

        def training_step(self, batch, batch_idx):
            loss = F.cross_entropy(self.net(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), self.lr)

        def train_dataloader(self):
            return DataLoader(data(), batch_size=16, shuffle=True)

    kinds = {"csv": CSVLogger, "board": TensorBoardLogger}
    module = Module()
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, max_epochs=1, log_every_n_steps=1, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[*callbacks],
        logger=[kinds[logger](str(folder)) for logger in loggers], **options,
    )  # fmt: skip
    return trainer, module


def rows(folder):
    """Those of the one CSV file, without the columns that a row does not fill."""
    (file,) = folder.rglob("metrics.csv")
    with file.open() as lines:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(lines)]


def prefixed(figures):
    """By the names that the layers have within the LightningModule."""
    return {name.replace("/body", "/net.body").replace("/head", "/net.head"): value for name, value in figures.items()}


def test_lightnings_loggers_get_the_figures_at_step_0_and_the_losses_as_ever(tmp_path):
    need_package("tensorboard")
    cb = trainer_callback("lightning")(log=True)
    trainer, module = lightning_fit(tmp_path, cb, loggers=("csv", "board"))
    trainer.fit(module)
    figures = cb.report.to_log()
    assert set(figures) == set(prefixed(dict.fromkeys(NAMES)))
    first, *others = rows(tmp_path)
    assert first == pytest.approx({**figures, "step": 0.0})
    assert [set(row) for row in others] == [{"epoch", "loss", "step"}] * 6
    board = on_the_board(tmp_path)
    assert {name: board[name] for name in figures} == {name: [(0, value)] for name, value in ours(figures).items()}
    assert len(board["loss"]) == 6


def test_lightnings_loggers_get_nothing_unasked_and_nothing_where_the_module_is_left_alone(tmp_path):
    callback = trainer_callback("lightning")
    unasked, module = lightning_fit(tmp_path / "unasked", callback())
    unasked.fit(module)
    asked, module = lightning_fit(tmp_path / "asked", cb := callback(log=True))
    asked.fit(module)
    again, _ = lightning_fit(tmp_path / "again", cb)
    again.fit(module)
    for name, logged in (("unasked", False), ("asked", True), ("again", False)):
        assert any("lsuv" in column for row in rows(tmp_path / name) for column in row) is logged


def test_lightnings_tuner_does_not_swallow_the_figures(tmp_path):
    trainer_cb = trainer_callback("lightning")
    from lightning.pytorch.tuner import Tuner

    trainer, module = lightning_fit(tmp_path, trainer_cb(log=True))
    Tuner(trainer).lr_find(module, num_training=5, update_attr=False)
    trainer.fit(module)
    assert [row["step"] for row in rows(tmp_path) if "lsuv/passes" in row] == [0]


def test_lightning_without_a_logger_is_an_error_before_any_weight_changes(tmp_path):
    cb = trainer_callback("lightning")(log=True)
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    trainer, module = lightning_fit(tmp_path, cb, loggers=())
    with pytest.raises(
        MisconfigurationException, match=r"needs a Trainer that has a logger.*logger=CSVLogger\('logs'\)"
    ):
        trainer.fit(module)
    assert cb.report is None
    assert torch.equal(module.net.head.weight, Net().head.weight)
    fast, _ = lightning_fit(tmp_path, cb, fast_dev_run=True)  # has a dummy in the place of the logger
    fast.fit(module)
    assert cb.report is not None


# The Hugging Face Trainer


def hf_trainer(folder, *callbacks, kind=None, **options):
    need_package("transformers")
    need_package("accelerate")
    import transformers

    class Model(Net):
        def forward(self, x, y):
            return {"loss": F.cross_entropy(super().forward(x), y)}

    fixed = {"max_steps": 4, "per_device_train_batch_size": 16, "use_cpu": True, "report_to": [], "disable_tqdm": True,
             "save_strategy": "no", "logging_steps": 2}  # fmt: skip
    args = transformers.TrainingArguments(output_dir=str(folder), **(fixed | options))
    items = [{"x": x, "y": y} for x, y in data()]
    return (kind or transformers.Trainer)(model=Model(), args=args, train_dataset=items, callbacks=[*callbacks])


def hears():
    """A callback that keeps what it hears of logs, and whether the run had begun for it by then."""
    need_package("transformers")
    import transformers

    class Hears(transformers.TrainerCallback):
        begun = False

        def __init__(self):
            self.heard = []

        def on_train_begin(self, *args, **kwargs):
            self.begun = True

        def on_log(self, args, state, control, logs, **kwargs):
            assert self.begun
            self.heard.append(dict(logs))

    return Hears()


def test_hf_trainers_log_gets_the_figures_first_and_every_callback_hears_of_them(tmp_path):
    cb, before, behind = trainer_callback("transformers")(log=True), hears(), hears()
    trainer = hf_trainer(tmp_path, before, cb, behind)
    trainer.train()
    figures = cb.report.to_log()
    assert set(figures) == NAMES
    assert trainer.state.log_history[0] == {**figures, "epoch": 0, "step": 0}
    assert before.heard[0] == behind.heard[0] == {**figures, "epoch": 0}
    assert [sum("lsuv/passes" in logs for logs in each.heard) for each in (before, behind)] == [1, 1]
    assert [logs["step"] for logs in trainer.state.log_history if "loss" in logs] == [2, 4]


def test_hf_trainers_tensorboard_has_the_figures(tmp_path):
    need_package("tensorboard")
    cb = trainer_callback("transformers")(log=True)
    hf_trainer(tmp_path, cb, report_to=["tensorboard"]).train()
    board = on_the_board(tmp_path)
    figures = ours(cb.report.to_log())
    assert {name: board[f"train/{name}"] for name in figures} == {name: [(0, value)] for name, value in figures.items()}


def test_hf_trainers_own_log_is_the_way_where_it_is_overridden(tmp_path):
    cb = trainer_callback("transformers")(log=True)
    import transformers

    class Renames(transformers.Trainer):
        def log(self, logs, *args, **kwargs):
            super().log({f"mine/{name}": value for name, value in logs.items()}, *args, **kwargs)

    trainer = hf_trainer(tmp_path, cb, kind=Renames)
    trainer.train()
    assert trainer.state.log_history[0]["mine/lsuv/passes"] == 3


def test_hf_trainers_log_gets_nothing_unasked_and_nothing_from_a_second_run(tmp_path):
    callback = trainer_callback("transformers")
    asked, unasked = hf_trainer(tmp_path, callback(log=True)), hf_trainer(tmp_path, callback())
    unasked.train()
    asked.train()
    asked.train()
    for trainer in (asked, unasked):
        assert not any("lsuv" in name for logs in trainer.state.log_history for name in logs)
        assert trainer.state.log_history


# fastai


def fastai_learner(folder, *callbacks):
    need_package("fastai")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fastai.data.core import DataLoaders
        from fastai.data.load import DataLoader
        from fastai.learner import Learner

    rows = list(zip(*data().tensors, strict=True))
    dls = DataLoaders(DataLoader(rows, bs=16, shuffle=True), DataLoader(rows, bs=16))
    learn = Learner(dls, Net(), loss_func=nn.CrossEntropyLoss(), cbs=[*callbacks], path=folder, train_bn=False)
    learn.remove_cbs([cb for cb in learn.cbs if type(cb).__name__ == "ProgressCallback"])
    learn.logger = lambda row: None
    return learn


def test_fastais_recorder_keeps_the_figures_also_where_the_callback_came_for_one_fit(tmp_path):
    cb = trainer_callback("fastai")(log=True)
    learn = fastai_learner(tmp_path)
    learn.fit(1, cbs=[cb])
    assert learn.recorder.lsuv_figures == cb.report.to_log()
    assert set(learn.recorder.lsuv_figures) == NAMES
    learn.fit(1)
    assert learn.recorder.lsuv_figures == cb.report.to_log()
    assert len(learn.recorder.values) == 1  # a row for the epoch, and none of ours


def test_fastais_recorder_keeps_nothing_unasked(tmp_path):
    learn = fastai_learner(tmp_path, trainer_callback("fastai")())
    learn.fit(1)
    assert learn.lsuv.report is not None
    assert not hasattr(learn.recorder, "lsuv_figures")


@pytest.mark.parametrize("search", [False, True])
def test_fastais_tensorboard_has_the_figures_of_the_first_fit_that_writes_there(search, tmp_path):
    need_package("tensorboard")
    cb = trainer_callback("fastai")(log=True)
    from fastai.callback.schedule import lr_find  # noqa: F401 - gives Learner its method
    from fastai.callback.tensorboard import TensorBoardCallback

    board = TensorBoardCallback(log_dir=tmp_path / "board", trace_model=False, log_preds=False)
    learn = fastai_learner(tmp_path, cb, board)
    if search:
        learn.lr_find(num_it=5, show_plot=False)  # writes nothing to the board
        assert on_the_board(tmp_path) == {}
    learn.fit(1)
    learn.fit(1)
    found, figures = on_the_board(tmp_path), ours(cb.report.to_log())
    assert {name: found[name] for name in figures} == {name: [(0, value)] for name, value in figures.items()}
    assert "train_loss" in found
