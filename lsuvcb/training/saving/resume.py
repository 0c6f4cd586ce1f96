"""A fit goes on from a checkpoint: which file, and when its parts are taken over."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from ..events import Callback
from ..loop import Loop
from .checkpoint import CheckpointCB, checkpoints
from .files import CheckpointError, CheckpointWarning, read
from .model import load_model, model_copy
from .training_state import load_training


def to_resume(path: str | Path, cbs: Iterable[Callback]) -> dict[str, Any] | None:
    """The newest whole checkpoint at `path`, a folder or a file; None where a CheckpointCB has yet to write the first.

    Warns:
        CheckpointWarning: it is damaged, and the one before it is taken.
    """
    path = Path(path)
    named = path.suffix == ".pt" or path.is_file()
    candidates = checkpoints(path.parent if named else path)
    if named:
        candidates = [path, *candidates[candidates.index(path) + 1 :]] if path in candidates else [path]
    if not candidates and any(isinstance(cb, CheckpointCB) and cb.path.resolve() == path.resolve() for cb in cbs):
        return None
    damaged = []
    for candidate in candidates:
        try:
            state = read(candidate)
        except CheckpointError as error:
            damaged.append(str(error))
            continue
        if "generators" not in state:
            raise CheckpointError(
                f"{candidate} holds weights alone; `learn.load(path)` reads it, a fit cannot go on from it."
            )
        for message in damaged:
            warnings.warn(f"{message} Resuming from {candidate} instead.", CheckpointWarning, stacklevel=3)
        return state
    if damaged:
        raise CheckpointError(" ".join(damaged))
    raise FileNotFoundError(f"there is no checkpoint in {path}; CheckpointCB({str(path)!r}) writes them.")


class ResumeCB(Callback):
    """Goes on from a checkpoint. Runs at before_fit and cleanup_fit.

    The weights are there before any other callback's `before_fit`, and `learn.resumed` is True for this fit; optimizer,
    callbacks, generators, gradients and history are taken over behind all of them. Where that fails (another optimizer, other
    loaders) the model has the weights from before.

    Args:
        saved: what CheckpointCB wrote.
    """

    order = -30
    in_rehearsal = "nothing"

    def __init__(self, saved: dict[str, Any]) -> None:
        self.saved = saved
        self._before: dict[str, Any] | None = None

    def before_fit(self, learn: Loop) -> None:
        self._before = model_copy(learn.model)
        load_model(learn.model, self.saved)
        learn.for_this_fit(resumed=True, all_epochs=partial(self._go_on, learn, learn.all_epochs))

    def _go_on(self, learn: Loop, all_epochs: Callable[[int], None]) -> None:
        done = load_training(learn, self.saved)
        self._before = None
        all_epochs(done)

    def cleanup_fit(self, learn: Loop) -> None:
        if self._before is not None:
            load_model(learn.model, self._before)
            self._before = None

    def __repr__(self) -> str:
        return f"ResumeCB(epoch {self.saved['epoch']})"
