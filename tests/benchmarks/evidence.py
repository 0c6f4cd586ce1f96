"""What lsuvcb's start is worth beside others, in training: the evidence behind every claim about it.

    pip install -e '.[bench]' && python tests/benchmarks/evidence.py --quick --results own.jsonl

runs the quick form (half an hour on two cores); without --quick the whole one (hours, which a later run goes on with). Both read
Fashion-MNIST from LSUVCB_DATA. Name parts to run these alone. Each run is one JSON line in the results file, and what stands
there is not run again. Without --results that is the committed file, which --tables prints as tables.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

if __name__ in ("__main__", "__mp_main__"):  # the command and its workers: one run, one core
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from study import cost, frontier, harm, headline, paper_table, tables, tried, verdict
from study.results import QUICK, WHOLE, known

from lsuvcb.data import fashion_mnist

PEERS = ("anyinit", "lsuv")
PARTS = {
    "harm": harm,
    "frontier": frontier,
    "headline": headline,
    "paper": paper_table,
    "verdict": verdict,
    "cost": cost,
    "tried": tried,
}


def work(task: tuple[str, tuple[Any, ...], str, bool]) -> str:
    part, unit, path, quick = task
    torch.set_num_threads(1)
    PARTS[part].run(known(Path(path)), *unit, quick=quick)
    return f"{part}: {', '.join(map(str, unit))}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument(
        "--results", type=Path, help="default: evidence/quick.jsonl or evidence/whole.jsonl beside this file"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--tables", action="store_true", help="print what the results file has, and run nothing")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    path = args.results or (QUICK if args.quick else WHOLE)
    parts = args.parts or list(PARTS)
    if args.tables:
        if args.parts:
            parser.error("--tables prints all that the file has; leave the parts out")
        results = known(path)
        print("\n\n".join(text for make in tables.ALL.values() if (text := make(results))))
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    tasks = [(part, unit, str(path), args.quick) for part in parts for unit in PARTS[part].units(args.quick)]
    if not tasks:
        parser.error(f"the quick form has nothing of {', '.join(parts)}; leave --quick out")
    if missing := [name for name in PEERS if importlib.util.find_spec(name) is None]:
        parser.error(f"no package {', '.join(missing)}: pip install -e '.[bench]'")
    fashion_mnist(bs=1, device="cpu", download=False)  # an error now, not in an hour
    start = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
        for done, what in enumerate(pool.imap_unordered(work, tasks), 1):
            print(f"[{time.perf_counter() - start:6.0f} s] {done}/{len(tasks)} {what}", flush=True)


if __name__ == "__main__":
    main()
