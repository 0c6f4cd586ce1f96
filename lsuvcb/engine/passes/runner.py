"""How a model is run on a batch: the default forward, its errors, a batch that no pass can spoil, pass after pass."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.lazy import LazyModuleMixin
from torch.utils import _pytree as pytree

from ..errors import LSUVError
from ..keeping.undisturbed import Snapshot, devices_of, tensors_in, undisturbed
from ..measuring.moments import Moments, Pool, moments, over_ranks
from ..model.weights import Weights, refuse
from ..ranks import reshard
from ..seeing.eye import Eye
from ..seeing.follow import Activations
from ..select import Selector, all_modules, unwrap
from ..solving.newton import Target
from .measure import Measure
from .nonfinite import count_non_finite
from .solve import CONSTANT, Scale, Values

Forward = Callable[[nn.Module, Any], Any]


def default_forward(model: nn.Module, batch: Any) -> Any:
    """model(**batch) for a mapping, model(*batch) for a tuple or list, else model(batch).

    DDP and DataParallel are left aside: this process alone runs its own replica.
    """
    model = unwrap(model)
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, (tuple, list)):
        return model(*batch)
    return model(batch)


def check_batch(model: nn.Module, batch: Any) -> None:
    """Fail before any pass where `default_forward` cannot succeed: arguments that do not fit, a batch on another device.

    Raises:
        TypeError: the model's forward does not take these arguments.
        ValueError: the batch is on another device than the model.
    """
    inner = unwrap(model)
    keywords = dict(batch) if isinstance(batch, Mapping) else {}
    positional = list(batch) if isinstance(batch, (tuple, list)) else [] if isinstance(batch, Mapping) else [batch]
    try:
        inspect.signature(inner.forward).bind(*positional, **keywords)
    except TypeError as error:
        given = (
            f"the keywords {sorted(keywords)}"
            if isinstance(batch, Mapping)
            else f"{len(positional)} positional arguments"
        )
        raise TypeError(
            f"{type(inner).__name__}.forward does not take this batch, a {type(batch).__name__} given as {given} ({error}). "
            "For a loader's (inputs, targets) pair write `lsuv_(model, xb)`; "
            "for anything else give `forward=lambda model, batch: ...`."
        ) from None
    homes, away = devices_of(inner), {t.device for t in tensors_in(batch)}
    if len(homes) == 1 and away and away.isdisjoint(homes):
        home, other = homes.pop(), sorted(map(str, away))
        raise ValueError(f"`batch` is on {', '.join(other)}, the model on {home}; write `batch.to({str(home)!r})`.")


def fresh(batch: Any) -> Any:
    """A copy of the batch's containers and tensors, so that a model that writes into its input spoils no later pass.

    Of any other object that has a `clone` method (a batch of graphs) its clone.
    """
    if isinstance(batch, MutableMapping) and type(batch) is not dict:
        copied = copy.copy(batch)
        for key, value in batch.items():
            copied[key] = fresh(value)
        return copied
    return pytree.tree_map(_fresh_leaf, batch)


def _fresh_leaf(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.detach().clone().requires_grad_(leaf.requires_grad)
    return leaf.clone() if callable(getattr(leaf, "clone", None)) else leaf


def first_float(batch: Any) -> Tensor | None:
    """The tensor whose scale is the input's: the batch's first real floating one with values in it, or else without."""
    batch = dict(batch) if isinstance(batch, Mapping) else batch
    dense = [t for t in tensors_in(batch) if t.layout == torch.strided and torch.is_floating_point(t)]
    return next((t for t in dense if t.numel()), dense[0] if dense else None)


AnyEye = TypeVar("AnyEye", bound=Eye)


@dataclass(frozen=True)
class Plan:
    """What a call of `lsuv_` asks of each pass: which layers, measured where, brought to what, over which ranks."""

    target: Target
    layers: Selector | None = None
    activations: Activations | None = None
    group: dist.ProcessGroup | None = None


def plan_of(
    measure: str = "layer",
    std: float = 1.0,
    mean: float | None = None,
    tol: float = 1e-3,
    max_iters: int = 20,
    layers: Selector | None = None,
    activations: Any = None,
    group: dist.ProcessGroup | None = None,
) -> Plan:
    """The plan that these arguments of `lsuv_` ask for.

    Raises:
        ValueError, TypeError: one of them is out of its range or of the wrong kind.
    """
    if measure not in ("layer", "activation"):
        raise ValueError(f"`measure` must be 'layer' or 'activation', got {measure!r}.")
    if measure == "layer" and activations is not None:
        raise ValueError(
            '`activations` does nothing with measure="layer"; write measure="activation", or leave it out.'
        )
    for name, value in (("std", std), ("tol", tol)):
        if not 0 < value < math.inf:
            raise ValueError(f"`{name}` must be > 0 and finite, got {value!r}.")
    if mean is not None and not math.isfinite(mean):
        raise ValueError(f"`mean` must be a finite number or None, got {mean!r}.")
    if max_iters < 1:
        raise ValueError(f"`max_iters` must be >= 1, got {max_iters!r}.")
    target = Target(float(std), None if mean is None else float(mean), float(tol), max_iters)
    return Plan(target, layers, Activations(activations) if measure == "activation" else None, group)


class Runner:
    """One model and one batch, run as often as needed, each time from the same state.

    Args:
        forward: called as forward(model, batch); None: `default_forward`, whose arguments are checked at once.

    Attributes:
        snapshot: what each pass starts from; set before the first.
        passes: how often the model ran.
        input_std, input_mean: of the batch's first floating tensor; None if it has none.
    """

    snapshot: Snapshot

    def __init__(
        self, model: nn.Module, batch: Any, forward: Forward | None, group: dist.ProcessGroup | None = None
    ) -> None:
        if forward is not None and not callable(forward):
            raise TypeError(f"`forward` must be callable as forward(model, batch), got {forward!r}.")
        refuse(model)
        if forward is None:
            check_batch(model, batch)
        self.model, self.batch, self.forward, self.group = model, batch, forward or default_forward, group
        self.passes = 0
        self.input_std = self.input_mean = None
        tensor = first_float(batch)
        if tensor is not None and (tensor.numel() or group is not None):
            found = moments(tensor, None if group is None else Pool(group))
            self.input_std, self.input_mean = float(found.std), float(found.mean)
        self._materialise()

    def watch(self, eye: AnyEye) -> AnyEye:
        """Run the model once under `eye`, without gradients; then put its state back to the snapshot."""
        self.passes += 1
        self.snapshot.hide_gradients()
        try:
            with torch.no_grad(), eye:
                self.forward(self.model, fresh(self.batch))
            if self.group is not None:  # a rank that ran fewer layers would leave the others waiting
                device = next(iter(devices_of(self.model)), torch.device("cpu"))
                over_ranks(Moments(0.0, 0.0, 0.0, 0), device, Pool(self.group, 0, "the end of the pass"))
        except Exception as error:
            bad, total = count_non_finite(tensors_in(self.batch))
            batch = (
                f"The batch itself holds {bad} non-finite of {total} values" if bad else "The batch itself is finite"
            )
            error.add_note(f"{batch}. Raised in pass {self.passes} over the {type(unwrap(self.model)).__name__}.")
            error.add_note("No weight was changed.")
            raise
        finally:
            reshard(self.model)
            self.snapshot.restore()
        return eye

    def measure(self, plan: Plan) -> dict[str, tuple[float, float]]:
        """Std and mean of every layer, where the plan measures it, by name."""
        return self.watch(Measure(Weights(self.model, plan.layers), plan.activations, plan.group)).read()

    def scale(self, plan: Plan, draws: torch.Generator | None) -> tuple[Scale, dict[str, Values]]:
        """The pass that solves every layer, and its numbers, read from the device once."""
        state = draws.get_state() if draws is not None else None
        eye = self._solve(plan, draws, strict=False)
        values = eye.read()
        if not all(v.finite for v in values.values()):
            # The same pass again, now with a look at each layer: it raises at the first one
            if draws is not None and state is not None:
                draws.set_state(state)
            self._solve(plan, draws, strict=True)
            raise LSUVError("the outputs were not finite in one pass and finite in the next: this model is random.")
        for weight in [w for w in eye.solutions if values[w.name].constant]:
            weight.note(CONSTANT)
            del eye.solutions[weight]
        return eye, values

    def _solve(self, plan: Plan, draws: torch.Generator | None, *, strict: bool) -> Scale:
        weights = Weights(self.model, plan.layers)
        return self.watch(Scale(weights, plan.target, plan.activations, draws, plan.group, strict))

    def _materialise(self) -> None:
        """Lazy modules get their parameters from a first pass; what it counted and drew is put back."""
        lazy = [m for m in all_modules(self.model) if isinstance(m, LazyModuleMixin) and m.has_uninitialized_params()]
        if not lazy:
            return
        with undisturbed(self.model, self.batch) as self.snapshot:
            self.watch(Eye(Weights(nn.Module())))
        for module in lazy:
            if isinstance(module, _NormBase):
                module.reset_running_stats()
