"""What Lightning's users combine with LSUVCallback: precisions, strategies, several loaders, limits; and `lsuv_` under Fabric."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from programs import run
from required import need_package
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from traces import bits, rng, weights_of

from lsuvcb import lsuv_

need_package("lightning")
import lightning.pytorch as pl  # noqa: E402
import lightning_parallel_run as parallel  # noqa: E402
from lightning.fabric import Fabric  # noqa: E402
from lightning.pytorch.utilities import CombinedLoader  # noqa: E402

from lsuvcb.integrations.lightning import LSUVCallback  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on loaders, loggers and devices
PAPER = {"recipe": "paper", "orthonormal": False}


def data(seed=0):
    g = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(96, 16, generator=g) * 2, torch.randint(0, 4, (96,), generator=g))


def loader(batch_size=32, seed=0):
    return DataLoader(data(seed), batch_size=batch_size, shuffle=True)


def net(dropout=0.0):
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(16, 32), nn.ReLU(), nn.Dropout(dropout), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)
    )


class Module(pl.LightningModule):
    """Keeps the batches and losses of its steps, and what its second layer gave in the first of them."""

    def __init__(self, lr=0.1, dropout=0.0):
        super().__init__()
        self.net, self.lr = net(dropout), lr
        self.inputs, self.losses, self.outputs = [], [], []

    def training_step(self, batch, batch_idx):
        batches = batch.values() if isinstance(batch, dict) else [batch]
        return sum(self.loss(x, y) for x, y in batches)

    def loss(self, x, y):
        second = self.net[:4](x)
        loss = F.cross_entropy(self.net[4:](second), y)
        self.inputs.append(x)
        self.losses.append(loss.detach())
        self.outputs.append(second.detach())
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr, momentum=0.9)


class Seen(pl.Callback):
    """The weights as the callback before it left them."""

    def on_train_start(self, trainer, module):
        self.weights = weights_of(module)


def fit(module, *callbacks, train=None, **options):
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(accelerator="cpu", devices=1, callbacks=[*callbacks], **(quiet | {"max_epochs": 1} | options))
    torch.manual_seed(5)
    trainer.fit(module, loader() if train is None else train)
    return trainer


# Bit for bit


@pytest.mark.parametrize("recipe", ["balanced", "paper", "course"])
def test_weights_after_the_initialisation_are_bit_for_bit_those_of_lsuv_on_that_batch(recipe):
    def drawn():
        return torch.Generator().manual_seed(3)

    module, by_hand, seen = Module(), Module(), Seen()
    fit(module, LSUVCallback(recipe=recipe, tol=0.1, generator=drawn()), seen)
    lsuv_(
        by_hand, (module.inputs[0],), recipe=recipe, tol=0.1, generator=drawn(), forward=lambda m, batch: m.net(*batch)
    )
    assert seen.weights == weights_of(by_hand) != weights_of(Module())


def test_fit_with_a_callback_that_changes_nothing_is_bit_for_bit_one_without():
    left = []
    for callbacks in ([], [LSUVCallback(std={"*": "leave"})]):
        module = Module(dropout=0.3)
        trainer = fit(module, *callbacks, max_epochs=2)
        momenta = [bits(state["momentum_buffer"]) for state in trainer.optimizers[0].state.values()]
        left.append((weights_of(module), momenta, [bits(loss) for loss in module.losses], rng(), trainer.global_step))
    assert left[0] == left[1]
    assert left[0][0] != weights_of(Module())


# Precision plugins


PRECISIONS = {
    "16-mixed": (torch.float32, 0.01),  # on a CPU Lightning makes bf16-mixed of it
    "bf16-mixed": (torch.float32, 0.01),
    "bf16-true": (torch.bfloat16, 0.01),
    "16-true": (torch.float16, 2e-3),
    "64-true": (torch.float64, 1e-12),
}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_layers_are_at_their_targets_in_the_precision_that_trains(precision):
    dtype, tol = PRECISIONS[precision]
    module, cb = Module(lr=0.0), LSUVCallback(**PAPER)
    fit(module, cb, precision=precision)
    assert cb.report.converged
    assert {p.dtype for p in module.parameters()} == {dtype}
    assert module.outputs[0].double().std(correction=0).item() == pytest.approx(1, abs=tol)


# Loaders


@pytest.mark.parametrize("mode", ["max_size_cycle", "min_size", "max_size"])
def test_combined_loader_gives_one_batch_of_each_of_its_loaders(mode):
    class Uneven(Module):
        def training_step(self, batch, batch_idx):
            return super().training_step({k: v for k, v in batch.items() if v is not None}, batch_idx)

    module, plain, cb = Uneven(), Uneven(), LSUVCallback(**PAPER)
    for each, callbacks in ((module, [cb]), (plain, [])):
        fit(each, *callbacks, train=CombinedLoader({"a": loader(16, seed=1), "b": loader(48, seed=2)}, mode))
    assert cb.report.converged
    assert [len(x) for x in module.inputs[:2]] == [16, 48]
    assert torch.cat(module.outputs[:2]).std(correction=0).item() == pytest.approx(1, abs=1e-3)
    assert [bits(x) for x in module.inputs] == [bits(x) for x in plain.inputs]


@pytest.mark.parametrize("limit", [{"limit_train_batches": 1}, {"limit_train_batches": 0.5}, {"overfit_batches": 1}])
def test_limited_fit_is_initialised_on_the_first_batch_that_it_trains_on(limit):
    module, plain, cb = Module(), Module(), LSUVCallback(**PAPER)
    fit(module, cb, max_epochs=2, **limit)
    fit(plain, max_epochs=2, **limit)
    assert len(module.inputs) == 2  # one in each epoch
    assert module.outputs[0].std(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert [bits(x) for x in module.inputs] == [bits(x) for x in plain.inputs]


def test_fit_of_no_batches_initialises_nothing_and_leaves_that_to_the_next(capsys):
    module, cb = Module(), LSUVCallback(**PAPER)
    fit(module, cb, limit_train_batches=0)
    assert cb.report is None
    assert weights_of(module) == weights_of(Module())
    assert "LSUV" not in capsys.readouterr().out
    fit(module, cb)
    assert cb.report.converged


def test_compiled_module_is_initialised_and_trains():
    module, cb, seen, plain = Module(), LSUVCallback(**PAPER), Seen(), Module()
    fit(torch.compile(module, backend="eager"), cb, seen)
    assert len(module.inputs) == 3
    lsuv_(plain.net, module.inputs[0], **PAPER)
    assert seen.weights == weights_of(plain)


# Strategies


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two processes has after fits with ModelParallelStrategy and `lsuv_` under Fabric; their output; the folder."""
    folder = tmp_path_factory.mktemp("ranks")
    return *run(parallel, folder), folder


@pytest.mark.parametrize("how", ["sharded", "split", "fabric"])
def test_whole_weights_of_two_processes_are_those_of_one_that_has_all_rows(how, ranks):
    (first, second), _, _ = ranks
    x = first[how]["x"] if how == "split" else torch.cat([first[how]["x"], second[how]["x"]])
    alone = parallel.net()
    lsuv_(alone, x, **PAPER)
    for name, values in alone.state_dict().items():
        assert torch.equal(first[how][name], second[how][name])
        assert torch.allclose(first[how][name], values, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(alone[0].weight, parallel.net()[0].weight, rtol=0.1)


@pytest.mark.parametrize("how", ["sharded", "split"])
def test_no_process_holds_a_whole_weight_that_it_did_not_hold_before(how, ranks):
    assert [int(found[how]["here"]) for found in ranks[0]] == [16 * 32 // 2] * 2


def test_report_is_printed_and_logged_by_one_of_two_processes(ranks):
    _, printed, folder = ranks
    assert printed.count("LSUV: 3 of 3 layers at std 1") == 2  # two fits
    (log,) = folder.rglob("metrics.csv")
    header, row = log.read_text().splitlines()
    figures = dict(zip(header.split(","), map(float, row.split(",")), strict=True))
    assert (figures["step"], figures["lsuv/layers_at_target"]) == (0, 3)


def test_fsdp_strategy_is_refused_by_lightning_without_a_gpu():
    with pytest.raises(ValueError, match="The strategy `fsdp` requires a GPU accelerator"):
        pl.Trainer(accelerator="cpu", devices=1, strategy="fsdp")


# Fabric


PRECISE = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "bf16-true": torch.bfloat16}


@pytest.mark.parametrize("precision", PRECISE)
def test_lsuv_under_fabric_runs_the_model_in_the_precision_that_trains(precision):
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    plain, x, seen = net(), data().tensors[0], []
    model, optimizer = fabric.setup(plain, torch.optim.SGD(plain.parameters(), lr=0.1))
    plain[3].register_forward_hook(lambda module, args, y: seen.append(y))

    report = lsuv_(model, x, **PAPER)

    assert [row.name for row in report.layers] == ["0", "3", "5"]
    loss = model(x).square().mean()
    assert {y.dtype for y in seen} == {PRECISE[precision]}
    assert seen[-1].double().std(correction=0).item() == pytest.approx(1, abs=5e-3)
    before = weights_of(plain)
    fabric.backward(loss)
    optimizer.step()
    assert weights_of(plain) != before


def test_lsuv_under_fabric_is_bit_for_bit_that_without_and_takes_the_names_of_the_model():
    plain, by_hand, x = net(), net(), data().tensors[0]
    model = Fabric(accelerator="cpu", devices=1).setup(plain)
    lsuv_(model, x, **PAPER, layers=["3"], std=0.5)
    lsuv_(by_hand, x, **PAPER, layers=["3"], std=0.5)
    assert weights_of(plain) == weights_of(by_hand) != weights_of(net())
    assert list(model._modules) == ["_forward_module", "_original_module"]


def test_two_processes_under_fabric_train_on_after_a_survey_and_lsuv(ranks):
    (first, second), _, _ = ranks
    for name in parallel.net().state_dict():
        assert torch.equal(first["trained"][name], second["trained"][name])
    assert not torch.equal(first["trained"]["0.weight"], first["fabric"]["0.weight"])
