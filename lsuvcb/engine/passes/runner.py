"""Pass after pass over one model and one batch, each from the same state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from ..errors import LSUVError
from ..keeping.gradients import gradients_kept
from ..keeping.undisturbed import Snapshot, devices_of, undisturbed
from ..measuring.pool import Group, meet_at_the_end
from ..model.left_alone import Constant
from ..model.weight import Weight
from ..model.weights import Weights, refuse
from ..ranks import reshard
from ..seeing.activations import Activations
from ..seeing.eye import Eye
from ..seeing.follow import Facts
from ..seeing.provenance import OF_BATCH
from ..select import all_modules, unwrap
from ..tensors import tensors_in
from .counted import Counted
from .draw import Draws
from .forward import Forward, check_batch, check_model, default_forward, fresh
from .look import Look, Loss
from .measure import InputMoments, Measure
from .nonfinite import count_non_finite
from .plan import Goals, Plan
from .several_uses import bring_together
from .solve import Aim, Solve

AnyEye = TypeVar("AnyEye", bound=Eye)
_MOST_FACTS = 5  # passes that may find out more about a model before one is taken as it is


class Runner:
    """One model and one batch, run as often as needed.

    Args:
        forward: called as forward(model, batch); None: `default_forward`, whose arguments are checked at once.
        name: of the function that the user called, for messages.

    Attributes:
        passes: how often the model ran.
        input: what the first layer reads of the batch.
        gradients: the forward asks for gradients itself, so that every pass runs with them.
    """

    def __init__(
        self, model: nn.Module, batch: Any, forward: Forward | None, group: Group = None, mask: Any = None, name: str = "lsuv_"
    ) -> None:  # fmt: skip
        if forward is not None and not callable(forward):
            raise TypeError(f"`forward` must be callable as forward(model, batch), got {forward!r}.")
        check_model(model, batch, name)
        refuse(model, to_read=name == "survey")
        check_batch(model, batch, forward, pooled=group is not None)
        self.model, self.batch, self.forward, self.group = model, batch, forward or default_forward, group
        self.counted = Counted(mask, batch)
        self.input = InputMoments(group, self.counted)
        self.passes = 0
        self.facts = Facts()
        self.gradients = False
        self._materialise()

    def watch(self, eye: AnyEye, snapshot: Snapshot) -> AnyEye:
        """Run the model once under `eye`; then put its state back to the snapshot."""
        self.passes += 1
        snapshot.hide_gradients()
        try:
            with torch.set_grad_enabled(eye.gradients or self.gradients), eye:
                batch = fresh(self.batch)
                for tensor in tensors_in(batch):
                    eye.trail.tag(tensor, OF_BATCH)
                eye.end(self.forward(self.model, batch))
            if self.group is not None:  # a rank that ran fewer layers would leave the others waiting
                meet_at_the_end(next(iter(devices_of(self.model)), torch.device("cpu")), self.group)
        except Exception as error:
            bad, total = count_non_finite(tensors_in(self.batch))
            batch = (
                f"The batch itself holds {bad} non-finite of {total} values" if bad else "The batch itself is finite"
            )
            error.add_note(f"{batch}. Raised in pass {self.passes} over the {type(unwrap(self.model)).__name__}.")
            if eye.gradients:
                error.add_note("This pass kept gradients; `survey(..., backward=False)` looks forward only, without.")
            error.add_note("No weight was changed.")
            raise
        finally:
            reshard(self.model)
            snapshot.restore()
        return eye

    def measure(self, weights: Weights, plan: Plan, snapshot: Snapshot) -> Measure:
        """A pass that looks, where the plan measures."""
        activations = Activations(plan.activations)

        def look() -> Measure:
            eye = Measure(
                weights, activations, self.facts, behind=plan.measure == "activation",
                group=self.group, counted=self.counted, input=self.input,
            )  # fmt: skip
            return self.watch(eye, snapshot)

        return self._until_known(look)

    def look(self, weights: Weights, snapshot: Snapshot, loss: Loss | None, backward: bool) -> Look:
        """A survey's pass, with its backward half where `backward` says so."""

        def look(accumulates: bool = False) -> Look:
            eye = Look(
                weights, self.facts, counted=self.counted, input=self.input, loss=loss, gradients=backward,
                accumulates=accumulates,
            )  # fmt: skip
            return self.watch(eye, snapshot)

        with gradients_kept(self.model):
            eye = self._until_known(look)
            return look(accumulates=True) if eye.reentrant else eye

    def solve(self, weights: Weights, goals: Goals, generator: torch.Generator | None, snapshot: Snapshot) -> Solve:
        """The passes that solve every layer; one, where no weight is used twice and every output is read as it seems.

        Args:
            generator: of the orthonormal draw, from the same state for each pass; None: no draw.
        """
        plan, activations = goals.plan, Activations(goals.plan.activations)
        state = None if generator is None else generator.get_state()

        def solve(aims: dict[Weight, Aim], *, strict: bool = False) -> Solve:
            if generator is not None and state is not None:
                generator.set_state(state)
            draws = Draws(plan, generator)
            eye = Solve(
                weights, activations, self.facts, goals, draws, counted=self.counted, aims=aims, input=self.input,
                strict=strict,
            )  # fmt: skip
            self.watch(eye, snapshot)
            eye.solutions.read()
            if not eye.solutions.finite and not strict:
                solve(aims, strict=True)  # it raises at the first layer
                raise LSUVError("the outputs were not finite in one pass and finite in the next: this model is random.")
            return eye

        aims: dict[Weight, Aim] = {}
        eye = self._until_known(lambda: solve(aims))
        eye = bring_together(eye, aims, lambda: solve(aims), plan.max_iters)
        for weight in [w for w, s in eye.solutions.of.items() if s.constant]:
            eye.leave(weight, Constant())
            eye.solutions.drop(weight)
        return eye

    def _until_known(self, look: Any) -> Any:
        """Passes until one finds nothing that it should have known from the start."""
        for _ in range(_MOST_FACTS):
            known = self.facts.count()
            eye = self._seen(look)
            self.input.closed = True
            if self.facts.count() == known:
                break
        self.counted.check_fit()
        return eye

    def _seen(self, look: Callable[[], AnyEye]) -> AnyEye:
        """What a pass sees, with gradients where the forward asks for some itself: torch.autograd.grad refuses without."""
        try:
            return look()
        except RuntimeError as error:
            if self.gradients or "does not require grad" not in str(error):
                raise
            self.gradients = True
            return look()

    def _materialise(self) -> None:
        """Lazy modules get their parameters from a first pass; what it counted and drew is put back."""
        lazy = [m for m in all_modules(self.model) if _has_lazy(m)]
        if not lazy:
            return
        with undisturbed(self.model, self.batch) as snapshot:
            self._seen(lambda: self.watch(Eye(Weights(nn.Module())), snapshot))
        for module in lazy:
            if isinstance(module, _NormBase):
                module.reset_running_stats()


def _has_lazy(module: nn.Module) -> bool:
    """Has one of its own parameters or buffers no values yet? torch_geometric's lazy modules are not of torch's class."""
    return any(t is not None and is_lazy(t) for t in (*module._parameters.values(), *module._buffers.values()))
