"""Hook, Hooks and HooksCallback: they see what runs, and they are gone afterwards."""

import contextlib
import copy
import pickle

import pytest
import torch
from tiny import learner, line, loaders, net, recorder
from torch import nn

from lsuvcb.engine.errors import LSUVWarning
from lsuvcb.training.callbacks import DeviceCB
from lsuvcb.training.events import Callback, CancelFitException
from lsuvcb.training.hooks import Hook, Hooks, HooksCallback


def hooked(model):
    return [name for name, m in model.named_modules() if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks]


def keep(hook, module, inputs, output):
    hook.out = output
    hook.inp = inputs[0]


def test_hook_sees_module_inputs_and_output_until_it_is_removed():
    model = line(3.0)
    hook = Hook(model, keep, "the line")
    model(2 * torch.ones(1, 1))
    assert hook.out.item() == 6.0
    assert hook.inp.item() == 2.0
    hook.remove()
    hook.remove()
    model(torch.ones(1, 1))
    assert (hook.out.item(), hook.calls, hook.name, hook.kind) == (6.0, 1, "the line", "Linear")
    assert hooked(model) == []


def test_hook_that_returns_a_value_replaces_the_output():
    model = line(3.0)
    with Hook(model, lambda hook, m, i, o: o + 1):
        assert model(torch.ones(1, 1)).item() == 4.0
    assert model(torch.ones(1, 1)).item() == 3.0


def test_hook_in_a_with_block_is_removed_on_an_exception():
    model = line()
    with pytest.raises(KeyError), Hook(model, keep):
        raise KeyError
    assert hooked(model) == []


def test_hooks_are_a_list_in_the_modules_order():
    model = nn.Sequential(line(2.0), line(3.0))
    with Hooks(model, keep) as hooks:
        model(torch.ones(1, 1))
        assert hooked(model) == ["0", "1"]
    assert [hook.out.item() for hook in hooks] == [2.0, 6.0]
    assert [hook.name for hook in hooks] == ["0", "1"]
    assert hooked(model) == []


def test_hooks_of_a_mapping_carry_its_names():
    model = nn.Sequential(line(), line())
    with Hooks(dict(model.named_modules()), keep) as hooks:
        assert [hook.name for hook in hooks] == ["", "0", "1"]


def test_hooks_item_that_is_deleted_or_dropped_is_removed_from_its_module():
    model = nn.Sequential(*(line() for _ in range(4)))
    hooks = Hooks(model, keep)
    del hooks[0]
    assert hooked(model) == ["1", "2", "3"]
    del hooks[1:]
    assert hooked(model) == ["1"]
    hooks.remove(hooks[0])
    assert hooked(model) == []
    assert hooks == []


def test_hooks_on_something_that_is_no_module_leave_none_behind():
    model = line()
    with pytest.raises(AttributeError):
        Hooks([model, "no module"], keep)
    assert hooked(model) == []


def test_model_copied_or_pickled_while_hooked_takes_no_hook_along():
    model, seen = line(3.0), []
    with Hook(model, lambda hook, m, i, o: seen.append(o)) as hook:
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert twin(torch.ones(1, 1)).item() == 3.0
        assert seen == []
        assert hook.calls == 0
        model(torch.ones(1, 1))
    assert len(seen) == 1


def shapes(hook, module, inputs, output):
    hook.shapes = [*getattr(hook, "shapes", []), tuple(output.shape)]


@pytest.mark.parametrize(("on_train", "on_valid", "seen"), [(True, False, 2), (False, True, 1), (True, True, 3)])
def test_hooks_callback_looks_where_it_is_asked_to(on_train, on_valid, seen):
    cb = HooksCallback(shapes, nn.Linear, on_train, on_valid)
    learner([cb], loaders(train=2, valid=1)).fit(1)
    assert len(cb) == 1
    assert cb[0].shapes == [(4, 1)] * seen
    assert [hook.calls for hook in cb] == [3]


@pytest.mark.parametrize(
    "choice",
    [
        {"layers": nn.ReLU},
        {"layers": (nn.ReLU, nn.Tanh)},
        {"layers": lambda m: isinstance(m, nn.ReLU)},
        {"layers": ["2", "5"]},
        {"mod_filter": lambda m: isinstance(m, nn.ReLU)},
    ],
)
def test_hooks_callback_selects_by_any_kind_of_selector(choice):
    cb = HooksCallback(shapes, **choice)
    assert list(cb.select(net())) == ["2", "5"]


def test_hooks_callback_with_a_list_of_modules_selects_these():
    model = net()
    assert list(HooksCallback(shapes, mods=[model[5]]).select(model)) == ["5"]
    assert len(HooksCallback(shapes).select(model)) == 8


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"layers": nn.ReLU, "mod_filter": bool}, ValueError, "mean the same; give one of them"),
        ({"on_train": False}, ValueError, r"HooksCallback\(on_train=False, on_valid=False\) would do nothing"),
    ],
)
def test_hooks_callback_with_bad_arguments_raises(arguments, error, text):
    with pytest.raises(error, match=text):
        HooksCallback(shapes, **arguments)
    with pytest.raises(TypeError, match="`hookfunc` must be callable, got 3"):
        HooksCallback(3)


@pytest.mark.parametrize(
    "event", ["before_fit", "before_epoch", "after_loss", "after_epoch", "after_fit", "cleanup_batch"]
)
@pytest.mark.parametrize("error", [CancelFitException, KeyError, KeyboardInterrupt])
def test_hooks_callback_leaves_no_hook_however_the_fit_ends(event, error):
    def also(fired, learn):
        if fired == event:
            assert hooked(learn.model) == [""]
            raise error

    learn = learner([HooksCallback(shapes), recorder(order=90, also=also)])
    with contextlib.suppress(KeyError, KeyboardInterrupt):
        learn.fit(1)
    assert hooked(learn.model) == []


def test_hooks_callback_registers_after_the_model_is_on_its_device_and_anew_each_fit():
    cb = HooksCallback(shapes, nn.Linear)
    learn = learner([cb, DeviceCB("cpu")])
    learn.fit(1)
    first = cb.hooks
    learn.fit(1)
    assert cb.hooks is not first
    assert len(cb[0].shapes) == 2


def test_filter_that_matches_nothing_warns_once_and_names_what_there_is():
    cb = HooksCallback(shapes, nn.ReLU)
    learn = learner([cb])
    text = r"`layers` of HooksCallback must match a module of the model, got none: .* has Linear; choose among these"
    with pytest.warns(LSUVWarning, match=text):
        learn.fit(1)
    learn.fit(1)


class Idle(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.spare = line(), line()

    def forward(self, x):
        return self.used(x)


def test_module_that_never_ran_is_named_in_one_warning():
    cb = HooksCallback(shapes, nn.Linear)
    learn = learner([cb], model=Idle())
    text = (
        r"^1 of the 2 modules watched by HooksCallback never ran in this fit: 'spare' \(Linear\)\. .* with `layers=`\.$"
    )
    with pytest.warns(LSUVWarning, match=text):
        learn.fit(1)
    learn.fit(1)


def test_fit_in_the_other_mode_or_of_no_epoch_warns_of_nothing():
    class Both(Callback): ...

    learner([HooksCallback(shapes, nn.Linear), Both()]).fit(1, train=False)
    learner([HooksCallback(shapes, nn.Linear)]).fit(0)


def test_hooks_callback_pickles_after_a_fit_with_what_it_learnt():
    cb = HooksCallback(shapes, nn.Linear)
    learner([cb]).fit(1)
    assert pickle.loads(pickle.dumps(cb))[0].shapes == [(4, 1)] * 2
    assert repr(cb).startswith("HooksCallback(layers=<class 'torch.nn.modules.linear.Linear'>, 1 hooks")
