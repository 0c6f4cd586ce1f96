"""The loop: its events in order, its numbers by hand, its cancels and cleanups, and what it refuses."""

import inspect
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from signatures import arguments
from tiny import batches, learner, line, loaders, recorder
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lsuvcb.training.callbacks import TrainCB
from lsuvcb.training.events import (
    EVENTS,
    Callback,
    CancelBatchException,
    CancelEpochException,
    CancelFitException,
)
from lsuvcb.training.learner import Learner
from lsuvcb.training.train_learner import MomentumLearner, TrainLearner

PACKAGE = str(Path(inspect.getfile(Learner)).parents[1])
TRAIN_BATCH = """before_batch after_predict after_loss after_backward after_step after_batch cleanup_batch""".split()
VALID_BATCH = """before_batch after_predict after_loss after_batch cleanup_batch""".split()


def test_fit_of_two_epochs_and_two_batches_fires_the_golden_sequence():
    cb = recorder()
    learner([cb], loaders(train=2, valid=2)).fit(2)
    epoch = [
        *("before_epoch", *TRAIN_BATCH, *TRAIN_BATCH, "after_epoch", "cleanup_epoch"),
        *("before_epoch", *VALID_BATCH, *VALID_BATCH, "after_epoch", "cleanup_epoch"),
    ]
    assert cb.seen == ["before_fit", *epoch, *epoch, "after_fit", "cleanup_fit"]


def test_module_docstring_names_every_event_and_step():
    import lsuvcb.training.learner as module

    assert [event for event in EVENTS if event not in module.__doc__] == []
    assert all(f"{step}()" in module.__doc__ for step in ("predict", "get_loss", "backward", "step", "zero_grad"))


@pytest.mark.parametrize("make", [learner, lambda **kw: TrainLearner(line(), loaders(), **kw)])
def test_fit_on_a_line_takes_the_sgd_steps_worked_by_hand(make):
    learn = make(lr=0.1)
    learn.fit(1)
    # w = 0: gradient 2 (w - 1) = -2, w = 0.2; then -1.6, w = 0.36
    assert learn.model.weight.item() == pytest.approx(0.36)
    # the last loss is the validation's: (0.36 - 1)^2
    assert learn.loss.item() == pytest.approx(0.4096)
    assert not learn.loss.requires_grad


def test_momentum_learner_keeps_the_gradients_times_mom():
    learn = MomentumLearner(line(), loaders(), lr=0.1, mom=0.5)
    learn.fit(1)
    # -2, w = 0.2; then -1.6 + 0.5 * -2 = -2.6, w = 0.46; afterwards -1.3 is kept
    assert learn.model.weight.item() == pytest.approx(0.46)
    assert learn.model.weight.grad.item() == pytest.approx(-1.3)


def test_momentum_learner_with_unused_parameter_leaves_it_without_gradient():
    model = torch.nn.ModuleDict({"used": line(), "idle": line()})
    model.forward = lambda x: model["used"](x)
    learn = MomentumLearner(model, loaders())
    learn.fit(1)
    assert model["idle"].weight.grad is None


def test_momentum_learner_shows_a_train_learners_arguments_by_their_places_and_its_own_behind_them():
    assert arguments(MomentumLearner) == [*arguments(TrainLearner), ("mom", 0.85)]
    by_place = inspect.signature(MomentumLearner).bind("model", "dls", "loss", 0.5, None, torch.optim.Adam, 0.9)
    assert by_place.arguments["loss_func"] == "loss"


def test_momentum_learner_with_mom_out_of_range_raises():
    with pytest.raises(ValueError, match=r"`mom` must be in \[0, 1\), got 1.0\."):
        MomentumLearner(line(), loaders(), mom=1.0)


def test_fit_with_lr_uses_it_once_and_none_means_the_learners():
    learn = learner(lr=0.1)
    learn.fit(1, valid=False, lr=0.0)
    assert learn.model.weight.item() == 0.0
    learn.fit(1, valid=False)
    assert learn.opt.param_groups[0]["lr"] == 0.1
    assert learn.model.weight.item() == pytest.approx(0.36)


def test_fit_passes_say_where_they_are_and_in_which_mode():
    seen = []

    class Look(Callback):
        def after_predict(self, learn):
            seen.append((learn.epoch, learn.iter, learn.training, learn.model.training, torch.is_grad_enabled()))
            assert learn.dl is (learn.dls.train if learn.training else learn.dls.valid)
            assert learn.n_epochs == 2
            assert learn.xb[0] is learn.batch[0]
            assert learn.yb[0] is learn.batch[1]

    learner([Look()], loaders(train=2, valid=1)).fit(2)
    epoch = [(0, True), (1, True), (0, False)]
    assert seen == [(e, i, mode, mode, mode) for e in range(2) for i, mode in epoch]


@pytest.mark.parametrize(("train", "valid"), [(True, False), (False, True), (False, False)])
def test_fit_without_train_or_valid_leaves_that_pass_out(train, valid):
    modes = []

    class Look(Callback):
        def before_epoch(self, learn):
            modes.append(learn.training)

    learn = learner([Look()])
    learn.fit(1, train=train, valid=valid)
    assert modes == [True] * train + [False] * valid
    assert (learn.do_train, learn.do_valid) == (train, valid)


def test_fit_of_no_epoch_runs_before_and_after_fit_alone():
    cb = recorder()
    learner([cb]).fit(0)
    assert cb.seen == ["before_fit", "after_fit", "cleanup_fit"]


@pytest.mark.parametrize("bad", [-1, 1.5, "3"])
def test_fit_with_a_bad_number_of_epochs_raises(bad):
    with pytest.raises(ValueError, match="`n_epochs` must be an integer >= 0, got"):
        learner().fit(bad)


# Cancels: the stage's after_* is skipped, its cleanup_* is not, the loop goes on behind it


def _cancel_at(event, exception, training=True):
    def also(fired, learn):
        if fired == event and learn.training == training:
            raise exception

    return also


def test_cancelled_batch_skips_its_after_and_goes_on():
    cb = recorder(also=_cancel_at("after_predict", CancelBatchException))
    learn = learner([cb])
    learn.fit(1)
    cancelled = ["before_batch", "after_predict", "cleanup_batch"]
    assert cb.seen[2:8] == cancelled * 2
    assert cb.seen.count("after_epoch") == 2
    assert learn.model.weight.item() == 0.0


def test_cancelled_epoch_skips_its_after_and_goes_on_to_validation():
    cb = recorder(also=_cancel_at("after_loss", CancelEpochException))
    learner([cb], loaders(train=2, valid=1)).fit(1)
    assert cb.seen == [
        *(
            "before_fit",
            "before_epoch",
            "before_batch",
            "after_predict",
            "after_loss",
            "cleanup_batch",
            "cleanup_epoch",
        ),
        *("before_epoch", *VALID_BATCH, "after_epoch", "cleanup_epoch", "after_fit", "cleanup_fit"),
    ]


def test_cancelled_fit_skips_every_after_but_no_cleanup():
    cb = recorder(also=_cancel_at("after_loss", CancelFitException))
    learner([cb]).fit(3)
    assert cb.seen == [
        *("before_fit", "before_epoch", "before_batch", "after_predict", "after_loss"),
        *("cleanup_batch", "cleanup_epoch", "cleanup_fit"),
    ]


def test_fit_cancelled_before_it_begins_cleans_up():
    cb = recorder(
        also=lambda event, learn: (_ for _ in ()).throw(CancelFitException) if event == "before_fit" else None
    )
    learner([cb]).fit(1)
    assert cb.seen == ["before_fit", "cleanup_fit"]


# Exceptions


class Boom(Exception):
    pass


@pytest.mark.parametrize("event", EVENTS)
def test_exception_in_an_event_keeps_its_type_and_names_callback_and_event(event):
    def also(fired, learn):
        if fired == event:
            raise Boom("broken")

    cb, temporary = recorder(also=also), recorder()
    learn = learner([cb])
    with pytest.raises(Boom, match="broken") as error:
        learn.fit(1, cbs=temporary)
    assert error.value.__notes__[0] == f"raised in Recorder.{event}"
    assert cb.seen[-1] == "cleanup_fit"
    assert temporary.seen[-1] == "cleanup_fit"
    assert learn.cbs[1:] == [cb]
    del learn.cbs[1]
    learn.fit(1)


def test_exception_in_a_step_names_the_callback_that_teaches_it():
    learn = learner(dls=SimpleNamespace(train=[(torch.ones(2, 3), torch.ones(2, 1))], valid=None))
    with pytest.raises(RuntimeError) as error:
        learn.fit(1, valid=False)
    assert error.value.__notes__ == ["raised in TrainCB.predict"]


def test_exception_in_cleanup_hides_no_earlier_one_and_stops_no_other_cleanup():
    class Bad(Callback):
        def after_loss(self, learn):
            raise Boom("first")

        def cleanup_batch(self, learn):
            raise KeyError("second")

    late = recorder(order=9)
    with pytest.raises(Boom, match="first") as error:
        learner([Bad(), late]).fit(1)
    assert error.value.__notes__ == [
        "raised in Bad.after_loss",
        "Then, while cleaning up: KeyError('second') (raised in Bad.cleanup_batch)",
    ]
    assert late.seen[-3:] == ["cleanup_batch", "cleanup_epoch", "cleanup_fit"]


def test_ctrl_c_in_cleanup_waits_for_the_other_cleanups_and_passes():
    def also(event, learn):
        if event == "cleanup_fit":
            raise KeyboardInterrupt
        if event == "after_loss":
            raise ValueError("first")

    stops, later = recorder(also=also), recorder(order=1)
    with pytest.raises(KeyboardInterrupt) as error:
        learner([stops, later]).fit(1)
    assert later.seen[-1] == "cleanup_fit"
    assert str(error.value.__context__) == "first"


@pytest.mark.parametrize("event", ["cleanup_batch", "cleanup_epoch", "cleanup_fit"])
def test_exception_in_cleanup_after_a_cancel_is_raised(event):
    class Bad(Callback):
        def after_loss(self, learn):
            raise CancelFitException

    setattr(Bad, event, lambda self, learn: {}[event])
    with pytest.raises(KeyError, match=event):
        learner([Bad()]).fit(1)


def test_keyboard_interrupt_in_a_batch_cleans_up_and_passes():
    def also(event, learn):
        if event == "after_loss":
            raise KeyboardInterrupt

    cb = recorder(also=also)
    with pytest.raises(KeyboardInterrupt):
        learner([cb]).fit(1)
    assert cb.seen[-3:] == ["cleanup_batch", "cleanup_epoch", "cleanup_fit"]


# Callbacks: order, lists, look-up


def test_callbacks_run_by_order_and_equal_ones_as_listed():
    ran = []

    def make(name, order):
        cls = type(name, (Callback,), {"order": order, "before_fit": lambda self, learn: ran.append(name)})
        return cls()

    learn = learner([make("C", 2), make("A", -50), make("D", 2), make("B", 0)])
    learn.fit(0, cbs=[make("E", 2), make("first", -99)])
    assert ran == ["first", "A", "B", "C", "D", "E"]


def test_callbacks_are_looked_up_once_a_fit():
    late = recorder()

    class Add(Callback):
        def before_fit(self, learn):
            learn.cbs.append(late)

    learn = learner()
    learn.fit(1, cbs=Add())
    assert late.seen == []
    assert late not in learn.cbs
    learn.cbs.append(late)
    learn.fit(0)
    assert late.seen[0] == "before_fit"


def test_callback_called_by_hand_fires_the_event():
    cb = recorder()
    learn = learner([cb])
    learn.callback("before_batch")
    assert cb.seen == ["before_batch"]


def test_step_called_by_hand_is_the_callbacks_own():
    learn = learner()
    learn.batch = batches(1)[0]
    learn.predict()
    learn.get_loss()
    assert learn.loss.item() == 1.0


def own_calls(n):
    """How many functions of the library a fit of `n` batches calls."""
    calls = []

    def look(frame, event, arg):
        if event == "call" and PACKAGE in frame.f_code.co_filename:
            calls.append(frame.f_code.co_name)

    learn, before = learner((), loaders(train=n)), sys.getprofile()
    sys.setprofile(look)
    try:
        learn.fit(1, valid=False)
    finally:
        sys.setprofile(before)
    return len(calls)


def test_step_costs_few_calls_of_the_librarys_own_functions():
    a_step = (own_calls(20) - own_calls(10)) / 10
    assert 10 < a_step <= 40  # 36; the events of a batch that nobody hears are two each


def test_step_wrapped_on_the_learner_replaces_the_callbacks():
    class Halve(Callback):
        def before_fit(self, learn):
            plain = learn.predict

            def predict():
                plain()
                learn.preds = learn.preds / 2

            learn.predict = predict

        def cleanup_fit(self, learn):
            del learn.predict

    learn = learner([Halve()], model=line(1.0))
    learn.fit(1, train=False)
    assert learn.loss.item() == pytest.approx(0.25)
    learn.cbs.pop()
    learn.fit(1, train=False)
    assert learn.loss.item() == 0.0


def test_fit_inside_a_fit_leaves_the_outer_one_its_callbacks():
    outer, inner = recorder(), recorder()

    class Nested(Callback):
        def before_fit(self, learn):
            learner([inner]).fit(1)

    learner([Nested(), outer]).fit(1)
    assert inner.seen == outer.seen


@pytest.mark.parametrize(("bad", "text"), [(TrainCB, r"write TrainCB\(\)"), ("x", r"'x' \(str\)")])
def test_cbs_that_are_no_callback_objects_raise(bad, text):
    with pytest.raises(TypeError, match=f"`cbs` takes Callback objects, got .*{text}"):
        Learner(line(), loaders(), cbs=[bad])


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("befor_fit", "before_fit"),
        ("before_fitt", "before_fit"),
        ("after_bacth", "after_batch"),
        ("beforebatch", "before_batch"),
        ("before_train", "before_batch"),
        ("begin_batch", "before_batch"),
        ("cleanup_all", "cleanup_fit"),
        ("zero_grads", "zero_grad"),
    ],
)
def test_method_that_looks_like_an_event_raises_when_the_class_is_made(name, meant):
    text = rf"^MyCB\.{name} looks like an event, but there is none of that name; did you mean '(\w+)'\?$"
    with pytest.raises(TypeError, match=text) as error:
        type("MyCB", (Callback,), {name: lambda self, learn: None})
    if name not in ("before_train", "cleanup_all"):
        assert error.match(f"'{meant}'")


def test_typo_in_a_mixin_raises_when_the_callback_is_made():
    class Mixin:
        def after_bach(self, learn): ...

    with pytest.raises(TypeError, match=r"MyCB\.after_bach looks like an event"):
        type("MyCB", (Mixin, Callback), {})


def test_helper_methods_and_data_of_any_name_are_no_events():
    class Fine(Callback):
        before_value = 3

        def log(self): ...
        def fit(self): ...
        def _before_anything(self): ...

    assert isinstance(Fine(), Callback)


# What a Learner refuses


@pytest.mark.parametrize("train", [True, False])
def test_learner_that_nothing_teaches_raises_before_anything_runs(train):
    cb = recorder()
    text = r"^Nothing teaches this Learner to `predict`: add TrainCB\(\) .*, or use TrainLearner\. Its callbacks: Recorder\.$"
    with pytest.raises(ValueError, match=text):
        Learner(line(), loaders(), cbs=cb).fit(1, train=train)
    assert cb.seen == []


def test_learner_taught_half_raises_for_the_step_that_is_missing():
    class Half(Callback):
        def predict(self, learn): ...
        def get_loss(self, learn): ...
        def backward(self, learn): ...
        def step(self, learn): ...

    with pytest.raises(ValueError, match="Nothing teaches this Learner to `zero_grad`"):
        Learner(line(), loaders(), cbs=Half()).fit(1)


def test_learner_taught_twice_raises():
    with pytest.raises(ValueError, match="`predict` must be taught by one, got TrainCB and TrainCB; keep one of them"):
        learner([TrainCB()]).fit(1)
    with pytest.raises(ValueError, match="`predict` must be taught by one, got TrainLearner and TrainCB"):
        TrainLearner(line(), loaders(), cbs=TrainCB()).fit(1)


class NoRows(IterableDataset):
    def __iter__(self):
        return iter(())


@pytest.mark.parametrize(
    ("loader", "text"),
    [
        ([], r"`dls.train` must give at least one batch, got an empty list; check the data set"),
        (
            DataLoader(TensorDataset(torch.ones(3, 1)), batch_size=8, drop_last=True),
            r"got an empty DataLoader \(samples: 3, batch_size: 8, drop_last: True\)",
        ),
        (DataLoader(NoRows(), batch_size=4), r"got an empty DataLoader \(batch_size: 4\)"),
        (iter(()), r"`dls.train` must give at least one batch in every epoch, .* a one-shot iterator .* is used up"),
    ],
)
def test_empty_loader_raises_and_says_so(loader, text):
    cb = recorder()
    with pytest.raises(ValueError, match=text):
        learner([cb], dls=SimpleNamespace(train=loader, valid=batches())).fit(1)
    # where its length is known, before anything runs
    assert bool(cb.seen) == (not isinstance(getattr(loader, "dataset", loader), list | TensorDataset))


def test_one_shot_iterator_in_its_second_epoch_raises():
    learn = learner(dls=SimpleNamespace(train=iter(batches()), valid=batches()))
    with pytest.raises(ValueError, match="one-shot iterator"):
        learn.fit(2)
    assert learn.epoch == 1


def test_missing_validation_loader_raises_before_training():
    cb = recorder()
    learn = learner([cb], SimpleNamespace(train=batches(), valid=None))
    with pytest.raises(ValueError, match=r"fit\(valid=True\) needs `dls.valid`, got None; pass valid=False"):
        learn.fit(1)
    assert cb.seen == []
    learn.fit(1, valid=False)


def test_learner_without_optimizer_runs_validation():
    learn = learner(opt_func=None)
    learn.fit(1, train=False)
    assert not hasattr(learn, "opt")


def test_learner_unknown_attribute_raises_attribute_error():
    with pytest.raises(AttributeError, match="'Learner' object has no attribute 'nonsense'"):
        _ = learner().nonsense


@pytest.mark.parametrize("inner", [{"train": False}, {"valid": False, "lr": 1e-9}], ids=["validates", "trains"])
def test_fit_inside_a_fit_leaves_the_outer_one_as_it_was(inner):
    class Inner(Callback):
        busy = False

        def after_epoch(self, learn):
            if learn.training and not self.busy:
                self.busy = True
                learn.fit(1, **inner)
                self.busy = False

    weights, epochs = [], []
    for more in ([], [Inner()]):
        learn = learner(more)
        learn.fit(3, lr=0.1)
        weights.append(learn.model.weight.item())
        epochs.append((learn.epoch, learn.n_epochs, learn.do_train, learn.do_valid, learn.opt.param_groups[0]["lr"]))
    assert weights[1] == pytest.approx(weights[0], abs=1e-6)
    assert epochs[0] == epochs[1] == (2, 3, True, True, 0.1)
