"""LSUVCallback in Lightning: the module is initialised, and training is what it would have been with such weights."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from required import need_package
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from two_processes import run

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
    module, cb = Module(), LSUVCallback()
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


def test_batch_goes_through_the_hooks_and_the_precision_of_the_trainer():
    class Hooked(Module):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch[0] * 3 + torch.rand(()), batch[1]

        def training_step(self, batch, batch_idx):
            assert torch.is_autocast_enabled("cpu")
            return super().training_step(batch, batch_idx)

    cb, module = LSUVCallback(), Hooked()
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
    lsuv_(alone, torch.cat([rank["x"] for rank in ranks]), orthonormal=False)
    for name, values in alone.state_dict().items():
        assert torch.allclose(ranks[0]["weights"][name], values, rtol=1e-4, atol=1e-6)


def test_workers_are_not_started_for_the_batch():
    module, cb = Module(), LSUVCallback()
    fit(module, cb, train=loader(num_workers=1), max_epochs=1)
    plain = Module()
    fit(plain, train=loader(num_workers=1), max_epochs=1)
    assert all(torch.equal(a, b) for a, b in zip(module.inputs, plain.inputs, strict=True))
    assert math.isclose(survey(module.net, module.inputs[0]).layers[0].std, 1, rel_tol=0.3)
