"""The pass of a survey: what each layer gives on the way forward, and the gradient that comes back to it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..measuring.moments import Number, moments, number
from ..measuring.pool import pooled
from ..model.left_alone import Head, NormBehind
from ..model.weight import Weight
from ..model.weights import Weights
from ..ranks import Ranks, whole
from ..seeing.activations import Activations
from ..seeing.behind import Behind
from ..seeing.follow import Facts
from ..seeing.output import Output
from ..seeing.use import Use, output_of
from ..tensors import tensors_in
from .counted import Counted
from .measure import InputMoments, Measure
from .obstacles import obstacle

Loss = Callable[[Any], Tensor]
_REENTRANT = "use_reentrant"  # in torch's message for a checkpoint that wants backward(), not grad()


class Tap:
    """Where the gradient of one output is taken.

    Attributes:
        number: its place in the execution order.
        norm: L2 norm of the loss's gradient with respect to the output, all samples together; None where none came back.
        std: of the output itself, where another tensor was measured in its place.
        waits: it hangs on no tensor yet: the output was made without gradients, inside a checkpoint.
    """

    __slots__ = ("norm", "number", "std", "waits")

    def __init__(self, number: int) -> None:
        self.number, self.waits = number, True
        self.norm: Number | None = None
        self.std: Number | None = None

    def hang_on(self, y: Tensor) -> None:
        self.waits = False
        y.register_hook(self._note)

    def _note(self, gradient: Tensor) -> None:
        self.norm = _norm_of(gradient.detach())


class Look(Measure):
    """Measures every use of every weight, forward and, with `gradients`, backward; nothing is changed.

    To each output a zero that takes a gradient is added: so gradients reach it also through frozen weights, and
    torch.autograd.grad, asked for these zeros alone, adds to no parameter's `.grad` and works out no weight's gradient.

    Args:
        loss: of the model's output; None: a random projection of it.
        gradients: run the forward with gradients, and go back at its end.
        accumulates: by backward(), which a reentrant checkpoint wants, and which does add to `.grad`.

    Attributes:
        taps: by weight, one for each use.
        silent: why no gradient came back; "" where one did.
        reentrant: a checkpoint refuses torch.autograd.grad.
    """

    def __init__(
        self, weights: Weights, facts: Facts, *, counted: Counted, input: InputMoments, loss: Loss | None,
        gradients: bool, accumulates: bool,
    ) -> None:  # fmt: skip
        super().__init__(weights, Activations(None), facts, counted=counted, input=input)
        self.by_module = True  # a norm may be a module of several ops
        self.loss, self.accumulates = loss, accumulates
        self.gradients = gradients and not torch.is_inference_mode_enabled()
        self.silent = "inference mode is on" if gradients and not self.gradients else ""
        self.reentrant = False
        self.taps: dict[Weight, list[Tap]] = {}
        self._starts: list[Tensor] = []

    # Forward

    def at_work(self, use: Use) -> tuple[Any, Output | None]:
        if not self.trail.uses(use.weight):
            reason = obstacle(use, self.trail, waits=False, mean_moves=False)
            if reason is not None:
                self.leave(use.weight, reason)
        return super().at_work(use)

    def run(self, use: Use) -> Any:
        given = [id(t) for t in (*use.args, *use.kwargs.values()) if isinstance(t, Tensor)]
        result = use.run()
        y = result[0] if isinstance(result, (tuple, list)) else result
        tapped = self._tap(use.weight, y, can_replace=id(y) not in given)
        if tapped is y:
            return result
        return tapped if y is result else type(result)((tapped, *result[1:]))

    def on_block(self, weight: Weight, args: Any, kwargs: Any, result: Any) -> Any:
        super().on_block(weight, args, kwargs, result)
        if not isinstance(result, Tensor):
            self._tap(weight, tensors_in(result)[0], can_replace=False)
            return None
        return self._tap(weight, result, can_replace=True)

    @torch.no_grad()
    def settle(self, output: Output, read: Tensor, behind: Behind) -> None:
        weight = output.use.weight
        super().settle(output, read, behind)
        if behind.norm:
            self.leave(weight, NormBehind())
        taps = self.taps.get(weight)
        if taps and (output.kernel or read is not output.y):
            here, pool = moments(output.y), weight.pool(self.group or output.use.sharers)
            taps[len(self.found[weight]) - 1].std = pooled(here, output.y.device, pool).std

    @torch.no_grad()
    def note(self, weight: Weight, y: Tensor, bare: Tensor | None = None, sharers: Ranks | None = None) -> None:
        super().note(weight, y, bare, sharers)

    def _tap(self, weight: Weight, y: Tensor, can_replace: bool) -> Tensor:
        if not self.is_measured(y):
            return y
        tap = Tap(sum(map(len, self.taps.values())))
        self.taps.setdefault(weight, []).append(tap)
        if not torch.is_grad_enabled() or torch._C._functorch.is_functorch_wrapped_tensor(y):
            return y
        if can_replace:
            start = y.new_zeros((), requires_grad=True)
            self._starts.append(start)
            y = y + start
        if y.requires_grad:
            tap.hang_on(y)
        return y

    # Backward

    def end(self, result: Any) -> None:
        super().end(result)
        for weight in [w for w in self.found if not self.feeds(w)]:
            self.leave(weight, Head())
        if self.gradients:
            self._go_back(result)

    def _go_back(self, result: Any) -> None:
        scalar = _loss_of(result, self.loss)
        if scalar is None:
            self.silent = "the model's output carries no gradient"
            return
        with ExitStack() as hooks:
            for weight in [w for w, taps in self.taps.items() if any(tap.waits for tap in taps)]:
                hooks.callback(weight.module.register_forward_hook(partial(self._hang_again, weight)).remove)
            try:
                if self.accumulates or not self._starts:  # every layer is inside a checkpoint, or writes in place
                    torch.autograd.backward(scalar)
                else:
                    torch.autograd.grad(scalar, self._starts, allow_unused=True)
            except RuntimeError as error:  # autograd's: an op without a backward, a value that was written over
                self.reentrant = _REENTRANT in str(error)
                self.silent = str(error).partition("\n")[0]

    def _hang_again(self, weight: Weight, module: nn.Module, args: Any, result: Any) -> None:
        """A checkpoint runs a layer once more, now with gradients. Of several uses the last ones come back first."""
        waiting = [tap for tap in self.taps[weight] if tap.waits]
        y = output_of(result)
        if waiting and y.requires_grad:
            waiting[-1].hang_on(y)

    # Numbers

    def gradients_of(self, weight: Weight) -> list[float | None]:
        """For each use the L2 norm of the gradient times the output's std; None where none came back."""
        found = zip(self.taps.get(weight, []), self.found[weight], strict=True)
        rows = [(tap.norm, seen.moments.std if tap.std is None else tap.std) for tap, seen in found]
        return [None if norm is None else float(norm) * float(std) for norm, std in rows]


def _norm_of(gradient: Tensor) -> Number:
    """In float64, where no square underflows; on a CPU that takes seven times as long and is kept for where one might."""
    if gradient.is_cpu and gradient.dtype == torch.float32:
        norm = whole(torch.linalg.vector_norm(gradient)).item()
        if 1e-15 < norm < 1e15:
            return norm
    wide = torch.float32 if gradient.device.type == "mps" else torch.float64
    return number(whole(torch.linalg.vector_norm(gradient, dtype=wide)))


def _loss_of(result: Any, loss: Loss | None) -> Tensor | None:
    """What is differentiated; None where it carries no gradient.

    Raises:
        ValueError: `loss` gave no single number.
    """
    if loss is not None:
        value = loss(result)
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise ValueError(f"`loss` must give one number, a tensor of one value, got {got}.")
        return value.reshape(()) if value.requires_grad else None
    draws = torch.Generator().manual_seed(0)
    outputs = [whole(t) for t in tensors_in(result) if t.requires_grad and t.is_floating_point()]
    terms = [(t.float() * torch.randn(t.shape, generator=draws).to(t.device)).sum() for t in outputs]
    return torch.stack([term.to(terms[0].device) for term in terms]).sum() if terms else None
