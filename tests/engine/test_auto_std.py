"""What n layers do to gradient and signal: by a quadrature of the test's own, in a wide layer, and what "auto" makes of it."""

import math

import pytest
import torch
import torch.nn.functional as F

from lsuvcb.engine.solving.auto import choose_std, slopes
from lsuvcb.nets import GeneralRelu

GENERAL = GeneralRelu(0.1, 0.4)
# activation -> {std: (chi, lambda)}, rounded; None: not listed
TABLE = {
    F.relu: {4: (1, 1), 1: (1, 1), 0.1: (1, 1)},
    F.leaky_relu: {4: (1, 1), 1: (1, 1), 0.1: (1, 1)},
    torch.tanh: {2: (1.61, None), 1: (1.18, None), 0.7: (1.08, None), 0.5: (1.03, None), 0.3: (1.007, None)},
    F.gelu: {4: (None, 1.008), 2: (1.05, None), 1: (1.07, 1.14), 0.5: (1.06, 1.18), 0.1: (1.005, 1.02)},
    F.silu: {4: (None, 1.04), 2: (1.06, None), 1: (1.07, 1.17), 0.5: (1.04, 1.11), 0.1: (1.001, 1.007)},
    F.selu: {2: (1.12, None), 1: (1.07, None), 0.5: (1.03, None)},
    GENERAL: {2: (1.26, None), 1: (1.34, None), 0.7: (1.20, None), 0.5: (0.89, None), 0.3: (0.38, None)},
    torch.sigmoid: {2: (0.33, None), 1: (0.15, None), 0.5: (0.053, None), 0.1: (0.002, None)},
}
CASES = [(f, std, *row) for f, rows in TABLE.items() for std, row in rows.items()]


def name_of(case):
    return getattr(case, "__name__", type(case).__name__) if callable(case) else None


def by_quadrature(f, std):
    """Simpson's rule on both sides of zero, where the kinks are; autograd's derivative."""
    half = torch.linspace(1e-12, 12, 20_001, dtype=torch.float64)
    simpson = torch.ones(20_001, dtype=torch.float64)
    simpson[1:-1:2], simpson[2:-1:2] = 4, 2
    z = torch.cat([-half, half])
    bell = torch.cat([simpson, simpson]) * torch.exp(-z * z / 2)

    def mean(values):
        return float((bell * values).sum() / bell.sum())

    def square(std):
        return mean(f(z * std) ** 2)

    x = (z * std).requires_grad_()
    (slope,) = torch.autograd.grad(f(x * 1).sum(), x)
    chi = std**2 * mean(slope**2) / square(std)
    return chi, math.log(square(std * 1.001) / square(std / 1.001)) / (4 * math.log(1.001))


@pytest.mark.parametrize(("f", "std", "chi", "lam"), CASES, ids=name_of)
def test_slopes_agree_with_the_table_and_with_another_quadrature(f, std, chi, lam):
    found, (own_chi, own_lam) = slopes(f, std), by_quadrature(f, std)
    assert found.chi == pytest.approx(own_chi, rel=2e-3)
    assert found.lam == pytest.approx(own_lam, rel=2e-3, abs=2e-3)
    assert chi is None or found.chi == pytest.approx(chi, rel=0.01, abs=0.003)
    assert lam is None or found.lam == pytest.approx(lam, rel=0.01)


@pytest.mark.parametrize("f", list(TABLE), ids=name_of)
def test_slopes_are_what_a_wide_orthonormal_layer_does(f):
    torch.manual_seed(0)
    width, samples, std = 1024, 1024, 0.8
    z = (torch.randn(samples, width) * std).requires_grad_()
    weight = torch.linalg.qr(torch.randn(width, width))[0]
    a = f(z * 1)
    scale = std / a.detach().square().mean().sqrt()
    y = scale * a @ weight.T
    gradient = torch.randn_like(y)
    (back,) = torch.autograd.grad(y, z, gradient)
    assert slopes(f, std).chi == pytest.approx(float((back.norm() / gradient.norm()) ** 2), rel=0.02)
    longer, shorter = (float(f(z.detach() * factor).square().mean()) for factor in (1.02, 1 / 1.02))
    assert slopes(f, std).lam == pytest.approx(math.log(longer / shorter) / (4 * math.log(1.02)), rel=0.03, abs=0.02)


@pytest.mark.parametrize("layers", [1, 10, 50, 100])
@pytest.mark.parametrize("f", [F.relu, F.leaky_relu, torch.tanh, F.gelu, F.silu, F.selu, GENERAL, F.elu], ids=name_of)
def test_auto_std_is_the_nearest_to_one_that_keeps_both_within_thirty(f, layers):
    def grows(std):  # a sample of twice the mean length counts, too
        return max(value**layers for value in (*slopes(f, std), slopes(f, 2 * std).lam))

    choice = choose_std(f, layers)
    if (f, layers) == (F.silu, 100):  # 1.036^100 at 4, the largest that is tried
        assert choice == (pytest.approx(4), "gradient")
        return
    assert choice.fails == ""
    assert grows(choice.std) <= 30 * 1.001
    nearer = abs(math.log(choice.std)) - 0.06
    if nearer > 0:  # a step nearer to 1 does not do, on either side
        assert grows(math.exp(nearer)) > 30
        assert grows(math.exp(-nearer)) > 30
    assert 0.2 <= choice.std <= 4


def test_auto_std_of_sigmoids_is_as_large_as_their_gradient_needs():
    # chi is below 1 at every std: at 1 five layers leave 0.15^5 of the gradient's squared norm
    assert slopes(torch.sigmoid, choose_std(torch.sigmoid, 5).std).chi ** 5 == pytest.approx(1 / 30, rel=0.1)
    assert choose_std(torch.sigmoid, 50) == (4.0, "gradient")  # out of reach: the best there is, and it says so


def test_auto_std_where_every_std_fails_alike_is_one_and_says_so():
    def cube(x):
        return x**3

    assert choose_std(cube, 20) == (1.0, "signal")  # chi 9 / 5, lambda 3


def test_auto_std_is_where_a_strong_sample_does_not_run_away():
    # at 0.2 SiLU's lambda is 1.02, and 1.08 for a sample of twice the mean length, whose lambda then grows further
    assert slopes(F.silu, 0.2).lam ** 100 < 30 < slopes(F.silu, 0.4).lam ** 100
    assert choose_std(F.silu, 100).std == pytest.approx(4)


def test_auto_std_of_a_jump_goes_by_the_derivative_that_training_has():
    assert slopes(F.hardshrink, 1.0).chi == pytest.approx(by_quadrature(F.hardshrink, 1.0)[0], rel=0.01)


def test_auto_std_of_a_function_without_a_derivative_takes_differences():
    @torch.no_grad()
    def tanh(x):
        return torch.tanh(x)

    assert slopes(tanh, 1.0).chi == pytest.approx(slopes(torch.tanh, 1.0).chi, rel=1e-4)
