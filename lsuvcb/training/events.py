"""The loop's events, the Callback that acts at them, and the exceptions that cut a stage of the loop short."""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any, ClassVar, Literal

Handler = Callable[[Any], Any]  # called with the learner

STEPS = ("predict", "get_loss", "backward", "step", "zero_grad")
BATCH_EVENTS = (
    "before_batch", "after_predict", "after_loss", "after_backward", "after_step", "after_batch", "cleanup_batch",
)  # fmt: skip
EVENTS = (
    *(f"{when}_{stage}" for stage in ("fit", "epoch") for when in ("before", "after", "cleanup")),
    *BATCH_EVENTS,
)


class CancelFitException(Exception):
    """Raise it in a callback to end the fit: `after_fit` is skipped, every `cleanup_*` runs."""


class CancelEpochException(Exception):
    """Raise it in a callback to end the pass over this loader; the next one follows."""


class CancelBatchException(Exception):
    """Raise it in a callback to skip the rest of this batch; the next one follows."""


CANCEL = {"fit": CancelFitException, "epoch": CancelEpochException, "batch": CancelBatchException}


class Callback:
    """Acts on a Learner at its events: define a method of an event's name, it is called with the learner.

    Attributes:
        order: callbacks run from low to high, equal ones as listed. Relate it to another's:
            `order = DeviceCB.order + 1`. The default, 0, is after DeviceCB and before hooks, metrics and progress.
        in_rehearsal: what `lr_find` and `learn.survey` run, whose fits leave no trace: a "copy" of the callback,
            "itself", or "nothing".

    A callback with `state_dict()` and `load_state_dict(state)` is kept in checkpoints; the state is made of tensors,
    numbers, strings, lists and dicts.

    Raises:
        TypeError: when a subclass is made whose method looks like an event, but is none.

    Example:
        >>> class Tell(Callback):
        ...     def before_fit(self, learn):
        ...         print("epochs:", learn.n_epochs)
        >>> class Typo(Callback):
        ...     def befor_fit(self, learn): ...
        Traceback (most recent call last):
        TypeError: Typo.befor_fit looks like an event, but there is none of that name; did you mean 'before_fit'?
    """

    order = 0
    in_rehearsal: ClassVar[Literal["copy", "itself", "nothing"]] = "copy"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in dir(cls):
            if name.startswith("_") or name in EVENTS or name in STEPS or not callable(getattr(cls, name, None)):
                continue
            close = get_close_matches(name, EVENTS, n=1, cutoff=0.85) or get_close_matches(name, STEPS, n=1, cutoff=0.8)
            if close or name.startswith(("before_", "begin_", "after_", "cleanup_")):
                close = close or get_close_matches(name, EVENTS, n=1, cutoff=0.0)
                raise TypeError(
                    f"{cls.__name__}.{name} looks like an event, but there is none of that name; "
                    f"did you mean {close[0]!r}?"
                )

    def __repr__(self) -> str:
        names = inspect.signature(type(self)).parameters
        shown = ", ".join(f"{n}={reprlib.repr(vars(self)[n])}" for n in names if n in vars(self))
        return f"{type(self).__name__}({shown})"


def as_callbacks(cbs: Callback | Iterable[Callback] | None) -> list[Callback]:
    """One callback, several or none, as a list; anything else is a TypeError."""
    found = [] if cbs is None else [cbs] if isinstance(cbs, Callback) or not isinstance(cbs, Iterable) else list(cbs)
    for cb in found:
        if not isinstance(cb, Callback):
            advice = f"; write {cb.__name__}()." if isinstance(cb, type) else "."
            raise TypeError(f"`cbs` takes Callback objects, got {reprlib.repr(cb)} ({type(cb).__name__}){advice}")
    return found


def owner_name(handler: Callable[..., Any]) -> str:
    """The class of the callback that `handler` is a method of."""
    return type(getattr(handler, "__self__", handler)).__name__


def name_callback(e: BaseException, handler: Callable[..., Any], event: str) -> None:
    """Add a note to `e` that says which callback raised it, at which event; the Cancel exceptions carry none."""
    if not isinstance(e, tuple(CANCEL.values())):
        e.add_note(f"raised in {owner_name(handler)}.{event}")


def fire_every(event: str, handlers: Iterable[Handler], learn: Any, failure: BaseException | None) -> None:
    """Call each handler of a clean-up: one that fails keeps no other from its work, and hides no `failure` that led here."""
    first: BaseException | None = None
    for handler in handlers:
        try:
            handler(learn)
        except BaseException as e:  # Ctrl-C, too, waits until everything is tidied up
            name_callback(e, handler, event)
            first = first or e
    if first is not None and (failure is None or not isinstance(first, Exception)):
        raise first
    if first is not None and failure is not None:
        failure.add_note(f"Then, while cleaning up: {first!r} ({'; '.join(getattr(first, '__notes__', ()))})")
