"""The eye: sees each op of a forward that uses a parameter, knows which, and whether the op is linear in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.overrides import TorchFunctionMode

from ..model.left_alone import (
    HiddenInRecurrence,
    InputOf,
    LookedUp,
    NotUsed,
    PackedInAttention,
    ProductOfTwo,
    Reason,
    UsedBy,
)  # fmt: skip
from ..model.weight import Weight
from ..model.weights import Weights
from ..ranks import local
from ..tensors import tensors_of
from . import ops
from .call import Call
from .combined import combined_in, note_product, tag_view
from .finding import look_inside, made_in, use_in
from .provenance import OF_BATCH, Made, Source, Trace, Trail
from .structure import branch_of
from .transforms import inside_transform
from .use import Use
from .written import note_written


class Eye(TorchFunctionMode):
    """Watches a forward. A subclass says what happens at a weight at work (`at_work`) and at any other use (`elsewhere`).

    It needs no module hooks, so functional code, subclasses with a forward of their own and hooks that replace outputs are
    all seen. Inside an op the mode is off: what `F.multi_head_attention_forward` does within stays hidden.

    Attributes:
        gradients: the pass keeps them.
        trail: what this pass has seen.
        reasons: why a weight is left alone, as this pass found.
    """

    gradients = False

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.weights, self.trail = weights, Trail(weights)
        self.reasons: dict[Weight, Reason] = {w: w.reason for w in weights.all if w.reason is not None}
        self._fed = 0
        self.asleep = False  # inside a block, whose ops are its own matter

    def at_work(self, use: Use) -> tuple[Any, Any]:
        """Run a linear op. Returns its result, corrected or not, and the Output that is followed from here; None for none."""
        return use.run(), None

    def elsewhere(self, call: Call) -> Any:
        """Run any other op that uses parameters, and return its result."""
        return call.run()

    def new_value(self, value: Any) -> Any:
        """A parameter with the values that it will have; anything else as it is."""
        return value

    def reads(self, call: Call) -> Callable[[Any], Any] | None:
        """An op is about to read what it was given. Returns what its result is an image of, to be asked with the result."""
        return None

    def end(self, result: Any) -> None:
        """The forward has given `result`. What is run from here on is none of the model's ops."""
        self.asleep = True
        hidden = [w for w in self.trail.in_order() if not self.trail.uses(w) and w not in self.reasons]
        self.reasons.update((w, hidden_reason(self.trail.used_by(w))) for w in hidden)

    def leave(self, weight: Weight, reason: Reason) -> None:
        """Leave it alone for this reason; the first one stands."""
        self.reasons.setdefault(weight, reason)

    def __enter__(self) -> Any:
        self.trail.listen()
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self.trail.forget()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        op = ops.op_of(func)
        if op.looks or self.asleep:
            return func(*args, **kwargs)
        traces = self.trail.among((*args, *kwargs.values()) if kwargs else args)
        if inside_transform():
            self._fed |= look_inside(op.name, (args, kwargs), traces, self.trail, self.settle_now, self.leave)
        if not traces:
            return func(*args, **kwargs)
        call = Call(op, func, args, kwargs, traces)
        carry = self.reads(call)
        return self._weights_in(call, carry) if call.uses_weights else self._signal(call, carry)

    def settle_now(self, weight: Weight) -> None:
        """Another op is about to read `weight`: measure or correct its output, where that still waits for its reader."""

    # Signals

    def _signal(self, call: Call, carry: Callable[[Any], Any] | None) -> Any:
        """An op without parameters: its result depends on what its arguments do."""
        result = call.run()
        self._tag(result, call, carry)
        return result

    def _tag(self, result: Any, call: Call, carry: Callable[[Any], Any] | None, mixed: Source | None = None) -> None:
        above = nearest = branches = 0
        of_batch = True
        for _, trace in call.traces:
            above |= trace.above
            nearest |= trace.nearest
            branches = max(branches, trace.branches)
            of_batch = of_batch and trace.of_batch
        output = carry(result) if carry is not None else None
        if (added := branch_of(call)) is not None:
            branches = added.stream.branches + 1
        elif call.op.plain in ops.NORMS:
            branches = 0
        tensor, trace = call.traces[0]
        if len(call.traces) == 1 and call.op.views and trace is OF_BATCH:
            self.trail.tag(result, trace)
            return
        if len(call.traces) == 1 and trace.mixed is not None and (call.op.views or call.op.plain in ops.SUMS):
            mixed = trace.mixed.through(call.on(tensor))
        trace = Trace(None, output, above, nearest, branches, of_batch, mixed)
        self.trail.tag(result, trace)
        note_written(call, trace, self.trail)

    # Weights

    def _weights_in(self, call: Call, carry: Callable[[Any], Any] | None) -> Any:
        op = call.op
        if (source := combined_in(call, self.new_value)) is not None:
            return self._combine(call, carry, source)
        if use := use_in(call, self.trail, self.leave):
            return self._work(use, call)
        if op.views or op.is_part:
            trace = self.trail.of(call.args[0])
            if trace is None or trace.source is None:  # the parameter only says which shape or type
                return self._signal(call, carry)
            result = call.run()
            tag_view(result, call, trace.source, self.trail)
            return result
        if op.writes and isinstance(written := self.trail.source(call.args[0]), Source):
            result = self._other(call, carry)
            self.trail.meet(written.weight, op.name)
            self.trail.tag(call.args[0], Trace(Made(op.name, (written.weight,))))  # a copy of the weight no more
            return result
        return self._other(call, carry)

    def _combine(self, call: Call, carry: Callable[[Any], Any] | None, source: Source) -> Any:
        """An op whose result is linear in a weight: of parameters alone, or of a signal, too."""
        result = self.elsewhere(call)
        if source.product:
            note_product(call, source, self.trail, self.leave)
        if len(call.sources) == len(call.traces):
            self.trail.tag(result, Trace(source))
        else:
            self.trail.see(source.weight).mixed_by = call.op.name
            self._tag(result, call, carry, source)
        return result

    def _work(self, use: Use, call: Call) -> Any:
        own = above = 1 << use.weight.number
        for _, trace in call.traces:
            self._fed |= trace.above
            above |= trace.above
            use.reads_batch = use.reads_batch or trace.of_batch
        result, output = self.at_work(use)
        if output is None or output.y is not local(result):
            self.trail.tag(result, Trace(None, None, above, own))
        if output is not None:
            self.trail.tag(output.y, Trace(None, output, above, own))
        note_written(call, Trace(None, None, above, own), self.trail)
        for _, source in call.sources:  # attention's packed in_proj, a parameter that is the weight's input
            self.trail.meet(source.weight, call.op.name)
        return result

    def feeds(self, weight: Weight) -> bool:
        """Does another weight at work depend on its output?"""
        return bool(self._fed >> weight.number & 1)

    def _other(self, call: Call, carry: Callable[[Any], Any] | None) -> Any:
        result = self.elsewhere(call)
        if not tensors_of(result) and not call.op.writes:  # a look at a size, a flag or a value; no use
            return result
        for _, source in call.sources:
            if source.product:
                self.leave(source.weight, ProductOfTwo(source.product))
            self.trail.meet(source.weight, call.op.name)
        if result is not None and (made := made_in(call, result, self.trail)) is not None:
            self.trail.tag(result, Trace(made))
        else:
            self._tag(result, call, carry)
        return result


def hidden_reason(used_by: str) -> Reason:
    """Why a parameter that no linear op used as its weight is left alone, by the op that used it first."""
    if not used_by:
        return NotUsed()
    if used_by in _RECURRENT:
        return HiddenInRecurrence()
    if used_by == "multi_head_attention_forward":
        return PackedInAttention()
    if used_by in ops.LINEAR:
        return InputOf(used_by)
    return LookedUp(used_by) if used_by in ops.TABLES else UsedBy(used_by)


_RECURRENT: Sequence[str] = (
    "lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell",
)  # fmt: skip
