"""The orthonormal first step of one layer: which draw suits its op, and whether its weight takes one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..model.left_alone import FlatDraw, Reason, SparseTakesNoDraw, TakesNoDraw
from ..model.weight import Weight
from ..seeing.output import Output
from ..seeing.transforms import outside_transforms
from ..seeing.use import Use, in_place_of, output_of, zeros_for
from ..solving.orthonormal import delta_orthogonal_like, orthonormal_like
from .obstacles import keeps_bias
from .plan import Plan


class Draws:
    """Draws the weights of a pass, one after the other, from one generator, and runs their ops with them.

    Args:
        plan: says how; without a target mean, biases that were set on purpose are kept.
        generator: None keeps the weights that the model has.
    """

    def __init__(self, plan: Plan, generator: torch.Generator | None = None) -> None:
        self.plan, self.generator = plan, generator
        self.starts: dict[Output, Tensor] = {}  # by the output that they gave
        self.said: dict[Weight, Reason] = {}  # what there is to say of a draw

    def draw(self, use: Use) -> Tensor | None:
        """A new start for the weight; None where it keeps what it has, or what computes it takes none."""
        if self.generator is None:
            return None
        weight, flat = use.weight, why_flat(use) if self.plan.orthonormal == "delta" else ""
        if weight.tensor.layout != torch.strided:
            self.said[weight] = SparseTakesNoDraw()
            return None
        with outside_transforms():
            if flat is None:
                drawn = delta_orthogonal_like(weight.tensor, self.generator)
            else:
                drawn = orthonormal_like(weight.tensor, self.generator, stacked=use.is_stack)
            if not weight.home.takes(drawn):
                self.said[weight] = TakesNoDraw(weight.home.kind)
                return None
        if flat:
            self.said[weight] = FlatDraw(flat)
        return drawn

    def draw_block(self, weight: Weight) -> Tensor | None:
        if self.generator is None:
            return None
        with outside_transforms():
            return orthonormal_like(weight.tensor, self.generator)

    def run(self, use: Use, start: Tensor | None) -> Any:
        """Call the op with a draw in the place of its weight, and zeros in that of its bias; as it is without one."""
        if start is None:
            return use.run()
        bias = use.bias
        kept = bias is not None and keeps_bias(use, mean_moves=self.plan.moves_mean)
        return use.run(
            in_place_of(use.weight, start), bias.home.values() if bias is not None and kept else zeros_for(bias)
        )

    def begin(self, output: Output) -> None:
        """Draw a layer whose op has run, where it was not: the op runs a second time."""
        if output not in self.starts and (start := self.draw(output.use)) is not None:
            output.y.copy_(output_of(self.run(output.use, start)))
            self.keep(output, start)
            output.renew()

    def keep(self, output: Output, start: Tensor) -> None:
        """Remember the draw that an output comes from: this rank's part of it."""
        self.starts[output] = output.use.weight.home.part_of(start)

    def repeat(self, output: Output) -> None:
        """Give the output of a layer that was drawn the values that its draw gives, with a bias that came later."""
        if output in self.starts:
            output.y.copy_(output_of(self.run(output.use, self.starts[output])))

    def undo(self, output: Output) -> None:
        """Give the output of a layer that was drawn the values that it gives with the weight and the bias that it has."""
        if self.starts.pop(output, None) is not None:
            use = output.use
            bias = None if use.bias is None else use.bias.home.values()
            output.y.copy_(output_of(use.run(use.weight.home.values(), bias)))
            output.renew()


def why_flat(use: Use) -> str | None:
    """Why a convolution is not drawn in the middle tap of its kernel alone; "" of any other op, None where it is.

    It is where it keeps channels and size: stride 1, no groups, as many channels in as out, an odd kernel larger than 1. A kernel
    of 1 is the same either way.
    """
    shape, kernel = use.weight.tensor.shape, use.weight.tensor.shape[2:]
    if not use.op.startswith(("conv", "deform")) or not kernel or max(kernel) == 1:
        return ""
    if use.op not in ("conv1d", "conv2d", "conv3d"):
        return use.op
    if _argument(use, 6, "groups", 1) != 1:
        return "groups"
    if not _is_one(_argument(use, 3, "stride", 1)):
        return "a stride above 1"
    if shape[0] != shape[1]:
        return f"{shape[1]} channels in, {shape[0]} out"
    return None if all(size % 2 == 1 for size in kernel) else "an even kernel"


def _argument(use: Use, position: int, name: str, default: Any) -> Any:
    return use.args[position] if len(use.args) > position else use.kwargs.get(name, default)


def _is_one(stride: Any) -> bool:
    return all(step == 1 for step in stride) if isinstance(stride, (tuple, list)) else stride == 1
