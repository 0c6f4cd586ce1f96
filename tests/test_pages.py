"""The pages and the metadata of the project agree with one another and with the code."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

import lsuvcb

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "lsuvcb"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# `Name` (`path.py`): the page says that the name is defined there
DEFINED = re.compile(r"`(\w+)`\s+\(`([\w/]+\.py)`\)")


def first(pattern: str, path: str) -> str:
    found = re.search(pattern, (ROOT / path).read_text(), re.MULTILINE)
    assert found is not None, f"{path} has nothing like {pattern}"
    return found.group(1)


def test_version_is_a_version_and_stands_in_one_place():
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc|\.dev)\d+)?", lsuvcb.__version__)
    assert "version" in PROJECT["project"]["dynamic"]
    files = [ROOT / "pyproject.toml", *PACKAGE.rglob("*.py")]
    having = [path for path in files if f'"{lsuvcb.__version__}"' in path.read_text()]
    assert having == [ROOT / PROJECT["tool"]["hatch"]["version"]["path"]] == [Path(lsuvcb.__file__)]


def test_changelog_and_citation_have_the_package_s_version():
    assert first(r"^## \[(\S+)\]", "CHANGELOG.md") == lsuvcb.__version__
    assert first(r"^version: (\S+)$", "CITATION.cff") == lsuvcb.__version__


def test_citation_names_the_paper_that_the_code_names():
    paper = first(r"(arXiv:\d+\.\d+)", "lsuvcb/engine/lsuv.py")
    assert first(r"(?s)^references:.*value: (\S+)$", "CITATION.cff") == paper


def test_metadata_has_no_licence_classifier_beside_the_licence():
    assert PROJECT["project"]["license"] == first(r"^license: (\S+)$", "CITATION.cff") == "MIT"
    assert [c for c in PROJECT["project"]["classifiers"] if c.startswith("License")] == []


def test_pre_commit_runs_checks_of_ci_as_they_stand_there():
    commands = re.findall(r"^ +entry: (.+)$", (ROOT / ".pre-commit-config.yaml").read_text(), re.MULTILINE)
    assert len(commands) == 3
    assert set(commands) <= set((ROOT / ".ci" / "run").read_text().splitlines())


def defined_in(path: Path) -> set[str]:
    """The names that a file defines at its top level: classes, functions, constants."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            names.add(node.name)
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        names.update(target.id for target in targets if isinstance(target, ast.Name))
    return names


@pytest.mark.parametrize(("page", "root"), [("lsuvcb/engine/README.md", PACKAGE / "engine"), ("CONTRIBUTING.md", ROOT)])
def test_page_names_files_and_what_they_define(page, root):
    text = (ROOT / page).read_text()
    named = DEFINED.findall(text)
    assert len(named) > 10
    assert [f"{name} in {path}" for name, path in named if name not in defined_in(root / path)] == []
    paths = re.findall(r"`((?:[a-z_]+/)+[a-z_.]*|\.ci/run|[A-Z]+\.md)`", text)
    assert [path for path in paths if not ((root / path).exists() or (ROOT / path).exists())] == []


PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), PACKAGE / "engine" / "README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page_links_to_files_and_headings_that_there_are(page):
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        path, _, heading = link.partition("#")
        there = page.parent / path if path else page
        assert there.exists(), link
        headings = re.findall(r"^#+ (.+)$", there.read_text(), re.MULTILINE) if heading else []
        assert not heading or heading in [re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings], link


def test_engine_page_follows_a_weight_through_every_room():
    text = (PACKAGE / "engine" / "README.md").read_text()
    way = text[text.index("## One weight's way") : text.index("## Four ideas")]
    rooms = {path.name for path in (PACKAGE / "engine").iterdir() if (path / "__init__.py").exists()}
    assert {path.split("/")[0] for _, path in DEFINED.findall(way)} >= rooms
    words = set(re.findall(r"\w+", " ".join(path.read_text() for path in (PACKAGE / "engine").rglob("*.py"))))
    spans = [span for span in re.findall(r"`([^`]+)`", text) if "/" not in span]
    code = [name for span in spans for name in re.findall(r"[A-Za-z]\w+", span)]
    assert [name for name in code if name not in words | {"nn", "net", "relu"}] == []


def test_docstrings_stand_alone():
    """None begins by leaning on its neighbour."""
    leaning = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                said = ast.get_docstring(node) or ""
                if re.match(r"(The same|As|Likewise|Ditto)\b", said):
                    leaning.append(f"{path.relative_to(ROOT)}: {said.splitlines()[0]}")
    assert leaning == []
