"""Buffers that a forward fills in place: what is written there is read from there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from paper import lsuv_ as paper_lsuv_
from probe import probed
from small_nets import Net
from torch import Tensor, nn

from lsuvcb import lsuv_

INTO: dict[str, Callable[[Tensor, Tensor], object]] = {
    "item": lambda buffer, y: buffer.__setitem__(slice(1, None), y),
    "sum": lambda buffer, y: buffer.__setitem__(slice(1, None), buffer[1:].add_(y)),
    "copy": lambda buffer, y: buffer[1:].copy_(y),
    "view of a view": lambda buffer, y: buffer.view(-1, 4, 4)[1:].narrow(1, 0, 4).copy_(y.view(-1, 4, 4)),
    "out": lambda buffer, y: torch.mul(y, 2, out=buffer[1:]),
}


def through_a_buffer(write: Callable[[Tensor, Tensor], object]) -> Net:
    """Three layers; the first one's output goes by way of a buffer of zeros, whose first row is a parameter."""

    def run(net: Net, x: Tensor) -> Tensor:
        buffer = torch.zeros(len(x) + 1, 16)
        write(buffer, net.a(x).tanh())
        buffer[0] = net.start[0]
        return net.head(net.b(buffer).relu())

    return Net(run, a=nn.Linear(16, 16), b=nn.Linear(16, 16), head=nn.Linear(16, 4), start=torch.randn(1, 16))


@pytest.mark.parametrize("into", INTO)
def test_buffer_written_in_place_feeds_what_reads_it(into, undisturbed):
    model, x = through_a_buffer(INTO[into]), torch.randn(256, 16)
    with undisturbed(model, draws=True):
        report = lsuv_(model, x)
    rows = {row.name: row for row in report.layers}
    assert [rows[n].status for n in ("a", "b", "head")] == ["scaled", "scaled", "left alone"]
    seen = probed(model, x)
    assert [seen[n][0].std for n in ("a", "b")] == pytest.approx([rows["a"].target, rows["b"].target], abs=1e-3)
    assert "head" in rows["head"].reason


def test_parameter_written_into_a_buffer_is_named_by_what_wrote_it():
    report = paper_lsuv_(through_a_buffer(INTO["item"]), torch.randn(64, 16))
    assert next(row.reason for row in report.layers if row.name == "start") == "used by __setitem__, no linear op"


def test_weight_written_into_a_buffer_and_used_afterwards_is_left_alone():
    def run(net: Net, x: Tensor) -> Tensor:
        buffer = torch.zeros(4, 16)
        buffer[:4] = net.head.weight
        return net.head(net.a(x).relu()) + buffer.sum()

    report = paper_lsuv_(Net(run, a=nn.Linear(16, 16), head=nn.Linear(16, 4)), torch.randn(64, 16))
    assert [(row.name, row.reason) for row in report.layers if row.status == "left alone"] == [
        ("head", "used earlier in the pass, by __setitem__")
    ]


def test_kernel_put_together_in_a_buffer_leaves_its_parts_alone_and_named():
    def run(net: Net, x: Tensor) -> Tensor:
        kernel = torch.zeros(8, 8)
        kernel[:4, :4] = net.first
        kernel[4:, 4:] = net.second
        return net.head(x @ kernel)

    model = Net(run, first=torch.randn(4, 4), second=torch.randn(4, 4), head=nn.Linear(8, 3))
    report = paper_lsuv_(model, torch.randn(64, 8))
    assert {row.name: row.reason for row in report.layers if row.status == "left alone"} == dict.fromkeys(
        ("first", "second"), "used by __setitem__, no linear op"
    )
