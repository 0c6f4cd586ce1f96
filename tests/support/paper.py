"""`lsuv_` with the paper's recipe: what the tests of the algorithm are about, whatever the default call adds to it."""

from __future__ import annotations

import functools
from typing import Any

import lsuvcb
from lsuvcb.engine import LSUVReport


@functools.wraps(lsuvcb.lsuv_)
def lsuv_(*args: Any, **kwargs: Any) -> LSUVReport:
    return lsuvcb.lsuv_(*args, **{"recipe": "paper"} | kwargs)
