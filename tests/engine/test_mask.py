"""`mask=`: padded positions do not count, in `lsuv_` and in `survey`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from paper import lsuv_
from small_nets import Net
from torch import Tensor, nn

import lsuvcb
from lsuvcb import survey

ONE = pytest.approx(1, abs=1e-3)
BOTH = pytest.mark.parametrize("orthonormal", [True, False])
BATCH, TIME = 16, 20


def std(y: Tensor) -> float:
    return y.detach().double().std(correction=0).item()


def mean(y: Tensor) -> float:
    return y.detach().double().mean().item()


def frames() -> tuple[Tensor, Tensor]:
    """Sequences of 3 to 9 valid frames of 20, zeros behind them; some 30 % of the frames are valid."""
    lengths = torch.randint(3, 10, (BATCH, 1))
    mask = torch.arange(TIME) < lengths
    return torch.randn(BATCH, TIME, 8) * mask[..., None], mask


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))


class Masked(nn.Module):
    """Takes the mask as transformers do, and makes nothing of it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.net(x)


def linears(net: nn.Sequential, x: Tensor) -> list[Tensor]:
    """What each linear layer gives."""
    found = []
    for layer in net:
        x = layer(x)
        found += [x] if isinstance(layer, nn.Linear) else []
    return found


def given(form: str, x: Tensor, mask: Tensor) -> tuple[nn.Module, Any, Any]:
    """A model, its batch, and the mask in this form."""
    if form == "tensor":
        return Masked(), x, mask
    if form == "function":
        return Masked(), x, lambda name, output: mask
    return Masked(), {"x": x, "attention_mask": mask.long()}, "attention_mask"


FORMS = pytest.mark.parametrize("form", ["tensor", "function", "name"])


@FORMS
@BOTH
@pytest.mark.parametrize("recipe", ["paper", "balanced"])
def test_mask_brings_the_valid_frames_to_std_1(recipe, orthonormal, form):
    x, mask = frames()
    model, batch, masked = given(form, x, mask)
    report = lsuv_(model, batch, mask=masked, recipe=recipe, orthonormal=orthonormal)
    valid = [std(y[mask]) for y in linears(model.net, x)]
    hidden = 3 if recipe == "paper" else 2  # the default recipe leaves the head
    assert valid[:hidden] == [ONE] * hidden
    assert [r.std_after for r in report.layers] == pytest.approx(valid, abs=1e-4)
    assert report.input_std == pytest.approx(std(x[mask]), abs=1e-4)


def test_mask_is_what_keeps_padding_from_counting():
    x, mask = frames()
    model = Masked()
    lsuv_(model, x)
    assert min(std(y[mask]) for y in linears(model.net, x)) > 1.5


@FORMS
@BOTH
def test_mask_moves_the_mean_of_the_valid_frames(orthonormal, form):
    x, mask = frames()
    model, batch, masked = given(form, x, mask)
    assert lsuv_(model, batch, mask=masked, mean=0.25, orthonormal=orthonormal).converged
    for y in linears(model.net, x):
        assert (std(y[mask]), mean(y[mask])) == (ONE, pytest.approx(0.25, abs=1e-3))


@FORMS
def test_mask_counts_behind_an_activation(form):
    x, mask = frames()
    model, batch, masked = given(form, x, mask)
    report = lsuv_(model, batch, mask=masked, measure="activation", std=0.5, mean=0.4, layers=["net.2"])
    y = model.net[:4](x)
    assert (std(y[mask]), mean(y[mask])) == (pytest.approx(0.5, abs=1e-3), pytest.approx(0.4, abs=1e-3))
    assert report.converged


def test_mask_counts_over_all_uses_of_a_shared_layer():
    x, mask = frames()
    net = Net(lambda net, x: net.w(net.w(x).tanh()), w=nn.Linear(8, 8))
    lsuv_(net, x, mask=mask)
    first = net.w(x)
    assert std(torch.cat([first[mask], net.w(first.tanh())[mask]])) == pytest.approx(1, abs=1.1e-3)


def test_mask_function_is_given_the_layer_and_its_output_and_may_give_none():
    x, mask = frames()
    model, seen = Masked(), {}

    def masked(name: str, output: Tensor) -> Tensor | None:
        seen.setdefault(name, tuple(output.shape))
        return mask if name == "net.2" else None

    lsuv_(model, x, mask=masked)
    del seen[""]  # what the first layer reads
    assert seen == {"net.0": (BATCH, TIME, 16), "net.2": (BATCH, TIME, 16), "net.4": (BATCH, TIME, 4)}
    first, second, third = linears(model.net, x)
    assert (std(first), std(second[mask]), std(third)) == (ONE, ONE, ONE)


def test_mask_function_may_give_one_value_for_each_channel_and_time():
    # channels stand ahead of time, so that a mask of (batch, time) does not begin as the output does
    x, mask = frames()
    net = nn.Sequential(nn.Conv1d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv1d(16, 4, 1))
    lsuv_(net, x.mT, mask=lambda name, y: mask[:, None].expand_as(y))
    y = net[0](x.mT)
    assert std(y.mT[mask]) == ONE
    assert std(net(x.mT).mT[mask]) == ONE


@FORMS
def test_mask_counts_positions_that_a_model_puts_in_one_row(form):
    x, mask = frames()

    class Rows(Masked):
        def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            return self.net(x.flatten(0, 1)).view(*x.shape[:2], -1)

    _, batch, masked = given(form, x, mask)
    model = Rows()
    lsuv_(model, batch, mask=masked)
    assert [std(y[mask]) for y in linears(model.net, x)] == [ONE] * 3


def test_mask_leaves_outputs_of_other_shapes_to_count_whole():
    x, mask = frames()
    net = Net(lambda net, x: net.head(net.a(x).tanh().mean(1)), a=nn.Linear(8, 16), head=nn.Linear(16, 4))
    lsuv_(net, x, mask=mask)
    assert (std(net.a(x)[mask]), std(net(x))) == (ONE, ONE)


def test_mask_of_all_positions_changes_no_bit():
    x, mask = frames()
    nets = []
    for masked in (None, torch.ones_like(mask)):
        torch.manual_seed(0)
        nets.append(Masked())
        lsuv_(nets[-1], x, mask=masked)
    a, b = (torch.cat([p.detach().flatten() for p in net.parameters()]) for net in nets)
    assert torch.allclose(a, b, rtol=1e-6)


@FORMS
def test_survey_counts_the_valid_frames(form):
    x, mask = frames()
    model, batch, masked = given(form, x, mask)
    seen = survey(model, batch, mask=masked)
    outputs = linears(model.net, x)
    assert [r.std for r in seen.layers] == pytest.approx([std(y[mask]) for y in outputs], rel=1e-4)
    assert [r.mean for r in seen.layers] == pytest.approx([mean(y[mask]) for y in outputs], abs=1e-5)
    assert seen.input_std == pytest.approx(std(x[mask]), rel=1e-4)


# A name in a batch of several parts


def test_mask_is_named_in_a_mapping_beside_the_targets():
    x, mask = frames()
    model, batch = Masked(), ({"x": x, "attention_mask": mask}, torch.zeros(BATCH))
    lsuv_(model, batch, mask="attention_mask", forward=lambda model, batch: model(**batch[0]))
    assert [std(y[mask]) for y in linears(model.net, x)] == [ONE] * 3


# Errors

WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "another type": (3, TypeError, r"`mask` must be a boolean tensor, the name of one in the batch, or a function .* got int"),
    "no booleans": (
        torch.ones(BATCH, TIME, dtype=torch.long), TypeError,
        r"`mask` must be a boolean tensor, got one of torch.int64; write `mask.bool\(\)`",
    ),
    "nothing counts": (
        torch.zeros(BATCH, TIME, dtype=torch.bool), ValueError,
        r"`mask` must count at least one position, got \(16, 20\) of False",
    ),
    "a name that the batch lacks": (
        "attention", KeyError, r"`mask` is 'attention', which the batch does not have; it has 'x', 'attention_mask'",
    ),
    "another shape": (
        torch.ones(BATCH, TIME // 2, dtype=torch.bool), ValueError,
        r"`mask` must have the leading dimensions of an output, got shape \(16, 10\), and no layer's output begins so",
    ),
}  # fmt: skip


@pytest.mark.parametrize("call", [lsuvcb.lsuv_, survey])
@pytest.mark.parametrize("case", WRONG)
def test_mask_that_is_none_is_an_error_and_changes_nothing(case, call):
    wrong, error, message = WRONG[case]
    x, mask = frames()
    model = Masked()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(error, match=message):
        call(model, {"x": x, "attention_mask": mask}, mask=wrong)
    assert all(map(torch.equal, model.parameters(), before))


def test_mask_by_name_of_a_batch_without_names_is_an_error():
    x, _ = frames()
    with pytest.raises(KeyError, match=r"it has no names \(Tensor\)"):
        lsuvcb.lsuv_(Masked(), x, mask="attention_mask")


def test_survey_with_a_mask_has_signal_and_balance_of_what_counts():
    """Padded frames are huge and alike: without the mask they would be the signal."""
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 6, bias=False), torch.randn(32, 5, 4)
    valid = torch.arange(5)[None] < torch.randint(1, 6, (32, 1))
    valid[:2] = True
    x[~valid] = 100.0
    y = layer(x).detach()
    found = survey(layer, x, mask=valid).layers[0]
    sizes = torch.stack([y[i, valid[i]].square().mean().sqrt() for i in range(32)])
    assert found.balance == pytest.approx(float(sizes.quantile(0.5) / sizes.square().mean().sqrt()), rel=1e-4)
    variances = torch.stack([y[valid[:, t], t].var(0, correction=0) for t in range(5)])
    assert found.signal == pytest.approx(float(variances.mean().sqrt()), rel=1e-4)
