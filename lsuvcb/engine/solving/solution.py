"""The law: what a layer's weight, its bias and its output become. Nobody else multiplies by a scale.

With s the scale and t the shift, W the weight and b the bias to begin with (the model's own, or a draw and zeros):

    the bias is     W         b            y = W x + b
    "scaled"        s W       s b + t      s y + t
    "moved"         s W       b + t        s y + (1 - s) b + t
    "kept"          s W       b            s y + (1 - s) b
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ..measuring.moments import Moments, Number
from ..model.left_alone import Reason
from ..model.weight import Weight
from .target import Target

BiasRule = Literal["scaled", "moved", "kept"]


@dataclass(slots=True, eq=False)
class Solution:
    """What became of one weight and its bias.

    Attributes:
        target: where the output was to go; tol: the error allowed.
        found: moments of what was measured, before the correction.
        scale, shift: s and t: 0-d tensors on a device that nothing waits for, until `settle`; then numbers.
        start: the draw that takes the place of W; None keeps it.
        bias: the parameter that it says what becomes of; None without one that may change.
        rule: how the bias changes.
        stays: y holds a bias, not zero, that does not scale with the weight.
        iterations: evaluations of the whole output.
        reason: what the report says of it.
        missed: the target could not be reached; `scale` and `shift` are the best try.
        moves: there is a bias that may move.
        constant: the output is, as `settle` found.
        behind: moments behind the activation, where that was solved, of the best try.
    """

    weight: Weight
    target: Target
    tol: float
    found: Moments
    scale: Any = 1.0
    shift: Any = 0.0
    start: Tensor | None = None
    bias: Weight | None = None
    rule: BiasRule = "scaled"
    stays: bool = False
    iterations: int = 1
    reason: Reason | None = None
    missed: bool = False
    moves: bool = False
    constant: bool = False
    behind: Moments | None = None

    def new_weight(self) -> Tensor:
        """All values of s W."""
        return (self.weight.home.values() if self.start is None else self.start) * self.scale

    def new_bias(self, values: Tensor) -> Tensor:
        """What a bias of these values becomes."""
        if self.rule == "kept":
            return values
        begun = values if self.start is None else torch.zeros_like(values)
        return (begun if self.rule == "moved" else begun * self.scale) + self.shift

    @property
    def given(self) -> Moments:
        """Moments of what was measured, after the correction."""
        if self.behind is not None:
            return self.behind
        return replace(self.found, mean=self.scale * self.found.mean + self.shift, std=self.scale * self.found.std)

    def correct(self, y: Tensor, spread_bias: Callable[[], Tensor]) -> None:
        """Make of y, in place, what the new weight and bias give.

        Args:
            spread_bias: gives the bias in a shape that broadcasts over y; called where it stays.
        """
        self.rescale(y)
        if self.stays and self._changes(self.scale, 1):
            y.add_((1 - self.scale) * spread_bias())
        if self._changes(self.shift, 0):
            y.add_(self.shift)

    def rescale(self, values: Tensor) -> None:
        """Multiply by s, in place, what is linear in W and was made of no bias."""
        if self._changes(self.scale, 1):
            values.mul_(self.scale)

    @staticmethod
    def _changes(number: Number, neutral: int) -> bool:
        return isinstance(number, Tensor) or number != neutral

    def settle(self, mean: float, std: float, scale: float, shift: float, constant: bool) -> None:
        """The numbers, read from the device."""
        self.found.mean, self.found.std, self.scale, self.shift, self.constant = mean, std, scale, shift, constant

    @property
    def numbers(self) -> tuple[Any, ...]:
        """What `settle` takes, where it is."""
        return self.found.mean, self.found.std, self.scale, self.shift, self.found.constant

    @property
    def changes_weight(self) -> bool:
        """Asked when the numbers have been read."""
        return self.scale != 1 or self.start is not None

    @property
    def changes_bias(self) -> bool:
        return self.rule != "kept" and (
            self.shift != 0 or self.start is not None or (self.rule == "scaled" and self.scale != 1)
        )
