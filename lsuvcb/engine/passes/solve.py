"""The pass that solves: each weight at its first use, its output corrected and handed on."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..measuring.moments import moments
from ..model.left_alone import Empty, Head, LeftByStd, NormBehind, Unfed
from ..model.weight import Weight
from ..model.weights import Weights
from ..seeing.activations import Activations
from ..seeing.behind import Behind
from ..seeing.call import Call
from ..seeing.follow import Facts, Follow
from ..seeing.output import Output
from ..seeing.use import Use, no_real_values, output_of
from ..solving.solution import Solution
from .counted import Counted
from .draw import Draws
from .measure import InputMoments
from .nonfinite import check_output, check_values, non_finite
from .obstacles import bias_obstacle, keeps_bias, obstacle, obstacle_of
from .one_block import BlockSolution, solve_block
from .one_layer import Site, moments_of_use, solve_layer
from .plan import Goals
from .solutions import Solutions


class Aim(NamedTuple):
    """What an earlier pass found out about a weight that is used more than once.

    Attributes:
        factor: of the target at its first use, so that all its uses together reach it.
        last: its solution in that pass.
    """

    factor: float = 1.0
    last: Solution | None = None


class Solve(Follow):
    """Solves each weight at its first use and hands on the corrected output: later layers see the new weights' signal.

    No parameter is changed; `solutions` says what to commit.

    Args:
        goals: what each weight is brought to.
        draws: the orthonormal first step.
        counted: which values count.
        aims: of weights used more than once.
        strict: look for non-finite output at once, at the price of a host round trip per layer.
    """

    def __init__(
        self, weights: Weights, activations: Activations, facts: Facts, goals: Goals, draws: Draws, *,
        counted: Counted | None = None, aims: dict[Weight, Aim] | None = None, input: InputMoments | None = None,
        strict: bool = False,
    ) -> None:  # fmt: skip
        plan = goals.plan
        self.looks_ahead = plan.looks_ahead
        by_module = plan.measure == "activation" or plan.looks_ahead
        super().__init__(
            weights, activations, facts, by_module=by_module, through_dropout=plan.looks_ahead and not plan.moves_mean
        )
        self.goals, self.plan, self.draws, self.strict, self.input = goals, plan, draws, strict, input
        self.counted, self.aims = counted or Counted(None), aims or {}
        self.solutions = Solutions(self.trail, self.settle_now)
        self.last: Weight | None = None

    # A weight at work

    def at_work(self, use: Use) -> tuple[Any, Output | None]:
        weight = use.weight
        self.trail.see(weight).uses += 1
        if use.reads_batch and self.input is not None:
            self.input.look(use, self.trail)
        self.settle_now(weight)
        if use.others:
            self.solutions.renew_others(use)
        if weight in self.solutions.of:
            return self._again(use)
        waits, mean_moves = weight in self.solutions.unfed, self.plan.moves_mean
        reason = obstacle(use, self.trail, waits=waits, mean_moves=mean_moves)
        if reason is not None or self.goals.is_left(weight):
            self.leave(weight, reason or LeftByStd())
        if weight in self.reasons:
            result = self.solutions.run_use(use)
            if self.goals.is_left(weight):
                check_output(use, output_of(result), self.last, self.plan.group, self.solutions.left, wait=self.strict)
            return result, None
        start = None if self.looks_ahead else self.draws.draw(use)
        result = self.draws.run(use, start)
        y = output_of(result)
        no_values = no_real_values(weight, y)
        if no_values is not None or (not y.numel() and self.plan.group is None):
            self.leave(weight, no_values or Empty())
            return (result if start is None else use.run()), None
        if self.strict and not bool(torch.isfinite(y).all()):
            raise non_finite(use, y, self.last, pooled=self.plan.group is not None)
        output = Output(use, y)
        if start is not None:
            self.draws.keep(output, start)
        self.follow(output)
        return result, output

    def _again(self, use: Use) -> tuple[Any, Output | None]:
        """A later use of a solved weight: the same scale. A bias that it alone uses follows, any other stays."""
        self.solutions.take_bias(use, kept=keeps_bias(use, mean_moves=self.plan.moves_mean))
        result = self.solutions.run_use(use)
        y = output_of(result)
        if not y.is_floating_point() or not (y.numel() or self.plan.group):
            return result, None
        output = Output(use, y)
        self.follow(output)
        return result, output

    def elsewhere(self, call: Call) -> Any:
        return self.solutions.run(call)

    def new_value(self, value: Any) -> Any:
        return self.solutions.settled_value(value)

    # Its draw

    def before_dropout(self, output: Output) -> None:
        weight = output.use.weight
        if self.looks_ahead and weight not in self.reasons and weight not in self.solutions.of:
            self.draws.begin(output)

    def bias_behind(self, output: Output, used_by: str) -> None:
        reason = bias_obstacle(output.use, used_by, mean_moves=self.plan.moves_mean)
        if reason is not None:
            self.leave(output.use.weight, reason)
        else:
            self.draws.repeat(output)

    # Its output

    def settle(self, output: Output, read: Tensor, behind: Behind) -> None:
        weight, draws = output.use.weight, self.draws
        if weight in self.solutions.of:
            self.solutions.note_use(weight, moments_of_use(output, read, behind, self.goals, self.counted))
            return
        if self.looks_ahead and behind.norm and not self.goals.names(weight):
            self.leave(weight, NormBehind())
        if weight not in self.reasons:
            if self.looks_ahead:
                draws.begin(output)
            aim = self.aims.get(weight, Aim())
            site = Site(output, read, behind, draws.starts.get(output), draws.said.get(weight))
            found = solve_layer(site, self.goals, self.counted, aim.factor, self.last)
            if isinstance(found, Solution):
                self._take(output, behind, found)
                return
            if isinstance(found, Unfed):
                self._wait_for_input(output, aim.last)
                return
            self.leave(weight, found)
        draws.undo(output)
        check_output(output.use, output.y, self.last, self.plan.group, self.solutions.left, wait=self.strict)

    def _take(self, output: Output, behind: Behind, solution: Solution) -> None:
        _hand_on(output, solution)
        output.behind_activation = behind.activation is not None
        self.solutions.add(solution)
        self.last = solution.weight

    def _wait_for_input(self, output: Output, last: Solution | None) -> None:
        """The input of this use is all zero, and only a later use shows what the weight does: wait for that.

        The output is handed on with the new bias, where an earlier pass has found it (`last`).
        """
        if last is not None:
            _hand_on(output, last)
        self.solutions.unfed.setdefault(output.use.weight, []).append(moments(output.y))

    def on_block(self, weight: Weight, args: Any, kwargs: Any, result: Any) -> Any:
        block, used_by = self.weights.blocks[weight], self.trail.used_by(weight)
        self.trail.see(weight).uses += 1
        self.trail.meet(weight, "block")
        if weight not in self.solutions.of and (reason := obstacle_of(weight, used_by)) is not None:
            self.leave(weight, reason)
        if weight in self.reasons:
            return None
        if weight not in self.solutions.of:
            found = solve_block(block, weight, args, kwargs, result, self.draws.draw_block(weight), self.goals)
            if not isinstance(found, BlockSolution):
                self.leave(weight, found)
                return None
            self.solutions.add(found.solution)
            self.solutions.blocks[weight] = found.bias
            self.last = weight
        return block.run(args, kwargs, self.solutions.of[weight].new_weight(), self.solutions.blocks[weight])

    # The end

    def end(self, result: Any) -> None:
        super().end(result)
        for weight in self.solutions.unfed:
            self.leave(weight, Unfed())
        heads = [w for w in self.solutions.of if not self.feeds(w) and not self.goals.names(w)]
        for weight in heads if self.looks_ahead else ():
            check_values(self.solutions.drop(weight))
            self.leave(weight, Head())


def _hand_on(output: Output, solution: Solution) -> None:
    solution.correct(output.y, output.use.spread_bias)
    output.renew(solution.rescale)
