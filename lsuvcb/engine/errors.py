"""What can go wrong with a model or a batch (errors), and what was finished but not as asked (warnings)."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


class LSUVError(RuntimeError):
    """A fact about the model or the batch that keeps LSUV from doing its work. No weight was changed."""


class NoLayersError(LSUVError):
    """No weight at work was found, or `layers` selected none of them."""


class LSUVWarning(UserWarning):
    """The parent of every warning of this library: the work was finished, but something wants a look."""


class NotConvergedWarning(LSUVWarning):
    """One or more layers could not be brought to their target; each keeps its best try."""


class InputScaleWarning(LSUVWarning):
    """The batch is far from unit variance (Mishkin's LSUV notes: scale the inputs first)."""


class TrainedModelWarning(LSUVWarning):
    """The model looks trained already, and the orthonormal step replaces its weights."""


def no_such_argument(owner: str, name: str, known: Iterable[str]) -> TypeError:
    """The error for an argument that `owner` does not take, with the one that may be meant."""
    known = list(known)
    close = get_close_matches(name, known, n=1, cutoff=0.4)
    advice = f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(known)}."
    return TypeError(f"{owner} has no argument {name!r}; {advice}")


def suggesting(function: Function) -> Function:
    """A function whose error for an unknown keyword says which one may be meant."""
    known = inspect.signature(function).parameters

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        for name in kwargs:
            if name not in known:
                raise no_such_argument(f"{function.__name__}()", name, known)
        return function(*args, **kwargs)

    return checked  # type: ignore[return-value]
