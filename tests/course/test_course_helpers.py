"""The lessons' small helpers, one by one: numbers worked out by hand, order of events, what is left as it was."""

from __future__ import annotations

import gc
import math
import random
import sys
import types
import weakref

import numpy as np
import pytest
import torch
from required import need_package
from torch import nn

from lsuvcb.course.activations import append_stats, get_hist, get_min
from lsuvcb.course.kaiming import init_cnn, kaiming2, normalize, normalize_to, stats, view_tfm
from lsuvcb.course.loop import get_batch, run_cbs, with_cbs
from lsuvcb.course.session import clean_ipython_hist, clean_mem, clean_tb, set_seed
from lsuvcb.loaders import TensorLoader
from lsuvcb.training.callbacks import BatchTransformCB, DeviceCB, TrainCB
from lsuvcb.training.events import Callback, CancelBatchException, CancelEpochException, CancelFitException
from lsuvcb.training.hooks import Hook
from lsuvcb.training.learner import Learner
from lsuvcb.training.lsuv_callback import LSUVCallback

# activations


def seen(*outputs: list[float]) -> Hook:
    """A hook that has seen these outputs of a layer."""
    layer = nn.Identity()
    with Hook(layer, append_stats) as hook:
        for output in outputs:
            layer(torch.tensor(output))
    return hook


def test_append_stats_of_two_outputs_has_mean_unbiased_std_and_histogram_of_each():
    means, stds, hists = seen([1.0, 2.0, 4.0, 18.0], [0.0, 0.0, 3.0, -3.0]).stats
    assert [m.item() for m in means] == [6.25, 0]
    assert [s.item() for s in stds] == pytest.approx([math.sqrt(4 * 47.1875 / 3), math.sqrt(6)])
    assert [h.shape for h in hists] == [(40,), (40,)]
    assert hists[0].nonzero().flatten().tolist() == [4, 8, 16]  # bins of 0.25; 18 lies beyond the last
    assert [(i, hists[1][i].item()) for i in (0, 12)] == [(0, 2), (12, 2)]  # of magnitudes: -3 counts as 3
    assert hists[1].sum() == 4


def test_append_stats_of_half_precision_with_gradients_keeps_float32_without_them():
    layer = nn.Identity()
    with Hook(layer, append_stats) as hook:
        layer(torch.tensor([1.0, 3.0], requires_grad=True).half())
    assert {value.dtype for series in hook.stats for value in series} == {torch.float32}
    assert not any(value.requires_grad for series in hook.stats for value in series)


def test_get_hist_of_three_steps_is_the_log_of_counts_with_time_to_the_right():
    picture = get_hist(seen([0.1, 0.1, 0.1], [0.1, 0.3, 9.9], [0.1, 0.1, 0.3]))
    assert picture.shape == (40, 3)
    assert picture[0].tolist() == pytest.approx([math.log(4), math.log(2), math.log(3)])
    assert picture[39].tolist() == pytest.approx([0, math.log(2), 0])


def test_get_min_of_three_steps_is_the_share_of_the_first_bin():
    shares = get_min(seen([0.1, 0.1, 0.1, 0.1], [0.1, 0.3, 0.5, 9.9], [1.0, -1.0, 2.0, 3.0]))
    assert shares.tolist() == [1, 0.25, 0]


# kaiming


def test_stats_of_four_numbers_are_mean_and_unbiased_std():
    mean, std = stats(torch.tensor([1.0, 2.0, 4.0, 18.0]))
    assert mean.item() == 6.25
    assert std.item() == pytest.approx(math.sqrt(4 * 47.1875 / 3))


@pytest.mark.parametrize(("m", "s"), [(1.0, 2.0), (torch.tensor(1.0), torch.tensor(2.0))])
def test_normalize_by_numbers_and_by_tensors_subtracts_then_divides(m, s):
    x = torch.tensor([1.0, 3.0, 7.0])
    assert normalize(x, m, s).tolist() == [0, 1, 3]
    assert x.tolist() == [1, 3, 7]


def test_normalize_to_takes_both_sets_by_the_training_sets_numbers():
    train, valid = normalize_to(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([3.0, 7.0]))  # mean 3, std 2
    assert train.tolist() == [-1, 0, 1]
    assert valid.tolist() == [0, 2]


def test_view_tfm_of_rows_of_pixels_makes_images_and_no_copy():
    x = torch.arange(12.0).view(2, 6)
    images = view_tfm(1, 2, 3)(x)
    assert images.shape == (2, 1, 2, 3)
    assert images[1, 0].tolist() == [[6, 7, 8], [9, 10, 11]]
    assert images.data_ptr() == x.data_ptr()


@pytest.mark.parametrize(
    ("a", "use_fan_out", "bound"),
    [
        (0, False, math.sqrt(6 / 200)),  # sqrt(3) sqrt(2) / sqrt(8 * 25)
        (0, True, math.sqrt(6 / 800)),  # 32 * 25
        (1, False, math.sqrt(3 / 200)),
        (math.sqrt(5), False, math.sqrt(1 / 200)),  # PyTorch's own: 1 / sqrt(fan in)
    ],
)
def test_kaiming2_of_a_conv_weight_is_uniform_up_to_its_bound(a, use_fan_out, bound):
    torch.manual_seed(0)
    weight = nn.Conv2d(8, 32, 5).weight
    before, version = weight.data_ptr(), weight.requires_grad
    kaiming2(weight, a, use_fan_out)
    assert (weight.data_ptr(), weight.requires_grad) == (before, version)
    assert weight.min().item() == pytest.approx(-bound, rel=0.01)
    assert weight.max().item() == pytest.approx(bound, rel=0.01)
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert abs(weight.mean().item()) < 0.05 * bound


@pytest.mark.parametrize("uniform", [False, True])
def test_init_cnn_fills_every_conv_as_kaiming_and_leaves_other_layers(uniform):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 64, 5), nn.Sequential(nn.Conv2d(64, 32, 3, bias=False)), nn.Linear(32, 10))
    linear = [p.clone() for p in net[2].parameters()]
    init_cnn(net, uniform)
    for conv, fan_in in ((net[0], 100), (net[1][0], 576)):
        std = math.sqrt(2 / 1.01 / fan_in)
        assert conv.weight.std().item() == pytest.approx(std, rel=0.03)
        largest = conv.weight.abs().max().item() / std
        assert largest == pytest.approx(math.sqrt(3), rel=0.01) if uniform else largest > 2.5
    assert net[0].bias.tolist() == [0] * 64
    assert all(torch.equal(p, q) for p, q in zip(net[2].parameters(), linear, strict=True))


# loop


class Says(Callback):
    """Writes down what it is called with."""

    def __init__(self, said: list, name: str, order: int = 0) -> None:
        self.said, self.name, self.order = said, name, order

    def before_fit(self, learn) -> None:
        self.said.append((self.name, learn))


def test_run_cbs_calls_each_callback_that_has_the_method_by_order_with_the_learner():
    said, learn = [], object()
    cbs = [Says(said, "third", 2), Says(said, "first", -1), Callback(), Says(said, "second"), Says(said, "also second")]
    run_cbs(cbs, "before_fit", learn)
    assert said == [("first", learn), ("second", learn), ("also second", learn), ("third", learn)]
    assert [type(cb).__name__ for cb in cbs][2] == "Callback"  # the list keeps its own order


def test_run_cbs_without_a_learner_gives_none_and_without_a_listener_does_nothing():
    said = []
    run_cbs([Says(said, "cb")], "before_fit")
    run_cbs([Says(said, "cb")], "after_fit")
    run_cbs([], "before_fit")
    assert said == [("cb", None)]


class Staged:
    """Fires its events into a list; `does` may raise."""

    def __init__(self, does=lambda event: None) -> None:
        self.events, self.does = [], does

    def callback(self, event: str) -> None:
        self.events.append(event)
        self.does(event)

    @with_cbs("fit")
    def fit(self, *args, **kwargs):
        """Fits."""
        self.callback(f"fitting {args} {kwargs}")

    @with_cbs("epoch")
    def epoch(self):
        self.batch()

    @with_cbs("batch")
    def batch(self):
        self.callback("one batch")


def raising(error: Exception, at: str):
    def does(event: str) -> None:
        if event == at:
            raise error

    return does


def test_with_cbs_puts_the_events_around_the_method_and_hands_its_arguments_on():
    staged = Staged()
    assert staged.fit(3, lr=0.1) is None
    assert staged.events == ["before_fit", "fitting (3,) {'lr': 0.1}", "after_fit", "cleanup_fit"]
    assert (staged.fit.__name__, staged.fit.__doc__) == ("fit", "Fits.")


@pytest.mark.parametrize("at", ["before_batch", "one batch", "after_batch"])
def test_with_cbs_whose_stage_is_cancelled_cleans_up_and_goes_on_outside(at):
    staged = Staged(raising(CancelBatchException(), at))
    staged.epoch()
    inner = {"before_batch": [], "one batch": ["one batch"], "after_batch": ["one batch", "after_batch"]}[at]
    assert staged.events == ["before_epoch", "before_batch", *inner, "cleanup_batch", "after_epoch", "cleanup_epoch"]


def test_with_cbs_of_another_stages_cancellation_cleans_up_and_lets_it_through():
    staged = Staged(raising(CancelEpochException(), "one batch"))
    staged.epoch()
    assert staged.events == ["before_epoch", "before_batch", "one batch", "cleanup_batch", "cleanup_epoch"]
    staged = Staged(raising(CancelFitException(), "one batch"))
    with pytest.raises(CancelFitException):
        staged.epoch()
    assert staged.events[-2:] == ["cleanup_batch", "cleanup_epoch"]


def test_with_cbs_of_a_method_that_fails_cleans_up_and_raises():
    staged = Staged(raising(ZeroDivisionError(), "one batch"))
    with pytest.raises(ZeroDivisionError):
        staged.batch()
    assert staged.events == ["before_batch", "one batch", "cleanup_batch"]


def test_with_cbs_of_no_stage_is_an_error_that_names_the_stages():
    with pytest.raises(ValueError, match=r"`nm` must be one of fit, epoch, batch, got 'step'\."):
        with_cbs("step")


def learner(cbs: list[Callback], dls) -> Learner:
    """Its model is y = x / 2."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 0.5)
    return Learner(model, dls, cbs=[TrainCB(), *cbs])


def test_get_batch_comes_prepared_by_every_callback_and_disturbs_nothing():
    x = torch.arange(8.0).view(8, 1)
    dls = types.SimpleNamespace(train=TensorLoader(x, x, bs=4), valid=TensorLoader(x, x, bs=4))
    other = TensorLoader(10 + x, x, bs=2, shuffle=True)
    double = BatchTransformCB(lambda b: (2 * b[0], b[1]), on_val=False)
    said = []
    learn = learner([DeviceCB("cpu"), double, Says(said, "a fit began")], dls)
    learn.model.eval()
    learn.history = [{"epoch": 0}]  # of a fit before
    torch.manual_seed(0)
    first = next(iter(other))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    xb, yb = get_batch(other, learn)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(xb, 2 * first[0])  # of the loader that was given, as a fit would draw it first
    assert torch.equal(yb, first[1])
    assert learn.dls is dls
    assert not learn.model.training
    assert said == []  # a copy of the callback took part
    assert (learn.model.weight.item(), learn.history, len(learn.cbs)) == (0.5, [{"epoch": 0}], 4)


def test_get_batch_twice_of_a_learner_with_lsuv_is_the_same_batch_and_no_lsuv(capsys):
    x = torch.randn(64, 1, generator=torch.Generator().manual_seed(0))
    loader = TensorLoader(x, x, bs=16, shuffle=True)
    lsuv = LSUVCallback(orthonormal=False)
    learn = learner([lsuv], types.SimpleNamespace(train=loader, valid=loader))
    one, two = get_batch(loader, learn), get_batch(loader, learn)
    assert torch.equal(one[0], two[0])
    assert (lsuv.report, learn.model.weight.item()) == (None, 0.5)
    assert capsys.readouterr().out == ""


# session


def drawn():
    return torch.rand(()).item(), random.random(), np.random.rand()  # noqa: NPY002


def test_set_seed_of_the_same_number_repeats_all_three_generators():
    set_seed(42)
    first = drawn()
    assert drawn() != first
    set_seed(42)
    assert drawn() == first
    set_seed(43)
    assert not set(drawn()) & set(first)


def test_set_seed_larger_than_numpy_takes_still_seeds():
    set_seed(2**32 + 5)
    first = drawn()
    set_seed(2**32 + 5)
    assert drawn() == first


def test_set_seed_deterministic_switches_torch_and_switches_it_back():
    try:
        set_seed(1, deterministic=True)
        assert torch.are_deterministic_algorithms_enabled()
        set_seed(1)
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


class Thing:
    """Stands for a large tensor: is it still there?"""


def failed_with_a_thing() -> tuple[Exception, weakref.ref]:
    def fail(thing):
        raise ValueError("with a thing in its frame")

    thing = Thing()
    ref = weakref.ref(thing)
    try:
        fail(thing)
    except ValueError as error:
        return error, ref
    raise AssertionError


@pytest.mark.parametrize("clean", [clean_tb, clean_mem])
def test_cleaning_up_lets_go_of_what_the_last_traceback_holds(clean):
    error, ref = failed_with_a_thing()
    last = {"type": type(error), "value": error, "traceback": error.__traceback__, "exc": error}
    for name, value in last.items():
        setattr(sys, f"last_{name}", value)  # as the interpreter does; no monkeypatch, which would keep them
    del last, value
    gc.collect()
    assert ref() is not None
    clean()
    gc.collect()
    assert ref() is None
    assert not [name for name in ("last_type", "last_value", "last_traceback", "last_exc") if hasattr(sys, name)]


def test_clean_tb_without_an_error_does_nothing(monkeypatch):
    for name in ("last_type", "last_value", "last_traceback", "last_exc"):
        monkeypatch.delattr(sys, name, raising=False)
    assert clean_tb() is None


def test_clean_ipython_hist_without_ipython_does_nothing(monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", None)
    assert clean_ipython_hist() is None


def test_clean_ipython_hist_outside_a_session_does_nothing():
    need_package("nbs")  # which brings IPython
    import IPython

    assert IPython.get_ipython() is None
    clean_ipython_hist()


SESSION = """
import gc, weakref
from IPython.core.interactiveshell import InteractiveShell
from lsuvcb.course import clean_ipython_hist, clean_mem
import lsuvcb.course.session, IPython

shell = InteractiveShell.instance()
shell.run_cell("class Thing: pass")
shell.run_cell("Thing()", store_history=True)
ref = weakref.ref(shell.user_ns["_"])
assert shell.user_ns["Out"] and shell.user_ns["_i1"] == "Thing()"
gc.collect(); assert ref() is not None
CLEAN()
gc.collect(); assert ref() is None, "Out still holds it"
assert not shell.user_ns["Out"] and not shell.user_ns["_i1"], "the history is still there"
shell.user_ns["_idea"] = "mine"
CLEAN()
assert shell.user_ns["_idea"] == "mine"
shell.displayhook.do_full_cache = False
CLEAN()
print("clean")
"""


@pytest.mark.parametrize("clean", ["clean_ipython_hist", "clean_mem"])
def test_cleaning_up_in_an_ipython_session_lets_go_of_its_outputs(clean, tmp_path, monkeypatch):
    import subprocess

    need_package("nbs")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    run = subprocess.run(
        [sys.executable, "-c", SESSION.replace("CLEAN", clean)], capture_output=True, text=True, check=False
    )
    assert run.stdout.strip().endswith("clean"), run.stderr
