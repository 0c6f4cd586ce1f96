"""The solutions of one pass, and what other readers of a parameter see: the values that it will have."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..measuring.moments import Moments, joined
from ..model.weight import Weight
from ..seeing import ops
from ..seeing.call import Call
from ..seeing.provenance import Source, Trail
from ..seeing.use import Use
from ..solving.solution import Solution
from .measure import read


class Solutions:
    """What a pass has solved.

    Args:
        settle_now: solves a weight, or the one that a bias belongs to, whose output still waits for its reader.

    Attributes:
        of: weight -> its solution.
        biases: bias -> the weight whose solution it follows.
        blocks: a block's weight -> the bias that the block will have.
        uses: of weights used more than once, the moments of each use as it was handed on.
        unfed: weights that saw nothing but zeros yet, and the moments of what their uses gave.
        left: the stds of outputs on devices, of weights that the recipe leaves: to be finite all the same.
    """

    def __init__(self, trail: Trail, settle_now: Callable[[Weight], None]) -> None:
        self._trail, self._settle_now = trail, settle_now
        self.of: dict[Weight, Solution] = {}
        self.biases: dict[Weight, Weight] = {}
        self.blocks: dict[Weight, Any] = {}
        self.uses: dict[Weight, list[Moments]] = {}
        self.unfed: dict[Weight, list[Moments]] = {}
        self.left: list[Tensor] = []

    def add(self, solution: Solution) -> None:
        self.of[solution.weight] = solution
        if solution.bias is not None:
            self.biases[solution.bias] = solution.weight
        for earlier in self.unfed.pop(solution.weight, ()):
            self.note_use(solution.weight, earlier)

    def take_bias(self, use: Use, *, kept: bool) -> None:
        """The bias of a later use of a solved weight follows it, too, where nothing else uses or moves it."""
        bias = use.bias
        if bias is None or kept or use.obstacle is not None or bias in self.biases or self._trail.used_by(bias):
            return
        self.biases[bias] = use.weight

    def drop(self, weight: Weight) -> Solution:
        """Forget the solution of `weight`, which keeps the values that it has after all; returns it."""
        solution = self.of.pop(weight)
        self.uses.pop(weight, None)
        if solution.bias is not None:
            self.biases.pop(solution.bias, None)
        return solution

    def changes(self, weight: Weight) -> bool:
        """Will the commit give this weight or bias other values?"""
        return weight in self.of or self.biases.get(weight) in self.of

    def new_value(self, value: Any) -> Any:
        """A parameter, or what is linear in one, with the values that the commit will give it; anything else as it is."""
        if type(value) in (tuple, list):
            return type(value)(self.new_value(item) for item in value)
        source = self._trail.source(value) if isinstance(value, Tensor) else None
        if not isinstance(source, Source):
            return value
        weight = source.weight
        if (solution := self.of.get(weight)) is not None:
            return source.replay(solution.new_weight())
        if (of := self.biases.get(weight)) is not None and (solution := self.of.get(of)) is not None:
            return source.replay(solution.new_bias(weight.home.values()))
        return value

    def settled_value(self, value: Any) -> Any:
        """See `new_value`; of a weight whose output still waits for its reader, too."""
        source = self._trail.source(value) if isinstance(value, Tensor) else None
        if isinstance(source, Source):
            self._settle_now(source.weight)
        return self.new_value(value)

    def run(self, call: Call) -> Any:
        """Run another op that uses parameters, with the values that they will have."""
        for _, source in call.sources:
            self._settle_now(source.weight)
        changed = any(self.changes(source.weight) for _, source in call.sources)
        return self._run(call) if changed else call.run()

    def run_use(self, use: Use) -> Any:
        """Run a later use of a weight that is solved, or of one that is left alone whose bias may be solved."""
        if use.bias is not None:
            self._settle_now(use.bias)
        return use.taken(self._run(use))

    def renew_others(self, use: Use) -> None:
        """Give an op the new values of the parameters that it takes beside its weight and its bias."""
        for _, trace in self._trail.among((*use.args, *use.kwargs.values())):
            if isinstance(trace.source, Source):
                self._settle_now(trace.source.weight)
        own = [(key, ops.get(use.args, use.kwargs, key)) for key in (use.key, use.bias_key) if key is not None]
        use.args, use.kwargs = self._new_values(use)
        for key, value in own:
            use.args, use.kwargs = ops.put(use.args, use.kwargs, key, value)

    def _run(self, call: Call | Use) -> Any:
        args, kwargs = self._new_values(call)
        return call.func(*args, **kwargs)

    def _new_values(self, call: Call | Use) -> tuple[list[Any], dict[str, Any]]:
        return [self.new_value(a) for a in call.args], {k: self.new_value(v) for k, v in call.kwargs.items()}

    def note_use(self, weight: Weight, found: Moments) -> None:
        """One more use of a weight that is solved; the first is known by its solution."""
        self.uses.setdefault(weight, [self.of[weight].given]).append(found)

    def read(self) -> None:
        """Settle the numbers of all solutions: one transfer from each device."""
        rows = read({w: s.numbers for w, s in self.of.items()})
        for weight, (mean, std, scale, shift, constant) in rows.items():
            self.of[weight].settle(mean, std, scale, shift, bool(constant))

    def read_uses(self) -> dict[Weight, float]:
        """Of weights used more than once: the std of all uses' values together."""
        moments = {(w, i): m for w, found in self.uses.items() for i, m in enumerate(found)}
        numbers = read({key: (m.mean, m.std) for key, m in moments.items()})
        result = {}
        for weight, found in self.uses.items():
            parts = [replace(m, mean=numbers[weight, i][0], std=numbers[weight, i][1]) for i, m in enumerate(found)]
            result[weight] = float(joined(parts).std)
        return result

    @property
    def finite(self) -> bool:
        left = read({i: (std,) for i, std in enumerate(self.left)})
        found = [s.found.std + s.found.mean for s in self.of.values()] + [std for (std,) in left.values()]
        return all(map(math.isfinite, found))
