"""Tied and shared weights: every name by which one is at work has a row, and `layers=` takes each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from paper import lsuv_
from required import need_package
from small_nets import Net
from torch import Tensor, nn

from lsuvcb import survey
from lsuvcb.engine import LayerReport, LSUVReport

IDS = {"input_ids": torch.randint(2, 97, (8, 12), generator=torch.Generator().manual_seed(0))}


def std(y: Tensor) -> float:
    return y.detach().double().std(correction=0).item()


def row(report: LSUVReport, name: str) -> LayerReport:
    return next(r for r in report.layers if r.name == name)


TIED: dict[str, tuple[str, str, dict[str, Any], str, str]] = {
    "gpt2": (
        "GPT2LMHeadModel", "GPT2Config", {"vocab_size": 97, "n_embd": 32, "n_layer": 1, "n_head": 4},
        "transformer.wte", "lm_head",
    ),
    "bert": (
        "BertForMaskedLM", "BertConfig",
        {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64},
        "bert.embeddings.word_embeddings", "cls.predictions.decoder",
    ),
}  # fmt: skip


@pytest.fixture(params=TIED)
def tied(request: pytest.FixtureRequest) -> tuple[nn.Module, str, str]:
    transformers = need_package("transformers")
    transformers.logging.set_verbosity_error()
    model, config, arguments, table, head = TIED[request.param]
    return getattr(transformers, model)(getattr(transformers, config)(**arguments)).eval(), table, head


@pytest.mark.filterwarnings("default")  # transformers warns of much that is not ours
@pytest.mark.parametrize("recipe", ["paper", "balanced"])
def test_head_that_is_tied_to_an_embedding_has_a_row_of_its_own(tied, recipe):
    model, table, head = tied
    before = model.get_submodule(head).weight.detach().clone()
    report = lsuv_(model, IDS, recipe=recipe)
    assert row(report, table).reason == "used earlier in the pass, by embedding"
    assert row(report, head).reason == f"the weight of {table!r}; used earlier in the pass, by embedding"
    assert row(report, head).std_after == row(report, table).std_after
    assert report.ties == {head: table}
    assert torch.equal(model.get_submodule(head).weight, before)
    assert head in str(report)


@pytest.mark.filterwarnings("default")
def test_survey_shows_the_tied_head_under_both_names(tied):
    model, table, head = tied
    stds = {r.name: r.std for r in survey(model, IDS).layers}
    assert stds[head] == stds[table]


@pytest.mark.filterwarnings("default")
def test_layers_takes_each_name_of_a_tied_head(tied):
    model, table, head = tied
    for given in ([head], [table], [f"*{head[-6:]}"], [model.get_submodule(head)]):
        reasons = {r.name: r.reason for r in lsuv_(model, IDS, layers=given).layers}
        assert "not selected by `layers`" not in reasons[head] + reasons[table]
        rest = {reason for name, reason in reasons.items() if name not in (table, head)}
        assert rest == {"not selected by `layers`"}


# Small nets


class TwoPaths(nn.Module):
    """One encoder, held by both of its users and by the net itself."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Sequential(nn.Linear(8, 8)), nn.Sequential(nn.ReLU())
        self.right.append(self.left[0])
        self.shared = self.left[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.right(self.left(x))


def two_paths() -> tuple[nn.Module, list[str]]:
    return TwoPaths(), ["left.0", "right.1", "shared"]


def shared_block() -> tuple[nn.Module, list[str]]:
    block = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    return nn.Sequential(block, block, nn.Linear(8, 8)), ["0.0", "1.0"]


def tied_modules() -> tuple[nn.Module, list[str]]:
    net = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    net[2].weight = net[0].weight
    return net, ["0", "2"]


def tied_parameter() -> tuple[nn.Module, list[str]]:
    net = Net(lambda net, x: F.linear(net.a(x).tanh(), net.w.t()), a=nn.Linear(8, 8))
    net.w = net.a.weight
    return net, ["w", "a"]


SMALL = {
    "a module reached by three paths": two_paths,
    "a block used twice": shared_block,
    "two modules": tied_modules,
    "a parameter beside its module": tied_parameter,
}


@pytest.mark.parametrize("case", SMALL)
def test_weight_at_work_under_several_names_has_a_row_under_each(case):
    net, names = SMALL[case]()
    x = torch.randn(128, 8)
    report = lsuv_(net, x)
    rows = [row(report, name) for name in names]
    assert {(r.status, r.scale, r.uses) for r in rows} == {("scaled", rows[0].scale, 2)}
    assert [r.std_after for r in rows] == [pytest.approx(1, abs=1.1e-3)] * len(names)
    assert all(r.reason.startswith(f"the weight of {names[0]!r}") for r in rows[1:])
    assert report.ties == dict.fromkeys(names[1:], names[0])
    assert report.summary().startswith(f"LSUV: {len(net) - 1 if case == 'a block used twice' else 1} of ")


@pytest.mark.parametrize("case", SMALL)
def test_survey_of_a_weight_at_work_under_several_names_shows_each_use_under_each(case):
    net, names = SMALL[case]()
    stds: dict[str, list[float]] = {}
    for r in survey(net, torch.randn(128, 8)).layers:
        stds.setdefault(r.name, []).append(r.std)
    assert all(len(stds[name]) == 2 and stds[name] == stds[names[0]] for name in names)


@pytest.mark.parametrize("case", SMALL)
def test_layers_takes_each_name_of_a_weight(case):
    for i in range(len(SMALL[case]()[1])):
        net, names = SMALL[case]()
        report = lsuv_(net, torch.randn(128, 8), layers=[names[i]])
        assert {row(report, name).status for name in names} == {"scaled"}
        assert {r.status for r in report.layers if r.name not in names} <= {"left alone"}


def test_std_takes_each_name_of_a_weight():
    for name in ("0", "2"):
        net, x = tied_modules()[0], torch.randn(128, 8)
        lsuv_(net, x, std={name: 0.5})
        both = torch.cat([net[0](x), net(x)])
        assert std(both) == pytest.approx(0.5, abs=6e-4)
