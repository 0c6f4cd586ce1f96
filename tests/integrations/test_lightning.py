"""LSUVCallback in Lightning: the module is initialised, and training is what it would have been with such weights."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from programs import run
from required import need_package
from signatures import arguments, of_a_callback
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lsuvcb import LSUVError, lsuv_, survey

need_package("lightning")
import lightning.pytorch as pl  # noqa: E402
import lightning_run  # noqa: E402

from lsuvcb.integrations.lightning import LSUVCallback  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on loaders, loggers and devices


def data(n=96):
    g = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(n, 16, generator=g), torch.randint(0, 4, (n,), generator=g))


def loader(**options):
    return DataLoader(data(), batch_size=32, shuffle=True, **options)


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(
            nn.Linear(16, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4)
        )
        self.inputs, self.losses, self.draws, self.steps, self.total = [], [], {}, 0, torch.zeros(())

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self.net(x), y)
        self.log("loss", loss, on_step=True, on_epoch=True, batch_size=len(x))
        self.log_dict({"again": loss})
        self.inputs.append(x)
        self.losses.append(loss.detach())
        self.draws[batch_idx] = float(torch.rand(()))
        self.steps += 1
        self.total += 1
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(module, *callbacks, train=None, seed=5, ckpt_path=None, **options):
    torch.manual_seed(seed)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, callbacks=list(callbacks), **(quiet | {"max_epochs": 2} | options)
    )
    trainer.fit(module, loader() if train is None else train, ckpt_path=ckpt_path)
    return trainer


def test_module_is_initialised_on_the_first_training_batch(capsys):
    module, cb = Module(), LSUVCallback(recipe="paper")
    fit(module, cb, max_epochs=1, limit_train_batches=1)
    assert cb.report.converged
    assert [row.name for row in cb.report.layers] == ["net.0", "net.3", "net.5"]
    assert "LSUV: 3 of 3 layers at std 1" in capsys.readouterr().out
    x = module.inputs[0]
    assert cb.report.input_std == pytest.approx(x.std(correction=0).item(), rel=1e-6)


def test_weights_are_those_of_lsuv_on_that_batch():
    class Still(Module):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.0)

    module, by_hand = Still(), Still()
    fit(module, LSUVCallback(orthonormal=False), max_epochs=1)
    lsuv_(by_hand, module.inputs[0], orthonormal=False, forward=lambda m, x: m.net(x))
    assert torch.allclose(module.net[0].weight, by_hand.net[0].weight, rtol=1e-5)
    assert not torch.allclose(module.net[0].weight, Still().net[0].weight, rtol=1e-2)


def test_training_sees_the_batches_and_draws_that_it_would_have_seen():
    plain, module = Module(), Module()
    fit(plain)
    fit(module, LSUVCallback())
    assert len(module.inputs) == len(plain.inputs) == 6
    assert all(torch.equal(a, b) for a, b in zip(module.inputs, plain.inputs, strict=True))
    assert module.draws == plain.draws
    assert not torch.equal(module.losses[0], plain.losses[0])


def test_what_a_step_collects_and_logs_is_that_of_training_alone():
    module = Module()
    trainer = fit(module, LSUVCallback(), max_epochs=1)
    assert (module.steps, int(module.total), len(module.losses)) == (3, 3, 3)
    assert trainer.callback_metrics["loss_epoch"].item() == pytest.approx(
        torch.stack(module.losses).mean().item(), rel=1e-6
    )
    assert "log" not in vars(module)


def test_torchmetrics_count_the_training_alone():
    metrics = need_package("torchmetrics")

    class WithMetric(Module):
        def __init__(self):
            super().__init__()
            self.accuracy = metrics.classification.MulticlassAccuracy(4, average="micro")
            self.mean = metrics.CatMetric()

        def training_step(self, batch, batch_idx):
            x, y = batch
            self.accuracy(self.net(x), y)
            self.mean.update(x.mean())
            return super().training_step(batch, batch_idx)

    module = WithMetric()
    fit(module, LSUVCallback(), max_epochs=1)
    assert module.accuracy._update_count == 3
    assert (module.accuracy.tp + module.accuracy.fn).sum() == 96
    assert len(module.mean.compute()) == 3


def test_second_fit_and_resumed_fit_are_left_alone(tmp_path):
    module, cb = Module(), LSUVCallback()
    trainer = fit(module, cb, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    first = cb.report
    fit(module, cb, max_epochs=1)
    assert cb.report is first
    forced = LSUVCallback(force=True)
    fit(module, forced, max_epochs=1)
    assert forced.report is not None
    again, cb = Module(), LSUVCallback(force=True)
    fit(again, cb, max_epochs=2, ckpt_path=tmp_path / "a.ckpt")
    assert cb.report is None
    later = LSUVCallback()
    fit(again, later, max_epochs=1)
    assert later.report is None  # its weights are trained
    fit(Module(), cb, max_epochs=1)
    assert cb.report is not None  # another module's are not


def test_named_batch_and_arguments_of_lsuv_are_used():
    batch = [t[:64] for t in data().tensors]
    cb = LSUVCallback(batch=batch, std=0.5, verify=False, orthonormal=False, layers=["net.3"])
    fit(Module(), cb, max_epochs=1)
    assert [(row.name, row.status) for row in cb.report.layers if row.status != "left alone"] == [("net.3", "scaled")]
    assert cb.report.passes == 1
    with pytest.raises(TypeError, match="LSUVCallback has no argument 'tolerance'; did you mean 'tol'"):
        LSUVCallback(tolerance=0.1)


def test_signature_shows_the_arguments_of_lsuv_with_their_defaults():
    assert arguments(LSUVCallback) == of_a_callback(lsuv_, logs=True)


def test_arguments_given_as_the_defaults_that_the_signature_shows_are_as_if_not_given():
    plain, same = LSUVCallback(), LSUVCallback(**dict(arguments(LSUVCallback)))
    for cb in (plain, same):
        fit(Module(), cb, max_epochs=1)
    assert repr(same) == repr(plain) == "LSUVCallback()"
    assert [row.std_after for row in same.report.layers] == [row.std_after for row in plain.report.layers]


def test_batch_goes_through_the_hooks_and_the_precision_of_the_trainer():
    class Hooked(Module):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch[0] * 3 + torch.rand(()), batch[1]

        def training_step(self, batch, batch_idx):
            assert torch.is_autocast_enabled("cpu")
            return super().training_step(batch, batch_idx)

    cb, module = LSUVCallback(recipe="paper"), Hooked()
    fit(module, cb, max_epochs=1, precision="bf16-mixed")
    assert module.inputs[0].std() == pytest.approx(3, rel=0.1)
    assert cb.report.input_std == pytest.approx(module.inputs[0].std(correction=0).item(), rel=1e-6)
    assert cb.report.converged
    assert max(abs(row.std_after - 1) for row in cb.report.layers) < 1e-2


def test_several_loaders_give_one_batch_of_each():
    class Two(Module):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch["a"], batch_idx) + super().training_step(batch["b"], batch_idx)

    module, cb = Two(), LSUVCallback()
    fit(module, cb, train={"a": loader(), "b": DataLoader(data(), batch_size=16)}, max_epochs=1)
    assert cb.report.converged
    assert [len(x) for x in module.inputs[:2]] == [32, 16]


def test_manual_optimization_needs_a_forward():
    class Manual(Module):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.optimizers().zero_grad()
            self.manual_backward(loss)
            self.optimizers().step()

    module = Manual()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    with pytest.raises(LSUVError, match=r"forward=lambda module, batch: module\(batch\[0\]\)"):
        fit(module, LSUVCallback())
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    cb = LSUVCallback(forward=lambda module, batch: module.net(batch[0]))
    fit(module, cb, max_epochs=1)
    assert cb.report.converged


def test_failure_leaves_the_module_as_it_was():
    class Broken(Module):
        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)
            raise RuntimeError("no such thing")

    module = Broken()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    with pytest.raises(RuntimeError, match="no such thing"):
        fit(module, LSUVCallback())
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert (module.steps, module.inputs, module.draws, float(module.total)) == (0, [], {}, 0)
    assert "log" not in vars(module)


def test_ranks_hold_equal_weights_for_the_batch_of_both(tmp_path):
    ranks, printed = run(lightning_run, tmp_path)
    assert printed.count("LSUV: 2 of 2 layers at std 1") == 1
    assert not torch.equal(ranks[0]["x"], ranks[1]["x"])
    for name, values in ranks[0]["weights"].items():
        assert torch.equal(values, ranks[1]["weights"][name])
    alone = lightning_run.Plain()
    lsuv_(alone, torch.cat([rank["x"] for rank in ranks]), recipe="paper", orthonormal=False)
    for name, values in alone.state_dict().items():
        assert torch.allclose(ranks[0]["weights"][name], values, rtol=1e-4, atol=1e-6)


def test_workers_are_not_started_for_the_batch():
    module, cb = Module(), LSUVCallback()
    fit(module, cb, train=loader(num_workers=1), max_epochs=1)
    plain = Module()
    fit(plain, train=loader(num_workers=1), max_epochs=1)
    assert all(torch.equal(a, b) for a, b in zip(module.inputs, plain.inputs, strict=True))
    assert math.isclose(survey(module.net, module.inputs[0]).layers[0].std, 1, rel_tol=0.3)


# Once, before the first real step; what is not done is said


class Still(Module):
    """Takes steps that move nothing."""

    def __init__(self, batch_size=32):
        super().__init__()
        self.batch_size, self.lr = batch_size, 0.0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)

    def train_dataloader(self):
        return DataLoader(data(), batch_size=self.batch_size, shuffle=True)


def weights(module):
    return [p.detach().clone() for p in module.parameters()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture
def said(capsys):
    return lambda: [line for line in capsys.readouterr().out.splitlines() if line.startswith("LSUV")]


def quiet_trainer(tmp_path, *callbacks, **options):
    return pl.Trainer(
        accelerator="cpu", devices=1, callbacks=list(callbacks), default_root_dir=tmp_path, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **({"max_epochs": 1} | options),
    )  # fmt: skip


def stds(module):
    return [row.std for row in survey(module.net, data().tensors[0]).layers]


TUNERS = {
    "lr_find": lambda tuner, module: tuner.lr_find(module, num_training=20, update_attr=False),
    "scale_batch_size": lambda tuner, module: tuner.scale_batch_size(module, max_trials=2, steps_per_trial=2),
}


@pytest.mark.parametrize("what", TUNERS)
def test_tuner_finds_an_initialised_module_and_the_fit_behind_it_starts_there(what, said, tmp_path):
    from lightning.pytorch.tuner import Tuner

    module, cb, other = Still(), LSUVCallback(recipe="paper"), pl.Callback()
    trainer = quiet_trainer(tmp_path, other, cb)
    order = list(trainer.callbacks)
    TUNERS[what](Tuner(trainer), module)
    assert cb.report.converged
    assert trainer.callbacks == order
    found = weights(module)
    assert stds(module) == pytest.approx([1, 1, 1], rel=0.3)
    module.lr = 0.0
    trainer.fit(module)
    assert same(found, weights(module))
    first, second = said()
    assert first.startswith("LSUV: 3 of 3 layers at std 1")
    assert second.startswith("LSUV: left alone: LSUVCallback(recipe='paper') has initialised this model")


def test_suggestion_is_that_of_the_net_that_trains(said, tmp_path):
    from lightning.pytorch.tuner import Tuner

    found = []
    for callbacks in ([], [LSUVCallback()]):
        module = Still()
        if not callbacks:
            torch.manual_seed(5)
            fit(module, LSUVCallback(), seed=5, max_epochs=1)  # steps that move nothing
        torch.manual_seed(5)
        finder = Tuner(quiet_trainer(tmp_path, *callbacks)).lr_find(module, num_training=20, update_attr=False)
        found.append((weights(module), finder.results["loss"]))
    (by_hand, losses), (tuned, tuned_losses) = found
    assert same(by_hand, tuned)
    assert losses == pytest.approx(tuned_losses, rel=1e-4)


@pytest.mark.parametrize("name", ["LearningRateFinder", "BatchSizeFinder"])
def test_finder_among_the_callbacks_tries_the_initialised_module(name, said, tmp_path):
    import lightning.pytorch.callbacks as theirs

    options = {"num_training_steps": 10, "update_attr": False} if name == "LearningRateFinder" else {"max_trials": 2}
    module, cb = Still(), LSUVCallback(recipe="paper")
    quiet_trainer(tmp_path, cb, getattr(theirs, name)(**options)).fit(module)
    assert cb.report.converged
    assert stds(module) == pytest.approx([1, 1, 1], rel=0.3)
    assert len(said()) == 1


@pytest.mark.parametrize("options", [{"fast_dev_run": True}, {"num_sanity_val_steps": 2}])
def test_short_run_and_sanity_check_initialise_once(options, said, tmp_path):
    class Validated(Still):
        def validation_step(self, batch, batch_idx):
            self.net(batch[0])

        def val_dataloader(self):
            return self.train_dataloader()

    module, cb = Validated(), LSUVCallback()
    quiet_trainer(tmp_path, cb, **options).fit(module)
    assert cb.report.converged
    found = weights(module)
    quiet_trainer(tmp_path, cb).fit(module)
    assert same(found, weights(module))
    assert len(said()) == 2


class Normed(Still):
    def __init__(self):
        super().__init__()
        self.net[1] = nn.Sequential(nn.LayerNorm(32), nn.ReLU())


def test_module_from_load_from_checkpoint_is_left_alone(said, tmp_path):
    trained = Normed()
    trained.lr = 0.1
    trainer = quiet_trainer(tmp_path, max_epochs=3)
    trainer.fit(trained)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    module, cb = Normed.load_from_checkpoint(tmp_path / "a.ckpt"), LSUVCallback()
    before = weights(module)
    quiet_trainer(tmp_path, cb).fit(module)
    assert same(before, weights(module))
    assert cb.report is None
    assert said() == [
        "LSUV: left alone: this model is trained, it seems ('net.1.0' (LayerNorm) has scales that differ from one another); "
        "LSUVCallback(force=True) does it anew."
    ]


def test_second_fit_other_arguments_and_a_resumed_fit_are_left_alone_in_one_line_each(said, tmp_path):
    module, cb, other = Module(), LSUVCallback(recipe="paper"), LSUVCallback(recipe="paper", std=0.5)
    trainer = fit(module, cb, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    fit(module, cb, max_epochs=1)
    fit(module, other, max_epochs=1)
    first, second, third = said()
    assert first.startswith("LSUV: 3 of 3 layers")
    assert second.startswith(
        "LSUV: left alone: LSUVCallback(recipe='paper') initialised this model, whose weights were trained"
    )
    assert third.endswith("LSUVCallback(force=True, recipe='paper', std=0.5) does it anew.")
    assert other.report is None
    fit(Module(), LSUVCallback(recipe="paper"), max_epochs=2, ckpt_path=tmp_path / "a.ckpt")
    assert said() == [
        "LSUV: left alone: this run resumes from a checkpoint, whose weights are trained; begin a run without one to initialise."
    ]


def test_two_callbacks_for_different_layers_both_run(said):
    hidden, head = LSUVCallback(layers=["net.0", "net.3"]), LSUVCallback(layers=["net.5"], std=0.1)
    fit(Module(), hidden, head, max_epochs=1)
    scaled = [[row.name for row in cb.report.layers if row.status == "scaled"] for cb in (hidden, head)]
    assert scaled == [["net.0", "net.3"], ["net.5"]]
    assert len(said()) == 2


class OwnLoop(Module):
    """Draws its batches itself, `per_step` of them in a step."""

    def __init__(self, per_step):
        super().__init__()
        self.per_step = per_step

    def training_step(self, dataloader_iter):
        losses = []
        for _ in range(self.per_step):
            (x, y), batch_idx, _ = next(dataloader_iter)
            self.inputs.append((batch_idx, x.clone()))
            losses.append(F.cross_entropy(self.net(x), y))
        return torch.stack(losses).mean()


@pytest.mark.parametrize("per_step", [1, 2])
def test_step_that_takes_a_dataloader_iter_is_given_one_of_the_first_batch(per_step):
    module, plain, cb = OwnLoop(per_step), OwnLoop(per_step), LSUVCallback(recipe="paper")
    fit(module, cb, max_epochs=1)
    fit(plain, max_epochs=1)
    assert cb.report.converged
    assert [row.name for row in cb.report.layers] == ["net.0", "net.3", "net.5"]
    assert cb.report.input_std == pytest.approx(plain.inputs[0][1].std(correction=0).item(), rel=1e-6)
    assert [i for i, _ in module.inputs] == [i for i, _ in plain.inputs]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(module.inputs, plain.inputs, strict=True))
