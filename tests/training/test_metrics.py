"""MetricsCB: means by hand, what it takes for a metric, no look at the device between the epochs' ends."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from tiny import learner, loaders
from torch.utils._python_dispatch import TorchDispatchMode

from lsuvcb.training.events import Callback, CancelBatchException
from lsuvcb.training.metrics import MeanLoss, MetricsCB, MulticlassAccuracy, as_text, batch_size
from lsuvcb.training.progress import ProgressCB


class Calls:
    """A metric as small as can be, with no `to`: counts the values it is shown."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.n = 0

    def update(self, preds, target):
        assert not preds.requires_grad
        self.n += len(target)

    def compute(self):
        return self.n


def _batch(n, target):
    return torch.ones(n, 1), torch.full((n, 1), float(target))


def test_loss_is_the_mean_by_sample_not_by_batch():
    # y = 0: losses 1 (of 3 samples) and 9 (of 1)
    batches = [_batch(3, 1), _batch(1, 3)]
    learn = learner([MetricsCB()], SimpleNamespace(train=batches, valid=batches))
    learn.fit(1, train=False)
    assert learn.history == [{"loss": (3 * 1 + 1 * 9) / 4, "epoch": 0, "train": "eval"}]


def test_history_has_a_row_for_each_epoch_and_loader_and_starts_anew_each_fit():
    learn = learner([MetricsCB(seen=Calls())], loaders(train=2, valid=1))
    learn.fit(2)
    assert [(r["epoch"], r["train"], r["seen"]) for r in learn.history] == [
        *((0, "train", 8), (0, "eval", 4)),
        *((1, "train", 8), (1, "eval", 4)),
    ]
    # w = 0, 0.2: losses 1 and 0.64; then validation at 0.36
    assert [r["loss"] for r in learn.history[:2]] == pytest.approx([0.82, 0.4096])
    first = learn.history
    learn.fit(1)
    assert len(learn.history) == 2
    assert len(first) == 4


class Sums(Calls):
    """The sum of the predictions by class: a metric of several numbers."""

    def update(self, preds, target):
        self.n = self.n + preds.sum(0)


def test_torcheval_metric_is_the_share_of_right_answers_worked_by_hand():
    x = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0], [0.0, 9.0]])
    batches = [(x[:3], torch.tensor([0, 1, 1])), (x[3:], torch.tensor([1]))]
    cbs = [MetricsCB(MulticlassAccuracy(), sums=Sums())]
    loss = torch.nn.functional.cross_entropy
    learn = learner(cbs, SimpleNamespace(valid=batches), torch.nn.Identity(), loss_func=loss, opt_func=None)
    learn.fit(1, train=False)
    row = learn.history[0]
    assert row["MulticlassAccuracy"] == 0.75
    assert row["sums"] == [5.0, 11.0]


def test_row_as_text_has_three_decimals():
    row = {"a": 0.12345, "b": [1.0, 2.5], "epoch": 3, "train": "eval"}
    assert as_text(row) == {"a": "0.123", "b": "1.000 2.500", "epoch": "3", "train": "eval"}


def test_metric_with_a_to_is_moved_to_the_models_device_before_the_fit():
    moved = []

    class Movable(Calls):
        def to(self, device):
            moved.append(device)

    learner([MetricsCB(seen=Movable())]).fit(1)
    assert moved == [torch.device("cpu")]


def test_cancelled_batch_is_not_counted():
    class Skip(Callback):
        def after_loss(self, learn):
            if learn.iter == 0:
                raise CancelBatchException

    learn = learner([Skip(), MetricsCB(seen=Calls())])
    learn.fit(1, valid=False)
    assert learn.history[0]["seen"] == 4


def test_rows_are_printed_without_a_progress_bar(capsys):
    learner([MetricsCB(seen=Calls())]).fit(1, train=False)
    assert capsys.readouterr().out == "{'seen': '4', 'loss': '1.000', 'epoch': '0', 'train': 'eval'}\n"


def test_log_of_a_subclass_takes_the_rows_with_and_without_a_progress_bar(capsys):
    rows = []

    class Mine(MetricsCB):
        def _log(self, row):
            rows.append(row)

    for cbs in ([Mine()], [Mine(), ProgressCB()]):
        learner(cbs).fit(1, train=False)
    assert rows == [{"loss": 1.0, "epoch": 0, "train": "eval"}] * 2
    assert capsys.readouterr().out == ""


def test_metrics_can_be_had_by_name_during_and_after_the_fit():
    cb = MetricsCB(seen=Calls())
    learn = learner([cb])
    learn.fit(1)
    assert learn.metrics is cb
    assert set(cb.all_metrics) == {"seen", "loss"}


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        (Calls, r"metric 'm' must have reset, update and compute, got .*; write Calls\(\)\."),
        (len, "metric 'm' must have"),
    ],
)
def test_metric_of_the_wrong_kind_raises(metric, text):
    with pytest.raises(TypeError, match=text):
        MetricsCB(m=metric)


def test_metric_of_a_name_that_is_taken_raises():
    with pytest.raises(ValueError, match="a metric named 'Calls' is there already; name this one"):
        MetricsCB(Calls(), Calls())
    with pytest.raises(ValueError, match="a metric named 'loss' is there already"):
        MetricsCB(loss=Calls())


def test_mean_loss_without_a_batch_is_nan_and_of_a_vector_its_mean():
    mean = MeanLoss()
    assert mean.compute() != mean.compute()
    mean.update(torch.tensor([1.0, 3.0], requires_grad=True), weight=2)
    assert mean.compute() == 2.0


def test_mean_loss_of_many_batches_keeps_its_digits():
    mean = MeanLoss()
    for _ in range(20_000):
        mean.update(torch.tensor(0.1), weight=64)
    assert mean.compute() == pytest.approx(torch.tensor(0.1).item(), rel=1e-9)


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        ((torch.ones(3, 2), torch.ones(3)), 3),
        ({"x": torch.ones(5, 2)}, 5),
        ([{"a": torch.ones(2)}, torch.ones(7)], 2),
        (torch.ones(4), 4),
        (("text",), 1),
        ((torch.tensor(1.0),), 1),
    ],
)
def test_batch_size_is_the_length_of_the_first_tensor(batch, size):
    assert batch_size(batch) == size


class Reads(TorchDispatchMode):
    """Counts how often the host asks for a value and would wait for it (`item`, `bool`, `float`)."""

    def __init__(self):
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("n", [2, 20])
def test_fit_reads_no_value_from_the_device_but_at_an_epochs_end(n, capsys):
    batches = [(torch.ones(4, 2), torch.ones(4, dtype=torch.long))] * n
    cbs = [MetricsCB(accuracy=MulticlassAccuracy()), ProgressCB(plot=True)]
    learn = learner(
        cbs,
        SimpleNamespace(train=batches, valid=batches),
        torch.nn.Linear(2, 2),
        loss_func=torch.nn.functional.cross_entropy,
    )
    with Reads() as reads:
        learn.fit(2)
    assert reads.n == 4  # the loss, at the end of each pass; the accuracy is read by tolist, which is not counted


def test_reads_counts_an_item():
    with Reads() as reads:
        torch.ones(1).item()
    assert reads.n == 1


def _python(code):
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)


def test_torcheval_through_this_module_raises_no_warning():
    done = _python("from lsuvcb.training.metrics import MulticlassAccuracy; import torcheval.metrics")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.mark.skipif(torch.__version__ < (2, 10), reason="torch warns of what torcheval does from 2.10 on")
def test_torcheval_by_itself_warns():
    assert _python("import torcheval.metrics").returncode != 0, "torcheval warns no more: drop torcheval_metrics()"


def test_import_of_every_room_of_training_pulls_in_no_heavy_package():
    heavy = [
        "torcheval",
        "torchvision",
        "fastcore.foundation",
        "fastcore.xtras",
        "fastprogress",
        "matplotlib",
        "sklearn",
    ]
    done = _python(
        "import importlib, pkgutil, sys, lsuvcb.training as t\n"
        "for m in pkgutil.iter_modules(t.__path__): importlib.import_module(f'lsuvcb.training.{m.name}')\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_unknown_name_of_the_module_raises_attribute_error():
    import lsuvcb.training.metrics as module

    for name in ("NoSuchMetric", "no_such_metric"):
        with pytest.raises(AttributeError, match=f"has no attribute '{name}'"):
            getattr(module, name)
