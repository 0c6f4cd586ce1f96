"""`from lsuvcb import ...` costs little more than `import torch`, says nothing, and brings nothing heavy along."""

import os
import subprocess
import sys
from pathlib import Path
from statistics import median

import lsuvcb.engine

PACKAGE = Path(lsuvcb.engine.__file__).parents[1]
# Of fastcore only `delegates` is wanted, which is in its light half.
HEAVY = (
    "torchvision torcheval fastcore.foundation fastprogress matplotlib sklearn pandas datasets IPython fastai lightning "
    "transformers"
)
# Both in one process, so that the machine is the same; its time on the CPU, so that what else it does is not in it.
TIMED = """
from time import process_time
start = process_time()
import torch
middle = process_time()
from lsuvcb import lsuv_
print((process_time() - start) / (middle - start))
"""


def fresh(code):
    """Run `code` in a process of its own, with every warning shown; its output, and what it wrote beside it."""
    path = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its bytecode, as torch has
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    return done.stdout, done.stderr


def brought_along(code):
    out, _ = fresh(f"{code}; import sys; print(*(m for m in {HEAVY!r}.split() if m in sys.modules))")
    return out.split()


def test_import_brings_nothing_heavy_along():
    assert brought_along("from lsuvcb import *") == []


def test_import_brings_torch_along_with_the_first_public_name():
    look = "import sys, lsuvcb; lsuvcb.__version__; print('torch' in sys.modules); lsuvcb.lsuv_; print('torch' in sys.modules)"
    assert fresh(look)[0].split() == ["False", "True"]


def test_import_shows_the_public_names_and_no_others():
    code = "import lsuvcb; {} print(*(n for n in dir(lsuvcb) if n in lsuvcb.__all__), hasattr(lsuvcb, 'nothing'))"
    shown = fresh(code.format(""))[0].split()
    assert {"lsuv_", "survey", "LSUVCallback", "Learner"} <= set(shown)
    assert "engine" not in shown
    assert shown[-1] == "False"
    assert fresh(code.format("from lsuvcb import *;"))[0].split() == shown


def test_import_of_every_part_brings_nothing_heavy_along():
    parts = sorted(p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists())
    # course imports torcheval, so that a lesson's own import of it prints nothing
    parts = [p for p in parts if not p.startswith("__") and p not in ("integrations", "course")]
    assert {"engine", "training", "nets", "data", "plot"} <= set(parts)
    assert brought_along("import " + ", ".join(f"lsuvcb.{p}" for p in parts)) == []


def test_import_of_the_course_brings_torcheval_along_and_the_lesson_s_own_import_warns_of_nothing():
    assert brought_along("import lsuvcb.course") == ["torchvision", "torcheval"]
    _, shown = fresh("import lsuvcb.course; from torcheval.metrics import MulticlassAccuracy")
    assert shown == fresh("import torch")[1]  # what torch itself may show


def test_import_that_brings_something_along_is_seen():
    assert brought_along("import lsuvcb, matplotlib") == ["matplotlib"]


def test_import_prints_no_warning_but_torch_s_own():
    assert fresh("from lsuvcb import *")[1] == fresh("import torch")[1]


def test_import_takes_at_most_115_percent_of_torch():
    ratios = [float(fresh(TIMED)[0]) for _ in range(5)]
    assert median(ratios) <= 1.15, ratios
