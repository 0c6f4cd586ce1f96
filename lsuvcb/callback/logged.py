"""`log=`: what the LSUVCallback of a trainer that keeps a log takes besides. Each trainer's file says where the figures go."""

from __future__ import annotations

from typing import Any

from fastcore.meta import delegates

from ..engine.lsuv import lsuv_
from .initialiser import Initialiser


class LoggedInitialiser(Initialiser):
    """An Initialiser whose report can also go where its trainer logs.

    Args:
        log: send the figures of the report there (`LSUVReport.to_log`), once, after the initialisation.

    Raises:
        TypeError: `log` is neither True nor False.
    """

    @delegates(lsuv_, but=["model", "return"])
    def __init__(self, *, batch: Any = None, force: bool = False, log: bool = False, **kwargs: Any) -> None:
        """Check the arguments, as Initialiser does."""
        super().__init__(batch=batch, force=force, **kwargs)
        if not isinstance(log, bool):
            raise TypeError(
                f"`log` must be True or False, got {log!r}; with `log=True` the figures go where the trainer's own do."
            )
        self.logs = log  # not `log`: Lightning puts its own on every callback under that name

    def _own(self, force: bool) -> list[str]:
        return super()._own(force) + ["log=True"] * self.logs
