"""Runs notebooks from a clean kernel, writes their outputs back, and stamps them with the code that made these.

    pip install -e '.[nbs]' && python nbs/run.py [NAME ...]          e.g. 01_initialization; default: all

`pytest nbs` runs them too, without writing, checks the story's numbers, and that the stamp fits the code.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NBS = Path(__file__).parent
LIMIT = 600  # seconds for one cell, on a machine that is busy; a notebook takes less than 180 on two idle cores


def code_of(notebook: Any) -> str:
    """A hash of all code cells: outputs are stale where it differs from the stamp."""
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()


def stamp_of(notebook: Any) -> str | None:
    return notebook.metadata.get("lsuvcb", {}).get("code")


def execute(notebook: Any, folder: str | Path) -> None:
    """Run all cells, in place, in `folder`, with this checkout's lsuvcb."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait for each other take no core from other work
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(NBS.parent), os.environ.get("PYTHONPATH"))))
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=LIMIT, kernel_name="python3", resources=resources).execute()


def join_streams(cell: Any) -> None:
    """What a cell printed in one go, as one output: the kernel cuts it wherever it happens to flush, in the middle of a table."""
    outputs: list[Any] = []
    for output in cell.get("outputs", []):
        before = outputs[-1] if outputs else {}
        if output.output_type == "stream" and before.get("name") == output.name:
            before["text"] += output.text
        else:
            outputs.append(output)
    if "outputs" in cell:
        cell.outputs = outputs


def main(names: list[str]) -> None:
    for path in sorted(NBS.glob("*.ipynb")):
        if names and path.stem not in names:
            continue
        notebook = nbformat.read(path, as_version=4)
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            execute(notebook, folder)
        notebook.metadata["lsuvcb"] = {"code": code_of(notebook)}
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # times of day
            join_streams(cell)
        nbformat.write(notebook, path)
        print(f"{path.name}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
