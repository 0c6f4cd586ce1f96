"""What the LSUVCallback of every trainer has in common."""

from __future__ import annotations

import inspect
from difflib import get_close_matches
from typing import Any

from torch import nn

from .lsuv import lsuv_
from .once import is_done, mark_done
from .report import LSUVReport
from .run import plan_of
from .select import select_modules

_LSUV = inspect.signature(lsuv_).parameters
ARGUMENTS = [name for name in _LSUV if name not in ("model", "batch")]


class Initialiser:
    """The arguments of `lsuv_`, checked where the callback is made; one run per model, of which it keeps the report.

    Args:
        batch: use this batch instead of drawing one.
        force: initialise again even if the model has been through an LSUVCallback before.

    Attributes:
        report: the LSUVReport of the last run; None before.

    Raises:
        TypeError, ValueError: an argument that `lsuv_` would refuse.
    """

    def __init__(self, *, batch: Any = None, force: bool = False, **lsuv_args: Any) -> None:
        _check(lsuv_args)
        self.batch, self.force, self.lsuv_args = batch, force, lsuv_args
        self.report: LSUVReport | None = None

    def is_due(self, model: nn.Module) -> bool:
        """Has no LSUVCallback initialised this model yet, or is it to be done again?"""
        return self.force or not is_done(model)

    def initialise(self, model: nn.Module, batch: Any, *, quiet: bool = False, **defaults: Any) -> None:
        """Run `lsuv_` with the arguments given to the callback, and `defaults` for those that were not; print one line."""
        self.report = lsuv_(model, batch, **{**defaults, **self.lsuv_args})
        mark_done(model)
        if not quiet:
            print(self.report.summary())

    def __repr__(self) -> str:
        given = {"batch": self.batch, "force": self.force} | self.lsuv_args
        shown = {k: "..." if k == "batch" else repr(v) for k, v in given.items() if v is not None and v is not False}
        shown |= {k: repr(v) for k, v in self.lsuv_args.items()}
        return f"LSUVCallback({', '.join(f'{k}={v}' for k, v in shown.items())})"


def _check(given: dict[str, Any]) -> None:
    for name in given:
        if name not in ARGUMENTS:
            close = get_close_matches(name, ARGUMENTS, n=1, cutoff=0.4)
            advice = f"did you mean {close[0]!r}?" if close else f"`lsuv_` takes {', '.join(ARGUMENTS)}."
            raise TypeError(f"LSUVCallback has no argument {name!r}; {advice}")
    plan_of(**{name: value for name, value in given.items() if name in inspect.signature(plan_of).parameters})
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
