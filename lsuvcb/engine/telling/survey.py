"""The survey: signal and gradient by depth, and its verdict on training."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import LSUVError
from .table import number, table, table_html, wrapped
from .verdict import LayerSurvey, says, trouble

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_HEAD = ("layer", "kind", "std", "mean", "signal", "balance", "gradient")


@dataclass(repr=False)
class Survey:
    """Signal and gradient by depth; nothing was changed.

    Attributes:
        layers: one for each use of a weight, in execution order; a tied weight has one under each of its names.
        input_std, input_mean: of what the first layer reads of the batch; None where it reads none of it as it is.
        unseen: how many matrices no linear op uses as they are: look-up tables, standardised weights, recurrent ops.
        ties: the second and further names of tied weights -> the first.
        silent: why no gradient came back; "" where one did, or none was asked for.
    """

    layers: list[LayerSurvey]
    input_std: float | None
    input_mean: float | None
    unseen: int = 0
    ties: dict[str, str] = field(default_factory=dict)
    silent: str = ""

    @property
    def verdict(self) -> str:
        """One sentence: how the signal goes by depth, whether the net will train from these weights, and what would help.

        By depth ("from first to last": the medians of the first and the last third of the layers): a std below 1/3 of the first
        is vanishing, beyond 3 times it, and 1 or more, exploding; where signal / std, compared in the same way, falls below
        1/30, the signal is vanishing, too, held up by biases. Otherwise it is near unit variance if every std lies in
        [1/2, 2], and steady if not.

        It will not train where

            an output is not finite
            the std falls below 1/100 from first to last, or grows beyond 100 times (layers before a normalisation left aside)
            signal / std is below 0.01 in the last layers: the input is forgotten
            balance is below 0.15 in the last layers: a few samples hold all the variance
            the gradient in the first layers is below 1/50 of the last layer's, or beyond 50 times

        `lsuv_` is advised where it has something to scale and the signal is not level already. Constant outputs (a branch that
        starts at zero) are counted and take no part. Where more weights are unseen than seen, the sentence says so.
        """
        layers, total = self._distinct, len(self._distinct) + self.unseen
        said = says(layers)
        if self.unseen > len(layers):
            said += f" (sees {len(layers)} of {total} weights; `lsuv_` names the others and why)"
        return f"{said} (forward only: {self.silent})" if self.silent else said

    @property
    def healthy(self) -> bool:
        """Will it train from these weights, by the rule of `verdict`?"""
        return trouble(self._distinct) is None

    def assert_healthy(self) -> None:
        """For a user's own checks: raise where the net will not train from these weights.

        Raises:
            LSUVError: with the verdict.
        """
        if not self.healthy:
            raise LSUVError(f"this net will not train from these weights: {self.verdict}.")

    @property
    def _distinct(self) -> list[LayerSurvey]:
        return [layer for layer in self.layers if layer.name not in self.ties]

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (r.name, r.kind[:20], *map(number, (r.std, r.mean, r.signal, r.balance, r.gradient))) for r in self.layers
        ]

    def __str__(self) -> str:
        return "\n".join([*wrapped("", f"Survey: {self.verdict}"), *table([_HEAD, *self._rows()], left=(0, 1))])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return table_html(f"Survey: {self.verdict}", _HEAD, self._rows(), left=(0, 1))

    def to_dict(self) -> dict[str, Any]:
        """The survey as plain values that json.dumps takes."""
        return {**asdict(self), "verdict": self.verdict, "healthy": self.healthy}

    def plot(self, ax: Axes | None = None) -> Axes:
        """Std of each layer's output, what of it tells samples apart, and the gradient that comes back, on a log scale."""
        from ...plot import plot_stds

        names, stds, signals, gradients = zip(
            *((r.name, r.std, r.signal, r.gradient) for r in self.layers), strict=True
        )
        return plot_stds(
            names, stds, signal=_curve(signals), gradient=_curve(gradients), ax=ax, title="Signal and gradient by depth"
        )


def _curve(values: tuple[float | None, ...]) -> list[float] | None:
    known = [math.nan if value is None else value for value in values]
    return None if all(map(math.isnan, known)) else known
