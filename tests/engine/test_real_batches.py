"""Batches and nets as they come: labels first, constant, empty, one sample; nothing to scale; values that are not finite."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from paper import lsuv_
from small_nets import Net
from torch import Tensor, nn

import lsuvcb
from lsuvcb import InputScaleWarning, LSUVError, survey
from lsuvcb.engine.errors import LSUVWarning

LABELS = torch.randint(0, 1000, (64,), generator=torch.Generator().manual_seed(3)).float()


def batch() -> Tensor:
    return torch.randn(64, 16)


def mlp(n_out: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, n_out))


def normed() -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))


# A recipe that leaves everything alone

LEFT: dict[str, tuple[Callable[[], nn.Module], dict[str, object], int, str]] = {
    "norms behind every layer": (normed, {}, 2, ""),
    "one layer": (lambda: nn.Sequential(nn.Linear(16, 4)), {}, 1, ", the head: "),
    "told so": (mlp, {"std": {"*": "leave"}}, 2, ", left by `std`"),
    "frozen": (lambda: mlp().requires_grad_(False), {}, 2, ", frozen (requires_grad=False)"),
}


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("case", LEFT)
def test_lsuv_that_leaves_everything_alone_says_so_in_its_line_and_gives_no_warning(case, verify):
    make, arguments, left, reason = LEFT[case]
    net = make()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = lsuvcb.lsuv_(net, batch(), verify=verify, **arguments)
    assert report.summary().startswith(f"LSUV: no layer to scale; {left} left alone{reason}")
    assert "0 of 0" not in str(report)
    assert report.converged
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def broken(net: nn.Sequential, layer: int, what: str = "weight", value: float = float("nan")) -> nn.Sequential:
    getattr(net[layer], what).data.view(-1)[0] = value
    return net


NOT_FINITE: dict[str, tuple[Callable[[], nn.Module], dict[str, object], str]] = {
    "in front of a norm": (lambda: broken(normed(), 0), {}, r"layer '0' \(Linear 16 -> 16\) gave non-finite output .*64 of 1024"),
    "in a norm's net, the head": (lambda: broken(normed(), 3), {}, r"layer '3' .* gives non-finite output: 1 of its 68 "),
    "the head's bias": (lambda: broken(mlp(), 2, "bias"), {}, r"layer '2' .* gives non-finite output: 1 of its 17 "),
    "one layer": (lambda: broken(nn.Sequential(nn.Linear(16, 4)), 0), {}, r"layer '0' .* gives non-finite output"),
    "infinite": (lambda: broken(mlp(), 2, value=float("inf")), {}, r"layer '2' .* gives non-finite output"),
    "left by `std`": (lambda: broken(mlp(), 0), {"std": {"*": "leave"}}, r"layer '0' .* gave non-finite output .*appear here"),
    "a norm and no head": (
        lambda: broken(nn.Sequential(nn.Linear(16, 4), nn.LayerNorm(4)), 0), {}, r"layer '0' .* gave non-finite output",
    ),
}  # fmt: skip


@pytest.mark.parametrize("orthonormal", ["delta", False])
@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("case", NOT_FINITE)
def test_lsuv_raises_for_values_that_are_not_finite_where_the_recipe_leaves_the_layer(case, verify, orthonormal):
    make, arguments, message = NOT_FINITE[case]
    net = make()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    if not orthonormal:
        message = message.replace("gives", "gave").partition(": 1 of")[0]
    with pytest.raises(LSUVError, match=message):
        lsuvcb.lsuv_(net, batch(), verify=verify, orthonormal=orthonormal, **arguments)
    assert all(torch.equal(value.nan_to_num(), before[name].nan_to_num()) for name, value in net.state_dict().items())


def test_lsuv_raises_for_a_batch_that_is_not_finite_before_a_norm():
    x = batch()
    x[0, 0] = float("inf")
    with pytest.raises(LSUVError, match="its input holds 1 of 1024 such values already"):
        lsuvcb.lsuv_(normed(), x)


# Empty batches, and batches of one

EMPTY: dict[str, Callable[[], object]] = {
    "tensor": lambda: batch()[:0],
    "tuple": lambda: (batch()[:0],),
    "mapping": lambda: {"input": batch()[:0]},
    "several": lambda: (batch()[:0], LABELS[:0]),
}


@pytest.mark.parametrize("call", [lsuvcb.lsuv_, survey])
@pytest.mark.parametrize("form", EMPTY)
def test_empty_batch_is_an_error_before_any_pass(form, call):
    def forward(model: nn.Module, given: object) -> None:
        raise AssertionError("the model ran")

    with pytest.raises(ValueError, match=r"`batch` must hold at least one sample, got shape \(0, 16\)"):
        call(mlp(), EMPTY[form](), forward=forward)


ONE: dict[str, Callable[[], object]] = {
    "tensor": lambda: batch()[:1],
    "tuple": lambda: (batch()[:1],),
    "mapping": lambda: {"input": batch()[:1]},
    "with its label": lambda: (batch()[:1], LABELS[:1]),
}


def first(model: nn.Module, given: object) -> Tensor:
    value = next(iter(given.values())) if isinstance(given, dict) else given
    return model(value if isinstance(value, Tensor) else value[0])


@pytest.mark.parametrize("form", ONE)
def test_batch_of_one_warns(form):
    with pytest.warns(LSUVWarning, match="the batch holds one sample, .* take a hundred or more") as caught:
        lsuvcb.lsuv_(mlp(), ONE[form](), forward=first)
    assert [w.filename for w in caught] == [__file__]


@pytest.mark.parametrize("form", ONE)
def test_survey_of_one_sample_shows_what_it_cannot_tell(form):
    assert {(row.signal, row.balance) for row in survey(mlp(), ONE[form](), forward=first).layers} == {(None, None)}


def test_batch_of_two_does_not_warn():
    lsuvcb.lsuv_(mlp(), batch()[:2])  # warnings are errors


# The input's std is that of what the first layers read


class Collated(nn.Module):
    """Takes its arguments as a collator gives them, the labels first."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, labels: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        out = self.net(inputs)
        return F.mse_loss(out[:, 0], labels), out


def std(x: Tensor) -> float:
    return x.double().std(correction=0).item()


@pytest.mark.parametrize("as_mapping", [True, False])
def test_input_std_is_not_the_labels_that_a_collator_puts_first(as_mapping):
    x = batch()
    given = {"labels": LABELS, "inputs": x} if as_mapping else (LABELS, x)
    for report in (lsuv_(Collated(), given), survey(Collated(), given)):  # and no InputScaleWarning
        assert (report.input_std, report.input_mean) == pytest.approx((std(x), x.mean().item()), rel=1e-4)


SEEN: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "as it is": lambda net, x: net.a(x),
    "normalised by the model": lambda net, x: net.a((x - 100) / 50),
    "a look-up of its own": lambda net, x: net.a(x) + net.table(x[:, 0].long().clamp(0, 3)),
}


@pytest.mark.parametrize("case", SEEN)
def test_input_std_is_that_of_what_the_first_layer_reads(case):
    net = Net(SEEN[case], a=nn.Linear(16, 4), table=nn.Embedding(4, 4))
    x = batch() * 50 + 100 if case == "normalised by the model" else batch()
    read = (x - 100) / 50 if case == "normalised by the model" else x
    assert lsuv_(net, x).input_std == pytest.approx(std(read), rel=1e-4)


def test_input_std_is_none_where_no_layer_reads_the_batch_as_it_is():
    net = Net(lambda net, ids: net.a(net.table(ids).mean(1)), table=nn.Embedding(50, 16), a=nn.Linear(16, 4))
    assert lsuv_(net, torch.randint(0, 50, (64, 7))).input_std is None


def test_input_of_weights_beside_a_loss_is_not_read():
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, importance: Tensor, x: Tensor) -> Tensor:
            return (self.net(x)[:, 0] * importance).mean()

    x = batch()
    assert lsuv_(Weighted(), (LABELS, x)).input_std == pytest.approx(std(x), rel=1e-4)


def test_input_far_from_unit_variance_still_warns():
    x = 100 * batch()
    with pytest.warns(InputScaleWarning, match=f"the batch has std {std(x):.3g}; .* normalise them first"):
        lsuv_(Collated(), (LABELS, x))


@pytest.mark.parametrize("value", [3.0, 0.0])
def test_constant_batch_is_told_that_its_values_are_equal_not_to_divide_by_its_std(value):
    with pytest.warns(InputScaleWarning, match="all values of the batch are equal") as caught:
        report = lsuv_(Collated(), (LABELS, torch.full((64, 16), value)))
    assert "/ std" not in str(caught[0].message)
    assert (report.input_std, report.input_mean) == (0.0, value)
