"""Every linear op, every way to hand it its weight: the output has unit std, by the op as it runs afterwards."""

import pytest
import torch
import torch.nn.functional as F
from paper import lsuv_
from small_nets import Net, matrix
from torch import nn

N, I, O = 48, 6, 5  # noqa: E741 - batch, in, out
X = torch.randn(N, I, generator=torch.Generator().manual_seed(5))
IMAGE = torch.randn(4, 6, 9, 9, generator=torch.Generator().manual_seed(6))


def taken(value):
    """Remember an output where the model makes it, so that nothing has to be known of the op."""
    KEPT.append(value)
    return value


KEPT: list[torch.Tensor] = []


def std_of(net, batch):
    KEPT.clear()
    with torch.no_grad():
        net(batch)
    return [k.double().std(correction=0).item() for k in KEPT]


def initialised(run, batch=X, orthonormal=True, **parts):
    net = Net(run, **parts)
    report = lsuv_(net, batch, orthonormal=orthonormal)
    assert std_of(net, batch) == pytest.approx([1] * len(KEPT), abs=1e-3)
    assert KEPT
    return net, {r.name: r for r in report.layers}


_DRAW = torch.Generator().manual_seed(7)
W, B = torch.randn(I, O, generator=_DRAW), (torch.rand(O, generator=_DRAW) * 2 - 1) / I**0.5  # as torch draws biases
OPS = {
    "linear": lambda net, x: F.linear(x, net.w.T, net.b),
    "linear by keyword": lambda net, x: F.linear(input=x, bias=net.b, weight=net.w.T),
    "@": lambda net, x: x @ net.w,
    "@ from the left": lambda net, x: net.w.T @ x.T,
    "matmul": lambda net, x: torch.matmul(x, net.w),
    "Tensor.matmul": lambda net, x: x.matmul(net.w),
    "linalg.matmul": lambda net, x: torch.linalg.matmul(x, net.w),
    "mm": lambda net, x: torch.mm(x, net.w),
    "Tensor.mm": lambda net, x: x.mm(net.w),
    "sparse.mm": lambda net, x: torch.sparse.mm(x.to_sparse(), net.w),
    "mm by keyword": lambda net, x: torch.mm(input=x, mat2=net.w),
    "addmm": lambda net, x: torch.addmm(net.b, x, net.w),
    "addmm with alpha": lambda net, x: torch.addmm(net.b, x, net.w, alpha=0.3),
    "Tensor.addmm": lambda net, x: net.b.addmm(x, net.w),
    "bmm": lambda net, x: torch.bmm(x.reshape(4, -1, I), net.w.expand(4, I, O)),
    "baddbmm": lambda net, x: torch.baddbmm(net.b, x.reshape(4, -1, I), net.w.repeat(4, 1, 1)),
    "einsum": lambda net, x: torch.einsum("ni,io->no", x, net.w),
    "einsum with a list": lambda net, x: torch.einsum("ni,io->no", [x, net.w]),
    "einsum of three": lambda net, x: torch.einsum("ni,io,n->no", x, net.w, x[:, 0]),
    "tensordot": lambda net, x: torch.tensordot(x, net.w, dims=1),
    "inner": lambda net, x: torch.inner(x, net.w.T),
    "out=": lambda net, x: torch.mm(x, net.w, out=torch.empty(len(x), O)),
}


@pytest.mark.parametrize("orthonormal", [True, False])
@pytest.mark.parametrize("op", OPS)
def test_lsuv_op_with_a_bare_matrix_has_unit_std(op, orthonormal):
    _, rows = initialised(lambda net, x: taken(OPS[op](net, x)), orthonormal=orthonormal, w=W.clone(), b=B.clone())
    assert (rows["w"].status, rows["w"].uses) == ("scaled", 1)


@pytest.mark.parametrize("orthonormal", [True, False])
def test_lsuv_vector_as_weight_has_unit_std(orthonormal):
    _, rows = initialised(lambda net, x: taken(torch.mv(x, net.v)), orthonormal=orthonormal, v=torch.randn(I))
    assert rows["v"].status == "scaled"


@pytest.mark.parametrize("orthonormal", [True, False])
def test_lsuv_stack_of_matrices_has_unit_std_and_orthonormal_members(orthonormal):
    net, rows = initialised(
        lambda net, x: taken(torch.bmm(x.reshape(4, -1, I), net.w)), orthonormal=orthonormal, w=torch.randn(4, I, O)
    )
    if orthonormal:
        w = net.w.detach() / rows["w"].scale
        torch.testing.assert_close(w.mT @ w, torch.eye(O).expand(4, O, O), atol=1e-5, rtol=0)


@pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this torch has no grouped_mm")
@pytest.mark.parametrize("orthonormal", [True, False])
def test_lsuv_grouped_experts_have_unit_std_and_orthonormal_members(orthonormal):
    # each of three experts multiplies its own rows, as transformers runs a mixture of experts
    ends = torch.tensor([16, 24, N], dtype=torch.int32)
    net, rows = initialised(
        lambda net, x: taken(F.grouped_mm(x, net.w.transpose(-2, -1), offs=ends)),
        X.repeat(1, 2)[:, :8].contiguous(), orthonormal, w=torch.randn(3, 4, 8),
    )  # fmt: skip
    assert rows["w"].status == "scaled"
    if orthonormal:
        w = net.w.detach() / rows["w"].scale
        torch.testing.assert_close(w @ w.mT, torch.eye(4).expand(3, 4, 4), atol=1e-5, rtol=0)


def conv(dims, transposed=False, **arguments):
    kind = getattr(nn, f"Conv{'Transpose' if transposed else ''}{dims}d")
    return lambda: (kind(6, 4, 3, **arguments), torch.randn(4, 6, *[7] * dims))


CONVS = {
    "1d": conv(1),
    "2d": conv(2),
    "3d": conv(3),
    "strided and dilated": conv(2, stride=2, dilation=2, padding=1),
    "grouped": conv(2, groups=2),
    "no bias": conv(2, bias=False),
    "reflected": conv(2, padding=1, padding_mode="reflect"),
    "same": conv(2, padding="same"),
    "transposed 1d": conv(1, True),
    "transposed 2d": conv(2, True, stride=2, output_padding=1),
    "transposed 3d": conv(3, True),
    "transposed and grouped": conv(2, True, groups=2),
    "depthwise": lambda: (nn.Conv2d(6, 12, 3, groups=6), IMAGE),
    "bilinear": lambda: (Net(lambda net, x: net.f(x, x.flip(0)), f=nn.Bilinear(6, 6, 4)), X),
    "linear on four dimensions": lambda: (nn.Linear(9, 4), IMAGE),
}


@pytest.mark.parametrize("orthonormal", [True, False])
@pytest.mark.parametrize("name", CONVS)
def test_lsuv_layer_of_this_kind_has_unit_std(name, orthonormal):
    layer, x = CONVS[name]()
    initialised(lambda net, x: taken(net.layer(x)), x, orthonormal, layer=layer)


@pytest.mark.parametrize("name", [n for n in CONVS if "linear" not in n])
def test_lsuv_orthonormal_layer_is_orthonormal_as_out_by_rest(name):
    layer, x = CONVS[name]()
    _, rows = initialised(lambda net, x: taken(net.layer(x)), x, layer=layer)
    (row,) = [r for r in rows.values() if r.status == "scaled"]
    w = next(p for p in layer.parameters() if p.ndim > 1).detach().double().flatten(1) / row.scale
    gram = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
    torch.testing.assert_close(gram, torch.eye(len(gram)).double(), atol=1e-5, rtol=0)


VIEWS = {
    ".T": (lambda w: w.T, (O, I)),
    ".t()": (lambda w: w.t(), (O, I)),
    ".mT": (lambda w: w.mT, (O, I)),
    ".transpose": (lambda w: w.transpose(0, 1), (O, I)),
    "torch.t": (lambda w: torch.t(w), (O, I)),
    ".permute": (lambda w: w.permute(1, 0), (O, I)),
    ".view": (lambda w: w.view(I, O), (I * O,)),
    ".reshape": (lambda w: w.reshape(I, O), (O, I)),
    ".reshape of a transpose": (lambda w: w.T.reshape(I, O), (I, O)),
    ".flatten": (lambda w: w.flatten(1), (I, O, 1)),
    ".squeeze": (lambda w: w.squeeze(), (I, 1, O)),
    "[0]": (lambda w: w[0], (1, I, O)),
    "[:]": (lambda w: w[:], (I, O)),
    ".contiguous": (lambda w: w.T.contiguous(), (O, I)),
    ".clone": (lambda w: w.clone(), (I, O)),
    ".detach": (lambda w: w.detach(), (I, O)),
    ".data": (lambda w: w.data, (I, O)),
    ".float": (lambda w: w.float(), (I, O)),
    ".to(dtype)": (lambda w: w.to(torch.float64).to(torch.float32), (I, O)),
    "two steps": (lambda w: w.view(O, I).t(), (O * I,)),
}


@pytest.mark.parametrize("orthonormal", [True, False])
@pytest.mark.parametrize("view", VIEWS)
def test_lsuv_weight_seen_through_a_view_has_unit_std(view, orthonormal):
    see, shape = VIEWS[view]
    _, rows = initialised(lambda net, x: taken(x @ see(net.w)), orthonormal=orthonormal, w=torch.randn(shape))
    assert (rows["w"].status, rows["w"].uses) == ("scaled", 1)


LOOKS = {
    "type_as": lambda net, x: x.type_as(net.w),
    "to": lambda net, x: x.to(net.w),
    "to its dtype": lambda net, x: x.to(net.w.dtype),
    "new_zeros": lambda net, x: x + net.w.new_zeros(1),
    "zeros_like": lambda net, x: x + torch.zeros_like(net.w).sum(),
    "ones_like": lambda net, x: x * torch.ones_like(net.w).mean(),
    "shape": lambda net, x: x * net.w.shape[0] / net.w.size(0),
    "device": lambda net, x: x.to(net.w.device) if net.w.requires_grad and not net.w.is_cuda else x,
}


@pytest.mark.parametrize("look", LOOKS)
def test_lsuv_weight_that_was_only_looked_at_is_scaled(look):
    _, rows = initialised(lambda net, x: taken(LOOKS[look](net, x) @ net.w), w=W.clone())
    assert (rows["w"].status, rows["w"].reason) == ("scaled", "")


BIASES = {
    "a view": (lambda b: b.view(-1), B[None]),
    "a copy": (lambda b: b.clone(), B),
    "a cast there and back": (lambda b: b.double().float(), B),
}


@pytest.mark.parametrize("mean", [None, 0.5])
@pytest.mark.parametrize("orthonormal", [True, False])
@pytest.mark.parametrize("form", BIASES)
def test_lsuv_bias_seen_through_a_view_follows_its_weight(form, orthonormal, mean):
    see, bias = BIASES[form]
    net = Net(lambda net, x: taken(F.linear(x, net.w.T, see(net.b))), w=W.clone(), b=bias.clone())
    report = lsuv_(net, X, orthonormal=orthonormal, mean=mean)
    assert report.layers[0].status == "scaled"
    assert std_of(net, X) == pytest.approx([1], abs=1e-3)
    assert mean is None or KEPT[0].mean().item() == pytest.approx(mean, abs=1e-3)


def test_lsuv_layer_that_casts_its_parameters_has_unit_std():
    class Casting(nn.Linear):  # as in Whisper: the parameters stay float32, the activations are wider
        def forward(self, x):
            return taken(F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype)))

    net, x = nn.Sequential(Casting(I, O)), X.double()
    assert lsuv_(net, x).layers[0].status == "scaled"
    assert std_of(net, x) == pytest.approx([1], abs=1e-3)


def test_lsuv_weight_kept_as_a_view_between_forwards_has_unit_std_and_no_trace():
    def run(net, x):
        if not hasattr(net, "flipped"):
            net.flipped = net.w.t()
        return taken(net.a(x @ net.flipped))

    net = Net(run, w=matrix(O, I), a=nn.Linear(O, 3))
    lsuv_(net, X, orthonormal=False)
    rows = {r.name: r for r in lsuv_(net, X, orthonormal=False).layers}
    assert rows["w"].status == "left alone" or rows["w"].uses
    assert std_of(net, X) == pytest.approx([1], abs=1e-3)
    assert vars(net.flipped) == {}


def test_lsuv_weight_used_in_parts_is_left_alone():
    def run(net, x):
        q, k = net.qk.chunk(2)
        return taken(net.a(F.linear(x, q) * F.linear(x, k)))

    _, rows = initialised(run, qk=matrix(2 * O, I), a=nn.Linear(O, 3))
    assert (rows["qk"].status, rows["qk"].uses) == ("left alone", 2)
    assert rows["qk"].reason == "used in parts: linear works on a slice of it"


def test_lsuv_bias_that_two_layers_share_keeps_what_was_solved():
    def run(net, x):
        return taken(F.linear(taken(F.linear(x, net.a, net.b)), net.c, net.b))

    net = Net(run, a=matrix(I, I), c=matrix(I, I), b=torch.rand(I) / I**0.5)
    report = lsuv_(net, X, orthonormal=False)
    stds = dict(zip("ac", std_of(net, X), strict=True))
    assert [stds[r.name] for r in report.layers if r.status == "scaled"] == pytest.approx([1], abs=1e-3)
    assert {r.name: r.status for r in report.layers} == {"a": "scaled", "c": "left alone"}


def test_lsuv_residual_added_inside_the_op_keeps_its_layer():
    _, rows = initialised(
        lambda net, x: taken(net.a(torch.addmm(x, x, net.w))), w=matrix(I, I), a=nn.Linear(I, 3)
    )  # fmt: skip
    assert rows["w"].status == "left alone"
    assert "no parameter" in rows["w"].reason


def test_lsuv_scaled_bias_inside_addmm_is_right_or_left_alone():
    net = Net(lambda net, x: taken(torch.addmm(net.b, x, net.w, beta=0.5)), w=W.clone(), b=B.clone())
    row = lsuv_(net, X, orthonormal=False).layers[0]
    (std,) = std_of(net, X)
    assert std == pytest.approx(1, abs=1e-3) if row.status == "scaled" else "beta" in row.reason


LATER = {
    "by a reduction": lambda net, y: y * net.w.square().sum(),
    "by a product": lambda net, y: y * net.w[0],
    "by a look-up": lambda net, y: y + F.embedding(torch.zeros(len(y), dtype=torch.long), net.w.T.reshape(-1, O)),
    "in a list": lambda net, y: torch.cat([y, net.w])[: len(y)] + torch.stack([net.w, net.w]).sum(),
    "by keyword": lambda net, y: torch.mul(input=y, other=net.w[0]),
    "of its bias": lambda net, y: y * net.b,
}


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("orthonormal", [True, False])
@pytest.mark.parametrize("use", LATER)
def test_lsuv_solved_weight_used_later_by_another_op_has_its_new_values(use, orthonormal, verify):
    def run(net, x):
        y = taken(F.linear(x, net.w.T, net.b))
        return taken(net.a(LATER[use](net, y)))

    net = Net(run, w=W.clone() * 3, b=B.clone(), a=nn.Linear(O, 3))
    report = lsuv_(net, X, orthonormal=orthonormal, mean=0.7, verify=verify)
    assert {r.name for r in report.layers if r.status == "scaled"} == {"w", "a"}
    assert std_of(net, X) == pytest.approx([1, 1], abs=1e-3)


def test_lsuv_hook_that_replaces_the_output_is_not_in_the_way():
    net = nn.Sequential(nn.Linear(I, O), nn.Linear(O, 3))
    net[0].register_forward_hook(lambda module, args, output: taken(output) * 7)
    net[1].register_forward_hook(lambda module, args, output: taken(output))
    lsuv_(net, X)
    assert std_of(net, X) == pytest.approx([1, 1], abs=1e-3)


def test_lsuv_functional_call_with_the_model_s_parameters_has_unit_std():
    net = nn.Sequential(nn.Linear(I, O), nn.Tanh(), nn.Linear(O, 3))

    def forward(model, x):
        return torch.func.functional_call(model, dict(model.named_parameters()), (x,))

    assert lsuv_(net, X, forward=forward).converged
    net[2].register_forward_hook(lambda module, args, output: taken(output))
    assert std_of(net, X) == pytest.approx([1], abs=1e-3)


def test_lsuv_checkpointed_block_has_unit_std():
    from torch.utils.checkpoint import checkpoint

    _, rows = initialised(
        lambda net, x: taken(checkpoint(net.body, x.requires_grad_(), use_reentrant=False)),
        body=nn.Sequential(nn.Linear(I, 8), nn.ReLU(), nn.Linear(8, O)),
    )
    assert {r.uses for r in rows.values()} == {1}


def test_lsuv_names_do_not_collide_with_the_class_of_the_model():
    class Body(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.Body = nn.Parameter(matrix(I, I)), nn.Linear(I, O)

        def forward(self, x):
            return taken(self.Body(taken(x @ self.weight) * 5))

    net = Body()
    report = lsuv_(net, X, orthonormal=False)
    assert len({r.name for r in report.layers}) == 2
    assert std_of(net, X) == pytest.approx([1, 1], abs=1e-3)
