"""ActivationStats: mean, standard deviation and histogram of layers' outputs through training, and their pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import gcd, sqrt
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..engine.measuring.moments import flat, moments
from ..engine.passes.counted import Counted, Mask, check_mask
from ..engine.select import Selector, select_modules
from .hooks import Hook, HooksCallback
from .loop import Loop
from .thinned import Thinned

if TYPE_CHECKING:
    from matplotlib.axes import Axes


BINS, LIMIT = 40, 10.0  # the histogram is of |x|, over 0 to LIMIT; what is larger counts in the last bin
SAMPLE = 1 << 13  # values that a histogram is made from: a share is then within about 1 % of the layer's own


def sample_of(tensor: Tensor, size: int = SAMPLE) -> Tensor:
    """About `size` values of `tensor`, evenly spaced in memory, as one dimension; no copy where its memory is dense.

    The spacing shares no divisor with the number of values, so that no channel and no position is left out.
    """
    x = flat(tensor)
    step = max(1, x.numel() // size)
    while gcd(step, x.numel()) > 1:
        step += 1
    return x[::step]


def histogram(tensor: Tensor) -> Tensor:
    """How many of the values have which magnitude, (BINS,) float32, estimated from a sample; no host round trip."""
    sample = sample_of(tensor)
    x = sample.float().abs().clamp_(max=LIMIT)
    if x.device.type == "cuda" and torch.are_deterministic_algorithms_enabled():  # histc on CUDA is not
        edges = torch.linspace(0, LIMIT, BINS + 1, device=x.device)[1:-1]
        below = torch.searchsorted(x.sort().values, edges)
        counts = torch.diff(below, prepend=below.new_zeros(1), append=below.new_full((1,), x.numel())).float()
    else:
        counts = torch.histc(x, BINS, 0.0, LIMIT)
    return counts * (tensor.numel() / sample.numel())


def mean_and_std(tensor: Tensor) -> tuple[float | Tensor, float | Tensor]:
    """Of all values; the std is the population's. Numbers on a CPU, 0-d tensors that nobody waits for elsewhere."""
    if tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.float64):
        # Three times faster than `moments`, whose many small operations on 0-d tensors cost more than the two passes.
        x = flat(tensor)
        mean = x.sum().item() / x.numel()
        parts = x.split(1 << 18) if x.numel() > 1 << 18 else (x,)
        var = sum(part.dot(part).item() for part in parts) / x.numel() - mean * mean
        # else the difference has lost digits, the squares leave float32's range, or something is not finite
        if 100 * var > mean * mean and 1e-30 < var < 1e30:
            return mean, sqrt(var)
    m = moments(tensor)
    return m.mean, m.std


class _Entry(NamedTuple):
    step: int
    mean: float | Tensor
    std: float | Tensor


class LayerStats:
    """The record of one layer, bounded: evenly spaced steps, at most `cap` of them.

    Attributes:
        name, kind: dotted path and type of the module.
        steps: at which steps of the fit, (n,) int64.
        mean, std: of the layer's output, over all its values, (n,) float32; std is the population's.
        hist: counts of |output| in 40 bins from 0 to 10, estimated from a sample, (n, 40) float32.
        near_zero: the share of the first bin, |output| < 0.25, (n,) float32.

    The values are kept where the layer runs; each attribute copies them to the CPU when it is read. As in the course, it
    is also a sequence of three columns: `means, stds, hists = stats` are lists with one tensor for each record, whose
    number is `len(stats.steps)`.
    """

    def __init__(self, name: str, kind: str, cap: int) -> None:
        self.name, self.kind = name, kind
        self._record: Thinned[_Entry] = Thinned(cap)
        # One block for all: thousands of small tensors that stay would cut up the memory that activations come and go in
        self._hists = torch.empty(0, BINS)

    @torch.no_grad()
    def record(self, step: int, output: Any, counted: Counted | None = None) -> None:
        """Note the moments of `output` (of its first tensor, where it is nested), unless the record is thinned here.

        Args:
            counted: which of its values count; None: all.
        """
        tensor = _first_tensor(output)
        if tensor is None or not self._record.due():
            return
        if counted is not None and not (tensor := counted.select(self.name, tensor)).numel():
            return
        n, tensor = len(self._record), tensor.detach()
        if not n:
            self._hists = torch.empty(self._record.cap, BINS, device=tensor.device)
        self._hists[n] = histogram(tensor)
        self._record.append(_Entry(step, *mean_and_std(tensor)))
        if (kept := len(self._record)) <= n:  # every other one is gone
            self._hists[:kept] = self._hists[::2][:kept].clone()

    def _column(self, i: int) -> Tensor:
        values = [torch.as_tensor(entry[i], dtype=torch.float32) for entry in self._record]
        return torch.stack(values).cpu() if values else torch.empty(0)

    @property
    def steps(self) -> Tensor:
        return torch.tensor([entry.step for entry in self._record], dtype=torch.int64)

    @property
    def mean(self) -> Tensor:
        return self._column(1)

    @property
    def std(self) -> Tensor:
        return self._column(2)

    @property
    def hist(self) -> Tensor:
        return self._hists[: len(self._record)].cpu()

    @property
    def near_zero(self) -> Tensor:
        hist = self.hist
        return hist[:, 0] / hist.sum(1)

    def __len__(self) -> int:
        return 3

    def __getitem__(self, i: int) -> list[Tensor]:
        return list((self.mean, self.std, self.hist)[i])

    def __iter__(self) -> Iterator[list[Tensor]]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"LayerStats({self.name!r} {self.kind}, {len(self._record)} records)"


def _first_tensor(output: Any) -> Tensor | None:
    if not isinstance(output, Tensor):
        output = next((leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)), None)
    return output if output is not None and output.is_floating_point() and output.numel() else None


class ActivationStats(HooksCallback):
    """Records mean, std and histogram of layers' outputs. Runs at before_fit, cleanup_batch, after_fit and cleanup_fit.

    Args:
        layers: as for HooksCallback; None means every module without children.
        on_train: record while training.
        on_valid: record while validating.
        every: record each `every`-th batch, >= 1.
        cap: records to keep for each layer (even, >= 2). When they are full, every other one goes, evenly.
        mask: which values of an output count, padded positions do not; see `lsuv_`. Where the device is no CPU, each recorded
            batch waits for it.
        mod_filter, mods: as for HooksCallback.

    Attributes:
        stats: LayerStats by dotted path; each hook carries its own as `hook.stats`.

    Mean and std are exact. A histogram is made from some 8,000 values of an output: on all of them it would take
    longer than the layer. Nothing is copied to the host before it is looked at.

    Warns:
        LSUVWarning: once if `mask` fits the output of no layer.
    """

    def __init__(
        self,
        layers: Selector | None = None,
        on_train: bool = True,
        on_valid: bool = False,
        *,
        every: int = 1,
        cap: int = 1000,
        mask: Mask | None = None,
        mod_filter: Callable[[nn.Module], bool] | None = None,
        mods: list[nn.Module] | None = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"`every` must be >= 1, got {every}.")
        check_mask(mask)
        Thinned[Any](cap)  # refuses a bad cap here, not at the first batch
        super().__init__(self._record, layers, on_train, on_valid, mod_filter=mod_filter, mods=mods)
        self.every, self.cap, self.mask, self._step = every, cap, mask, 0
        self._learn: Loop | None = None  # in a fit: whose batches are looked at
        self._counted: Counted | None = None  # in a batch
        self._fits = False

    @property
    def stats(self) -> dict[str, LayerStats]:
        return {hook.name: hook.stats for hook in self.hooks}  # type: ignore[attr-defined]

    def select(self, model: nn.Module) -> dict[str, nn.Module]:
        found = select_modules(model, self.layers)
        return {k: m for k, m in found.items() if not any(m.children())} if self.layers is None else found

    def before_fit(self, learn: Loop) -> None:
        super().before_fit(learn)
        self._step, self._learn, self._fits = 0, learn, False
        for hook in self.hooks:
            hook.stats = LayerStats(hook.name, hook.kind, self.cap)  # type: ignore[attr-defined]

    def _record(self, hook: Hook, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if self._step % self.every:
            return
        if self.mask is not None and self._counted is None and self._learn is not None:
            self._counted = Counted(self.mask, self._learn.batch)
        hook.stats.record(self._step, output, self._counted)  # type: ignore[attr-defined]

    def cleanup_batch(self, learn: Loop) -> None:
        self._step += self.watches(learn)
        self._fits = self._fits or (self._counted is not None and self._counted.fits)
        self._counted = None

    def after_fit(self, learn: Loop) -> None:
        super().after_fit(learn)
        if self.mask is not None and self._step and not self._fits:
            self._warn("mask", "`mask` of ActivationStats fits the output of no layer: all values were counted.")

    def cleanup_fit(self, learn: Loop) -> None:
        super().cleanup_fit(learn)
        self._learn = None

    # Pictures: each draws a new pyplot figure, `plt.gcf()`, and returns nothing, so that a notebook shows it once

    def plot_stats(self, figsize: tuple[float, float] = (10, 4)) -> None:
        """Means and standard deviations of all layers by training step, side by side."""
        axes = self._grid(2, figsize)
        for ax, what, title in zip(axes, ("mean", "std"), ("Means", "Standard deviations"), strict=False):
            for stats in self._recorded():
                ax.plot(stats.steps.numpy(), getattr(stats, what).numpy(), label=f"{stats.name} {stats.kind}")
            ax.set(title=title, xlabel="step", ylabel=what)
        axes[1].legend(fontsize="small")

    def color_dim(self, figsize: tuple[float, float] = (11, 5)) -> None:
        """One picture for each layer: how the magnitudes of its outputs (log counts) are distributed at each step."""
        recorded = self._recorded()
        axes = self._grid(len(recorded), figsize)
        for ax, stats in zip(axes, recorded, strict=False):
            span = (0.0, float(stats.steps[-1]) + 1, 0.0, LIMIT)
            counts = stats.hist.t().log1p().numpy()
            ax.imshow(counts, origin="lower", aspect="auto", extent=span, interpolation="nearest")
            ax.set(title=f"{stats.name} {stats.kind}", xlabel="step", ylabel="|output|")
            ax.axis("on")

    def dead_chart(self, figsize: tuple[float, float] = (11, 5)) -> None:
        """One chart for each layer: the share of its outputs that are near zero (below 0.25) at each step."""
        recorded = self._recorded()
        axes = self._grid(len(recorded), figsize)
        for ax, stats in zip(axes, recorded, strict=False):
            ax.plot(stats.steps.numpy(), stats.near_zero.numpy())
            ax.set(title=f"{stats.name} {stats.kind}", xlabel="step", ylabel="share near zero", ylim=(0, 1))
            ax.axis("on")

    def _recorded(self) -> list[LayerStats]:
        recorded = [stats for stats in self.stats.values() if len(stats.steps)]
        if not recorded:
            raise RuntimeError(
                "ActivationStats has recorded nothing: there must be a fit first, with batches to look at "
                f"(on_train={self.on_train}, on_valid={self.on_valid}), and `layers` must match modules that run; it "
                f"matched {len(self.hooks)}."
            )
        return recorded

    def _grid(self, n: int, figsize: tuple[float, float]) -> list[Axes]:
        self._recorded()
        from .. import plot

        figure, axes = plot.get_grid(n, figsize=figsize)
        figure.set_layout_engine("constrained")
        return list(axes.flat)
