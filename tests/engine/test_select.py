"""Which modules a selector means, and what they are called."""

import re

import pytest
import torch
from small_nets import Net
from torch import nn

from lsuvcb.engine.select import module_paths, select_modules, unwrap


@pytest.fixture
def net():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), nn.ReLU())


FORMS = {
    "nothing": (lambda net: None, ["", "0", "1", "1.0", "1.1", "2"]),
    "a type": (lambda net: nn.ReLU, ["1.0", "2"]),
    "a base type": (lambda net: nn.Module, ["", "0", "1", "1.0", "1.1", "2"]),
    "types": (lambda net: (nn.Linear, nn.Conv2d), ["0", "1.1"]),
    "a predicate": (lambda net: lambda m: hasattr(m, "weight"), ["0", "1.1"]),
    "modules": (lambda net: [net[2], net[0]], ["0", "2"]),
    "a tuple of modules": (lambda net: (net[2],), ["2"]),
    "names": (lambda net: ["1.1", "0"], ["0", "1.1"]),
    "both": (lambda net: [net[1][0], "2"], ["1.0", "2"]),
    "the root by name": (lambda net: [""], [""]),
    "twice the same": (lambda net: ["0", net[0]], ["0"]),
    "a type without a match": (lambda net: nn.GRU, []),
}


@pytest.mark.parametrize("form", FORMS)
def test_select_takes_this_form_in_the_order_of_the_model(form, net):
    select, expected = FORMS[form]
    found = select_modules(net, select(net))
    assert list(found) == expected
    assert all(net.get_submodule(path) is module for path, module in found.items())


@pytest.mark.parametrize(
    ("layers", "error", "says"),
    [
        ([], ValueError, "`layers` is an empty list"),
        ((), ValueError, "`layers` is an empty list"),
        ("0", TypeError, "got '0' (str)"),
        (7, TypeError, "got 7 (int)"),
        ({"0"}, TypeError, "(set)"),
        (nn.ReLU(), TypeError, "got one module (ReLU); write `layers=[module]`"),
        (["1.2"], ValueError, "`layers` has '1.2', which is no module of this Sequential; it has '0', '1', '1.0'"),
        ([nn.ReLU()], ValueError, "`layers` has ReLU"),
        ([None], ValueError, "`layers` has NoneType"),
    ],
    ids=str,
)
def test_select_of_another_kind_is_an_error_with_advice(layers, error, says, net):
    with pytest.raises(error, match=re.escape(says)):
        select_modules(net, layers)


def test_select_passes_on_what_a_predicate_raises(net):
    with pytest.raises(AttributeError, match="out_features"):
        select_modules(net, lambda m: m.out_features > 3)


def test_paths_equal_named_modules_for_a_plain_model(net):
    assert module_paths(net) == dict(net.named_modules())


def test_paths_name_a_shared_module_once():
    relu = nn.ReLU()
    assert list(module_paths(nn.Sequential(relu, nn.Sequential(relu)))) == ["", "0", "1"]


def test_paths_leave_out_what_wraps_the_model(net):
    wrapped = nn.DataParallel(torch.compile(net, backend="eager"))
    assert module_paths(wrapped) == dict(net.named_modules())
    assert unwrap(wrapped) is net


def test_paths_leave_out_what_wraps_a_child(net):
    outer = nn.Sequential(torch.compile(net, backend="eager"), nn.DataParallel(nn.Sequential(nn.Linear(2, 2))))
    assert list(module_paths(outer)) == ["", "0", "0.0", "0.1", "0.1.0", "0.1.1", "0.2", "1", "1.0"]


def test_paths_keep_a_child_called_module(net):
    outer = Net(lambda net, x: x, module=net)
    assert list(module_paths(outer)) == ["", "module", *(f"module.{p}" for p in dict(net.named_modules()) if p)]
    assert unwrap(outer) is outer


def test_select_takes_the_wrapper_of_a_module_for_the_module(net):
    inner = torch.compile(net[1], backend="eager")
    outer = nn.Sequential(net[0], inner)
    assert list(select_modules(outer, [inner])) == ["1"]
    assert list(select_modules(outer, [net[1]])) == ["1"]
