"""What a callback opens for the batch of LSUV, of a survey or of get_batch is closed, as it is in a fit without LSUV."""

import contextlib
import warnings
from types import SimpleNamespace

import pytest
import torch
from tiny import learner
from torch import nn

from lsuvcb import Callback, CancelFitException, DeviceCB, LSUVCallback, TrainCB, TrainLearner
from lsuvcb.course import get_batch


def dls(n=3):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(32, 5, generator=g)
    return SimpleNamespace(train=[(x, x[:, :2])] * n, valid=[(x, x[:, :2])])


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))


class MixedPrecision(TrainCB):
    """As in the fast.ai course: autocast from before_batch to after_loss."""

    order = DeviceCB.order + 10

    def before_batch(self, learn):
        self.autocast = torch.autocast("cpu", dtype=torch.bfloat16)
        self.autocast.__enter__()

    def after_loss(self, learn):
        self.autocast.__exit__(None, None, None)


class CountsOpen(Callback):
    """A number that is 1 while a batch is open, in the object and for all of its kind."""

    now, most = 0, 0

    def __init__(self):
        self.depth, self.batches = 0, 0

    def before_batch(self, learn):
        self.depth += 1
        type(self).now += 1
        type(self).most = max(self.most, self.now)

    def after_batch(self, learn):
        self.depth -= 1
        self.batches += 1
        type(self).now -= 1


class OpensAFile(Callback):
    """A file for each batch; it cannot be copied while it is open."""

    files: list = []  # noqa: RUF012 - of all objects, to be looked at behind the fit

    def __init__(self, folder):
        self.folder, self.keep = folder, open(folder / "kept", "w")  # noqa: SIM115

    def before_batch(self, learn):
        self.file = open(self.folder / "batch", "w")  # noqa: SIM115
        self.files.append(self.file)

    def after_step(self, learn):
        self.file.close()

    def after_batch(self, learn):
        if not learn.training:
            self.file.close()


class TakesTime(Callback):
    """Notes on the way need what each event promises: predictions, a loss, gradients."""

    def __init__(self):
        self.laps = []

    def before_batch(self, learn):
        self.lap = [tuple(learn.batch[0].shape)]

    def after_predict(self, learn):
        self.lap.append(tuple(learn.preds.shape))

    def after_loss(self, learn):
        self.lap.append(learn.loss.item() > 0)

    def after_backward(self, learn):
        self.lap.append(len([p.grad.norm() for p in learn.model.parameters()]))

    def cleanup_batch(self, learn):
        self.laps.append(self.lap)


class Context(Callback):
    """Any context of Python's: here, warnings are errors inside."""

    def before_batch(self, learn):
        self.stack = contextlib.ExitStack()
        self.stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("error", ResourceWarning)

    def cleanup_batch(self, learn):
        self.stack.close()


def run(what, learn):
    if what == "fit":
        learn.fit(1)
    elif what == "lr_find":
        learn.lr_find(max_epochs=1)
    elif what == "survey":
        learn.survey()
    else:
        get_batch(learn.dls.train, learn)


WAYS = pytest.mark.parametrize("what", ["fit", "lr_find", "survey", "get_batch"])


@WAYS
def test_courses_mixed_precision_is_off_afterwards_and_was_on_for_the_pass(what, capsys):
    seen, model = [], net()
    model[0].register_forward_hook(lambda m, i, y: seen.append(y.dtype))
    learn = learner([], dls(), model)
    learn.cbs = [MixedPrecision(), LSUVCallback()]
    run(what, learn)
    assert not torch.is_autocast_enabled("cpu")
    assert torch.autocast_increment_nesting() - 1 == torch.autocast_decrement_nesting() == 0
    assert set(seen) == {torch.bfloat16}


def test_fit_with_the_courses_mixed_precision_learns_as_without_lsuv(capsys):
    ends = []
    for cbs in ([], [LSUVCallback(recipe="paper", tol=1e9, orthonormal=False)]):
        model = net()
        torch.manual_seed(3)
        learn = learner([], dls(20), model, lr=0.1)
        learn.cbs = [MixedPrecision(), *cbs]
        learn.fit(2)
        ends.append(model.state_dict())
    assert all(torch.equal(v, ends[1][k]) for k, v in ends[0].items())


@WAYS
def test_counter_is_even_afterwards_and_its_own_numbers_are_those_without_lsuv(what, capsys):
    CountsOpen.now = CountsOpen.most = 0
    cb = CountsOpen()
    run(what, learner([cb, LSUVCallback()], dls(), net()))
    assert (CountsOpen.now, CountsOpen.most) == (0, 1)
    assert (cb.depth, cb.batches) == ((0, 4) if what == "fit" else (0, 0))


@WAYS
def test_file_is_closed_also_where_the_callback_cannot_be_copied(what, tmp_path, capsys):
    OpensAFile.files.clear()
    cb = OpensAFile(tmp_path)
    run(what, learner([cb, LSUVCallback()], dls(), net()))
    cb.keep.close()
    assert OpensAFile.files
    assert all(file.closed for file in OpensAFile.files)


@WAYS
def test_context_is_left(what, capsys):
    before = list(warnings.filters)
    run(what, learner([Context(), LSUVCallback()], dls(), net()))
    assert list(warnings.filters) == before


@pytest.mark.parametrize("batch", ["drawn", "named", "inputs alone", "a forward"])
def test_each_event_has_what_it_promises_and_the_callback_notes_its_own_batches_alone(batch, capsys):
    x, y = dls().train[0]
    given = {
        "drawn": {}, "named": {"batch": (x, y)}, "inputs alone": {"batch": x}, "a forward": {"forward": lambda m, b: m(b[0])},
    }[batch]  # fmt: skip
    cb, model = TakesTime(), net()
    grads = [torch.ones_like(p) for p in model.parameters()]
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        parameter.grad = grad
    counted, seen = [], []

    class Look(Callback):
        order = LSUVCallback.order + 1

        def before_fit(self, learn):
            seen.extend(p.grad for p in learn.model.parameters())
            counted.append(int(learn.model[1].num_batches_tracked))

    learner([cb, LSUVCallback(**given), Look()], dls(), model).fit(1, valid=False)
    assert cb.laps == [[(32, 5), (32, 2), True, 6]] * 3
    assert all(a is b for a, b in zip(seen, grads, strict=True))
    assert counted == [0]


def test_batch_is_closed_also_where_lsuv_fails(capsys):
    CountsOpen.now = 0
    cb = CountsOpen()
    learn = learner([cb, LSUVCallback(batch=torch.full((8, 5), torch.nan))], dls(), net())
    with pytest.raises(RuntimeError, match="non-finite"):
        learn.fit(1)
    assert (CountsOpen.now, cb.depth) == (0, 0)
    learn.cbs = [MixedPrecision(), LSUVCallback(forward=lambda model, batch: model(batch[0]) + torch.ones(3))]
    with pytest.raises(RuntimeError, match="must match the size"):
        learn.fit(1)
    assert not torch.is_autocast_enabled("cpu")


def test_batch_that_is_cancelled_is_cleaned_up(capsys):
    cleaned = []

    class SkipsTwo(Callback):
        def before_batch(self, learn):
            if learn.iter < 2:
                from lsuvcb import CancelBatchException

                raise CancelBatchException

        def cleanup_batch(self, learn):
            cleaned.append(learn.iter)

    class Stop(Callback):
        order = LSUVCallback.order + 1

        def before_fit(self, learn):
            raise CancelFitException

    learner([LSUVCallback(), SkipsTwo(), Stop()], dls(), net()).fit(1)
    assert cleaned == [0, 1, 2]


def test_callback_that_would_end_the_fit_at_its_batch_ends_nothing_here(capsys):
    class AfterOne(Callback):
        def before_batch(self, learn):
            self.open = True

        def after_batch(self, learn):
            self.open = False
            raise CancelFitException

    cb, lsuv = AfterOne(), LSUVCallback()
    learn = TrainLearner(net(), dls(), cbs=[cb, lsuv])
    learn.fit(1)
    assert lsuv.report.converged
    assert (learn.iter, cb.open) == (0, False)
