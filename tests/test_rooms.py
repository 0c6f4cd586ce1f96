"""The walls of the house, read from the source, so that nothing has to be imported to be caught.

engine <- callback <- training, integrations; engine <- nets; training <- course, demo. Never the other way, never sideways;
in the engine from the top floor down; and no two files import each other, for types either.
"""

import ast
import sys
from functools import cache
from pathlib import Path

import pytest

import lsuvcb

PACKAGE = Path(lsuvcb.__file__).parent
# Faces put names together; they may see everything, and nobody may import them.
FACES = ("__init__", "__main__", "course", "demo", "face")
MAY_IMPORT = {
    "engine": {"engine"},
    "callback": {"callback", "engine"},
    "training": {"training", "callback", "engine", "plot", "loaders", "data"},
    "integrations": {"integrations", "callback", "engine"},
    "nets": {"engine"},
    "data": {"idx", "loaders"},
    "loaders": {"idx"},
    "idx": set(),
    "plot": set(),
}
# The engine's rooms, top floor first; the files on the ground floor may be used by all of them.
FLOORS = ("lsuv", "telling", "passes", "writing", "solving", "seeing", "model", "keeping", "measuring")
GROUND = {"errors", "ranks", "select", "tensors"}
# The doors out of the engine: what draws itself asks for the pencil when it does.
LATE = {(f"engine/telling/{name}.py", what) for name in ("report", "survey") for what in ("plot", "matplotlib")}
# The loop is what is left when everything that is added to it is taken away.
LOOP = ("training/loop.py", "training/events.py")
LOOP_MAY_REACH = {f"training/{name}.py" for name in ("batches", "checks", "events", "hearing")}
OUTSIDE = {
    "engine": {"torch"},
    # heavy, or there for some users only: imported where they are used
    "*late*": {"matplotlib", "numpy", "torchvision", "torcheval", "sklearn", "IPython", "tqdm", "rich"},
}  # fmt: skip
# The only doors of the training room to the engine's face.
TO_LSUV = ("training/survey.py",)


def imports(source: str, path: str) -> list[tuple[str, bool]]:
    """Each module that a file imports, by its full dotted name, and whether it does so when it is itself imported.

    What stands under `if TYPE_CHECKING:` counts as imported late.
    """
    package = ["lsuvcb", *Path(path).with_suffix("").parts]
    found: list[tuple[str, bool]] = []

    def visit(node: ast.AST, early: bool) -> None:
        early = early and not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        if isinstance(node, ast.Import):
            found.extend((alias.name, early) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level] if node.level else []
            base = [*base, *(node.module or "").split(".")] if node.module else base
            found.extend((".".join([*base, alias.name]), early) for alias in node.names)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            found.append((ast.literal_eval(node.args[0]) if isinstance(node.args[0], ast.Constant) else "?", early))
        inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            visit(child, early and not inside)

    visit(ast.parse(source), True)
    return found


def trespasses(source: str, path: str) -> list[str]:
    """What is wrong with the imports of one file; `path` is relative to the package."""
    room = path.split("/")[0].removesuffix(".py")
    wrong = []
    for name, early in imports(source, path):
        first, _, rest = name.partition(".")
        if first in sys.stdlib_module_names:
            continue
        if first == "lsuvcb":
            target = rest.split(".")[0] or "__init__"
            late_door = (path, target) in LATE and not early
            if room not in FACES and target not in MAY_IMPORT.get(room, set()) | {room} and not late_door:
                wrong.append(f"{path} imports {name}")
            elif room == target == "engine" and not goes_down(path, rest):
                wrong.append(f"{path} imports {name}: upstairs")
        elif room in OUTSIDE and first not in OUTSIDE[room] and ((path, first) not in LATE or early):
            wrong.append(f"{path} imports {name}")
        elif first in OUTSIDE["*late*"] and early:
            wrong.append(f"{path} imports {name} at once")
        if path.startswith("training/") and path not in TO_LSUV and name.startswith("lsuvcb.engine.lsuv"):
            wrong.append(f"{path} imports {name}: the callback room is the way to lsuv_")
    return wrong


def goes_down(path: str, target: str) -> bool:
    """May this file of the engine import that one? `engine/__init__.py` is its face."""
    here, there = path.split("/")[1].removesuffix(".py"), [*target.split("."), "", ""][1]
    if here == "__init__" or there in GROUND or (here in GROUND and there not in FLOORS):
        return True
    return here in FLOORS and there in FLOORS and FLOORS.index(here) <= FLOORS.index(there)


@cache
def files() -> dict[str, str]:
    """Every file of the package: path -> source."""
    return {p.relative_to(PACKAGE).as_posix(): p.read_text() for p in sorted(PACKAGE.rglob("*.py"))}


def graph(sources: dict[str, str]) -> dict[str, set[str]]:
    """Each file -> the files that it imports, whether at once, late or for types."""

    def file_of(dotted: str) -> str | None:
        parts = dotted.split(".")[1:]
        for n in range(len(parts), -1, -1):  # the last part may be a name in the module
            stem = "/".join(parts[:n])
            for path in (f"{stem}.py", f"{stem}/__init__.py" if stem else "__init__.py"):
                if path in sources:
                    return path
        return None

    return {
        path: {f for name, _ in imports(source, path) if name.startswith("lsuvcb") and (f := file_of(name))} - {path}
        for path, source in sources.items()
    }


def reached(start: str, edges: dict[str, set[str]]) -> set[str]:
    seen, todo = set(), [start]
    while todo:
        for path in edges[todo.pop()] - seen:
            seen.add(path)
            todo.append(path)
    return seen


def circles(sources: dict[str, str]) -> set[str]:
    """Files that import one another, directly or through others."""
    edges = graph(sources)
    return {path for path in edges if path in reached(path, edges)}


def test_rooms_nobody_imports_through_a_wall():
    assert len(files()) > 90
    assert [line for path, source in files().items() for line in trespasses(source, path)] == []


def test_rooms_no_two_files_import_each_other():
    assert circles(files()) == set()


@pytest.mark.parametrize("how", ["from .learner import Learner", "def f():\n    from .learner import Learner",
                                 "if TYPE_CHECKING:\n    from .learner import Learner"])  # fmt: skip
def test_rooms_planted_circle_is_seen(how):
    planted = files() | {"training/events.py": f"{files()['training/events.py']}\n{how}\n"}
    assert {"training/events.py", "training/loop.py", "training/learner.py"} <= circles(planted)


@pytest.mark.parametrize("path", LOOP)
def test_rooms_the_loop_reaches_neither_lsuv_nor_lr_find_nor_files(path):
    assert reached(path, graph(files())) - {"training/__init__.py"} <= LOOP_MAY_REACH
    planted = files() | {"training/batches.py": "from .lr_find import find_lr"}
    assert (
        not reached(path, graph(planted)) <= LOOP_MAY_REACH | {"training/__init__.py"} or path == "training/events.py"
    )


def test_rooms_every_room_has_its_rules():
    assert {path.split("/")[0].removesuffix(".py") for path in files()} - {*FACES} == set(MAY_IMPORT)
    rooms = {path.split("/")[1].removesuffix(".py") for path in files() if path.startswith("engine/")} - {"__init__"}
    assert rooms == {*FLOORS} | GROUND
    assert len(rooms) <= 13


def lengths(source: str) -> dict[str, int]:
    """Lines of each class and function without docstrings."""

    def docstrings(node: ast.AST) -> int:
        found = [n for n in ast.walk(node) if isinstance(n, (ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(n)]
        return sum(n.body[0].end_lineno - n.body[0].lineno + 1 for n in found)

    nodes = [n for n in ast.walk(ast.parse(source)) if isinstance(n, (ast.ClassDef, ast.FunctionDef))]
    return {f"{type(n).__name__} {n.name}": n.end_lineno - n.lineno + 1 - docstrings(n) for n in nodes}


def test_rooms_classes_and_functions_have_one_job():
    limits = {"ClassDef": 150, "FunctionDef": 60}
    long = {f"{path}: {name}": n for path, source in files().items() for name, n in lengths(source).items()
            if n > limits[name.split()[0]]}  # fmt: skip
    assert long == {}


def test_rooms_files_are_no_store_rooms():
    assert {path: n for path, source in files().items() if (n := len(source.splitlines())) > 350} == {}


def test_rooms_only_the_law_multiplies_by_a_scale():
    """Whoever wants a scaled weight, bias or output asks the Solution; homes and changes do the writing."""
    law = {"engine/solving/solution.py", "engine/model/home.py"}
    found = []
    for path, source in files().items():
        if not path.startswith("engine/") or path in law:
            continue
        for node in ast.walk(ast.parse(source)):
            product = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult)
            if product and "solution.scale" in ast.unparse(node):
                found.append(f"{path}:{node.lineno}")
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith((".mul_", "_foreach_mul_")):
                found.append(f"{path}:{node.lineno}")
    assert found == [], "see solving/solution.py"


BREACHES = {
    "the engine knows the loop": ("engine/seeing/eye.py", "from ...training.hooks import Hook"),
    "the engine knows it late": ("engine/seeing/eye.py", "def f():\n    from lsuvcb.training import Learner"),
    "the engine knows it for types": ("engine/lsuv.py", "if TYPE_CHECKING:\n    from ..training import Learner"),
    "the engine knows the face": ("engine/seeing/eye.py", "from ... import lsuv_"),
    "the engine knows numpy": ("engine/seeing/eye.py", "import numpy as np"),
    "the engine knows fastcore": ("engine/seeing/eye.py", "def f():\n    import fastcore.basics"),
    "the engine knows it by name": ("engine/seeing/eye.py", "import importlib\nimportlib.import_module('fastai')"),
    "upstairs": ("engine/model/weight.py", "from ..seeing.use import Use"),
    "upstairs from the ground": ("engine/tensors.py", "from .model.weight import Weight"),
    "a report draws at once": ("engine/telling/report.py", "from ...plot import plot_stds"),
    "another engine file draws": ("engine/lsuv.py", "def f():\n    from ..plot import plot_stds"),
    "the loop goes sideways": ("training/learner.py", "from ..integrations.fastai import LSUVCallback"),
    "the loop calls LSUV elsewhere": ("training/learner.py", "from ..engine.lsuv import lsuv_"),
    "an integration goes sideways": ("integrations/fastai.py", "from ..training import Callback"),
    "the nets know the loop": ("nets.py", "from .training import Learner"),
    "a leaf imports": ("plot.py", "from .engine import survey"),
    "matplotlib at once": ("plot.py", "import matplotlib.pyplot as plt"),
    "torcheval at once": ("training/metrics.py", "try:\n    import torcheval\nexcept ImportError:\n    pass"),
    "in a class body": ("training/metrics.py", "class A:\n    import torchvision"),
}


def test_rooms_breaches_are_seen():
    seen = {what: trespasses(source, path) for what, (path, source) in BREACHES.items()}
    assert [what for what, found in seen.items() if not found] == []


def test_rooms_what_is_allowed_is_not_a_breach():
    allowed = {
        "engine/lsuv.py": "from __future__ import annotations\nimport torch.distributed as dist\nfrom .seeing.eye import Eye",
        "engine/telling/report.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from matplotlib.axes import Axes\n"
        "def plot():\n    from ...plot import plot_stds",
        "training/survey.py": "from ..engine.lsuv import survey",
        "training/metrics.py": "def f():\n    from torcheval.metrics import Metric",
        "__main__.py": "from . import data\nfrom .training import Learner",
    }
    assert [line for path, source in allowed.items() for line in trespasses(source, path)] == []
