"""CheckpointCB: a fit that was stopped, at any moment, goes on from its last epoch."""

from __future__ import annotations

import contextlib
import math
import re
from pathlib import Path
from typing import Any

from ..events import Callback
from ..loop import Loop
from .files import write
from .training_state import training_state

_NAME = "run{run:02d}-epoch{epoch:04d}.pt"
_NAMED = re.compile(r"run(\d+)-epoch(\d+)\.pt")


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, the newest first: the latest run, its latest epoch."""
    found = [(tuple(map(int, match.groups())), p) for p in folder.glob("*.pt") if (match := _NAMED.fullmatch(p.name))]
    return [path for _, path in sorted(found, reverse=True)]


class CheckpointCB(Callback):
    """Writes a checkpoint after an epoch, from which `learn.fit(n, resume=path)` goes on. Runs at before_fit and after_epoch.

    In it: weights and buffers, optimizer, gradients (a MomentumLearner's momentum), the state of every callback that has
    `state_dict` (schedulers, the scaler of mixed precision), all random generators of the process and those in the
    loaders, epoch and history. On a CPU a fit that goes on ends with the same bits as one that
    never stopped.

    Args:
        path: a folder; it is made. Files are `run01-epoch0003.pt`. A fit that does not go on from the newest of them is a
            new run, whose files never take the place of an older one's (`best.pt` does).
        every: after each `every`-th epoch, and after the last; >= 1.
        keep: how many of this run to keep, >= 1, or None for all of them.
        best: a name in MetricsCB's rows ("loss", "accuracy"): the epoch with its best value on the validation set (on the
            training set, without one) is kept in `best.pt`, too.
        lower_is_better: None: for a name with "loss" or "error" in it.

    Raises:
        ValueError: `every` or `keep` < 1. At the first epoch: `best` is in no row.

    Side effects: writes and removes files in `path`, on the main process only. A file is whole or not there.
    """

    order = 90
    in_rehearsal = "nothing"

    def __init__(
        self,
        path: str | Path,
        every: int = 1,
        keep: int | None = 3,
        best: str | None = None,
        lower_is_better: bool | None = None,
    ) -> None:
        if every < 1 or (keep is not None and keep < 1):
            raise ValueError(f"`every` and `keep` must be >= 1, got {every} and {keep}.")
        self.path, self.every, self.keep, self.best = Path(path), every, keep, best
        if lower_is_better is None:
            lower_is_better = best is not None and ("loss" in best.lower() or "error" in best.lower())
        self.lower_is_better = lower_is_better
        self._run, self._epoch = 0, 0
        self._best_value: float | None = None

    def before_fit(self, learn: Loop) -> None:
        newest = [int(_NAMED.fullmatch(p.name)[1]) for p in checkpoints(self.path)[:1]]  # type: ignore[index]
        self._run, self._best_value = max(newest, default=0) + 1, None
        if learn.is_main:
            self.path.mkdir(parents=True, exist_ok=True)
            for half in self.path.glob(".*.half"):  # of a process that was killed while it wrote
                half.unlink(missing_ok=True)

    def after_epoch(self, learn: Loop) -> None:
        if learn.training and learn.do_valid:
            return  # the epoch is not over yet
        last = learn.epoch + 1 == learn.n_epochs
        improved = self.best is not None and self._improves(learn.history)
        due = last or (learn.epoch + 1) % self.every == 0
        if not learn.do_train or not (due or improved) or not learn.is_main:
            return
        self._epoch = learn.epoch + 1
        state = training_state(learn)
        if improved:
            write(self.path / "best.pt", state)
        if due:
            write(self.path / _NAME.format(run=self._run, epoch=learn.epoch + 1), state)
            self._remove_old()

    def _improves(self, history: list[dict[str, Any]]) -> bool:
        value = history[-1].get(self.best or "") if history else None
        if not isinstance(value, (int, float)):
            known = [k for k, v in history[-1].items() if isinstance(v, float)] if history else []
            raise ValueError(
                f"`best` must be a number in MetricsCB's rows, got {self.best!r}; "
                + (f"they have {', '.join(known)}." if known else "there are none: add a MetricsCB to the callbacks.")
            )
        old = self._best_value
        if old is not None and not math.isnan(old) and not (value < old if self.lower_is_better else value > old):
            return False
        self._best_value = float(value)
        return True

    def _remove_old(self) -> None:
        mine = [p for p in checkpoints(self.path) if p.name.startswith(f"run{self._run:02d}-")]
        for old in mine[self.keep :] if self.keep is not None else []:
            with contextlib.suppress(FileNotFoundError):
                old.unlink()

    def state_dict(self) -> dict[str, Any]:
        return {"run": self._run, "epoch": self._epoch, "best_value": self._best_value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._best_value = state["best_value"]
        written = self.path / _NAME.format(run=state["run"], epoch=state.get("epoch", 0))  # older files have none
        if checkpoints(self.path)[:1] == [written]:  # from an older one, or another folder's, this is a new run
            self._run = state["run"]
