"""The pass that solves: each weight at its first use, its output corrected and handed on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import LSUVError
from ..measuring.moments import Moments, Number, highest, moments, zero_on_cpu
from ..model.blocks import Block, output_tensor
from ..model.weights import Source, Weight, Weights
from ..ranks import shard_as, whole
from ..seeing import ops
from ..seeing.eye import Use, no_real_values, output_of
from ..seeing.follow import Activations, Elementwise, Follow
from ..solving.newton import Target, closed_form
from ..solving.nonlinear import Layer, missed, solve_behind, solve_block
from ..solving.orthonormal import orthonormal_like
from ..solving.rerun import as_it_was, bias_like, correct, in_place_of, zeros_like
from .measure import read
from .nonfinite import non_finite

CONSTANT = "constant output: no scale gives it a spread"
UNFED = "constant output: its input is all zero at its first use, where no scale shows"


class Values(NamedTuple):
    """The numbers of one solution, on the host."""

    std: float
    mean: float
    scale: float
    shift: float
    constant: bool

    @property
    def finite(self) -> bool:
        return math.isfinite(self.std) and math.isfinite(self.mean)


@dataclass(slots=True, eq=False)
class Solution:
    """What became of one weight W and its bias b.

    Attributes:
        found: moments of the layer's output before the correction.
        scale, shift: s and t of W <- s W and b <- s b + t, or b + t where `keeps_bias`.
        tol: the error allowed.
        start: the orthonormal draw that takes the place of W, and zeros that of b; None keeps them.
        has_bias: there is a bias that may move.
        iterations: evaluations of the whole output.
        reason: what the report says of it.
        missed: the target could not be reached; `scale` and `shift` are the best try.
    """

    weight: Weight
    found: Moments
    scale: Number
    shift: Number
    tol: float
    start: Tensor | None = None
    has_bias: bool = False
    keeps_bias: bool = False
    iterations: int = 1
    reason: str = ""
    missed: bool = False


class Scale(Follow):
    """Solves each weight at its first use and hands on the corrected output: later layers see the new weights' signal.

    No parameter is changed; `solutions` says what to commit.

    Args:
        weights: found anew for this pass.
        target: where each output is to go.
        activations: see Follow.
        draws: generator of the orthonormal first step; None keeps the weights that the model has.
        group: moments are summed over its ranks.
        strict: look for non-finite output at once, at the price of a host round trip per layer.
    """

    def __init__(
        self,
        weights: Weights,
        target: Target,
        activations: Activations | None = None,
        draws: torch.Generator | None = None,
        group: dist.ProcessGroup | None = None,
        strict: bool = False,
    ) -> None:
        super().__init__(weights, activations)
        self.target, self.draws, self.group, self.strict = target, draws, group, strict
        self.solutions: dict[Weight, Solution] = {}
        self.biases: dict[Weight, Weight] = {}  # bias -> the weight whose solution it follows
        self.block_biases: dict[Weight, Any] = {}  # a block -> the bias that the commit gives it
        # layers between their op and their solution: moments of the output, the orthonormal draw that gave it
        self._begun: dict[Weight, tuple[Moments, Tensor | None]] = {}
        self._undrawn: dict[Weight, str] = {}
        self._before: Weight | None = None

    def at_work(self, use: Use) -> Any:
        weight = use.weight
        weight.uses += 1
        if self._waiting:
            self.settle_now(weight)
        if use.others:
            self._renew_others(use)
        if weight in self.solutions:
            return self._again(use)
        if reason := self._obstacle(use):
            weight.note(reason)
        if weight.reason:
            return self._leave(use)
        drawn = start = self._draw(use)
        if drawn is not None:
            start, result = shard_as(drawn, weight.tensor), use.run(in_place_of(weight, drawn), zeros_like(use.bias))
        else:
            result = use.run()
        y = output_of(result)
        if (reason := no_real_values(weight, y)) or (not y.numel() and self.group is None):
            weight.note(reason or "its output is empty")
            return result if start is None else use.run()
        found = self._look(use, y)
        if self._unfed(use, found, start):
            weight.note(UNFED)
            return result if start is None else use.run()
        self._begun[weight] = found, start
        if start is None:
            use.free_inputs()
        self.hand_on(use, y)
        return result

    def _draw(self, use: Use) -> Tensor | None:
        """The orthonormal first step; None keeps the values that the weight has."""
        if self.draws is None:
            return None
        weight = use.weight
        drawn = orthonormal_like(weight.tensor, self.draws, stacked=use.stacked)
        if weight.computed is not None and weight.computed.originals_for(drawn) is None:
            self._undrawn[weight] = f"computed by {weight.computed.kind}, which takes no orthonormal draw: only scaled"
            return None
        return drawn

    def _renew_others(self, use: Use) -> None:
        """Parameters that the op works on beside its weight have new values by now, if they were solved."""
        for source in use.others:
            if isinstance(source, Source):
                self.settle_now(source.weight)
        own = [(k, ops.get(use.args, use.kwargs, k)) for k in (use.key, use.bias_key) if k is not None]
        use.args = [self._new_values(a) for a in use.args]
        use.kwargs = {k: self._new_values(v) for k, v in use.kwargs.items()}
        for key, value in own:
            use.args, use.kwargs = ops.put(use.args, use.kwargs, key, value)

    def _look(self, use: Use, y: Tensor) -> Moments:
        found = moments(y, use.weight.pool(self.group))
        std = found.std
        if isinstance(std, Tensor) and use.bias is not None:  # what `_unfed` reads on a CPU, and nothing waits for here
            fed = [t.any() for t in use.inputs() if t.layout == torch.strided and t.device == y.device]
            found = replace(found, std=std * torch.stack(fed).any()) if fed else found
        if (self.strict or not isinstance(std, Tensor)) and not math.isfinite(std):
            raise non_finite(use, y, self._before, pooled=self.group is not None)
        return found

    def settle(self, use: Use, y: Tensor, activation: Elementwise | None, why: str) -> None:
        weight, bias = use.weight, use.bias
        found, start = self._begun.pop(weight)
        why = self._undrawn.get(weight, why) if self._undrawn else why
        if (start is not None or activation is not None or not found.count) and bool(found.constant):
            weight.note(CONSTANT if found.count else "its output is empty")
            if start is not None:
                y.copy_(output_of(as_it_was(use)))
            return
        has_bias = bias is not None and bias.tensor.requires_grad
        tol = self.target.tolerance(weight.tensor.dtype, y.dtype)
        if activation is None:
            scale, shift = closed_form(found, self.target, tol, has_bias=has_bias, keep_close=start is None)
            solution = Solution(weight, found, scale, shift, tol, start, has_bias, reason=why)
            correct(y, scale, shift)
        else:
            kept = None if bias is None or bias.zero or start is not None else bias_like(use)
            behind = solve_behind(
                Layer(y, kept, activation, found, has_bias), self.target, tol, weight.pool(self.group)
            )
            if behind is None:
                weight.note("constant output of its activation: no scale gives it a spread")
                if start is not None:
                    y.copy_(output_of(as_it_was(use)))
                return
            keeps = self.target.mean is not None
            scale, shift, evaluations, reason, missed_it = behind
            solution = Solution(
                weight, found, scale, shift, tol, start, has_bias, keeps, evaluations, reason, missed_it
            )  # fmt: skip
        self.solutions[weight] = solution
        if bias is not None and has_bias:
            self.biases[bias] = weight
        self._before = weight

    def on_block(self, weight: Weight, args: Any, kwargs: Any, output: Any) -> Any:
        block = weight.block
        assert block is not None
        weight.uses += 1
        if weight not in self.solutions:
            if reason := self._obstacle_of(weight):
                weight.note(reason)
            self.weights.meet(weight, "block")
            if weight.reason or not self._solve_block(weight, block, args, kwargs, output):
                return None
        solution = self.solutions[weight]
        start = weight.tensor.detach() if solution.start is None else solution.start
        return block.run(args, kwargs, start * solution.scale, self.block_biases[weight])

    def _solve_block(self, weight: Weight, block: Block, args: Any, kwargs: Any, output: Any) -> bool:
        drawn = orthonormal_like(weight.tensor, self.draws) if self.draws is not None else None
        start, bias = (weight.tensor.detach(), block.bias) if drawn is None else (drawn, block.bias * 0)
        tol = self.target.tolerance(weight.tensor.dtype, output_tensor(output).dtype)
        solved = solve_block(block, args, kwargs, start, bias, self.target, tol, weight.pool(self.group))
        best = solved.best
        if not math.isfinite(best.std + best.mean):
            raise LSUVError(f"layer {weight} gave non-finite output on this batch, whatever its scale.")
        if not best.std > 0:
            weight.note(CONSTANT)
            return False
        reason = "" if solved.converged else missed(best, solved.iterations)
        found = Moments(best.mean, best.std, 0.0, 0)
        self.solutions[weight] = Solution(
            weight, found, best.scale, best.shift, tol, drawn, True, True, solved.iterations, reason, not solved.converged
        )  # fmt: skip
        self.block_biases[weight] = bias + best.shift if best.shift or drawn is not None else bias
        self._before = weight
        return True

    def elsewhere(self, sources: list[Source], op: str, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Another op that uses parameters gets the values that they will have."""
        for source in sources:
            self.settle_now(source.weight)
        if any(s.weight in self.solutions or s.weight in self.biases for s in sources):
            args = [self._new_values(a) for a in args]
            kwargs = {k: self._new_values(v) for k, v in kwargs.items()}
        return func(*args, **kwargs)

    def read(self) -> dict[str, Values]:
        """The numbers of every solution, by the weight's name, read from each device once."""
        rows = read(
            {
                s.weight.name: (s.found.mean, s.found.std, s.scale, s.shift, s.found.constant)
                for s in self.solutions.values()
            }
        )
        return {
            name: Values(std, mean, scale, shift, bool(flag)) for name, (mean, std, scale, shift, flag) in rows.items()
        }

    def _obstacle(self, use: Use) -> str:
        bias = use.bias
        if reason := self._obstacle_of(use.weight):
            return reason
        if use.fixed_bias:
            return use.fixed_bias
        if bias is not None and bias.computed is not None:
            return f"its bias is computed by {bias.computed.kind}"
        if bias is not None and bias.used_by and not (bias.zero and self.target.mean is None):
            return f"its bias is used earlier in the pass, by {bias.used_by}"
        return ""

    def _unfed(self, use: Use, found: Moments, start: Tensor | None) -> bool:
        """A recurrent weight's first state is often zero: its output is the bias alone, whatever the weight."""
        if isinstance(found.std, Tensor):
            return False
        bias = use.bias
        square = 0.0 if bias is None or bias.zero or start is not None else bias.mean_square
        if abs(found.square - square) > 0.05 * square and not found.constant:
            return False  # more than the bias; to look at the inputs would cost more
        held = [t for t in use.inputs() if t.numel()]
        silent = any if use.op in ops.PRODUCTS else all
        here = 0 if not held else 1 if silent(map(zero_on_cpu, held)) else 2  # nothing, zeros, values
        return highest(here, use.weight.pool(self.group)) == 1

    def _obstacle_of(self, weight: Weight) -> str:
        if not weight.tensor.requires_grad:
            return "frozen (requires_grad=False)"
        if weight.used_by:
            return f"used earlier in the pass, by {weight.used_by}"
        if not weight.tensor.numel():
            return "its output is empty"
        return "all zero, as a branch that starts silent" if weight.zero else ""

    def _leave(self, use: Use) -> Any:
        return self.elsewhere([use.source], use.op, use.func, use.args, use.kwargs)

    def _again(self, use: Use) -> Any:
        """A later use of a solved weight: the same scale. A bias that it alone uses follows, any other stays."""
        solution, bias = self.solutions[use.weight], use.bias
        free = bias is not None and bias not in self.biases and not bias.used_by and not use.fixed_bias
        if bias is not None and free:
            self.biases[bias] = use.weight
        follows = bias is not None and self.biases.get(bias) is use.weight
        if solution.keeps_bias or (use.bias_key is not None and not follows):
            return self._leave(use)
        start = None if solution.start is None else whole(solution.start)
        result = use.run(start, None if start is None else zeros_like(bias))
        y = output_of(result).mul_(solution.scale)
        if bias is not None:
            y.add_(solution.shift)
        return result

    def _new_values(self, value: Any) -> Any:
        """A parameter, or a view of one, with the values that the commit will give it; anything else as it is."""
        if type(value) in (tuple, list):
            return type(value)(self._new_values(v) for v in value)
        source = self.weights.source(value)
        if not isinstance(source, Source):
            return value
        weight = source.weight
        if (solution := self.solutions.get(weight)) is not None:
            start = whole(weight.tensor.detach() if solution.start is None else solution.start)
            return source.replay(start * solution.scale)
        if (of := self.biases.get(weight)) is not None and (solution := self.solutions.get(of)) is not None:
            start = whole(weight.tensor.detach())
            start = start if solution.start is None else torch.zeros_like(start)
            return source.replay((start if solution.keeps_bias else start * solution.scale) + solution.shift)
        return value
