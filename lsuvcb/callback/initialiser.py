"""What the LSUVCallback of every trainer has in common: its arguments, once per model, one line each time."""

from __future__ import annotations

import inspect
import reprlib
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fastcore.meta import delegates
from torch import nn

from ..engine.errors import TrainedModelWarning, no_such_argument
from ..engine.lsuv import lsuv_
from ..engine.model.trained import has_stepped, sign_of_training
from ..engine.model.weights import Weights
from ..engine.passes.forward import check_kind
from ..engine.passes.plan import Plan
from ..engine.select import Selector, select_modules
from ..engine.telling.report import LSUVReport
from .past import has_changed, note_initialised, past_of

_LSUV = inspect.signature(lsuv_).parameters
ARGUMENTS = [name for name in _LSUV if name not in ("model", "batch")]


class Initialiser:
    """The arguments of `lsuv_`, checked where the callback is made; each weight of a model once, before its first real step.

    Args:
        batch: use this batch instead of drawing one.
        force: initialise also weights that were initialised or trained before.

    Attributes:
        report: the LSUVReport of the last run; None before.

    Raises:
        TypeError, ValueError: an argument that `lsuv_` would refuse.

    A trainer's callback asks `is_due`, which prints one line where it is not, and then calls `initialise`, which prints
    the report's first line.
    """

    # help() and completion list the arguments of `lsuv_`; the annotations of its model and its result are left out
    @delegates(lsuv_, but=["model", "return"])
    def __init__(self, *, batch: Any = None, force: bool = False, **kwargs: Any) -> None:
        """Check the arguments, and keep those that differ from the defaults of `lsuv_`."""
        _check(kwargs)
        if batch is not None:
            check_kind(batch, kwargs.get("forward"))
        given = {name: value for name, value in kwargs.items() if value is not _LSUV[name].default}
        self.batch, self.force, self.lsuv_args = batch, force, given
        self.report: LSUVReport | None = None

    def is_due(self, model: nn.Module, *, resumes: bool = False, optimizer: Any = None, quiet: bool = False) -> bool:
        """Is there something to initialise? If not, print why, and how to have it done.

        Args:
            resumes: this run goes on with a training that was begun before; not even `force` does anything then.
            optimizer: the one that the trainer will step, where it is made already.
            quiet: print nothing.
        """
        why = self._why_not(model, resumes, optimizer)
        if why and not quiet:
            print(f"LSUV: left alone: {why}.")
        return not why

    def initialise(self, model: nn.Module, batch: Any, *, quiet: bool = False, **defaults: Any) -> None:
        """Run `lsuv_` with the arguments given to the callback, and `defaults` for those that were not; print one line."""
        args = {**defaults, **self.lsuv_args}
        taken = frozenset() if self.force else past_of(model).initialised
        if taken and args.get("layers") is not None:
            args["layers"] = self._rest(model)
        elif taken:
            args["std"] = _with_left(taken, args.get("std"))
        with warnings.catch_warnings():
            if self.force:  # it was asked for
                warnings.simplefilter("ignore", TrainedModelWarning)
            self.report = lsuv_(model, batch, **args)
        note_initialised(model, frozenset(_names(model, args.get("layers"))), self._in_brief())
        if not quiet:
            print(self.report.summary())

    def _why_not(self, model: nn.Module, resumes: bool, optimizer: Any) -> str:
        if resumes:
            return (
                "this run resumes from a checkpoint, whose weights are trained; begin a run without one to initialise"
            )
        if self.force:
            return ""
        past, again = past_of(model), f"{self._in_brief(force=True)} does it anew"
        if past.by and past.trained:
            return f"{past.by} initialised this model, which was trained since ({past.trained}); {again}"
        if past.by and has_changed(model):
            return f"{past.by} initialised this model, whose weights were trained or replaced since; {again}"
        if past.by and not self._rest(model):
            return f"{past.by} has initialised this model; {again}"
        if not past.by and (sign := past.trained or sign_of_training(model) or _steps_of(optimizer)):
            return f"this model is trained, it seems ({sign}); {again}"
        return ""

    def _rest(self, model: nn.Module) -> list[str]:
        """The names of the weights that this callback means and that no earlier one took."""
        taken, meant = past_of(model).initialised, _names(model, self.lsuv_args.get("layers"))
        return [selector for name, selector in meant.items() if name not in taken]

    def __repr__(self) -> str:
        return self._as_code(self.force, repr)

    def _in_brief(self, force: bool = False) -> str:
        return " ".join(self._as_code(force, reprlib.repr).split())

    def _as_code(self, force: bool, show: Callable[[Any], str]) -> str:
        given = [*self._own(force), *(f"{name}={show(value)}" for name, value in self.lsuv_args.items())]
        return f"LSUVCallback({', '.join(given)})"

    def _own(self, force: bool) -> list[str]:
        """The arguments that `lsuv_` does not have, as code."""
        return ["batch=..."] * (self.batch is not None) + ["force=True"] * force


def _with_left(names: Iterable[str], std: Any) -> dict[Any, Any]:
    """The argument `std`, or the recipe's (None), for all layers but those of these names, which are left."""
    rest = std if isinstance(std, Mapping) else {} if std is None else {"*": std}
    return {**dict.fromkeys(names, "leave"), **rest}


def _names(model: nn.Module, layers: Selector | None) -> dict[str, str]:
    """The weights that `layers` means: the name of each, as without a selector -> its name among those selected.

    The two differ for a weight inside a selected block, which is named as the block is.
    """
    pairs = zip(Weights(model).all, Weights(model, layers).all, strict=True)
    return {plain.name: weight.name for plain, weight in pairs if weight.selected}


def _steps_of(optimizer: Any) -> str:
    return "its optimizer has taken steps" if has_stepped(optimizer) else ""


def _check(given: dict[str, Any]) -> None:
    for name in given:
        if name not in ARGUMENTS:
            raise no_such_argument("LSUVCallback", name, ARGUMENTS)
    Plan.of(**given)
    forward = given.get("forward")
    if forward is not None and not callable(forward):
        raise TypeError(f"`forward` must be a function of (model, batch), got {forward!r}.")
    layers = given.get("layers")
    if layers is not None and not callable(layers):
        try:
            select_modules(nn.Identity(), layers)
        except ValueError:  # names and modules are looked up in the model, which is not here yet
            if not layers:
                raise
