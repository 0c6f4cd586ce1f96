"""What a call of `lsuv_` asks of each layer: where it is measured, what it is brought to, what is left."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import Any, Literal

import torch
from torch import nn

from ..measuring.pool import Group
from ..model.weight import Weight
from ..model.weights import Weights
from ..seeing.activations import Activations
from ..seeing.behind import Behind
from ..select import Selection, Selector
from ..solving.auto import Choice, std_behind
from ..solving.target import Target
from .counted import check_mask

Std = float | Literal["auto"] | Mapping[Any, float | Literal["auto", "leave"]]
Orthonormal = bool | Literal["delta"]


@dataclass(frozen=True)
class Recipe:
    """The values of four arguments of `lsuv_` that are not given."""

    measure: Literal["layer", "activation"]
    std: Std
    mean: float | None
    orthonormal: Orthonormal


RECIPES = {
    "paper": Recipe("layer", 1.0, None, True),
    "course": Recipe("activation", 1.0, 0.0, False),
    "balanced": Recipe("layer", "auto", None, "delta"),
}


class Given:
    """Stands for an argument that was not given: the recipe's value is taken."""

    def __repr__(self) -> str:
        return "the recipe's"


GIVEN: Any = Given()


@dataclass(frozen=True)
class Plan:
    """The arguments of a call, with what the recipe gives for those that were left out."""

    recipe: str = "balanced"
    measure: Literal["layer", "activation"] = GIVEN
    std: Std = GIVEN
    mean: float | None = GIVEN
    orthonormal: Orthonormal = GIVEN
    layers: Selector | None = None
    activations: Any = None
    tol: float = 1e-3
    max_iters: int = 20
    generator: torch.Generator | None = None
    group: Group = None
    mask: Any = None

    @classmethod
    def of(cls, **arguments: Any) -> Plan:
        """The plan of these arguments of `lsuv_`; those that are no matter of a plan are left aside.

        Raises:
            ValueError, TypeError: one of them is out of its range or of the wrong kind.
        """
        plan = cls(**{field.name: arguments[field.name] for field in fields(cls) if field.name in arguments})
        if plan.recipe not in RECIPES:
            raise ValueError(f"`recipe` must be one of {', '.join(map(repr, RECIPES))}, got {plan.recipe!r}.")
        recipe = RECIPES[plan.recipe]
        left_out = [name for name in ("measure", "std", "mean", "orthonormal") if getattr(plan, name) is GIVEN]
        plan = replace(plan, **{name: getattr(recipe, name) for name in left_out})
        plan._check()
        return replace(plan, std=plan.std if isinstance(plan.std, (str, Mapping)) else float(plan.std))

    def _check(self) -> None:
        if self.measure not in ("layer", "activation"):
            raise ValueError(f"`measure` must be 'layer' or 'activation', got {self.measure!r}.")
        if self.measure == "layer" and self.activations is not None:
            raise ValueError(
                '`activations` does nothing with measure="layer"; write measure="activation", or leave it out.'
            )
        Activations(self.activations)
        if isinstance(self.std, Mapping):
            for key, value in self.std.items():
                if not (isinstance(value, str) and value in ("auto", "leave")):
                    _check_positive(f"std[{key!r}]", value, ', "auto" or "leave"')
        elif not (isinstance(self.std, str) and self.std == "auto"):
            _check_positive("std", self.std, ', "auto", or a mapping from layers to numbers')
        _check_positive("tol", self.tol)
        if self.mean is not None and not (isinstance(self.mean, Real) and math.isfinite(self.mean)):
            raise ValueError(f"`mean` must be a finite number or None, got {self.mean!r}.")
        if not isinstance(self.max_iters, int) or self.max_iters < 1:
            raise ValueError(f"`max_iters` must be >= 1, got {self.max_iters!r}.")
        if self.orthonormal not in (True, False, "delta"):
            raise ValueError(f"`orthonormal` must be True, False or 'delta', got {self.orthonormal!r}.")
        if self.generator is not None and not isinstance(self.generator, torch.Generator):
            raise TypeError(
                f"`generator` must be a torch.Generator or None, got {self.generator!r}; write "
                "`torch.Generator().manual_seed(42)`."
            )
        check_mask(self.mask)

    @property
    def looks_ahead(self) -> bool:
        """Does what a layer is brought to depend on what stands behind it?"""
        if isinstance(self.std, Mapping):
            return "auto" in (RECIPES[self.recipe].std, *self.std.values())
        return self.std == "auto"

    @property
    def moves_mean(self) -> bool:
        return self.mean is not None

    @property
    def draws(self) -> bool:
        return self.orthonormal is not False


def _check_positive(name: str, value: Any, other: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"`{name}` must be a number > 0{other}, got {value!r} ({type(value).__name__}).")
    if not 0 < float(value) < math.inf:
        raise ValueError(f"`{name}` must be > 0 and finite, got {value!r}.")


class Goals:
    """What each weight of a model is brought to.

    Raises:
        ValueError: a key of the mapping `std` means nothing in the model.
    """

    def __init__(self, plan: Plan, weights: Weights) -> None:
        self.plan = plan
        self._fixed: dict[Weight, float | str] = {}
        self._targets: dict[float, Target] = {}
        self._other: float | str = plan.std if not isinstance(plan.std, Mapping) else _plain(RECIPES[plan.recipe].std)
        self.depth = sum(_is_a_layer(weight) for weight in weights.all)
        if isinstance(plan.std, Mapping):
            names = [name for weight in weights.all for name in weight.names]
            for key, value in plan.std.items():
                selection = Selection(weights.model, _as_selector(key), names, "std")
                meant = [w for w in weights.all if selection.means(w.names, w.owners)]
                if not meant:
                    raise ValueError(f"`std` has {key!r}, which means no weight of this model; it has {_few(names)}.")
                for weight in meant:
                    self._fixed.setdefault(weight, value)

    def names(self, weight: Weight) -> bool:
        """Does `layers` or the mapping name it, so that it is done whatever "auto" would leave?"""
        return weight.named or self._fixed.get(weight, "auto") != "auto"

    def is_left(self, weight: Weight) -> bool:
        return self._fixed.get(weight) == "leave"

    def target(self, weight: Weight, behind: Behind) -> tuple[Target, Choice | None]:
        """Where its output is to go, and what "auto" found for the activation behind it, where it looked at one."""
        plan, value, choice = self.plan, self._fixed.get(weight, self._other), None
        std = 1.0
        if value != "auto":
            std = float(value)
        elif plan.measure == "layer":
            choice = None if behind.activation is None else std_behind(behind.activation, self.depth)
            std = 1.0 if choice is None else choice.std
            if behind.branch:
                std /= math.sqrt(behind.branch + 1)
        target = self._targets.get(std)
        if target is None:
            target = self._targets[std] = Target(std, plan.mean, plan.tol, plan.max_iters)
        return target, choice


def _plain(std: Std) -> float | str:
    assert not isinstance(std, Mapping)
    return std


def _is_a_layer(weight: Weight) -> bool:
    table = isinstance(weight.module, (nn.Embedding, nn.EmbeddingBag))
    return weight.tensor.ndim > 1 and weight.reason is None and weight.tensor.requires_grad and not table


def _as_selector(key: Any) -> Any:
    return [key] if isinstance(key, (str, nn.Module)) else key


def _few(names: list[str]) -> str:
    return ", ".join(map(repr, names[:6])) + (", ..." if len(names) > 6 else "")


Forward = Callable[[nn.Module, Any], Any]
