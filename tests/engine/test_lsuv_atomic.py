"""Whatever interrupts lsuv_, and wherever: the weights, buffers and generators are bit for bit what they were."""

from __future__ import annotations

import contextlib
import sys
import warnings
from pathlib import Path

import pytest
import torch
from paper import lsuv_
from small_nets import Net, lively, matrix
from torch import nn
from torch.overrides import _get_current_function_mode_stack, _pop_mode
from torch.utils._python_dispatch import TorchDispatchMode
from traces import bits, differences, rng, weights_of

import lsuvcb
import lsuvcb.engine
from lsuvcb.engine import InputScaleWarning, LSUVError, NotConvergedWarning, TrainedModelWarning, survey
from lsuvcb.engine.model.home import Change
from lsuvcb.engine.writing.undo import Undo

PACKAGE = str(Path(lsuvcb.engine.__file__).parent)
ARGUMENTS = {
    "kept weights": {"orthonormal": False},
    "orthonormal weights": {"orthonormal": True},
    "a mean as well": {"orthonormal": True, "mean": 0.5},
    "no verify": {"orthonormal": True, "verify": False},
}


class Stop(BaseException):
    """Nobody catches this by accident; it stands for Ctrl-C where a KeyboardInterrupt would end the test run."""


class FailsAt(nn.Module):
    """A model around `net` that raises in its n-th forward, after the whole net has run."""

    def __init__(self, net: nn.Module, n: int, error: BaseException) -> None:
        super().__init__()
        self.net, self.n, self.error = net, n, error

    def forward(self, x):
        self.n -= 1
        y = self.net(x)
        if self.n == 0:
            raise self.error
        return y


@pytest.mark.parametrize(
    ("how", "n"), [(how, n) for how in ARGUMENTS for n in (1, 2, 3) if how != "no verify" or n == 1]
)
@pytest.mark.parametrize("error", [ValueError("my own"), KeyboardInterrupt()], ids=["ValueError", "KeyboardInterrupt"])
def test_lsuv_forward_that_raises_changes_nothing(how, n, error, undisturbed):
    net, generator = lively(), torch.Generator().manual_seed(1)
    model, x = FailsAt(net, n, error), torch.randn(64, 6)
    with pytest.raises(type(error)) as caught, undisturbed(net, generator):
        lsuv_(model, x, generator=generator, **ARGUMENTS[how])
    assert caught.value is error
    if isinstance(error, Exception):
        assert "No weight was changed." in error.__notes__
        assert any("The batch itself is finite" in note for note in error.__notes__)
    error.__dict__.pop("__notes__", None)


def test_survey_forward_that_raises_changes_nothing(undisturbed):
    net, x = lively(), torch.randn(64, 6)
    with pytest.raises(ValueError, match="my own"), undisturbed(net):
        survey(FailsAt(net, 1, ValueError("my own")), x)


@pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS)
def test_lsuv_batch_with_nan_is_an_error_with_counts(arguments, undisturbed):
    net, x = lively(), torch.randn(64, 6)
    x[3, 1] = x[5, 2] = float("nan")
    with pytest.raises(LSUVError) as caught, undisturbed(net):
        lsuv_(net, x, **arguments)
    text = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert "layer '0' (Linear 6 -> 8) gave non-finite output on this batch (16 of 512 values)" in text
    assert "2 non-finite of 384 values" in text
    assert "No weight was changed." in text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_lsuv_weight_that_is_not_finite_is_named_where_it_first_shows(value, undisturbed):
    net, x = lively().eval(), torch.randn(64, 6)
    with torch.no_grad():
        net[4].weight[2, 3] = value
    with (
        pytest.raises(LSUVError, match=r"layer '4' \(Linear 8 -> 8\) gave non-finite output") as caught,
        undisturbed(net),
    ):
        lsuv_(net, x, orthonormal=False)
    text = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert "(64 of 512 values); the first non-finite values appear here" in text
    assert "The batch itself is finite." in text


def test_lsuv_op_between_layers_that_is_not_finite_is_placed_between_them(undisturbed):
    net = Net(lambda net, x: net.b(torch.log(net.a(x))), a=nn.Linear(6, 8), b=nn.Linear(8, 4))
    with pytest.raises(LSUVError, match=r"layer 'b' .*its input holds \d+ of 512 such values already") as caught:
        lsuv_(net, torch.randn(64, 6))
    assert "between 'a' (Linear 6 -> 8) and it" in str(caught.value)


def test_survey_batch_with_nan_is_a_finding_and_no_error(undisturbed):
    net, x = lively(), torch.randn(64, 6)
    x[0, 0] = float("nan")
    with undisturbed(net, weights=True):
        assert survey(net, x).verdict.startswith("not finite from '0' on")


class StopAtOp(TorchDispatchMode):
    """Raises before the n-th op that reaches torch's dispatcher; 0 never raises, and counts."""

    def __init__(self, n: int = 0) -> None:
        super().__init__()
        self.n, self.seen = n, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen += 1
        if self.seen == self.n:
            raise Stop
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS)
def test_lsuv_stopped_at_any_op_changes_nothing(arguments):
    net, generator, x = lively(), torch.Generator().manual_seed(1), torch.randn(32, 6)
    start, begin = weights_of(net), generator.get_state()
    with StopAtOp() as counter:
        lsuv_(net, x, generator=generator, **arguments)
    assert counter.seen > 50
    net, stopped = _again(net, start), 0
    generator.set_state(begin)
    before = weights_of(net) | rng(generator)
    step = max(1, counter.seen // 100)
    for n in [*range(1, counter.seen, step), *range(max(1, counter.seen - 30), counter.seen + 1)]:
        with contextlib.suppress(Stop):
            with StopAtOp(n):
                lsuv_(net, x, generator=generator, **arguments)
            pytest.fail(f"op {n} of {counter.seen} was not reached")
        stopped += 1
        assert differences(before, weights_of(net) | rng(generator)) == [], f"stopped at op {n} of {counter.seen}"
    assert stopped >= 50


def _again(net: nn.Module, start: dict[str, bytes]) -> nn.Module:
    """`net` with the values that it started with."""
    with torch.no_grad():
        for name, value in net.state_dict().items():
            old = torch.frombuffer(bytearray(start[f"state_dict {name}"]), dtype=value.dtype)
            value.copy_(old.reshape(value.shape))
    return net


@pytest.mark.parametrize("orthonormal", [True, False])
@pytest.mark.parametrize("where", ["before it", "half way", "after it"])
def test_lsuv_stopped_in_the_commit_changes_nothing(where, orthonormal, monkeypatch, undisturbed):
    net, generator, x = lively(), torch.Generator().manual_seed(1), torch.randn(64, 6)
    real, reached = Undo.saved, []

    def stops(undo, changes):
        reached.append(len(changes))
        done = {"before it": 0, "half way": len(changes) // 2, "after it": len(changes)}[where]
        for i, change in enumerate(real(undo, changes)):
            if i == done:
                raise KeyboardInterrupt
            yield change
        raise KeyboardInterrupt

    monkeypatch.setattr(Undo, "saved", stops)
    with pytest.raises(KeyboardInterrupt), undisturbed(net, generator):
        lsuv_(net, x, mean=0.5, orthonormal=orthonormal, generator=generator)
    assert reached
    assert reached[0] > 1


class StopAtCall:
    """Raises at the n-th call that the package, or contextlib for it, makes or takes; 0 never raises, and counts.

    Python looks for signals at the start of a function and after a call, so Ctrl-C arrives at such a place.
    `commit` is the count when the commit began: what comes later may not keep half of its work.
    """

    def __init__(self, n: int = 0) -> None:
        self.n, self.seen, self.commit = n, 0, 0

    def __enter__(self):
        sys.setprofile(self.look)
        return self

    def __exit__(self, *error):
        sys.setprofile(None)

    def look(self, frame, event, arg):
        if event == "return" or not _is_ours(frame):
            return
        self.seen += 1
        if self.seen == self.n:
            sys.setprofile(None)
            raise Stop
        if not self.commit and frame.f_code.co_name == "commit":
            self.commit = self.seen


def _is_ours(frame) -> bool:
    """Code of the package, or of contextlib called by it; within `lsuv_`, not in what this test itself enters and leaves."""
    caller = frame
    while caller is not None and caller.f_code.co_filename == contextlib.__file__:
        caller = caller.f_back
    if caller is None or not caller.f_code.co_filename.startswith(PACKAGE):
        return False
    while caller is not None and caller.f_code.co_name != "lsuv_":
        caller = caller.f_back
    return caller is not None


def _clean() -> None:
    """Nothing in Python can save a `with` whose __exit__ is stopped at its first step; the next try must not see it."""
    while _get_current_function_mode_stack():
        _pop_mode()
    torch.set_grad_enabled(True)
    torch.compiler.set_stance("default")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a stop inside a destructor
@pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS)
def test_lsuv_stopped_at_any_call_changes_nothing(arguments):
    net, generator, x = lively().eval(), torch.Generator().manual_seed(1), torch.randn(16, 6)
    start, begin = weights_of(net), generator.get_state()
    with StopAtCall() as counter:
        lsuv_(net, x, generator=generator, **arguments)
    assert counter.commit
    net = _again(net, start)
    generator.set_state(begin)
    before = weights_of(net) | rng(generator)
    early = range(1, counter.commit, max(1, counter.commit // 25))
    late = range(counter.commit, counter.seen + 1, max(1, (counter.seen - counter.commit) // 60))
    kept, stopped = {}, 0
    for n in [*early, *late, *range(counter.seen - 40, counter.seen + 1)]:
        try:
            with StopAtCall(n):
                lsuv_(net, x, generator=generator, **arguments)
        except Stop:
            stopped += 1
            _clean()
            if found := differences(before, weights_of(net) | rng(generator)):
                kept[n] = found
        # otherwise Python lost it: what a destructor raises is printed and forgotten
        net = _again(net, start)
        generator.set_state(begin)
    assert stopped > 80
    assert kept == {}, f"of {counter.seen} calls; the commit begins at {counter.commit}"


def test_lsuv_warning_as_an_error_changes_nothing(undisturbed):
    net, x = lively(), torch.randn(64, 6)
    with pytest.raises(InputScaleWarning), undisturbed(net):
        lsuv_(net, x * 100)
    net(x)
    with pytest.raises(TrainedModelWarning), undisturbed(net):
        lsuv_(net, x)


class Restless(nn.Module):
    """Gives another output each time that it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.calls = nn.Linear(6, 8), 0

    def forward(self, x):
        self.calls += 1
        return self.fc(x * self.calls)


def test_lsuv_not_converged_as_an_error_changes_nothing(undisturbed):
    net, x = Restless(), torch.randn(64, 6)
    with pytest.raises(NotConvergedWarning, match=r"1 of 1 layers"), undisturbed(net):
        lsuv_(net, x)


def test_lsuv_not_converged_as_a_warning_keeps_the_new_weights():
    net = Restless()
    before = bits(net.fc.weight)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = lsuvcb.lsuv_(net, torch.randn(64, 6), recipe="paper")
    assert [w.category for w in caught] == [NotConvergedWarning]
    assert caught[0].filename == __file__
    assert bits(net.fc.weight) != before
    assert (report.layers[0].status, report.converged) == ("not converged", False)
    # the pass saw calls == 2 and the last one calls == 3
    assert report.layers[0].std_after == pytest.approx(1.5, rel=1e-3)


def test_lsuv_weight_seen_through_a_view_stays_whole_when_the_pass_fails(undisturbed):
    def run(net, x):
        x = x @ torch.einsum("ij->ji", net.w)
        if net.fails:
            raise ValueError("late")
        return x

    net, x = Net(run, w=matrix(6, 6)), torch.randn(64, 6)
    net.fails = True
    with pytest.raises(ValueError, match="late"), undisturbed(net):
        lsuv_(net, x, orthonormal=False, verify=False)


@pytest.mark.parametrize("scale", [1.7, 1 / 64, 1e10, 1.0000001])
@pytest.mark.parametrize("stopped", ["before", "after"])
def test_undo_of_a_large_scaled_weight_is_exact(scale, stopped):
    weight = torch.randn(1 << 20) * torch.logspace(-44, 5, 1 << 20)
    weight[:4] = torch.tensor([0.0, -0.0, 1e-45, -1e-40])
    weight[1000:2000] = 1.0
    before, undo = bits(weight), Undo()
    for change in undo.saved([Change(weight, scale)]):
        if stopped == "after":
            change.tensor.mul_(scale)
            assert bits(weight) != before
    undo.restore()
    assert bits(weight) == before
