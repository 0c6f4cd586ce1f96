"""Real nets, from a 200-layer MLP to a vision transformer: every weight at its target or named, in one pass, no trace."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision.models as tv
from paper import lsuv_
from probe import Seen, forwards, probed, report_name
from small_nets import Net, matrix, relu_mlp
from torch import nn
from traces import bits, differences, rng, traces, weights_of

from lsuvcb.engine import LSUVReport


def bare(width: int = 24) -> nn.Module:
    """No module but the root: plain matrices, `@`, a convolution and a batched product."""

    def run(net, x):
        x = torch.relu(x @ net.w1 + net.b1)
        x = torch.tanh(torch.addmm(net.b2, x, net.w2.t()))
        experts = torch.bmm(x.reshape(4, -1, width), net.experts).reshape(-1, width)
        image = F.conv2d(experts.reshape(-1, 1, 4, width // 4), net.kernel, padding=1)
        return torch.einsum("nchw,cd->nd", image, net.head)

    return Net(
        run, w1=matrix(16, width), b1=torch.zeros(width), w2=matrix(width, width), b2=torch.ones(width),
        experts=torch.randn(4, width, width), kernel=torch.randn(3, 1, 3, 3), head=matrix(3, 5),
    )  # fmt: skip


def vit() -> nn.Module:
    model = tv.vit_b_16()
    nn.init.xavier_uniform_(model.heads.head.weight)  # torchvision leaves it zero, and LSUV would leave it alone
    return model


@dataclass(frozen=True)
class Case:
    """How to build it, its batch's shape, its linear weights counted by hand, and those (patterns) to be left alone."""

    make: Any
    shape: tuple[int, ...]
    count: int
    left: tuple[str, ...] = ()


MODELS = {
    "relu_mlp_200": Case(lambda: relu_mlp(200), (64, 32), 200),
    "bare_parameters": Case(bare, (64, 16), 5),
    "resnet18": Case(tv.resnet18, (4, 3, 64, 64), 21),
    "resnet50": Case(tv.resnet50, (4, 3, 64, 64), 54),
    "vgg11": Case(tv.vgg11, (2, 3, 64, 64), 11),
    "densenet121": Case(tv.densenet121, (4, 3, 64, 64), 121),
    "efficientnet_b0": Case(tv.efficientnet_b0, (4, 3, 64, 64), 82),
    "mobilenet_v3_large": Case(tv.mobilenet_v3_large, (4, 3, 64, 64), 64),
    "squeezenet1_0": Case(tv.squeezenet1_0, (4, 3, 64, 64), 26),
    "convnext_tiny": Case(tv.convnext_tiny, (4, 3, 64, 64), 59, ("features.*.layer_scale",)),
    "swin_t": Case(tv.swin_t, (2, 3, 64, 64), 53, ("*.relative_position_bias_table",)),
    "vit_b_16": Case(vit, (2, 3, 224, 224), 38, ("*.in_proj_weight", "class_token", "encoder.pos_embedding")),
}
SMALL = ["relu_mlp_200", "bare_parameters", "resnet18", "mobilenet_v3_large", "squeezenet1_0"]


@dataclass
class Outcome:
    model: nn.Module
    report: LSUVReport
    case: Case
    passes: dict[str, int]
    disturbed: dict[str, list[str]]
    seen: dict[str, list[Seen]]


def run(name: str, **arguments: Any) -> Outcome:
    """lsuv_ with verify=True, a fresh look, then lsuv_ again with verify=False on what is initialised by now."""
    case = MODELS[name]
    torch.manual_seed(0)
    model, x = case.make().eval(), torch.randn(case.shape)
    passes, disturbed = {}, {}
    drawn = arguments.get("orthonormal", True)

    def look() -> dict[str, Any]:
        return traces(model) | (rng() if not drawn else {})

    before = look()
    with forwards(model) as calls:
        inside = traces(model)  # the counter is a hook itself
        report = lsuv_(model, x, **arguments)
        disturbed["during verify=True"] = differences(inside, traces(model))
        passes["verify=True"] = len(calls)
    disturbed["verify=True"] = differences(before, look())
    seen = probed(model, x)
    if not drawn:
        before = look() | weights_of(model)
        with forwards(model) as calls:
            lsuv_(model, x, **arguments, verify=False)
            passes["verify=False"] = len(calls)
        disturbed["second run"] = differences(before, look() | weights_of(model))
    return Outcome(model, report, case, passes, disturbed, seen)


@pytest.fixture(scope="module", params=MODELS)
def kept(request) -> Outcome:
    """With the weights that the model has."""
    return run(request.param, orthonormal=False)


@pytest.fixture(scope="module", params=SMALL)
def drawn(request) -> Outcome:
    """With orthonormal weights."""
    return run(request.param)


def check_unit_std(outcome: Outcome) -> None:
    at_target = [r for r in outcome.report.layers if r.status in ("scaled", "unchanged")]
    assert at_target
    off = {r.name: s.std for r in at_target if not abs((s := outcome.seen[r.name][0]).std - 1) <= 1e-3}
    assert off == {}


def check_all_named(outcome: Outcome) -> None:
    by_name = {r.name: r for r in outcome.report.layers}
    matrices = {report_name(outcome.model, n) for n, p in outcome.model.named_parameters() if p.ndim > 1}
    left = {n for n in matrices if any(fnmatchcase(n, pattern) for pattern in outcome.case.left)}
    assert set(by_name) == matrices
    assert len(by_name) == len(outcome.report.layers)
    assert {n for n, r in by_name.items() if r.status == "left alone"} == left
    assert all(by_name[n].reason for n in left)
    assert {by_name[n].status for n in matrices - left} <= {"scaled", "unchanged"}
    assert len(matrices - left) == outcome.case.count


def test_lsuv_real_model_has_unit_std_at_every_scaled_weight(kept):
    check_unit_std(kept)


def test_lsuv_real_model_names_every_weight_that_it_leaves_alone(kept):
    check_all_named(kept)


def test_lsuv_real_model_runs_three_times_with_verify_and_once_without(kept):
    assert kept.passes == {"verify=True": 3, "verify=False": 1}
    assert kept.report.passes == 3


def test_lsuv_real_model_is_undisturbed_and_a_second_run_changes_no_bit(kept):
    assert kept.disturbed == {"during verify=True": [], "verify=True": [], "second run": []}


def test_lsuv_real_model_report_tells_what_the_probe_sees(kept):
    for r in kept.report.layers:
        if r.std_after is not None and r.name in kept.seen:
            first = kept.seen[r.name][0]
            assert r.std_after == pytest.approx(first.std, abs=1e-4)
            assert r.mean_after == pytest.approx(first.mean, abs=1e-4)


def test_lsuv_real_model_reports_in_execution_order(kept):
    ran = [r.name for r in kept.report.layers if r.status != "left alone"]
    assert ran == [name for name in kept.seen if name in set(ran)]


def test_lsuv_real_model_names_are_dotted_paths(kept):
    for r in kept.report.layers:
        owner, _, last = r.name.rpartition(".")
        holder = kept.model.get_submodule(owner)
        found = getattr(holder, last)
        assert isinstance(found, nn.Parameter) or r.kind in [kind.__name__ for kind in type(found).__mro__[:2]]
        if not isinstance(found, nn.Parameter):
            assert isinstance(found.weight, nn.Parameter)


def test_lsuv_orthonormal_real_model_has_unit_std_at_every_weight(drawn):
    check_unit_std(drawn)
    check_all_named(drawn)
    assert drawn.passes["verify=True"] == 3
    assert drawn.disturbed == {"during verify=True": [], "verify=True": []}


def test_lsuv_orthonormal_real_model_has_orthonormal_weights_up_to_the_scale(drawn):
    for r in drawn.report.layers:
        weight = dict(drawn.model.named_parameters()).get(f"{r.name}.weight")
        weight = drawn.model.get_parameter(r.name) if weight is None else weight
        w = weight.detach().double() / r.scale
        stack = w if r.name == "experts" else w.flatten(1)[None]  # bmm's weight is a stack of matrices
        gram = stack @ stack.mT if stack.shape[-2] <= stack.shape[-1] else stack.mT @ stack
        torch.testing.assert_close(gram, torch.eye(gram.shape[-1]).double().expand_as(gram), atol=1e-4, rtol=0)


def test_lsuv_orthonormal_real_model_has_zero_biases_at_the_scaled_layers(drawn):
    checked = 0
    for r in drawn.report.layers:
        module = drawn.model.get_submodule(r.name) if r.kind in ("Linear", "Conv2d") else None
        if module is not None and module.bias is not None:
            assert not module.bias.any()
            checked += 1
    assert checked or not any(isinstance(m, nn.Linear) for m in drawn.model.modules())


def test_lsuv_real_model_in_train_mode_is_undisturbed(undisturbed):
    model, x = tv.mobilenet_v3_large(dropout=0.5), torch.randn(4, 3, 64, 64)
    statistics = bits(model.features[0][1].running_mean)
    with undisturbed(model):
        report = lsuv_(model, x, orthonormal=False)
    assert report.converged
    assert bits(model.features[0][1].running_mean) == statistics
