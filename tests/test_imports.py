"""The import rules of docs/architecture.md, and the one place that reads the environment."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.repo

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "core": {
        "gateway",
        "worker",
        "sip",
        "recordings",
        "dev",
        "tests",
        "aiohttp.web",
        "livekit.agents",
    },
    "sip": {"gateway", "worker", "recordings", "dev", "tests"},
    "recordings": {"gateway", "worker", "sip", "dev", "tests", "aiohttp.web", "livekit"},
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
    """Yield the full name of every imported module; ``from a import b`` gives ``a`` and ``a.b``."""
    for node in ast.walk(tree):
        yield from of_node(node)


def of_node(node: ast.AST) -> Iterator[str]:
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
    """Return True if the environment is read.

    Setting a variable for a library (``os.environ["NAME"] = …``) is not reading.
    """
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


# From the top: a module imports from its own folder and from later lines only.
GATEWAY_ORDER: tuple[frozenset[str], ...] = tuple(
    map(
        frozenset,
        (
            {"__main__"},
            {"app"},
            {"routes", "services"},
            {"api"},
            {"keys"},
            {"webhooks", "recordings"},
            {"calls"},
            {"numbers", "auth"},
            {"http", "lookup", "diagnosis"},
            {"store"},
            {"cache", "fields", "transcripts", "_private"},
        ),
    )
)
RANK = {name: rank for rank, names in enumerate(GATEWAY_ORDER) for name in names}
GATEWAY = [path for path in sorted((ROOT / "gateway").rglob("*.py")) if path.parent != ROOT]


def part(module: str) -> str | None:
    """Return the gateway's folder or module that ``module`` is or is in; None if there is none."""
    parts = module.split(".")
    return parts[1] if parts[0] == "gateway" and len(parts) > 1 else None


def against_the_order(source: str, own: str) -> set[str]:
    return {
        module
        for module in imported(ast.parse(source))
        if (other := part(module)) in RANK and other != own and RANK[other] <= RANK[own]
    }


def module_of(path: Path) -> str:
    names = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


@pytest.mark.parametrize("path", GATEWAY, ids=module_of)
def test_the_gateways_folders_import_downwards(path: Path) -> None:
    own = part(module_of(path))
    assert own is None or (own in RANK and not against_the_order(path.read_text(), own))


@pytest.mark.parametrize(
    ("source", "own"),
    [
        ("from gateway.api.calls import find", "calls"),
        ("from gateway.calls import reconciler", "numbers"),
        ("def f():\n    import gateway.app", "keys"),
        ("from gateway.http.body import parse_body", "store"),
    ],
)
def test_an_import_against_the_order_is_seen(source: str, own: str) -> None:
    assert against_the_order(source, own)


@pytest.mark.parametrize("path", GATEWAY, ids=module_of)
def test_only_the_store_knows_sqlalchemy_and_only_routes_the_handlers(path: Path) -> None:
    modules = set(imported(ast.parse(path.read_text())))
    own = part(module_of(path))
    if own != "store":
        assert not any(is_within(module, "sqlalchemy") for module in modules)
    if own not in ("api", "routes"):
        assert not any(is_within(module, "gateway.api") for module in modules)


# From the top; the bridge's other modules are below them all, and the rest of sip is below those.
BRIDGE_ORDER = ("__main__", "api", "calls", "stack")
SIP = sorted((ROOT / "sip").rglob("*.py"))


def above_in_sip(source: str, own: str) -> set[str]:
    """Return the modules that ``own``, a module of sip, imports and must not."""
    within = [module for module in imported(ast.parse(source)) if is_within(module, "sip.bridge")]
    if not is_within(own, "sip.bridge"):
        return set(within)
    names = [*own.split("."), ""]
    lower = BRIDGE_ORDER.index(names[2]) if names[2] in BRIDGE_ORDER else len(BRIDGE_ORDER)
    higher = [f"sip.bridge.{name}" for name in BRIDGE_ORDER[:lower]]
    return {module for module in within if any(is_within(module, name) for name in higher)}


@pytest.mark.parametrize("path", SIP, ids=module_of)
def test_sips_folders_import_downwards(path: Path) -> None:
    assert not above_in_sip(path.read_text(), module_of(path))


@pytest.mark.parametrize(
    ("source", "own"),
    [
        ("from sip.bridge.twirp import TwirpError", "sip.room_leg"),
        ("from sip.bridge.calls.call import Call", "sip.bridge.stack.phone"),
        ("from sip.bridge.calls import service", "sip.bridge.registry"),
        ("import sip.bridge.__main__", "sip.bridge.api.server"),
    ],
)
def test_an_import_upwards_in_sip_is_seen(source: str, own: str) -> None:
    assert above_in_sip(source, own)


def while_loading(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield the nodes that run when the module is imported."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        waiting.extend(ast.iter_child_nodes(node))


@pytest.mark.parametrize("package", ["core", "sip", "gateway", "worker"])
def test_there_is_no_circle(package: str) -> None:
    """Modules that import each other cannot be understood separately."""
    paths = {module_of(path): path for path in (ROOT / package).rglob("*.py")}
    needs = {
        module: {
            other
            for node in while_loading(ast.parse(path.read_text()))
            for other in of_node(node)
            if other in paths and other != module
        }
        for module, path in paths.items()
    }
    graphlib.TopologicalSorter(needs).prepare()


@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("worker.call", {"sqlalchemy", "gateway", "sip"}),
        ("sip.room_leg", {"baresip"}),
    ],
)
def test_what_a_module_does_not_load(module: str, without: set[str]) -> None:
    """Its imports must not load them either."""
    code = f"import sys, {module}; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert without.isdisjoint(run.stdout.split())


def test_a_call_needs_no_web_server() -> None:
    """None of our modules that worker.call loads imports aiohttp.web; livekit-agents does."""
    code = (
        "import sys, worker.call; print(*(module.__file__ for name, module in sys.modules.items()"
        " if name.split('.')[0] in {'core', 'worker'}))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = {Path(name) for name in run.stdout.split()}
    assert ROOT / "worker" / "line.py" in loaded
    using = {
        path
        for path in loaded
        if any(is_within(name, "aiohttp.web") for name in imported(ast.parse(path.read_text())))
    }
    assert using == set()


def test_names_that_only_begin_alike_are_allowed() -> None:
    assert not against_the_direction("import device\nfrom sipmsg import gateway", "core")


# dev.process passes the whole environment on to its children.
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
