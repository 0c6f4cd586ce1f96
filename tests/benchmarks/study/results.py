"""Results as JSON lines: what is there is not run again, so that a run can be cut off and gone on with."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Job = dict[str, Any]
COMMITTED = Path(__file__).parents[1] / "evidence"
QUICK, WHOLE = COMMITTED / "quick.jsonl", COMMITTED / "whole.jsonl"


class Results:
    """The rows of a file, by their job: what was run, without what came of it.

    Args:
        path: new rows are added to it.
        also: files whose rows are known as well.
    """

    def __init__(self, path: Path, *also: Path) -> None:
        self.path = path
        lines = [line for file in (*also, path) if file.exists() for line in file.read_text().splitlines()]
        rows = [json.loads(line) for line in lines]
        self._known = {_key(row["job"]): row for row in rows}  # one each: two workers may have run the same job
        self.rows = list(self._known.values())

    def of(self, job: Job, run: Callable[[], Any]) -> Any:
        """What is known of the job; or run it, and write that down at once."""
        row = self._known.get(_key(job))
        if row is None:
            start = time.perf_counter()
            found = run()
            row = {"job": job, "found": found, "seconds": round(time.perf_counter() - start, 2)}
            self._known[_key(job)] = row
            self.rows.append(row)
            with self.path.open("a") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                file.write(json.dumps(row) + "\n")
        return row["found"]

    def select(self, **wanted: Any) -> list[dict[str, Any]]:
        """The rows whose job has these values."""
        return [row for row in self.rows if all(row["job"].get(k) == v for k, v in wanted.items())]


class Recital(Results):
    """What is known, and no more: what would have to be run is a LookupError."""

    def __init__(self, results: Results) -> None:
        self._known, self.rows = results._known, results.rows

    def of(self, job: Job, run: Callable[[], Any]) -> Any:
        row = self._known.get(_key(job))
        if row is None:
            raise LookupError(f"not run: {job}")
        return row["found"]


def known(path: Path = WHOLE) -> Results:
    """The results in a file. Beside the committed ones of the whole form stand those of the quick one, which is a part of it."""
    return Results(path, QUICK) if path.resolve() == WHOLE.resolve() else Results(path)


def _key(job: Job) -> str:
    return json.dumps(job, sort_keys=True)
