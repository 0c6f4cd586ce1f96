"""On a CUDA device: the CPU's results, no host round trip per layer, no second set of weights, nothing copied away."""

from __future__ import annotations

import copy

import pytest
import torch
from paper import lsuv_
from torch import nn

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _no_tf32():
    allowed = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = allowed


def conv_net() -> nn.Sequential:
    torch.manual_seed(0)
    convs = [m for _ in range(6) for m in (nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())]
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), *convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
    )


@pytest.mark.parametrize(
    ("options", "close"),
    [({}, 2e-4), ({"measure": "activation", "mean": 0.4}, 2e-3)],  # each stops anywhere within tol, 1e-3
    ids=["layer", "activation"],
)
def test_gpu_results_equal_the_cpu_s(options, close, undisturbed):
    here, x = conv_net(), torch.randn(32, 3, 24, 24)
    there = copy.deepcopy(here).cuda()
    lsuv_(here, x, orthonormal=False, **options)
    with undisturbed(there):
        lsuv_(there, x.cuda(), orthonormal=False, **options)
    for name, value in here.state_dict().items():
        assert torch.allclose(there.state_dict()[name].cpu(), value, rtol=close, atol=close / 10), name


def test_gpu_orthonormal_draw_is_the_cpu_s():
    here, x = conv_net(), torch.randn(32, 3, 24, 24)
    there = copy.deepcopy(here).cuda()
    for model, batch in ((here, x), (there, x.cuda())):
        torch.manual_seed(1)
        lsuv_(model, batch)
    for name, value in here.state_dict().items():
        assert torch.allclose(there.state_dict()[name].cpu(), value, rtol=1e-3, atol=1e-4), name


def test_gpu_pass_waits_for_nothing():
    model, x = conv_net().cuda(), torch.randn(32, 3, 24, 24).cuda()

    def forward(model: nn.Module, batch: torch.Tensor) -> None:
        torch.cuda.set_sync_debug_mode("error")
        try:
            model(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    report = lsuv_(model, x, orthonormal=False, verify=False, forward=forward)
    assert {row.status for row in report.layers} == {"scaled"}


def test_gpu_pass_takes_one_forward_and_its_largest_activation():
    layers = [m for _ in range(8) for m in (nn.Linear(2048, 2048), nn.ReLU())]
    model, x = nn.Sequential(*layers).cuda(), torch.randn(4096, 2048, device="cuda")

    def peak(run) -> int:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before

    with torch.no_grad():
        peak(lambda: model(x))  # workspaces are allocated once
        plain = peak(lambda: model(x))
    ours = peak(lambda: lsuv_(model, x, orthonormal=False, verify=False))
    largest = 4096 * 2048 * 4
    assert ours <= plain + largest + x.numel() * 4  # the batch is copied for the pass


def test_gpu_batch_left_on_the_cpu_is_an_error_with_advice():
    with pytest.raises(ValueError, match=r"`batch` is on cpu, the model on cuda:0; write `batch.to\('cuda:0'\)`"):
        lsuv_(conv_net().cuda(), torch.randn(2, 3, 24, 24))
