"""orthonormal_, init_weights and the gain behind them."""

import math

import pytest
import torch
from torch import nn

from lsuvcb.engine import orthonormal_
from lsuvcb.nets import gain, init_weights

SHAPES = [(5, 5), (3, 8), (8, 3), (4, 2, 3, 3), (20, 2, 3, 3), (6, 1, 5), (1, 7), (7, 1), (4, 2, 2, 2, 2)]


def gram(w):
    w = w.double().flatten(1)
    return w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w


@pytest.mark.parametrize("shape", SHAPES)
def test_orthonormal_weight_as_out_by_rest_is_orthonormal(shape):
    w = orthonormal_(torch.empty(shape))
    torch.testing.assert_close(gram(w), torch.eye(min(shape[0], w[0].numel())).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(6, 6), (4, 12), (12, 4)])
def test_orthonormal_weight_of_float64_is_exact_to_float64(shape):
    w = orthonormal_(torch.empty(shape, dtype=torch.float64))
    torch.testing.assert_close(gram(w), torch.eye(min(shape)).double(), atol=1e-14, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_orthonormal_weight_of_low_precision_is_rounded_once(dtype):
    w = orthonormal_(torch.empty(32, 32, dtype=dtype), torch.Generator().manual_seed(0))
    wide = orthonormal_(torch.empty(32, 32), torch.Generator().manual_seed(0))
    assert torch.equal(w, wide.to(dtype))


def test_orthonormal_vector_has_length_one():
    assert orthonormal_(torch.empty(9)).norm().item() == pytest.approx(1)


def test_orthonormal_keeps_the_norm_of_a_signal():
    x = torch.randn(50, 16)
    w = orthonormal_(torch.empty(16, 16))
    torch.testing.assert_close((x @ w.T).norm(dim=1), x.norm(dim=1))


def test_orthonormal_fills_in_place_and_returns_its_tensor():
    w = nn.Parameter(torch.empty(4, 3, 3, 3).to(memory_format=torch.channels_last))
    strides, pointer = w.stride(), w.data_ptr()
    assert orthonormal_(w) is w
    assert (w.stride(), w.data_ptr()) == (strides, pointer)
    assert w.requires_grad
    assert w.grad_fn is None


def test_orthonormal_draws_from_its_generator_alone():
    generator, state = torch.Generator().manual_seed(4), torch.get_rng_state()
    first = orthonormal_(torch.empty(5, 3), generator)
    assert torch.equal(torch.get_rng_state(), state)
    second = orthonormal_(torch.empty(5, 3), generator)
    assert not torch.equal(first, second)
    assert torch.equal(first, orthonormal_(torch.empty(5, 3), torch.Generator().manual_seed(4)))


def test_orthonormal_without_generator_follows_the_global_seed():
    torch.manual_seed(4)
    first = orthonormal_(torch.empty(5, 3))
    assert not torch.equal(first, orthonormal_(torch.empty(5, 3)))
    torch.manual_seed(4)
    assert torch.equal(first, orthonormal_(torch.empty(5, 3)))


def test_orthonormal_signs_are_uniform():
    # without the signs of R's diagonal taken in, LAPACK's Q has a first entry of one sign
    generator = torch.Generator().manual_seed(0)
    signs = torch.stack([orthonormal_(torch.empty(3, 3), generator).sign() for _ in range(600)])
    assert signs.mean(0).abs().max() < 0.2  # 5 sigma of a fair coin is 0.204


def test_gain_is_what_a_leaky_relu_takes_off():
    assert [round(gain(a), 4) for a in (1, 0, 0.1, math.sqrt(5))] == [1.0, 1.4142, 1.4072, 0.5774]


@pytest.mark.parametrize("conv", [nn.Conv1d(64, 96, 5), nn.Conv2d(64, 96, 5), nn.Conv3d(16, 96, 3)])
@pytest.mark.parametrize("leaky", [0.0, 0.1])
def test_init_weights_gives_a_conv_kaiming_s_std(conv, leaky):
    bias = conv.bias.clone()
    init_weights(conv, leaky)
    fan_in = conv.weight[0].numel()
    assert conv.weight.std().item() == pytest.approx(gain(leaky) / math.sqrt(fan_in), rel=0.02)
    assert torch.equal(conv.bias, bias)


def test_init_weights_leaves_other_modules_alone():
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ConvTranspose2d(2, 2, 3))
    before = [p.clone() for p in net.parameters()]
    net.apply(init_weights)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
