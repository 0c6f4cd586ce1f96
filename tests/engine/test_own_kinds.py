"""Lazy modules and mappings of other packages' making, which do in their own way what torch's and Python's do."""

from __future__ import annotations

from collections import UserDict

import pytest
import torch
from paper import lsuv_
from probe import forwards, probed
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from lsuvcb import survey

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))


class OwnLazy(nn.Module):
    """Takes its size from its first input, by a hook of its own and without torch's mixin, as torch_geometric's Linear does."""

    def __init__(self, n_out: int) -> None:
        super().__init__()
        self.n_out, self.weight = n_out, UninitializedParameter()
        self.hook = self.register_forward_pre_hook(OwnLazy.make)

    def make(self, args: tuple[Tensor, ...]) -> None:
        self.weight.materialize((self.n_out, args[0].shape[-1]))
        nn.init.normal_(self.weight)
        self.hook.remove()

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T


@pytest.mark.parametrize("orthonormal", [False, True])
def test_lazy_parameter_without_torchs_mixin_is_materialised_and_scaled(orthonormal, undisturbed):
    net = nn.Sequential(OwnLazy(8), nn.ReLU(), OwnLazy(4))
    held = [id(p) for p in net.parameters()]
    with forwards(net) as calls:
        report = lsuv_(net, X, orthonormal=orthonormal, verify=False)
    assert len(calls) == report.passes == 2
    assert [id(p) for p in net.parameters()] == held
    assert {n: uses[0].std for n, uses in probed(net, X).items()} == pytest.approx({"0": 1, "2": 1}, abs=1e-3)
    with undisturbed(net, draws=True):
        assert lsuv_(net, X, verify=False).passes == 1


class Rows(UserDict):
    """A mapping that knows how many rows it has, as a TensorDict does: modules take it as it is, and write into it."""

    @property
    def batch_size(self) -> torch.Size:
        return torch.Size([len(self["x"])])


class OfRows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, rows: Rows) -> Rows:
        rows["y"] = self.head(self.body(rows["x"]).relu())
        return rows


def test_mapping_with_a_batch_size_is_one_argument_and_stays_as_it_was():
    net, rows = OfRows(), Rows(x=X)
    assert [layer.name for layer in survey(net, rows).layers] == ["body", "head"]
    assert [layer.status for layer in lsuv_(net, rows).layers] == ["scaled", "scaled"]
    assert list(rows) == ["x"]
    assert {n: uses[0].std for n, uses in probed(net, Rows(x=X)).items()} == pytest.approx(
        {"body": 1, "head": 1}, abs=1e-3
    )


def test_mapping_without_a_batch_size_is_keywords():
    with pytest.raises(TypeError, match=r"given as the keywords \['x'\]"):
        lsuv_(OfRows(), UserDict(x=X))
