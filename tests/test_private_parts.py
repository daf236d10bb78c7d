"""Private parts of libraries are used in one module of each package, and each use has a test."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.repo

ROOT = Path(__file__).parent.parent
PACKAGES = ("core", "sip", "gateway", "worker")
MODULES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
# Documented names, underscored only to avoid collisions.
PUBLIC = {"_replace", "_asdict", "_fields", "_exit"}
# livekit-agents' plugin interface: a stream's input and its events.
PUBLIC |= {"_input_ch", "_event_ch"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name not in PUBLIC


def defined(tree: ast.AST) -> Iterator[str]:
    """Yield the names that a module itself defines."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name
            case ast.Name(ctx=ast.Store()):
                yield node.id
            case ast.Attribute(value=ast.Name("self" | "cls"), ctx=ast.Store()):
                yield node.attr


def foreign(source: str) -> set[str]:
    """Return the private names that a module uses but does not define."""
    tree = ast.parse(source)
    own = set(defined(tree))
    used = set()
    for node in ast.walk(tree):
        match node:
            case ast.Attribute():
                used.add(node.attr)
            case ast.Call(ast.Name("getattr"), [_, ast.Constant(str(name)), *_]):
                used.add(name)
            case ast.Import() | ast.ImportFrom():
                names = [alias.name for alias in node.names]
                parts = ".".join([getattr(node, "module", None) or "", *names]).split(".")
                used.update(set(parts) - {"_private"})
    return {name for name in used - own if is_private(name)}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_others_private_parts_are_used_in_one_place(path: Path) -> None:
    assert path.name == "_private.py" or not foreign(path.read_text())


@pytest.mark.parametrize("package", PACKAGES)
def test_each_use_has_a_test_that_tells_of_a_change(package: str) -> None:
    uses = [
        node.name
        for node in ast.parse((ROOT / package / "_private.py").read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not is_private(node.name)
    ]
    tests = (ROOT / "tests" / package / "test_private.py").read_text()
    assert uses and [name for name in uses if f"_private.{name}(" not in tests] == []


@pytest.mark.parametrize(
    "source",
    [
        "def f(call):\n    call._on_event(1)",
        "class Server(web.Server):\n    def f(self):\n        return self._loop",
        "getattr(stream, '_handle', None)",
        "from livekit.rtc._proto import ffi_pb2",
        "from livekit.rtc import _ffi_client",
        "import aiohttp._websocket",
    ],
)
def test_a_private_part_is_seen(source: str) -> None:
    assert foreign(source)


@pytest.mark.parametrize(
    "source",
    [
        "class A:\n    def __init__(self):\n        self._a = 1\n\ndef f(a):\n    return a._a",
        "from core import _private",
        "from __future__ import annotations\nfrom core import __version__",
        "os._exit(1)",
    ],
)
def test_ones_own_are_none(source: str) -> None:
    assert not foreign(source)
