"""Mean, std, peak and count of a tensor: against float64, for any size, offset, dtype and layout."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lsuvcb.engine.measuring import moments as room
from lsuvcb.engine.measuring.moments import flat, moments, moments_of
from lsuvcb.engine.passes.nonfinite import count_non_finite


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


@pytest.mark.parametrize("offset", [0.0, 30.0, 1e4])
def test_moments_of_parts_are_those_of_all_their_values(offset):
    x = torch.randn(300_000) * torch.linspace(0.1, 3, 300_000) + offset
    mean, std = exact(x)
    found = moments_of(x.split([1, 99_999, 150_000, 0, 50_000]))
    assert found.std == pytest.approx(std, rel=1e-5)
    assert found.mean == pytest.approx(mean, rel=1e-5)
    assert found.count == x.numel()


def test_moments_of_parts_that_are_constant_each_are_constant_only_together():
    assert moments_of([torch.full((5,), 3.0), torch.full((2,), 3.0)]).constant
    assert not moments_of([torch.full((5,), 3.0), torch.full((2,), 3.1)]).constant


def test_moments_of_parts_with_a_nan_are_no_numbers():
    assert math.isnan(moments_of([torch.ones(3), torch.tensor([1.0, math.nan])]).std)


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_moments_as_a_gpu_finds_them_are_0_d_tensors_with_the_same_values(offset):
    """The way of the other devices, on the CPU's tensors."""
    x = torch.randn(3000) + offset
    found = room.joined([room._device_moments(part) for part in x.split(700)])
    here = moments(x)
    for there, value in ((found.mean, here.mean), (found.std, here.std), (found.peak, x.abs().max())):
        assert isinstance(there, torch.Tensor)
        assert there.item() == pytest.approx(float(value), rel=1e-4, abs=1e-6)
    assert not found.constant
    assert room.joined([room._device_moments(torch.full((n,), 3.0)) for n in (2, 5)]).constant


def test_moments_of_a_large_low_precision_tensor_make_no_float32_copy_of_it(monkeypatch):
    x = torch.randn(10_000).bfloat16()
    mean, std = exact(x)
    monkeypatch.setattr(room, "WIDENED", 1000)
    with Largest() as largest:
        found = moments(x)
    assert largest.values == 1000
    assert (found.std, found.mean) == (pytest.approx(std, rel=1e-5), pytest.approx(mean, rel=1e-4, abs=1e-6))


class Largest(TorchDispatchMode):
    """The most values in a float32 tensor that an op has made."""

    values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.dtype == torch.float32:
            self.values = max(self.values, out.numel())
        return out


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


def test_moments_of_infinities_in_different_parts_are_not_finite():
    x = torch.randn(1 << 20)
    x[7], x[-7] = math.inf, -math.inf
    assert math.isnan(moments(x).std)


def test_moments_keep_no_graph():
    x = torch.randn(10, requires_grad=True)
    assert isinstance(moments(x * 2).std, float)


def test_count_non_finite_counts_floats_and_leaves_the_rest_out():
    x = torch.tensor([1.0, float("nan"), float("inf"), -float("inf")])
    assert count_non_finite([x, torch.arange(5), torch.zeros(2, dtype=torch.complex64)]) == (3, 6)
    assert count_non_finite([]) == (0, 0)
