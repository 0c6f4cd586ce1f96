"""What the pass costs beside time: how much memory it takes, and how often a GPU's host would wait for the device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import memory
import pytest
import torch
from no_gpu import Waits, fake_cuda, needs_fake_cuda_ops
from paper import lsuv_
from torch import nn

from lsuvcb.engine.measuring import moments
from lsuvcb.engine.solving import nonlinear


def conv_net() -> nn.Sequential:
    convs = [m for _ in range(4) for m in (nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())]
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), *convs, nn.Flatten(), nn.Linear(16 * 22 * 22, 10))


def wide_mlp() -> nn.Sequential:
    return nn.Sequential(*(m for _ in range(8) for m in (nn.Linear(128, 128), nn.ReLU())))


@pytest.fixture
def peak(tmp_path: Path) -> Callable[[Callable[[], object]], int]:
    """Most bytes that a run holds at a time beyond what was there before; torch's allocator tells of every change."""

    return lambda run: memory.peak(run, tmp_path)


def largest_output(model: nn.Module, x: torch.Tensor) -> int:
    found: list[int] = []
    handles = [m.register_forward_hook(lambda m, i, o: found.append(o.nbytes)) for m in model.modules()]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return max(found)


ACTIVATION = {"measure": "activation", "mean": 0.4}
# The model, its batch, the options, and how many activations of the largest size are held beside a plain forward's.
CASES = {
    "convs": (conv_net, lambda: torch.randn(64, 3, 24, 24), {}, 1),
    "convs, mean": (conv_net, lambda: torch.randn(64, 3, 24, 24), {"mean": 0.0}, 1),
    "convs, bfloat16": (lambda: conv_net().bfloat16(), lambda: torch.randn(64, 3, 24, 24).bfloat16(), {}, 1),
    "convs, activation": (conv_net, lambda: torch.randn(64, 3, 24, 24), ACTIVATION, 1),
    # the copy of the batch, which is as large as any activation
    "mlp": (wide_mlp, lambda: torch.randn(8192, 128), {}, 1),
    "mlp, activation": (wide_mlp, lambda: torch.randn(8192, 128), ACTIVATION, 1),
}


@pytest.mark.parametrize("case", CASES)
def test_pass_holds_a_plain_forward_s_memory_and_the_largest_activation(case, peak, monkeypatch):
    monkeypatch.setattr(moments, "WIDENED", 1 << 14)  # as small beside these nets as they are beside large ones
    monkeypatch.setattr(nonlinear, "PART", 1 << 14)
    make, batch, options, more = CASES[case]
    torch.manual_seed(0)
    model, x = make().eval(), batch()
    with torch.no_grad():
        plain, largest = peak(lambda: model(x)), largest_output(model, x)
    ours = peak(lambda: lsuv_(model, x, orthonormal=False, verify=False, **options))
    assert ours <= 1.01 * (plain + more * largest), (ours, plain, largest)


def test_peak_sees_a_copy_that_is_held(peak):
    x = torch.randn(1000)
    assert peak(lambda: x.neg()) == 4000
    assert peak(lambda: (x.neg(), x.double())) == 12000


# No GPU is needed to see where its host would wait


@needs_fake_cuda_ops
@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor:UserWarning")
@pytest.mark.filterwarnings("ignore::lsuvcb.engine.errors.InputScaleWarning")  # of the made-up values
@pytest.mark.parametrize("options", [{}, {"mean": 0.0}, {"std": 2.0}], ids=str)
def test_pass_in_closed_form_never_waits_for_a_gpu(options):
    with fake_cuda() as waits:
        model, x = conv_net().eval(), torch.randn(8, 3, 24, 24)
        ran: list[list[str]] = []

        def forward(model: nn.Module, batch: torch.Tensor) -> None:
            before = len(waits.names)
            model(batch)
            ran.append(waits.names[before:])

        report = lsuv_(model, x, orthonormal=False, verify=False, forward=forward, **options)
    assert ran == [[]]
    scaled = [row.name for row in report.layers if row.status == "scaled"]
    assert len(scaled) == 6


WAITING = {
    "a value": lambda x: x.sum().item(),
    "a truth value": lambda x: bool(x.any()),
    "a comparison": lambda x: torch.equal(x, x),
    "a copy": lambda x: x.cpu(),
}


@pytest.mark.parametrize("case", WAITING)
def test_waits_names_what_would_wait(case):
    with fake_cuda() as on_cuda:
        WAITING[case](torch.ones(3))
    with Waits() as on_meta:
        WAITING[case](torch.ones(3, device="meta"))
        WAITING[case](torch.ones(3))  # on the CPU there is nothing to wait for
    assert (len(on_cuda.names), len(on_meta.names)) == (1, 1)


@needs_fake_cuda_ops
def test_waits_names_a_shape_that_depends_on_values():
    with fake_cuda() as waits, pytest.raises(RuntimeError):
        torch.ones(3).nonzero()
    with fake_cuda() as masked, pytest.raises(RuntimeError):
        torch.ones(3)[torch.ones(3) > 0]
    assert (len(waits.names), len(masked.names)) == (1, 1)
