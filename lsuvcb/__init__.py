"""Layer-sequential unit-variance initialization (LSUV) for any PyTorch model, and a training loop around it.

`survey` shows the signal of a model on a batch by depth, `lsuv_` mends it in place, `LSUVCallback` does so at the start of a
Learner's fit; `lsuvcb.integrations` has one for other trainers. Nets are in `lsuvcb.nets`, data in `lsuvcb.data`, pictures in
`lsuvcb.plot`, the names of the fast.ai course's lessons in `lsuvcb.course`, the loop and its callbacks in `lsuvcb.training`.
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
