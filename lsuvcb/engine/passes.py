"""The two passes over a model: one measures every weight at work, the other scales it and hands on what it will give."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import LSUVError
from .eye import Eye, Use, is_complex_or_integer, output_of
from .finite import count_non_finite
from .init import orthonormal_like
from .moments import Moments, moments
from .solve import Target, closed_form
from .weights import Source, Weight, Weights


class Measure(Eye):
    """Moments of each weight's output at its first use; nothing is changed."""

    def __init__(self, weights: Weights, group: dist.ProcessGroup | None = None) -> None:
        super().__init__(weights)
        self.group = group
        self.found: dict[str, Moments] = {}

    def at_work(self, use: Use) -> Any:
        result, weight = use.run(), use.weight
        weight.uses += 1
        y = output_of(result)
        if weight.name not in self.found and torch.is_floating_point(y) and (y.numel() or self.group):
            self.found[weight.name] = moments(y, self.group)
        return result

    def read(self) -> dict[str, tuple[float, float]]:
        """Std and mean by name, read from each device once."""
        rows = read({name: torch.stack([m.std, m.mean]) for name, m in self.found.items()})
        return {name: (std, mean) for name, (std, mean) in rows.items()}


def read(rows: dict[str, Tensor]) -> dict[str, list[float]]:
    """Vectors of one length, as lists: one transfer for each device and dtype."""
    values: dict[str, list[float]] = {}
    for place in {(t.device, t.dtype) for t in rows.values()}:
        names = [name for name, t in rows.items() if (t.device, t.dtype) == place]
        values.update(zip(names, torch.stack([rows[name] for name in names]).tolist(), strict=True))
    return values


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


class Solution(NamedTuple):
    """What became of one weight: W <- scale * start, b <- scale * b + shift; `start` is W, or its orthonormal draw."""

    weight: Weight
    found: Moments
    scale: Tensor
    shift: Tensor
    tol: float
    start: Tensor | None
    has_bias: bool


class Scale(Eye):
    """Solves each weight at its first use and hands on the corrected output: later layers see the new weights' signal.

    No parameter is changed; `solutions` says what to commit.

    Args:
        weights: found anew for this pass.
        target: where each output is to go.
        draws: generator of the orthonormal first step; None keeps the weights that the model has.
        group: moments are summed over its ranks.
        strict: look for non-finite output at once, at the price of a host round trip per layer.
    """

    def __init__(
        self,
        weights: Weights,
        target: Target,
        draws: torch.Generator | None = None,
        group: dist.ProcessGroup | None = None,
        strict: bool = False,
    ) -> None:
        super().__init__(weights)
        self.target, self.draws, self.group, self.strict = target, draws, group, strict
        self.solutions: dict[Weight, Solution] = {}
        self.biases: dict[Weight, Weight] = {}  # bias -> the weight whose solution it follows
        self._before = ""

    def at_work(self, use: Use) -> Any:
        weight = use.weight
        weight.uses += 1
        if weight in self.solutions:
            return self._again(use)
        if reason := self._obstacle(use):
            weight.note(reason)
        result = self._leave(use) if weight.reason else self._solve(use)
        self._before = str(weight)
        return result

    def elsewhere(self, sources: list[Source], op: str, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Another op that uses parameters gets the values that they will have."""
        if any(s.weight in self.solutions or s.weight in self.biases for s in sources):
            args = [self._new_values(a) for a in args]
            kwargs = {k: self._new_values(v) for k, v in kwargs.items()}
        return func(*args, **kwargs)

    def _obstacle(self, use: Use) -> str:
        weight, bias = use.weight, use.bias
        if not weight.tensor.requires_grad:
            return "frozen (requires_grad=False)"
        if weight.used_by:
            return f"used earlier in the pass, by {weight.used_by}"
        if weight.zero:
            return "all zero, as a branch that starts silent"
        if use.fixed_bias:
            return use.fixed_bias
        if bias is not None and bias.used_by and not (bias.zero and self.target.mean is None):
            return f"its bias is used earlier in the pass, by {bias.used_by}"
        return ""

    def _leave(self, use: Use) -> Any:
        return self.elsewhere([use.source], use.op, use.func, use.args, use.kwargs)

    def _solve(self, use: Use) -> Any:
        weight, bias = use.weight, use.bias
        start = zeros = None
        if self.draws is not None:
            start = orthonormal_like(weight.tensor, self.draws, stacked=use.stacked)
            zeros = torch.zeros_like(bias.tensor) if bias is not None else None
        result = use.run(start, zeros)
        y = output_of(result)
        if (reason := is_complex_or_integer(weight, y)) or (not y.numel() and self.group is None):
            weight.note(reason or "its output is empty")
            return use.run() if start is not None else result
        tol = self.target.tolerance(weight.tensor.dtype, y.dtype)
        found = moments(y, self.group)
        if self.strict or y.device.type == "cpu":
            self._check_finite(use, y, found)
        has_bias = bias is not None and bias.tensor.requires_grad
        scale, shift = closed_form(found, self.target, tol, has_bias=has_bias, keep_close=start is None)
        if start is not None and bool(found.constant):
            weight.note(CONSTANT)
            return use.run()
        self.solutions[weight] = Solution(weight, found, scale, shift, tol, start, has_bias)
        if bias is not None and has_bias:
            self.biases[bias] = weight
        self._correct(y, scale, shift)
        return result

    def read(self) -> dict[str, Values]:
        """The numbers of every solution, by the weight's name."""
        solved = self.solutions.values()
        rows = read(
            {
                s.weight.name: torch.stack(
                    [s.found.mean, s.found.std, s.scale, s.shift, s.found.constant.to(s.scale.dtype)]
                )
                for s in solved
            }
        )
        return {
            name: Values(std, mean, scale, shift, bool(flag)) for name, (mean, std, scale, shift, flag) in rows.items()
        }

    def _correct(self, y: Tensor, scale: Tensor, shift: Tensor) -> None:
        """y <- scale * y + shift, in place, so that whoever holds y sees it."""
        if y.device.type != "cpu" or bool(scale != 1):
            y.mul_(scale)
        if self.target.mean is not None and (y.device.type != "cpu" or bool(shift != 0)):
            y.add_(shift)

    def _again(self, use: Use) -> Any:
        """A later use of a solved weight: the same scale. A bias that it alone uses follows, any other stays as it is."""
        solution, bias = self.solutions[use.weight], use.bias
        if (
            bias is not None
            and bias not in self.biases
            and not bias.used_by
            and not use.fixed_bias
            and solution.has_bias
        ):
            self.biases[bias] = use.weight
        if use.bias_key is not None and (bias is None or self.biases.get(bias) is not use.weight):
            return self.elsewhere([use.source], use.op, use.func, use.args, use.kwargs)
        zeros = torch.zeros_like(bias.tensor) if bias is not None and solution.start is not None else None
        result = use.run(solution.start, zeros)
        y = output_of(result)
        y.mul_(solution.scale)
        if bias is not None:
            y.add_(solution.shift)
        return result

    def _new_values(self, value: Any) -> Any:
        """A parameter, or a view of one, with the values that the commit will give it; anything else as it is."""
        if isinstance(value, (tuple, list)):
            return type(value)(self._new_values(v) for v in value) if type(value) in (tuple, list) else value
        source = self.weights.source(value)
        if not isinstance(source, Source):
            return value
        weight = source.weight
        if weight in self.solutions:
            solution = self.solutions[weight]
            start = solution.start if solution.start is not None else weight.tensor.detach()
            return source.replay(start * solution.scale)
        if weight in self.biases:
            solution = self.solutions[self.biases[weight]]
            start = weight.tensor.detach() if solution.start is None else torch.zeros_like(weight.tensor)
            return source.replay(start * solution.scale + solution.shift)
        return value

    def _check_finite(self, use: Use, y: Tensor, found: Moments) -> None:
        if bool(torch.isfinite(found.std)):
            return
        bad, total = count_non_finite([y])
        inputs_bad, inputs_total = count_non_finite(use.inputs())
        where = "the first non-finite values appear here"
        if inputs_bad:
            after = f"between {self._before} and it" if self._before else "before it"
            where = f"its input holds {inputs_bad} of {inputs_total} such values already, from an op {after}"
        raise LSUVError(f"layer {use.weight} gave non-finite output on this batch ({bad} of {total} values); {where}.")


CONSTANT = "constant output: no scale gives it a spread"
