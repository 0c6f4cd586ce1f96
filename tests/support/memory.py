"""What a run allocates: torch's own allocator on the CPU tells of every change."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

from torch.profiler import ProfilerActivity, profile


def changes(run: Callable[[], object], folder: Path) -> list[int]:
    """Bytes that were taken (above 0) and given back (below) in a second call of `run`, in their order."""
    run()  # what is made once is made now
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as found:
        run()
    found.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    return [
        change for _, change in sorted((e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]")
    ]


def peak(run: Callable[[], object], folder: Path) -> int:
    """Most bytes that a run holds at a time beyond what was there before."""
    return max(accumulate(changes(run, folder)), default=0)
