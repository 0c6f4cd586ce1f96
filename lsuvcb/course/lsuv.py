"""The lessons' own LSUV, one layer at a time by running the whole model: slow, and kept for what it shows.

`lsuv_` does the same for all layers in one pass; `nbs/00_quickstart.ipynb` has both side by side.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.errors import LSUVError, NotConvergedWarning
from ..engine.keeping.undisturbed import undisturbed
from ..training.hooks import Hook

TOL = 1e-3
MOST = 100  # runs of the model; the lessons have no limit, and need 10 to 25 for a layer


def find_modules(m: nn.Module, cond: Callable[[nn.Module], bool]) -> list[nn.Module]:
    """The modules inside `m` for which `cond` holds, in the order of the model; nothing is looked for inside those.

    >>> find_modules(nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.ReLU())), is_lin_layer)
    [Linear(in_features=2, out_features=3, bias=True), ReLU()]
    """
    if cond(m):
        return [m]
    return [found for child in m.children() for found in find_modules(child, cond)]


def is_lin_layer(m: nn.Module) -> bool:
    """Is it one of the layers that the lessons list: a 1-, 2- or 3-d conv, a linear layer, a ReLU?"""
    return isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.ReLU))


def append_stat(hook: Any, mod: nn.Module, inp: Any, outp: Tensor) -> None:
    """For Hook and Hooks: `hook.mean` and `hook.std` (unbiased, as in the lessons) of the output, as numbers."""
    values = outp.detach().float()
    hook.mean, hook.std = values.mean().item(), values.std().item()


def lsuv_init(
    model: nn.Module, m: nn.Module, m_in: nn.Module, xb: Any, *, tol: float = TOL, max_iters: int = MOST
) -> None:
    """Bring the output of `m`, an activation, to mean 0 and std 1 by the bias and the weight of `m_in`, the layer before it.

    The lesson's loop: run the model on `xb`; bias <- bias - mean, weight <- weight / std; again until both are within
    `tol`. Mean and std are of the whole output of `m`, the std unbiased. Layer after layer, first to last, this is
    `lsuv_(model, xb, measure="activation", mean=0, orthonormal=False)`, which runs the model once.

    Args:
        model: called as model(xb), without gradients, in the mode that it is in.
        m: where to measure: an activation, or the layer itself.
        m_in: has a `weight` and a `bias`.
        xb: one batch of inputs.
        max_iters: most runs of the model.

    Raises:
        ValueError: `m_in` has no weight or no bias.
        LSUVError: `m` does not run, its output is constant or not finite. Weight and bias are then as before.

    Warns:
        NotConvergedWarning: not within `tol` after `max_iters` runs; the best try stays.

    Side effects: `m_in.weight` and `m_in.bias`, in place. Buffers and random generators are as before.
    """
    layer = _Layer(model, m, m_in, xb)
    with layer.watched():
        layer.repeat(layer.error, layer.correct, tol, max_iters)


def lsuv_module(m: nn.Module, xb: Any, mdl: nn.Module) -> tuple[float, float]:
    """Bring the output of `m` to mean 0 through its bias, and then to std 1 through its weight; the mean moves again.

    The 2019 lesson's two loops: run the model on `xb` and correct the bias until the mean is within 1e-3 of 0; then correct
    the weight until the std is within 1e-3 of 1.

    Args:
        m: has a `weight` and a `bias`; its own output is measured.
        xb: one batch of inputs.
        mdl: the model, a global name in the lesson; called as mdl(xb), without gradients, in the mode that it is in.

    Returns:
        mean and std (unbiased) as last measured: the mean is not 0, since it was corrected first.

    Raises:
        ValueError: `m` has no weight or no bias.
        LSUVError: `m` does not run, its output is constant or not finite. Weight and bias are then as before.

    Warns:
        NotConvergedWarning: a loop ended after 100 runs of the model; the best try stays.

    Side effects: `m.weight` and `m.bias`, in place. Buffers and random generators are as before.
    """
    layer = _Layer(mdl, m, m, xb)
    with layer.watched():
        layer.repeat(lambda: abs(layer.mean), layer.shift, TOL, MOST)
        layer.repeat(lambda: abs(layer.std - 1), layer.rescale, TOL, MOST)
    return layer.mean, layer.std


class _Layer:
    """One layer of the lessons' loops: how its output measures, and how its weight and bias are moved."""

    def __init__(self, model: nn.Module, m: nn.Module, m_in: Any, xb: Any) -> None:
        for name in ("weight", "bias"):
            if getattr(m_in, name, None) is None:
                advice = {
                    "weight": "Name the layer before it: `lsuv_init(model, activation, layer, xb)`.",
                    "bias": "`lsuv_(model, xb, mean=None)` needs no bias.",
                }
                raise ValueError(
                    f"the layer to change must have a weight and a bias, got a {type(m_in).__name__} without a {name}. "
                    + advice[name]
                )
        self.model, self.m, self.m_in, self.xb = model, m, m_in, xb

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Measure by a hook, disturb nothing, and put the values back if anything goes wrong."""
        start = self._values()
        with undisturbed(self.model, self.xb) as self._snapshot, torch.no_grad():
            try:
                with Hook(self.m, append_stat) as self._hook:
                    yield
            except BaseException:
                self._set(start)
                raise

    def repeat(self, error: Callable[[], float], correct: Callable[[], Any], tol: float, most: int) -> None:
        """Measure and correct until `error()` is within `tol`; after `most` runs the best try stays."""
        self._run()
        best = error(), self._values()
        for _ in range(most - 1):
            if best[0] <= tol:
                return
            correct()
            self._run()
            if error() < best[0]:
                best = error(), self._values()
        if best[0] > tol:
            self._set(best[1])
            self._run()
            warnings.warn(
                f"{type(self.m).__name__} is outside mean 0, std 1 +/- {tol:g} after {most} runs of the model: mean "
                f"{self.mean:.3g}, std {self.std:.3g}. The best try stays. A plain ReLU has no zero mean: use "
                "GeneralRelu(sub=0.4).",
                NotConvergedWarning,
                stacklevel=4,
            )

    @property
    def mean(self) -> float:
        return self._hook.mean  # type: ignore[attr-defined]

    @property
    def std(self) -> float:
        return self._hook.std  # type: ignore[attr-defined]

    def error(self) -> float:
        return max(abs(self.mean), abs(self.std - 1))

    def correct(self) -> None:
        self.shift()
        self.rescale()

    def shift(self) -> None:
        self.m_in.bias -= self.mean
        self._snapshot.renew(self.m_in)  # a ConvLayer keeps its bias in a buffer

    def rescale(self) -> None:
        self.m_in.weight.data /= self.std

    def _run(self) -> None:
        self._snapshot.restore()  # the same dropout each time
        calls = self._hook.calls
        self.model(self.xb)
        if self._hook.calls == calls:
            raise LSUVError(f"{type(self.m).__name__} does not run when the model does: nothing can be measured.")
        if not math.isfinite(self.mean + self.std):
            raise LSUVError(f"{type(self.m).__name__} gives non-finite output (mean {self.mean}, std {self.std}).")
        if not self.std > 0:
            raise LSUVError(f"{type(self.m).__name__} gives a constant output: no scale gives it a spread.")

    def _values(self) -> tuple[Any, Any]:
        bias = self.m_in.bias
        return self.m_in.weight.detach().clone(), bias.detach().clone() if isinstance(bias, Tensor) else bias

    def _set(self, values: tuple[Any, Any]) -> None:
        weight, bias = values
        with torch.no_grad():
            self.m_in.weight.copy_(weight)
            if isinstance(self.m_in.bias, nn.Parameter):
                self.m_in.bias.copy_(bias)
            else:
                self.m_in.bias = bias
        self._snapshot.renew(self.m_in)
