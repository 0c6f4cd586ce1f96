"""Kinds of weight and of model that other tests do not name: what happens to each stands here."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from paper import lsuv_
from probe import probed
from small_nets import Net, matrix
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from traces import weights_of

from lsuvcb.engine import LSUVReport, NoLayersError
from lsuvcb.engine.errors import LSUVWarning

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(5))
BOTH = pytest.mark.parametrize("orthonormal", [True, False])


def rows(report: LSUVReport) -> dict[str, tuple[str, str]]:
    return {r.name: (r.status, r.reason) for r in report.layers}


def std(value: Tensor) -> float:
    return value.detach().double().std(correction=0).item()


def old_weight_norm(layer: nn.Module) -> nn.Module:
    with pytest.warns(FutureWarning, match="weight_norm"):
        return nn.utils.weight_norm(layer)


NORMS = {"parametrized": parametrizations.weight_norm, "old hook": old_weight_norm}


@BOTH
@pytest.mark.parametrize("form", NORMS)
@pytest.mark.parametrize("layer", [lambda: nn.Linear(6, 8), lambda: nn.Conv1d(6, 8, 1)], ids=["linear", "conv"])
def test_lsuv_weight_norm_is_scaled_by_way_of_its_originals(form, layer, orthonormal, undisturbed):
    torch.manual_seed(1)
    net = nn.Sequential(NORMS[form](layer()))
    x = X[:, :, None].expand(-1, -1, 3) if isinstance(net[0], nn.Conv1d) else X
    with undisturbed(net, draws=orthonormal):
        report = lsuv_(net, x, orthonormal=orthonormal)
    assert rows(report) == {"0": ("scaled", "")}
    assert std(net(x)) == pytest.approx(1, abs=1e-3)
    assert {name.rpartition(".")[2] for name, _ in net.named_parameters()} >= (
        {"original0", "original1"} if form == "parametrized" else {"weight_g", "weight_v"}
    )


@BOTH
@pytest.mark.parametrize("norm", [parametrizations.spectral_norm, nn.utils.spectral_norm, parametrizations.orthogonal])
def test_lsuv_weight_of_a_fixed_size_is_left_alone_and_the_next_layer_is_scaled(norm, orthonormal, undisturbed):
    # the parametrization divides every scale out again
    net = nn.Sequential(norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 4)).eval()
    before = {k: v for k, v in weights_of(net).items() if not k.startswith("state_dict 2.")}
    with undisturbed(net, draws=orthonormal):
        report = lsuv_(net, X, orthonormal=orthonormal)
    found = rows(report)
    assert found["0"][0] == "left alone"
    assert found["0"][1].startswith("computed by ")
    assert found["0"][1].endswith("which does not take a scaled weight")
    assert found["2"] == ("scaled", "")
    assert {k: v for k, v in weights_of(net).items() if k in before} == before
    assert std(net(X)) == pytest.approx(1, abs=1e-3)


@BOTH
def test_lsuv_layer_shared_across_depth_is_scaled_once_and_its_uses_counted(orthonormal):
    block = nn.Sequential(nn.Linear(6, 6), nn.Tanh())  # ALBERT: one block, run again and again
    net = Net(lambda net, x: net.head(net.block(net.block(net.block(x)))), block=block, head=nn.Linear(6, 3))
    report = lsuv_(net, X, orthonormal=orthonormal)
    assert rows(report)["head"] == ("scaled", "")
    uses = [s.std for s in probed(net, X)["block.0"]]
    assert rows(report)["block.0"] == ("scaled", f"std {min(uses):.3g} to {max(uses):.3g} over 3 uses")
    assert [r.uses for r in report.layers] == [3, 1]
    h = block(X)
    assert std(torch.cat([block[0](X), block[0](h), block[0](block(h))])) == pytest.approx(1, abs=1e-3)
    assert std(net(X)) == pytest.approx(1, abs=1e-3)  # the head saw what the later uses give


@BOTH
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_lsuv_transformer_encoder_fast_path_or_not(batch_first, training, orthonormal, undisturbed):
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=batch_first)
    net = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).train(training)
    x = torch.randn(5, 16, 8)
    with undisturbed(net, draws=orthonormal):
        report = lsuv_(net, x, orthonormal=orthonormal)
    found = rows(report)
    assert {name for name, (status, _) in found.items() if status == "left alone"} == {
        f"layers.{i}.self_attn.in_proj_weight" for i in (0, 1)
    }
    assert [r.std_after for r in report.layers if r.status == "scaled"] == pytest.approx([1.0] * 6, abs=1e-3)


def test_lsuv_quantized_layer_is_no_weight_at_work_and_its_neighbours_are_scaled():
    class Quantized(nn.Module):
        """int8 weights and a scale, as a quantized checkpoint has them."""

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("q", torch.randint(-127, 127, (8, 6), dtype=torch.int8))
            self.register_buffer("s", torch.tensor(0.01))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.q.float() * self.s)

    net = nn.Sequential(Quantized(), nn.Linear(8, 4))
    before = net[0].q.clone()
    assert rows(lsuv_(net, X)) == {"1": ("scaled", "")}
    assert torch.equal(net[0].q, before)


def test_lsuv_quantized_weight_that_is_a_parameter_is_named():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.14 deprecates these types; others do not yet
        weight = nn.Parameter(torch.quantize_per_tensor(torch.randn(8, 6), 0.1, 0, torch.qint8), requires_grad=False)
    net = Net(lambda net, x: net.b(F.linear(x, net.q.dequantize())), b=nn.Linear(8, 4))
    net.q = weight
    found = rows(lsuv_(net, X, orthonormal=False))
    assert found["b"] == ("scaled", "")
    assert found["q"][0] == "left alone"


def test_lsuv_dynamically_quantized_model_has_no_layer_and_says_so():
    net = nn.Sequential(nn.Linear(6, 6))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        quantized = torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(NoLayersError, match="no weight at work was found"):
        lsuv_(quantized, X)


@dataclass
class Output:
    logits: Tensor
    hidden: list[Tensor]


GIVES = {
    "a tuple": lambda net, x: (net.a(x), net.b(net.a(x))),
    "a dict": lambda net, x: {"out": net.b(net.a(x))},
    "a dataclass": lambda net, x: Output(net.b(h := net.a(x)), [h]),
    "nothing": lambda net, x: (net.b(net.a(x)), None)[1],
}


@pytest.mark.parametrize("gives", GIVES)
def test_lsuv_model_may_give_anything(gives):
    report = lsuv_(Net(GIVES[gives], a=nn.Linear(6, 8), b=nn.Linear(8, 4)), X)
    assert rows(report) == {"a": ("scaled", ""), "b": ("scaled", "")}


def test_lsuv_forward_that_branches_on_its_data_takes_the_branch_that_training_takes():
    # As it stands the first output is small and goes to the right; scaled to unit std it goes to the left.
    net = Net(
        lambda net, x: net.left(h) if (h := net.stem(x)).std() > 0.5 else net.right(h),
        stem=nn.Linear(6, 8), left=nn.Linear(8, 4), right=nn.Linear(8, 4),
    )  # fmt: skip
    nn.init.normal_(net.stem.weight, std=1e-3)
    found = rows(lsuv_(net, X, orthonormal=False))
    assert found["stem"] == found["left"] == ("scaled", "")
    assert found["right"] == ("left alone", "not used in this pass")


def test_lsuv_several_inputs_and_keywords():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Linear(6, 8), nn.Linear(3, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor, *, extra: dict[str, Tensor]) -> Tensor:
            return self.out(torch.relu(self.a(x) + self.b(extra["y"])))

    report = lsuv_(Two(), {"x": X, "extra": {"y": torch.randn(64, 3)}})
    assert set(rows(report).values()) == {("scaled", "")}


@BOTH
def test_lsuv_batch_of_one_is_enough_where_one_sample_has_a_spread(orthonormal):
    net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32))
    with pytest.warns(LSUVWarning, match="the batch holds one sample"):
        lsuv_(net, X[:1], orthonormal=orthonormal)
    assert std(net(X[:1])) == pytest.approx(1, abs=1e-3)


def test_lsuv_batch_of_one_and_one_output_is_constant_and_left_alone():
    net = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 1))
    with pytest.warns(LSUVWarning, match="the batch holds one sample"):
        found = rows(lsuv_(net, X[:1], orthonormal=False))
    assert found["0"] == ("scaled", "")
    assert found["1"][0] == "left alone"
    assert found["1"][1].startswith("constant output")


@BOTH
def test_lsuv_submodule_compiled_in_place_is_seen(orthonormal):
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    net[0].compile(backend="eager")
    net(X)
    assert rows(lsuv_(net, X, orthonormal=orthonormal)) == {"0": ("scaled", ""), "2": ("scaled", "")}
    assert std(net(X)) == pytest.approx(1, abs=1e-3)


@BOTH
def test_lsuv_mean_without_a_bias_is_said_at_each_layer_that_has_none(orthonormal):
    net = nn.Sequential(nn.Conv1d(6, 8, 1, bias=False), nn.Tanh(), nn.Conv1d(8, 4, 1))
    x = torch.randn(16, 6, 5)
    found = rows(lsuv_(net, x, mean=0.25, orthonormal=orthonormal))
    assert found == {"0": ("scaled", "no bias: mean not moved"), "2": ("scaled", "")}
    assert net(x).mean().item() == pytest.approx(0.25, abs=1e-3)


def test_lsuv_mixture_of_experts_as_one_stack_and_its_router():
    net = Net(
        lambda net, x: torch.einsum("ne,neo->no", (x @ net.router).softmax(-1), torch.einsum("ni,eio->neo", x, net.experts)),
        router=matrix(6, 3), experts=torch.randn(3, 6, 8) * 0.01,
    )  # fmt: skip
    report = lsuv_(net, X, orthonormal=False)
    assert rows(report) == {"router": ("scaled", ""), "experts": ("scaled", "")}
    assert std(torch.einsum("ni,eio->neo", X, net.experts)) == pytest.approx(1, abs=1e-3)
