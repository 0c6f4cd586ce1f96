"""Layer-sequential unit-variance initialization (LSUV) for any PyTorch model, and a training loop around it.

`survey(model, batch)` shows the signal by depth, `lsuv_(model, batch)` mends it, `LSUVCallback` does so at the start
of a Learner's fit. Nets are in `lsuvcb.nets`, data in `lsuvcb.data`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .face import *  # noqa: F403 - for type checkers and editors

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import the public names when the first is asked for: so `python -m lsuvcb --help` need not wait for torch."""
    if name == "__all__" or not name.startswith("_"):
        face = import_module(".face", __name__)
        globals().update({public: getattr(face, public) for public in ("__all__", *face.__all__)})
        if name in globals():
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__getattr__("__all__")})
