"""What keeps the source readable, where no linter looks."""

import ast
import platform
import re
import sys
import tomllib
from pathlib import Path

import pytest

import mmdistill

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "platform" / "mmdistill"
SOURCES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
LONGEST_FILE, LONGEST_FUNCTION = 400, 50
VAGUE = {"util", "utils", "helper", "helpers", "manager", "managers", "misc", "common", "core", "handlers"}


def short(path):
    return str(path.relative_to(ROOT))


def test_platform_is_a_folder_of_sources_and_no_package():
    assert not (ROOT / "platform" / "__init__.py").exists()
    assert not (ROOT / "platform.py").exists()
    assert not (ROOT / "platform" / "platform.py").exists()


def test_the_standard_library_keeps_its_platform_module(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.delitem(sys.modules, "platform")
    import platform as found

    assert found.__file__ == platform.__file__
    assert ROOT not in Path(found.__file__).parents
    assert found.python_version()


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=short)
def test_files_and_functions_are_short(path):
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= LONGEST_FILE
    long = [
        f"{node.name} has {size} lines" for node, size in sizes(ast.parse(text)) if size > LONGEST_FUNCTION
    ]
    assert not long


def sizes(tree):
    """Yield every function with its number of lines, decorators and docstring left out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = node.end_lineno - node.lineno + 1
            first = node.body[0]
            if ast.get_docstring(node) is not None:
                size -= first.end_lineno - first.lineno + 1
            yield node, size


@pytest.mark.parametrize("path", SOURCES, ids=short)
def test_every_module_says_what_it_is_for(path):
    assert ast.get_docstring(ast.parse(path.read_text("utf-8"))) or path.name == "__init__.py"


@pytest.mark.parametrize("path", SOURCES, ids=short)
def test_no_module_has_a_vague_name(path):
    assert not VAGUE & set(path.relative_to(PACKAGE).with_suffix("").parts)


@pytest.mark.parametrize("path", SOURCES, ids=short)
def test_source_names_no_machine_and_leaves_nothing_undone(path):
    text = path.read_text("utf-8")
    assert not re.findall(r"/(?:root|tmp|home|work|opt)/\w+", text)
    assert not re.findall(r"\b(?:TODO|FIXME|XXX|NotImplementedError)\b", text)


def test_folders_of_modules_are_packages():
    folders = {path.parent for path in SOURCES}
    assert [short(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_tests_are_no_package_and_their_names_are_unique():
    assert not list((ROOT / "tests").rglob("__init__.py"))
    names = [path.name for path in TESTS if path.name != "conftest.py"]
    assert len(set(names)) == len(names)


def test_the_changelog_has_this_version():
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    versions = re.findall(r"^## \[(\d[^\]]*)\]", text, re.MULTILINE)
    assert versions[0] == mmdistill.__version__


def test_every_dependency_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    names = {re.match(r"[A-Za-z0-9_.-]+", text)[0].lower() for text in wanted}
    assert names <= {name.lower() for name in pins}
    assert pins["torch"] == "2.13.0"
    assert not [version for version in pins.values() if "+" in version]


def test_the_licence_is_the_one_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text("utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
