"""Code that people write and simple tests miss: each gave a wrong weight, a wrong reason or a crash once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from paper import lsuv_
from torch import nn
from torch.func import grad, jacfwd, vmap
from torch.nn.utils import parametrize, prune

from lsuvcb import LSUVError, survey
from lsuvcb.engine import NoLayersError

UNFED = "constant output: its input is all zero at its first use, where no scale shows"


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def batch(*shape):
    return torch.randn(*(shape or (256, 32)), generator=torch.Generator().manual_seed(1))


def rows(report):
    return {row.name: (row.status, row.reason) for row in report.layers}


def std(y):
    return y.detach().std(correction=0).item()


ONE = pytest.approx(1, abs=1e-3)
SCALED = ("scaled", "")

# Weights that something else holds too


class Constrained(nn.Linear):
    """Its trainer keeps the rows of its weight below max_norm."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.max_norm = 1.0


class TiedByBuffer(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(32, 16)
        self.register_buffer("decoder", self.encoder.weight.detach().t(), persistent=False)

    def forward(self, x):
        return F.linear(self.encoder(x).relu(), self.decoder)


@pytest.mark.parametrize("verify", [True, False])
def test_weight_of_a_module_with_a_max_norm_keeps_its_scale(verify):
    model, x = nn.Sequential(Constrained(32, 32), nn.ReLU(), Constrained(32, 32)), batch()
    assert set(rows(lsuv_(model, x, verify=verify)).values()) == {SCALED}
    assert (std(model[0](x)), std(model(x))) == (ONE, ONE)


def test_embedding_with_a_max_norm_that_is_used_as_a_weight_keeps_its_scale():
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(20, 32, max_norm=1.0)

        def forward(self, x):
            return F.linear(x, self.table.weight)

    model, x = Head(), batch()
    assert lsuv_(model, x).converged
    assert std(model(x)) == ONE


@pytest.mark.parametrize("verify", [True, False])
def test_weight_whose_memory_a_buffer_shares_keeps_its_scale(verify):
    model, x = TiedByBuffer(), batch()
    assert rows(lsuv_(model, x, verify=verify)) == {"encoder": SCALED}
    assert std(model.encoder(x)) == ONE
    assert torch.equal(model.decoder, model.encoder.weight.t())


def test_weight_whose_memory_a_buffer_shares_is_put_back_after_a_failure():
    model, calls = TiedByBuffer(), []

    def forward(model, x):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return model(x)

    before = {k: v.clone() for k, v in (model.state_dict() | dict(model.named_buffers())).items()}
    with pytest.raises(KeyboardInterrupt):
        lsuv_(model, batch(), forward=forward)
    after = model.state_dict() | dict(model.named_buffers())
    assert all(torch.equal(after[k], v) for k, v in before.items())


# Weights that are another op's input


class Memory(nn.Module):
    def __init__(self, use):
        super().__init__()
        self.memory, self.value, self.use = nn.Parameter(torch.randn(40, 32)), nn.Linear(32, 16), use

    def forward(self, x):
        scores = F.linear(x, self.memory).softmax(-1)
        self.values = self.use(self.value, self.memory)
        return scores @ self.values


@pytest.mark.parametrize(
    "use",
    [
        lambda value, memory: value(memory),
        lambda value, memory: value(memory.repeat(1, 1)),
        lambda value, memory: F.linear(input=memory, weight=value.weight, bias=value.bias),
    ],
    ids=["linear", "repeated", "keywords"],
)
@pytest.mark.parametrize("verify", [True, False])
def test_weight_that_is_another_layers_input_is_taken_with_its_new_values(use, verify):
    model, x = Memory(use), batch()
    assert rows(lsuv_(model, x, verify=verify)) == {"memory": SCALED, "value": SCALED}
    model(x)
    assert std(model.values) == ONE


def test_solved_weight_in_a_list_beside_learned_queries_is_scaled_once():
    class Queried(nn.Module):
        def __init__(self):
            super().__init__()
            self.queries, self.w, self.head = (
                nn.Parameter(torch.randn(6, 32)),
                nn.Parameter(torch.randn(32, 16)),
                nn.Linear(16, 4),
            )

        def forward(self, x):
            self.y = self.head(torch.einsum("bqi,io->bqo", [self.queries.expand(64, 6, 32), self.w]))
            return x @ self.w, self.y

    class Later(Queried):
        def forward(self, x):
            first = x @ self.w
            return first, super().forward(x)[1]

    model, x = Later(), batch(64, 32) * 3
    lsuv_(model, x, orthonormal=False, verify=False)
    first = model(x)[0]
    second = torch.einsum("bqi,io->bqo", model.queries.expand(64, 6, 32), model.w)
    assert std(torch.cat([first.flatten(), first.flatten(), second.flatten()])) == ONE  # it is used three times
    assert std(model.y) == ONE


def test_memory_of_an_attention_is_taken_with_its_new_values():
    class Attended(nn.Module):
        def __init__(self):
            super().__init__()
            self.memory, self.attention = nn.Parameter(torch.randn(8, 32)), nn.MultiheadAttention(32, 4)

        def forward(self, x):
            scores = F.linear(x, self.memory)
            self.y, _ = self.attention(self.memory, self.memory, self.memory)
            return scores @ self.y

    model, x = Attended(), batch()
    report = rows(lsuv_(model, x, verify=False))
    assert report["attention.out_proj"] == SCALED
    model(x)
    assert std(model.y) == ONE


# Biases of other shapes and kinds


def test_bias_of_two_dimensions_is_no_row_of_its_own():
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.b = nn.Parameter(torch.randn(32, 16)), nn.Parameter(torch.randn(1, 16))

        def forward(self, x):
            return torch.addmm(self.b, x, self.w)

    model, x = Product(), batch()
    assert rows(lsuv_(model, x)) == {"w": SCALED}
    assert std(model(x)) == ONE


def test_block_whose_bias_is_a_buffer_keeps_its_new_bias():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(32, 32) * 0.1)
            self.register_buffer("bias", torch.ones(32))

        def forward(self, x):
            return F.linear(x, self.weight, self.bias)

    model, x = nn.Sequential(Block(), nn.ReLU(), Block()), batch()
    buffer = model[0].bias
    assert lsuv_(model, x, layers=Block, mean=0.0).converged
    y = model[0](x).detach()
    assert (std(y), y.mean().item(), std(model(x))) == (ONE, pytest.approx(0, abs=1e-3), ONE)
    assert model[0].bias is buffer


class Wrapped(nn.Module):
    """As adapters do it: the weight and the bias of the layer inside, to read."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(32, 32)

    weight = property(lambda self: self.base.weight)
    bias = property(lambda self: self.base.bias)

    def forward(self, x):
        return self.base(x)


def test_wrapper_that_shows_its_layers_parameters_is_no_block():
    model, x = nn.Sequential(Wrapped(), nn.ReLU(), nn.Linear(32, 4)), batch()
    assert rows(lsuv_(model, x, layers=lambda module: hasattr(module, "weight"))) == {"0.base": SCALED, "2": SCALED}


def test_layers_with_computed_biases_are_no_blocks():
    class Half(nn.Module):
        def forward(self, b):
            return b / 2

    model, x = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4), nn.Tanh(), nn.Linear(4, 4)), batch()
    parametrize.register_parametrization(model[0], "bias", Half())
    prune.random_unstructured(model[2], "bias", 0.5)
    found = rows(lsuv_(model, x, layers=nn.Linear))
    assert found["2"] == found["4"] == SCALED  # a mask on a bias is linear in it
    assert found["0"][0] == "left alone"
    assert "bias is computed by Half" in found["0"][1]


def test_expanded_parameter_is_left_alone():
    model, x = Taken(torch.randn(1, 32).expand(16, 32), lambda x, w: F.linear(x, w)), batch()
    model.layer = nn.Linear(32, 4)
    model.take = lambda x, w: model.layer(x) + F.linear(x, w).mean()
    reason = "several of its values are one place in memory (an expanded tensor)"
    assert rows(lsuv_(model, x)) == {"layer": SCALED, "w": ("left alone", reason)}


# Gradients inside the forward


@pytest.mark.parametrize("orthonormal", [True, False])
def test_forward_that_adapts_its_weights_by_their_gradient_runs(orthonormal):
    class Adapted(nn.Module):
        def __init__(self):
            super().__init__()
            self.fast, self.head = nn.Linear(32, 32), nn.Linear(32, 4)

        def forward(self, x):
            with torch.enable_grad():
                loss = self.fast(x).square().mean()
                weight, bias = torch.autograd.grad(loss, [self.fast.weight, self.fast.bias])
            return self.head(F.linear(x, self.fast.weight - 0.1 * weight, self.fast.bias - 0.1 * bias))

    model, x = Adapted(), batch()
    found = rows(lsuv_(model, x, orthonormal=orthonormal, verify=False))
    assert found["fast"] == SCALED
    assert std(model.fast(x)) == ONE
    assert all(p.grad is None for p in model.parameters())


# Numbers at the end of their range


def test_weight_that_a_scale_would_make_infinite_is_an_error_and_stays():
    model, x = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 8)), batch(64, 256)
    with torch.no_grad():
        model[0].weight.mul_(1e-15)
        model[0].bias.zero_()
        model[0].weight[:, 0] = 1e25  # for an input that is zero in this batch
    x[:, 0] = 0
    before = model[0].weight.clone()
    with pytest.raises(LSUVError, match=r"which torch\.float32 cannot hold"):
        lsuv_(model, x, orthonormal=False)
    assert torch.equal(model[0].weight, before)


def test_weight_in_half_precision_that_a_scale_would_make_infinite_is_an_error():
    layer, x = nn.Linear(32, 32, bias=False).half(), batch().half()
    with torch.no_grad():
        layer.weight[:, 0] = 6e4
    x[:, 0] = 0
    with pytest.raises(LSUVError, match=r"which torch\.float16 cannot hold"):
        lsuv_(layer, x, orthonormal=False)


# Parametrizations, transforms, modules that do not run, odd tensors


class Symmetric(nn.Module):
    def forward(self, w):
        return w.triu() + w.triu(1).mT

    def right_inverse(self, w):
        return w.triu()


class Picky(Symmetric):
    def right_inverse(self, w):
        assert torch.equal(w, w.mT), "not symmetric"
        return w.triu()


@pytest.mark.parametrize("kind", [Symmetric, Picky])
def test_parametrization_that_takes_no_orthonormal_draw_is_only_scaled(kind):
    model, x = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32)), batch()
    with torch.no_grad():
        model[0].weight.copy_(Symmetric()(model[0].weight))
    parametrize.register_parametrization(model[0], "weight", kind())
    before = model[0].weight.detach().clone()
    found = rows(lsuv_(model, x))
    assert found["0"] == ("scaled", f"computed by {kind.__name__}, which takes no orthonormal draw: only scaled")
    assert found["2"] == SCALED
    ratio = model[0].weight.detach() / before
    assert torch.allclose(ratio, ratio.mean(), rtol=1e-4)
    assert (std(model[0](x)), std(model(x))) == (ONE, ONE)


class Physics(nn.Module):
    """Derivatives of a net by its input, as physics-informed nets need them."""

    def __init__(self, derivative):
        super().__init__()
        self.first, self.second, self.derivative = nn.Linear(2, 32), nn.Linear(32, 1), derivative

    def forward(self, x):
        return vmap(self.derivative(lambda z: self.second(self.first(z).tanh()).squeeze()))(x)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # jacfwd imports it
@pytest.mark.parametrize("derivative", [grad, lambda f: grad(lambda z: grad(f)(z).sum()), jacfwd])
@pytest.mark.parametrize("orthonormal", [True, False])
def test_layers_under_vmap_and_other_transforms_are_left_alone(derivative, orthonormal):
    model = Physics(derivative)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(NoLayersError, match=r"used under torch\.vmap.*: 'first', 'second'"):
        lsuv_(model, batch(64, 2), orthonormal=orthonormal)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_lazy_module_that_does_not_run_is_passed_over():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.extra = nn.LazyLinear(16), nn.LazyLinear(4)

        def forward(self, x, extra=False):
            y = self.body(x)
            return self.extra(y) if extra else y

    model, x = Heads(), batch()
    assert rows(lsuv_(model, x)) == {"body": SCALED}
    assert len(survey(model, x).layers) == 1
    assert model(x, extra=True).shape == (256, 4)


@pytest.mark.parametrize(
    "odd",
    [
        torch.eye(64).to_sparse(),
        torch.zeros(4, 4, dtype=torch.float8_e4m3fn),
        torch.zeros(4, 4, dtype=torch.uint16),
        torch.zeros(4, 4, dtype=torch.complex64),
    ],
    ids=["sparse", "float8", "uint16", "complex"],
)
def test_parameters_of_odd_kinds_that_do_nothing_are_named(odd):
    model, x = nn.Sequential(nn.Linear(32, 16)), batch()
    model.odd = nn.Parameter(odd, requires_grad=False)
    model.forward = lambda x: model[0](x)
    assert rows(lsuv_(model, x)) == {"0": SCALED, "odd": ("left alone", "not used in this pass")}


@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_layers_with_nested_outputs_are_left_alone(layout):
    class Ragged(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(32, 16), nn.Linear(32, 4)

        def forward(self, x):
            self.nested = self.first(torch.nested.nested_tensor([x[:3], x[3:8]], layout=layout))
            return self.last(x)

    assert rows(lsuv_(Ragged(), batch())) == {"first": ("left alone", "its output is a nested tensor"), "last": SCALED}


class Taken(nn.Module):
    def __init__(self, weight, take):
        super().__init__()
        self.w, self.take = nn.Parameter(weight), take

    def forward(self, x):
        return self.take(x, self.w)


@pytest.mark.parametrize(
    ("weight", "take"),
    [
        (torch.randn(16, 32).t(), lambda x, w: F.linear(x, w.t()[:])),
        (torch.randn(32, 16), lambda x, w: F.conv1d(x[:, :, None], w.t()[:, :, None])),
        (torch.randn(16, 32), lambda x, w: F.linear(x, w[...])),
    ],
    ids=["not contiguous", "transposed and indexed", "plain"],
)
def test_whole_weight_through_indexing_is_no_part(weight, take):
    model, x = Taken(weight, take), batch()
    assert rows(lsuv_(model, x)) == {"w": SCALED}
    assert std(model(x)) == ONE


def test_rows_of_a_weight_are_a_part():
    model = Taken(torch.randn(16, 32), lambda x, w: F.linear(x, w[[0] * 16]))
    assert rows(lsuv_(model, batch()))["w"][0] == "left alone"


# What an activation and a first input are


@pytest.mark.parametrize(
    "look",
    [
        lambda h: torch.ones(1).type_as(h),
        lambda h: torch.ones(1).expand_as(h),
        lambda h: torch.ones(1).to(h),
        lambda h: h.is_nested,
    ],
    ids=["type_as", "expand_as", "to", "is_nested"],
)
def test_output_as_a_template_is_not_consumed(look):
    class Looked(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(32, 32)

        def forward(self, x):
            h = self.layer(x)
            look(h)
            return F.relu(h)

    model, x = Looked(), batch()
    assert rows(lsuv_(model, x, measure="activation")) == {"layer": SCALED}
    assert std(model(x)) == ONE


@pytest.mark.parametrize("activation", [nn.SiLU, nn.GELU])
@pytest.mark.parametrize("samples", [4, 64])
def test_small_targets_within_the_dip_of_an_activation_are_reached(activation, samples):
    model, x = nn.Sequential(nn.Linear(32, 16), activation()), batch(samples, 32)
    report = lsuv_(model, x, measure="activation", std=0.1, mean=0.0)
    y = model(x).detach()
    assert report.converged
    assert (std(y), y.mean().item()) == (pytest.approx(0.1, abs=1e-3), pytest.approx(0, abs=1e-3))


def test_bilinear_with_one_zero_factor_is_left_alone():
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Bilinear(8, 32, 16)

        def forward(self, x):
            return self.layer(x.new_zeros(len(x), 8), x)

    model = Gate()
    before = model.layer.weight.clone()
    assert rows(lsuv_(model, batch(), orthonormal=False)) == {"layer": ("left alone", UNFED)}
    assert torch.equal(model.layer.weight, before)


# State that a forward leaves behind


def test_child_that_its_parent_makes_ready_is_made_ready_in_each_pass():
    class Child(nn.Module):
        pass

    class Parent(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.child, self.ready = nn.Linear(32, 16), Child(), False

        def forward(self, x):
            if not self.ready:
                self.child.register_buffer("offset", torch.ones(16))
                self.ready = True
            return self.layer(x) + self.child.offset

    model, x = Parent(), batch()
    assert lsuv_(model, x).converged
    assert (model.ready, dict(model.child.named_buffers())) == (False, {})
    assert std(model(x) - 1) == ONE


def test_batch_object_that_the_model_writes_into_is_cloned_for_each_pass():
    class Graph:
        def __init__(self, x):
            self.x = x

        def clone(self):
            return Graph(self.x.clone())

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, graph):
            graph.x = self.first(graph.x).relu()
            graph.x = self.second(graph.x)
            return graph

    model, graph = Net(), Graph(batch())
    x = graph.x
    assert lsuv_(model, graph).converged
    assert graph.x is x
    assert std(model(graph.clone()).x) == ONE


# Precision


def test_head_in_float32_behind_layers_in_bfloat16_is_held_to_what_they_allow():
    class Island(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 64)), nn.Linear(64, 4)

        def forward(self, x):
            h = self.body(x)
            with torch.autocast("cpu", enabled=False):
                return self.head(h.float())

    for seed in range(20):
        torch.manual_seed(seed)
        with torch.autocast("cpu", torch.bfloat16):
            report = lsuv_(Island(), batch(64, 32))
        assert report.converged, seed
        assert all(abs(row.std_after - 1) < 1e-2 for row in report.layers)
