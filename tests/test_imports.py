"""Who may import whom (docs/architecture.md), and that settings are read in one place."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.repo

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "core": {"gateway", "worker", "sip", "dev", "tests", "aiohttp.web", "livekit.agents"},
    "sip": {"gateway", "worker", "dev", "tests"},
    "gateway": {"worker", "dev", "tests"},
    "worker": {"gateway", "sip", "dev", "tests"},
    "dev": {"tests"},
}
MODULES = [
    pytest.param(path, id=str(path.relative_to(ROOT)))
    for package in FORBIDDEN
    for path in sorted((ROOT / package).rglob("*.py"))
]


def imported(tree: ast.AST) -> Iterator[str]:
    """Every imported module by its full name, ``from a import b`` as ``a`` and ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def against_the_direction(source: str, package: str) -> set[str]:
    return {
        module
        for module in imported(ast.parse(source))
        for banned in FORBIDDEN[package]
        if is_within(module, banned)
    }


def reads_environment(source: str) -> bool:
    """Setting a variable for a library (``os.environ["NAME"] = …``) is no reading."""
    tree = ast.parse(source)
    written = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store)
    }
    names = {"os.environ", "os.environb", "os.getenv"}
    return any(
        isinstance(node, ast.Attribute) and ast.unparse(node) in names and id(node) not in written
        for node in ast.walk(tree)
    ) or not names.isdisjoint(imported(tree))


@pytest.mark.parametrize("path", MODULES)
def test_imports_follow_the_direction(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    assert not against_the_direction(path.read_text(), package)


@pytest.mark.parametrize(
    ("source", "package"),
    [
        ("import gateway.app", "core"),
        ("from worker import call", "gateway"),
        ("def f():\n    from aiohttp import web", "core"),
        ("import livekit.agents.cli", "core"),
        ("from dev.stack import Stack", "sip"),
    ],
)
def test_an_import_against_the_direction_is_seen(source: str, package: str) -> None:
    assert against_the_direction(source, package)


def test_names_that_only_begin_alike_are_allowed() -> None:
    assert not against_the_direction("import device\nfrom sipmsg import gateway", "core")


# dev.process hands the environment on to children as a whole.
@pytest.mark.parametrize("path", MODULES)
def test_the_environment_is_read_in_one_place(path: Path) -> None:
    readers = {ROOT / "core" / "settings.py", ROOT / "dev" / "process.py"}
    assert reads_environment(path.read_text()) == (path in readers)


@pytest.mark.parametrize(
    "source",
    ["os.environ['A']", "os.environ.get('A')", "x = os.getenv('A')", "from os import environ"],
)
def test_a_read_of_the_environment_is_seen(source: str) -> None:
    assert reads_environment(f"import os\n{source}")


def test_setting_a_variable_is_no_read() -> None:
    assert not reads_environment("import os\nos.environ['A'] = '1'")
