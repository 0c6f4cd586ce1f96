"""The walls of the house: who imports whom, read from the source, so that nothing has to be imported to be caught.

engine <- callback <- training, integrations; engine <- nets; training <- course, __main__. Never the other way, never sideways.
"""

import ast
import sys
from pathlib import Path

import lsuvcb.engine

PACKAGE = Path(lsuvcb.engine.__file__).parents[1]
# Faces put names together; they may see everything, and nobody may import them.
FACES = ("__init__", "__main__", "course")
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
# The one door out of the engine: a report draws itself, and asks for the pencil when it does.
LATE = {("engine/telling/report.py", "plot")}
OUTSIDE = {
    "engine": {"torch"},
    # heavy, or there for some users only: imported where they are used
    "*late*": {"matplotlib", "numpy", "torchvision", "torcheval", "fastcore", "fastprogress", "sklearn", "IPython", "tqdm"},
}  # fmt: skip


def imports(source: str, path: str) -> list[tuple[str, bool]]:
    """Each module that a file imports, by its full dotted name, and whether it does so when it is itself imported.

    What stands under `if TYPE_CHECKING:` never runs and is left out.
    """
    package = ["lsuvcb", *Path(path).with_suffix("").parts]
    found: list[tuple[str, bool]] = []

    def visit(node: ast.AST, early: bool) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.extend((alias.name, early) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level] if node.level else []
            base = [*base, *(node.module or "").split(".")] if node.module else base
            ours = base == ["lsuvcb"]
            found.extend((".".join([*base, alias.name] if ours else base), early) for alias in node.names)
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
        elif room in OUTSIDE and first not in OUTSIDE[room]:
            wrong.append(f"{path} imports {name}")
        elif first in OUTSIDE["*late*"] and early:
            wrong.append(f"{path} imports {name} at once")
        if (
            path.startswith("training/")
            and path not in ("training/lsuv_callback.py", "training/survey.py")
            and name.startswith("lsuvcb.engine.lsuv")
        ):
            wrong.append(f"{path} imports {name}: lsuv_callback.py and survey.py are the only doors")
    return wrong


def test_rooms_nobody_imports_through_a_wall():
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 20
    found = [line for f in files for line in trespasses(f.read_text(), f.relative_to(PACKAGE).as_posix())]
    assert found == []


def test_rooms_every_room_has_its_rules():
    rooms = {p.relative_to(PACKAGE).parts[0].removesuffix(".py") for p in PACKAGE.rglob("*.py")}
    assert rooms - {*FACES} <= set(MAY_IMPORT)


def test_rooms_files_stay_short():
    lengths = {f.name: len(f.read_text().splitlines()) for f in PACKAGE.rglob("*.py")}
    assert {name: n for name, n in lengths.items() if n > 330} == {}


BREACHES = {
    "the engine knows the loop": ("engine/eye.py", "from ..training.hooks import Hook"),
    "the engine knows it late": ("engine/eye.py", "def f():\n    from lsuvcb.training import Learner"),
    "the engine knows the face": ("engine/eye.py", "from .. import lsuv_"),
    "the engine knows numpy": ("engine/eye.py", "import numpy as np"),
    "the engine knows fastcore": ("engine/eye.py", "def f():\n    import fastcore.basics"),
    "the engine knows it by name": ("engine/eye.py", "import importlib\nimportlib.import_module('fastai')"),
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
        "engine/lsuv.py": "from __future__ import annotations\nimport torch.distributed as dist\nfrom .eye import Eye",
        "engine/telling/report.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from matplotlib.axes import Axes\n"
        "def plot():\n    from ...plot import plot_stds",
        "training/lsuv_callback.py": "from ..engine.lsuv import lsuv_",
        "training/metrics.py": "def f():\n    from torcheval.metrics import Metric",
        "__main__.py": "from . import data\nfrom .training import Learner",
    }
    assert [line for path, source in allowed.items() for line in trespasses(source, path)] == []
