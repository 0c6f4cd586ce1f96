"""What `help()` and completion show of a function's arguments."""

import inspect
from collections.abc import Callable
from typing import Any


def arguments(function: Callable[..., Any]) -> list[tuple[str, Any]]:
    """Each argument that is shown, in its order, with its default."""
    return [(name, p.default) for name, p in inspect.signature(function).parameters.items()]


def of_a_callback(lsuv: Callable[..., Any], logs: bool = False) -> list[tuple[str, Any]]:
    """What an LSUVCallback is to show: its own arguments, then those of `lsuv_` but for model and batch.

    Args:
        logs: is it one of a trainer that keeps a log?
    """
    return [("batch", None), ("force", False), *[("log", False)] * logs, *arguments(lsuv)[2:]]
