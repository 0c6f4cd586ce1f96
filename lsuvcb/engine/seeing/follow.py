"""From a layer to what stands behind it: follows each layer's output to the op that takes it first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Protocol

from torch import Tensor

from ..model.left_alone import Generates
from ..model.off_target import Apart
from ..model.weight import Weight
from ..model.weights import Weights
from ..ranks import local
from ..tensors import tensors_in
from . import ops
from .activations import Activations
from .behind import Behind, what_reads
from .call import Call
from .doors import BlockDoors, Doors
from .eye import Eye
from .kernels import SCORES, generators_of, takes_for_kernel
from .onward import Onward, onward
from .output import Output
from .provenance import Trace, Trail
from .transforms import outside_transforms
from .use import Use


class Facts:
    """What passes over a model found out too late for themselves: the next one knows it from the start.

    Attributes:
        second_reader: weights whose output another op reads beside the activation behind it.
        unseen: weights whose output no op was seen to read, though others came after: it is settled at once.
        generators: weights whose output becomes another op's kernel by a way that is not linear, and that op's name.
        apart: weights whose several uses could not be brought to their target together.
    """

    def __init__(self) -> None:
        self.second_reader: set[Weight] = set()
        self.unseen: set[Weight] = set()
        self.generators: dict[Weight, str] = {}
        self.apart: set[Weight] = set()

    def note_readers(self, call: Call, outputs: Iterable[Output]) -> None:
        """This op reads these outputs, some of them a second time."""
        for output in outputs:
            if output.settled and output.behind_activation and not call.op.views:
                self.second_reader.add(output.use.weight)

    def count(self) -> int:
        return len(self.second_reader) + len(self.unseen) + len(self.generators)


class Reader(Protocol):
    """Is told what layers read."""

    def look(self, use: Use, trail: Trail) -> None: ...

    def look_at(self, tensors: Sequence[tuple[Tensor, Trace | None]]) -> None: ...


class Follow(Eye):
    """An eye that decides for each layer where it is measured: at its output, or behind the activation that takes it.

    A subclass calls `follow` with what a linear op gave; `settle` is called back, before any other op reads the output.

    Args:
        activations: what counts as one.
        facts: what earlier passes found out.
        by_module: an activation or a norm may be a module of several ops.
        through_dropout: an output is followed through dropout, too.

    Attributes:
        input: is told what layers read; None: nobody is.
    """

    input: Reader | None = None

    def __init__(
        self, weights: Weights, activations: Activations, facts: Facts, *, by_module: bool, through_dropout: bool = False
    ) -> None:  # fmt: skip
        super().__init__(weights)
        self.activations, self.facts = activations, facts
        self.by_module, self.through_dropout = by_module, through_dropout
        self._waiting: dict[Output, None] = {}
        self.doors, self.block_doors = Doors(), BlockDoors()
        self._count = 0
        for weight, op in facts.generators.items():
            self.leave(weight, Generates(op))
        for weight in facts.apart:
            self.leave(weight, Apart())

    def settle(self, output: Output, read: Tensor, behind: Behind) -> None:
        """Measure or correct the output, in place.

        Args:
            read: y, or the image of it that is about to be read.
        """
        raise NotImplementedError

    def on_block(self, weight: Weight, args: Any, kwargs: Any, result: Any) -> Any:
        """A selected block has run: measure its output, or give the one to hand on; None leaves it."""
        raise NotImplementedError

    def before_dropout(self, output: Output) -> None:
        """An op that cannot be repeated is about to read the output, which is followed on."""

    def kernel_meets(self, inputs: Sequence[tuple[Tensor, Trace]]) -> None:
        """An op is about to multiply these by a kernel that a layer generated: it is a layer, which they feed."""
        for _, trace in inputs:
            self._fed |= trace.above
        if self.input is not None:
            self.input.look_at(inputs)

    def bias_behind(self, output: Output, used_by: str) -> None:
        """A bias was found behind the op; `used_by` says which op used that parameter before."""

    def follow(self, output: Output) -> None:
        """Wait for the op that reads it."""
        self._count += 1
        output.order = self._count
        if output.use.weight in self.facts.unseen:
            self.settle(output, output.y, Behind("nothing was seen to read its output"))
            output.close()
        else:
            self._waiting[output] = None

    # Hooks on modules

    def __enter__(self) -> Any:
        if self.by_module:
            self.doors.watch(self.weights.modules.values(), self.activations, self.trail)
        self.block_doors.watch(self.weights.blocks, self._enter_block, self._leave_block)
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self.doors.close()
        self.block_doors.close()
        for output in self._waiting:
            output.close()
        self._waiting.clear()

    def end(self, result: Any) -> None:
        """The forward has given `result`: what still waits was not read."""
        super().end(result)
        returned = {id(t) for t in tensors_in(result)} if self._waiting else set()
        for output in list(self._waiting):
            if output.order == self._count or any(id(image.tensor) in returned for image in output.images):
                self._settle(output, output.images[-1].tensor, Behind("no activation follows"))
            else:
                self.facts.unseen.add(output.use.weight)

    def _enter_block(self, weight: Weight, args: Any, kwargs: Any) -> None:
        for tensor in tensors_in((args, kwargs)):
            trace = self.trail.of(tensor)
            if trace is not None and trace.output in self._waiting:
                self._settle(trace.output, tensor, Behind(f"its output goes to the block {weight.name!r}"))
        self.settle_now(weight)
        self.asleep = True

    def _leave_block(self, weight: Weight, args: Any, kwargs: Any, result: Any) -> Any:
        replaced = self.on_block(weight, args, kwargs, result)
        self.asleep = False
        self.trail.tag_block(weight, (args, kwargs), result if replaced is None else replaced)
        return replaced

    # What reads an output

    def reads(self, call: Call) -> Callable[[Any], Any] | None:
        images = _images_in(call)
        if call.op.name in ops.LINEAR:
            for weight in generators_of(call, self.trail, self.weights):
                self.facts.generators[weight] = call.op.name
                self.kernel_meets(call.traces)
        if images and self.doors.inside is None:
            self.facts.note_readers(call, images)
        waiting = [output for output in images if not output.settled]
        if call.op.template and ((first := self.trail.of(call.args[0])) is None or first.output not in waiting):
            return None
        goes_on = waiting if len(waiting) < 2 else [o for o in waiting if takes_for_kernel(call, o, images[o][0])]
        for output in waiting:
            if goes_on != [output] or len(images[output]) > 1:
                self._is_read(call, output, images[output][0])
        if len(goes_on) != 1 or goes_on[0].settled:
            return None
        tensor = images[goes_on[0]][0]
        if step := onward(call, goes_on[0], tensor, through_dropout=self.through_dropout):
            return self._go_on(call, goes_on[0], step)
        self._is_read(call, goes_on[0], tensor)
        return None

    def _is_read(self, call: Call, output: Output, read: Tensor) -> None:
        again, inside = output.use.weight in self.facts.second_reader, self.doors.of(output)
        behind = what_reads(output, read, call, self.activations, inside, second_reader=again, always=self.by_module)
        self._settle(output, read, behind)

    def settle_now(self, weight: Weight) -> None:
        for output in [o for o in self._waiting if o.use.weight is weight or o.use.bias is weight]:
            self._settle(output, output.images[-1].tensor, Behind("its weight is used again before the activation"))

    def _settle(self, output: Output, read: Tensor, behind: Behind) -> None:
        if output in self._waiting:
            del self._waiting[output]
            if output.kernel and behind.op in SCORES:
                output.kernel, read = "", output.y
            with outside_transforms(output.y):
                self.settle(output, read, behind)
            output.close()

    def _go_on(self, call: Call, output: Output, step: Onward) -> Callable[[Any], Any]:
        """What the result of this op is, which hands the output on."""
        if step.bias is not None:
            return partial(self._add_bias, output, call, step.bias, self.trail.used_by(step.bias.weight))
        if step.of is None:
            self.before_dropout(output)
        if step.kernel:
            self.kernel_meets([(t, trace) for t, trace in call.traces if trace.output is not output])
        return partial(self._add, output, step)

    def _add(self, output: Output, step: Onward, result: Any) -> Any:
        if not isinstance(result, Tensor) or not result.is_floating_point():
            self._settle(output, output.y, Behind("its output is cast to another type"))
            if isinstance(result, Tensor) and step.of is not None:
                local(result).copy_(step.of(step.parent.tensor))
            return None
        output.kernel = output.kernel or step.kernel
        output.add(local(result), step.parent, step.of, step.factor, product=bool(step.kernel))
        return output

    def _add_bias(self, output: Output, call: Call, source: Any, used_by: str, result: Tensor) -> Any:
        function, first = call.func, local(call.args[0]) is output.y
        output.use.take_bias(source, None, function if first else lambda values, bias: function(bias, values))
        output.replace(local(result))
        self.bias_behind(output, used_by)
        return output


def _images_in(call: Call) -> dict[Output, list[Tensor]]:
    """The outputs that an op is given, and as which of their images."""
    images: dict[Output, list[Tensor]] = {}
    for tensor, trace in call.traces:
        if trace.output is not None:
            images.setdefault(trace.output, []).append(tensor)
    return images
