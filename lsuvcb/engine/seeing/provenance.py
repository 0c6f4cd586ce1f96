"""Where a tensor of a pass comes from: a weight, through functions that are linear in it; a layer's output; the batch.

Each tensor that an op gives in a pass carries a Trace as an attribute, which dies with it. What outlives the pass (a hidden
state that the model keeps) is cleared at its end.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..model.weight import Weight
from ..model.weights import Weights
from ..ranks import fully_sharded, is_sharded, laid_out, layout_of, local
from ..tensors import has_repeats, tensors_in, tensors_of
from .redistribution import Redistributions

_TRACE = "_lsuvcb_trace"


class Source:
    """A tensor that is a weight's values, through functions that `replay` repeats on other values of it; linear in them.

    Attributes:
        weight: whose values.
        replay: gives this tensor from the weight's values.
        part: only some of the values come out.
        scaled: they were multiplied by something.
        product: the op that multiplied them by another parameter's; "" if none did.
    """

    __slots__ = ("part", "product", "replay", "scaled", "weight")

    def __init__(
        self, weight: Weight, replay: Callable[[Tensor], Tensor] = lambda values: values, part: bool = False,
        scaled: bool = False, product: str = "",
    ) -> None:  # fmt: skip
        self.weight, self.replay, self.part, self.scaled, self.product = weight, replay, part, scaled, product

    def through(
        self, function: Callable[[Tensor], Tensor], part: bool = False, scaled: bool = False, product: str = ""
    ) -> Source:
        """What `function`, linear in its argument, makes of it."""
        replay = self.replay
        return Source(
            self.weight, lambda values: function(replay(values)), self.part or part, self.scaled or scaled,
            self.product or product,
        )  # fmt: skip


def source_of(weight: Weight, at_work: Tensor) -> Source:
    """Of a parameter as the ops find it: what lies in shards elsewhere is given to them as this one lies."""
    if not is_sharded(weight.tensor):
        return Source(weight)
    return Source(weight, partial(laid_out, layout=layout_of(at_work)))


class Made:
    """A tensor that an op made of parameters alone, not linear in one of them: a standardised weight, a merged adapter."""

    __slots__ = ("op", "weights")

    def __init__(self, op: str, weights: tuple[Weight, ...]) -> None:
        self.op, self.weights = op, weights


class Trace:
    """What is known of one tensor.

    Attributes:
        source: how it comes from weights alone; None for a signal.
        output: the layer's output that it is, or that it is an image of; None otherwise.
        above: the weights at work that it depends on, as bits by their number.
        nearest: those of them whose outputs reach it through no other weight.
        branches: how many branches were added to the stream that it is.
        of_batch: no parameter has touched it.
        mixed: of a signal that is a weight's values times another layer's: how it comes from that weight.
    """

    __slots__ = ("above", "branches", "mixed", "nearest", "of_batch", "output", "source")

    def __init__(
        self, source: Source | Made | None = None, output: Any = None, above: int = 0, nearest: int = 0,
        branches: int = 0, of_batch: bool = False, mixed: Source | None = None,
    ) -> None:  # fmt: skip
        self.source, self.output, self.mixed = source, output, mixed
        self.above, self.nearest, self.branches, self.of_batch = above, nearest, branches, of_batch


OF_BATCH = Trace(of_batch=True)


class Seen:
    """What one pass saw of one weight.

    Attributes:
        used_by: the op that used it first; "" before any did.
        mixed_by: the op that multiplied it by a signal; "" before any did.
        uses: how many linear ops used it as their weight.
    """

    __slots__ = ("mixed_by", "used_by", "uses")

    def __init__(self) -> None:
        self.used_by, self.mixed_by, self.uses = "", "", 0


class Trail:
    """The traces of one pass, and what it saw of each weight, in the order in which it met them."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.seen: dict[Weight, Seen] = {}
        self._of_parameter = {key: Trace(source_of(weight, weight.tensor)) for key, weight in weights.by_id.items()}
        # of a DTensor the part that this rank holds carries the trace: `to_local` gives it, `from_local` takes it
        self._in_parts = any(is_sharded(weight.tensor) for weight in weights.all)
        self._redistributions = Redistributions() if self._in_parts else None
        self._tagged: list[weakref.ref[Tensor]] = []
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def of(self, value: object) -> Trace | None:
        """The trace of a tensor; None of one that no op of this pass gave, and of anything else."""
        found = self._of_parameter.get(id(value))
        if found is None and self._in_parts and isinstance(value, Tensor):
            value = local(value)
        return found if found is not None else getattr(value, _TRACE, None)

    def among(self, values: Iterable[Any]) -> list[tuple[Tensor, Trace]]:
        """The tensors that have a trace among an op's arguments, and in lists and tuples there; each once."""
        of_parameter = self._of_parameter
        found: dict[int, tuple[Tensor, Trace]] = {}
        for value in values:
            if isinstance(value, Tensor):
                trace = of_parameter.get(id(value)) or getattr(value, _TRACE, None)
                if trace is None and self._in_parts:
                    trace = getattr(local(value), _TRACE, None)
                if trace is not None:
                    found.setdefault(id(value), (value, trace))
            elif type(value) in (tuple, list):
                for tensor, trace in self.among(value):
                    found.setdefault(id(tensor), (tensor, trace))
        return list(found.values())

    def source(self, value: object) -> Source | Made | None:
        trace = self.of(value)
        return trace.source if trace is not None else None

    def tag(self, value: object, trace: Trace) -> None:
        """Remember that `value`, or each tensor in it, has this trace. A parameter keeps its own."""
        for tensor in tensors_of(value):
            if id(tensor) not in self._of_parameter:
                carrier = local(tensor) if self._in_parts else tensor
                setattr(carrier, _TRACE, trace)
                self._tagged.append(weakref.ref(carrier))

    def _tag_computed(self, trace: Trace, tensor: Tensor) -> None:
        self.tag(tensor, trace)

    def see(self, weight: Weight) -> Seen:
        found = self.seen.get(weight)
        if found is None:
            found = self.seen[weight] = Seen()
        return found

    def meet(self, weight: Weight, op: str) -> None:
        """Note the first op that used `weight`."""
        seen = self.see(weight)
        if not seen.used_by:
            seen.used_by = op

    def uses(self, weight: Weight) -> int:
        return self.seen[weight].uses if weight in self.seen else 0

    def used_by(self, weight: Weight, *, mixed: bool = False) -> str:
        """The op that used it first; "" before any did.

        Args:
            mixed: a product with a signal, of which the use at hand is made, does not count.
        """
        seen = self.seen.get(weight)
        return "" if seen is None else seen.used_by or ("" if mixed else seen.mixed_by)

    def in_order(self) -> list[Weight]:
        """What ran, in execution order; then the rest, in the order of the model."""
        return [*self.seen, *(w for w in self.weights.all if w not in self.seen)]

    def tag_block(self, weight: Weight, given: Any, result: Any) -> None:
        """What a block gave depends on its weight, and on what it was given."""
        above = 1 << weight.number
        for tensor in tensors_in(given):
            trace = self.of(tensor)
            above |= trace.above if trace is not None else 0
        for tensor in tensors_in(result):
            self.tag(tensor, Trace(None, None, above, 1 << weight.number))

    def listen(self) -> None:
        """Be told of the tensors that modules compute in the forward to come, or gather from other ranks."""
        of_parameter = self._of_parameter
        if self._redistributions is not None:
            self._redistributions.show()
        if any(True for _ in fully_sharded(self.weights.model)):
            for module in self.weights.modules.values():
                held = {k: of_parameter[id(p)] for k, p in module._parameters.items() if id(p) in of_parameter}
                self._handles.append(module.register_forward_pre_hook(_Gathered(of_parameter, held)))
        for weight, computed in self.weights.computed():
            trace = Trace(Source(weight))
            self._handles.append(computed.register(partial(self._tag_computed, trace)))

    def forget(self) -> None:
        """Take the hooks off, and the traces of every tensor that outlives the pass."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._redistributions is not None:
            self._redistributions.hide()
        for reference in self._tagged:
            tensor = reference()
            if tensor is not None and hasattr(tensor, _TRACE):
                delattr(tensor, _TRACE)
        self._tagged.clear()


class _Gathered:
    """FSDP2 puts whole parameters in the place of the sharded ones for the time of a forward: they are the same weights."""

    def __init__(self, of_parameter: dict[int, Trace], held: dict[str, Trace]) -> None:
        self.of_parameter, self.held = of_parameter, held

    def __call__(self, module: torch.nn.Module, args: Any) -> None:
        for name, trace in self.held.items():
            if (parameter := module._parameters.get(name)) is not None and id(parameter) not in self.of_parameter:
                assert isinstance(trace.source, Source)
                self.of_parameter[id(parameter)] = Trace(source_of(trace.source.weight, parameter))


def is_all_of(view: Tensor, tensor: Tensor) -> bool:
    """w[:] and w[None] are the whole weight; rows gathered by an index are not, however many."""
    if not view._is_view() or view.numel() != tensor.numel() or has_repeats(view):
        return False
    return view.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
