"""The course's nets, against numbers worked out by hand and against torch's own layers."""

import copy
import pickle
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lsuvcb.nets import BatchNorm, ConvLayer, GeneralRelu, LayerNorm, conv, get_model

X = [-2.0, -0.5, 0.0, 0.3, 1.0, 6.0]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, [0, 0, 0, 0.3, 1, 6]),
        ({"leak": 0.1}, [-0.2, -0.05, 0, 0.3, 1, 6]),
        ({"leak": 0.0}, [0, 0, 0, 0.3, 1, 6]),
        ({"sub": 0.4}, [-0.4, -0.4, -0.4, -0.1, 0.6, 5.6]),
        ({"maxv": 2.0}, [0, 0, 0, 0.3, 1, 2]),
        ({"leak": 0.1, "sub": 0.4, "maxv": 2.0}, [-0.6, -0.45, -0.4, -0.1, 0.6, 2]),
    ],
)
def test_general_relu_by_hand(arguments, expected):
    x = torch.tensor(X)
    torch.testing.assert_close(GeneralRelu(**arguments)(x), torch.tensor(expected, dtype=torch.float32))
    assert x.tolist() == pytest.approx(X)


@pytest.mark.parametrize("leak", [None, 0.1])
@pytest.mark.parametrize("sub", [None, 0.4, torch.tensor(0.4)])
@pytest.mark.parametrize("maxv", [None, 2.0])
def test_general_relu_gradient_is_its_slope(leak, sub, maxv):
    x = torch.tensor([-2.0, 1.0, 6.0], requires_grad=True)
    GeneralRelu(leak, sub, maxv)(x).sum().backward()
    assert x.grad.tolist() == pytest.approx([leak or 0, 1, 1 if maxv is None else 0])


def test_general_relu_shows_what_it_was_given():
    assert repr(GeneralRelu(leak=0.1, maxv=6.0)) == "GeneralRelu(leak=0.1, maxv=6)"
    assert repr(GeneralRelu(sub=torch.tensor(0.5))) == "GeneralRelu(sub=0.5)"


def test_conv_layer_is_the_conv_and_its_general_relu():
    layer = ConvLayer(2, 3, ks=5, stride=2, sub=0.3, leak=0.1, maxv=1.0)
    x = torch.randn(4, 2, 9, 9)
    y = F.conv2d(x, layer.conv.weight, layer.conv.bias, stride=2, padding=2)
    torch.testing.assert_close(layer(x), (F.leaky_relu(y, 0.1) - 0.3).clamp_max(1.0))


@pytest.mark.parametrize("number", [float, torch.tensor])
def test_conv_layer_bias_is_minus_sub_and_moves_the_output_by_as_much(number):
    layer = ConvLayer(1, 4, sub=0.25)
    x = torch.randn(8, 1, 8, 8)
    before, conv_bias = layer(x), layer.conv.bias.clone()
    assert layer.bias.item() == -0.25
    layer.bias += number(0.75)
    assert (layer.bias.item(), layer.relu.sub.item()) == (0.5, -0.5)
    torch.testing.assert_close(layer(x), before + 0.75)
    assert torch.equal(layer.conv.bias, conv_bias)
    held = layer.bias
    layer.bias -= 1
    assert held.item() == 0.5


def test_conv_layer_weight_is_the_convs_and_the_lessons_loop_brings_it_to_unit_variance():
    layer = ConvLayer(1, 8)
    x = torch.randn(64, 1, 8, 8)
    assert layer.weight is layer.conv.weight
    with torch.no_grad():
        while abs(mean := layer(x).mean()) > 1e-3:
            layer.bias -= mean
        while abs((std := layer(x).std()) - 1) > 1e-3:
            layer.weight.data /= std
    assert layer(x).std().item() == pytest.approx(1, abs=1e-3)


def test_conv_layer_keeps_its_bias_in_the_state_dict():
    layer, fresh = ConvLayer(1, 2), ConvLayer(1, 2)
    layer.bias = 0.7
    fresh.load_state_dict(layer.state_dict())
    assert fresh.bias.item() == pytest.approx(0.7)
    assert layer.double().bias.dtype == torch.float64
    assert [name for name, _ in layer.named_parameters()] == ["conv.weight", "conv.bias"]


def test_layer_norm_is_torchs_with_one_scale_and_one_shift():
    layer, x = LayerNorm(3), 5 + 2 * torch.randn(4, 3, 6, 6)
    nn.init.constant_(layer.mult, 1.5)
    nn.init.constant_(layer.add, 0.25)
    torch.testing.assert_close(layer(x), 1.5 * F.layer_norm(x, (3, 6, 6)) + 0.25)
    assert [p.shape for p in layer.parameters()] == [(), ()]


def test_batch_norm_is_torchs_in_training_and_in_evaluation():
    ours, torchs = BatchNorm(3, mom=0.3), nn.BatchNorm2d(3, momentum=0.3)
    for scale, norm in ((ours.mults, torchs.weight), (ours.adds, torchs.bias)):
        nn.init.normal_(scale)
        norm.data.copy_(scale.flatten())
    for _ in range(3):
        x = 5 + 2 * torch.randn(64, 3, 6, 6)
        ours_x, torchs_x = (x.clone().requires_grad_() for _ in range(2))
        ours(ours_x).square().sum().backward()
        torchs(torchs_x).square().sum().backward()
        torch.testing.assert_close(ours_x.grad, torchs_x.grad, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours(x), torchs(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.means.flatten(), torchs.running_mean)
    # torch's buffer has the sample variance, with n - 1
    torch.testing.assert_close(ours.vars.flatten(), torchs.running_var, atol=0.01, rtol=0)
    buffers = copy.deepcopy(dict(ours.named_buffers()))
    ours.eval()
    torch.testing.assert_close(ours(x), (x - ours.means) / (ours.vars + 1e-5).sqrt() * ours.mults + ours.adds)
    assert all(torch.equal(buffers[name], buffer) for name, buffer in ours.named_buffers())


def test_batch_norm_buffers_move_by_mom_of_the_way():
    layer = BatchNorm(1, mom=0.25)
    layer(torch.tensor([1.0, 5.0]).view(2, 1, 1, 1))  # mean 3, population variance 4
    assert layer.means.item() == pytest.approx(0.75 * 0 + 0.25 * 3)
    assert layer.vars.item() == pytest.approx(0.75 * 1 + 0.25 * 4)


def test_batch_norm_buffers_keep_their_dtype_under_autocast():
    layer = nn.Sequential(nn.Conv2d(1, 2, 3), BatchNorm(2), LayerNorm())
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.randn(2, 1, 5, 5)).sum().backward()
    assert layer[1].means.dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "kinds"),
    [
        ({}, [nn.Conv2d, nn.ReLU]),
        ({"act": None}, [nn.Conv2d]),
        ({"act": partial(GeneralRelu, leak=0.1), "norm": LayerNorm}, [nn.Conv2d, LayerNorm, GeneralRelu]),
        ({"norm": nn.BatchNorm2d, "act": None}, [nn.Conv2d, nn.BatchNorm2d]),
    ],
)
def test_conv_is_made_of_what_was_asked_for(arguments, kinds):
    assert [type(layer) for layer in conv(3, 4, **arguments)] == kinds


@pytest.mark.parametrize(
    ("norm", "bias", "has_bias"),
    [
        (None, None, True),
        (LayerNorm, None, True),
        (BatchNorm, None, False),
        (nn.BatchNorm2d, None, False),
        (partial(nn.BatchNorm2d, momentum=0.5), None, False),
        (nn.BatchNorm2d, True, True),
        (None, False, False),
    ],
)
def test_conv_has_a_bias_unless_a_batch_norm_follows(norm, bias, has_bias):
    assert (conv(1, 2, norm=norm, bias=bias)[0].bias is not None) == has_bias


@pytest.mark.parametrize(("ks", "stride", "side"), [(3, 2, 14), (5, 2, 14), (3, 1, 28), (1, 1, 28)])
def test_conv_halves_the_image_at_stride_two(ks, stride, side):
    assert conv(1, 2, ks, stride)(torch.zeros(1, 1, 28, 28)).shape == (1, 2, side, side)


def test_get_model_is_the_courses():
    model = get_model()
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels) for c in convs] == [(1, 8), (8, 16), (16, 32), (32, 64), (64, 10)]
    assert all((c.kernel_size, c.stride, c.padding) == ((3, 3), (2, 2), (1, 1)) for c in convs)
    assert [type(m) for m in model[-2:]] == [nn.Sequential, nn.Flatten]
    assert len(model[-2]) == 1
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    # 9 ni nf weights and nf biases for each conv
    assert sum(p.numel() for p in model.parameters()) == 80 + 1168 + 4640 + 18496 + 5770


def test_get_model_takes_activation_norm_widths_and_classes():
    model = get_model(partial(GeneralRelu, leak=0.1, sub=0.4), nfs=[3, 4, 4, 4, 4], norm=BatchNorm, n_out=7)
    kinds = [type(m) for m in model.modules()]
    assert kinds.count(GeneralRelu) == kinds.count(BatchNorm) == 4
    assert model(torch.zeros(2, 3, 28, 28)).shape == (2, 7)
    assert model[-2][0].bias is not None


@pytest.mark.parametrize("norm", [None, LayerNorm, BatchNorm])
def test_models_survive_pickle(norm):
    model = nn.Sequential(ConvLayer(1, 1, stride=1), get_model(partial(GeneralRelu, 0.1, 0.4, 3.0), norm=norm)).eval()
    x = torch.randn(2, 1, 28, 28)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))
