"""What is released, and the workflows that check and release it on a public host."""

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import BytesParser
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest
from required import need_package

import lsuvcb

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def program(name):
    """A program of .ci/, as a module."""
    loader = SourceFileLoader(name, str(ROOT / ".ci" / name))
    module = module_from_spec(spec_from_loader(name, loader))
    loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel and the sdist of this checkout."""
    need_package("build")
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", folder, ROOT], check=True, capture_output=True)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


@pytest.mark.slow
def test_distributions_have_metadata_that_an_index_takes(built):
    need_package("twine")
    said = subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *built], capture_output=True, text=True)
    assert (said.returncode, said.stdout.count("PASSED")) == (0, 2), said.stdout


@pytest.mark.slow
def test_wheel_has_the_package_with_its_types_and_nothing_else(built):
    names = zipfile.ZipFile(built[0]).namelist()
    about = f"lsuvcb-{lsuvcb.__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"lsuvcb", about}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "lsuvcb").rglob("*.py")}
    inside = {name for name in names if name.startswith("lsuvcb/")}
    assert inside == modules | {"lsuvcb/py.typed", "lsuvcb/engine/README.md"}
    assert f"{about}/licenses/LICENSE" in names


@pytest.mark.slow
def test_wheel_s_page_has_links_that_hold_on_an_index(built):
    wheel = zipfile.ZipFile(built[0])
    about = BytesParser().parsebytes(wheel.read(f"lsuvcb-{lsuvcb.__version__}.dist-info/METADATA"))
    links = re.findall(r"\]\(([^)]+)\)", about.get_payload())
    assert len(links) == len(re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text())) > 3
    assert [link for link in links if not link.startswith("https://")] == []
    assert f"{PROJECT['urls']['Source']}/blob/main/CAVEATS.md" in links


@pytest.mark.slow
def test_sdist_has_the_tests_and_no_notebook(built):
    with tarfile.open(built[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= {
        "PKG-INFO",
        "README.md",
        "CHANGELOG.md",
        "LICENSE",
        "pyproject.toml",
        "tests/conftest.py",
        ".ci/run",
    }
    assert [name for name in names if name.endswith((".ipynb", ".pt", ".png")) or "__pycache__" in name] == []


@pytest.mark.slow
def test_wheel_unpacked_elsewhere_runs_without_the_checkout(built, tmp_path):
    zipfile.ZipFile(built[0]).extractall(tmp_path)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import lsuvcb; print(lsuvcb.lsuv_, lsuvcb.__file__)"
    said = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert said.stdout.split()[-1] == str(tmp_path / "lsuvcb" / "__init__.py")


def test_tag_that_fits_is_the_version_that_all_pages_have(tmp_path):
    (tmp_path / "lsuvcb").mkdir()
    (tmp_path / "lsuvcb" / "__init__.py").write_text('__version__ = "1.2.3"\n')
    (tmp_path / "CITATION.cff").write_text("version: 1.2.3\n")
    (tmp_path / "CHANGELOG.md").write_text("## [1.2.3] - 2026-11-26\n\n## [1.2.2] - 2026-11-25\n")
    faults = program("tag").faults
    assert faults("v1.2.3", tmp_path) == []
    assert len(faults("1.2.3", tmp_path)) == len(faults("v1.2.2", tmp_path)) == 3
    (tmp_path / "CHANGELOG.md").write_text("## [1.2.3] - unreleased\n")
    assert faults("v1.2.3", tmp_path) == ["CHANGELOG.md has no version with a day"]


def steps(path):
    """The steps of all jobs of a workflow, and the matrices by job."""
    jobs = pytest.importorskip("yaml").safe_load(path.read_text())["jobs"]
    return [step for job in jobs.values() for step in job["steps"]], {
        name: job["strategy"]["matrix"] for name, job in jobs.items() if "strategy" in job
    }


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_runs_programs_tests_and_extras_that_there_are(path):
    found, _ = steps(path)
    assert all(("uses" in step) != ("run" in step) for step in found)
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[\w./]+", step["uses"]) for step in found if "uses" in step)
    commands = " ".join(step["run"] for step in found if "run" in step)
    named = re.findall(r"(?<!\S)(\.ci/\w+|tests/\S+)", commands)
    assert len(named) >= 2
    assert [name for name in named if not (ROOT / name).exists()] == []
    assert set(re.findall(r"\.\[(\w+)\]", commands)) <= PROJECT["optional-dependencies"].keys()


def test_workflow_of_checks_tries_every_python_that_the_package_names():
    found, matrices = steps(ROOT / ".github" / "workflows" / "ci.yml")
    named = re.findall(r"Python :: (3\.\d+)", " ".join(PROJECT["classifiers"]))
    assert matrices["tests"]["python"] == named
    assert named[0] == PROJECT["requires-python"].removeprefix(">=")
    assert set(matrices["lowest"]["extra"]) <= program("lowest").COMMANDS.keys()
    commands = [step["run"] for step in found if "run" in step]
    assert {".ci/run", "pip install -e '.[test]' && pytest"} <= set(commands)
    assert "    pip install -e '.[test]' && pytest" in (ROOT / "README.md").read_text().splitlines()
