"""Mean, std, peak and count of a tensor: against float64, for any size, offset, dtype and layout."""

import math

import pytest
import torch

from lsuvcb.engine.finite import count_non_finite
from lsuvcb.engine.moments import flat, moments


def exact(x):
    x = x.double()
    return x.mean().item(), x.std(correction=0).item()


def test_moments_hand_worked_values():
    # mean 6.25; deviations -5.25, -4.25, -2.25, 11.75: squares 27.5625 + 18.0625 + 5.0625 + 138.0625 = 188.75; / 4
    found = moments(torch.tensor([1.0, 2.0, 4.0, 18.0]))
    assert found.mean == 6.25
    assert found.std**2 == pytest.approx(47.1875)
    assert found.count == 4
    assert not found.constant


def test_moments_std_is_the_population_s():
    assert moments(torch.tensor([-1.0, 1.0])).std == 1.0  # the sample's would be sqrt(2)


@pytest.mark.parametrize("offset", [0.0, 1.0, -30.0, 1e3, 1e5])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("n", [2, 100, 300_000])
def test_moments_equal_float64_up_to_the_rounding_of_the_values(n, size, offset):
    x = torch.randn(n) * size + offset * size
    mean, std = exact(x)
    found = moments(x)
    assert found.std == pytest.approx(std, rel=1e-5)
    assert found.mean == pytest.approx(mean, rel=1e-5, abs=1e-6 * std)


def test_moments_offset_of_a_million_stds_keeps_three_digits():
    x = torch.randn(100_000) + 1e6
    assert moments(x).std == pytest.approx(exact(x)[1], rel=1e-3)


@pytest.mark.parametrize("power", [-38, -30, -20, -10, 0, 10, 20, 30, 36])
def test_moments_scale_with_the_values_over_the_whole_range_of_float32(power):
    x = torch.randn(1000)
    scaled = (x.double() * 10.0**power).float()
    mean, std = exact(scaled)
    assert moments(scaled).std == pytest.approx(std, rel=1e-5)
    assert moments(scaled).mean == pytest.approx(mean, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_moments_of_low_precision_are_of_the_values_as_they_are(dtype):
    x = (torch.randn(5000) * 200 + 100).to(dtype)  # squares and sums leave float16's range
    mean, std = exact(x)
    assert moments(x).std == pytest.approx(std, rel=1e-5)
    assert moments(x).mean == pytest.approx(mean, rel=1e-4)


def test_moments_of_float64_are_float64_s():
    x = torch.randn(5000, dtype=torch.float64) * 1e-3 + 1
    assert moments(x).std == pytest.approx(exact(x)[1], rel=1e-10)


LAYOUTS = {
    "transposed": lambda x: x.transpose(1, 3),
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "strided": lambda x: x[:, ::2, 1:, ::3],
    "expanded": lambda x: x[:, :, :1, :1].expand(-1, -1, 5, 5),
    "one value": lambda x: x[0, 0, 0, 0],
    "offset": lambda x: x[2:],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_moments_of_any_layout_are_of_all_its_values(layout):
    x = LAYOUTS[layout](torch.randn(4, 6, 7, 8))
    mean, std = exact(x)
    found = moments(x)
    assert found.std == pytest.approx(std, rel=1e-5, abs=1e-9)
    assert found.mean == pytest.approx(mean, rel=1e-5, abs=1e-7)
    assert found.count == x.numel()
    assert flat(x).sort().values.tolist() == x.reshape(-1).sort().values.tolist()


def test_moments_dense_memory_is_not_copied():
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert flat(x).data_ptr() == x.data_ptr()
    assert flat(x[1:]).data_ptr() == x[1:].data_ptr()


@pytest.mark.parametrize("value", [0.0, 3.0, -1e-8, 1e30, 1 / 3])
def test_moments_of_equal_values_are_constant(value):
    assert moments(torch.full((1000,), value)).constant


def test_moments_of_one_value_are_constant():
    assert moments(torch.tensor([5.0])).constant


@pytest.mark.parametrize("spread", [1e-5, 1e-4, 1e-2, 1.0])
def test_moments_of_values_with_a_spread_are_not_constant(spread):
    assert not moments(1 + spread * torch.randn(300_000)).constant


def test_moments_of_tiny_values_with_a_spread_are_not_constant():
    assert not moments(torch.randn(1000) * 1e-30).constant


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_moments_of_values_that_are_not_finite_are_not_finite(value):
    x = torch.randn(1000)
    x[7] = value
    found = moments(x)
    assert not math.isfinite(found.std)
    assert not found.constant


def test_moments_keep_no_graph():
    x = torch.randn(10, requires_grad=True)
    assert isinstance(moments(x * 2).std, float)


def test_count_non_finite_counts_floats_and_leaves_the_rest_out():
    x = torch.tensor([1.0, float("nan"), float("inf"), -float("inf")])
    assert count_non_finite([x, torch.arange(5), torch.zeros(2, dtype=torch.complex64)]) == (3, 6)
    assert count_non_finite([]) == (0, 0)
