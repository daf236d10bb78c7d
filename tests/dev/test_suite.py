"""``make test``: what it says of tests that fail, always or only beside others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.repo

ROOT = Path(__file__).parents[2]
INI = "[pytest]\nmarkers =\n    unit\n    stack\n    sip\n    providers\n    alone\n"
HEAD = "import pathlib, time, pytest\n"


def project(folder: Path, **tests: str) -> Path:
    (folder / "pytest.ini").write_text(INI)
    for name, text in tests.items():
        (folder / f"test_{name}.py").write_text(HEAD + text)
    return folder


def suite(folder: Path) -> subprocess.Popen[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.Popen(
        (sys.executable, "-m", "dev.suite"),
        cwd=folder,
        env={**own, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(folder: Path) -> tuple[int, str]:
    process = suite(folder)
    output, _ = process.communicate(timeout=60)
    return process.returncode, output


def marked(mark: str, body: str, name: str = "it") -> str:
    return f"@pytest.mark.{mark}\ndef test_{name}():\n    {body}\n"


PASSES = "assert True"
# Passes from the second time on.
STUMBLES = "seen = pathlib.Path('{0}'); first = not seen.exists(); seen.touch(); assert not first"


def test_all_pass(tmp_path: Path) -> None:
    tests = {mark: marked(mark, PASSES) for mark in ("unit", "stack", "alone")}
    code, output = ended(project(tmp_path, **tests))
    assert code == 0
    assert output.count("1 passed") == 3
    assert output.splitlines()[-1] == "make test: all tests passed"


def test_what_passes_only_by_itself_is_named(tmp_path: Path) -> None:
    one, two = marked("stack", STUMBLES.format("a")), marked("unit", STUMBLES.format("b"))
    code, output = ended(project(tmp_path, one=one, two=two, three=marked("alone", PASSES)))
    assert code == 0
    assert output.count("E   ") >= 2, "what failed is shown"
    names = "test_one.py::test_it test_two.py::test_it"
    last = f"make test: all tests passed; passed only by themselves: {names}"
    assert output.splitlines()[-1] == last


@pytest.mark.parametrize(("mark", "body"), [("unit", "assert 0"), ("alone", STUMBLES.format("a"))])
def test_what_fails_by_itself_fails(tmp_path: Path, mark: str, body: str) -> None:
    code, output = ended(project(tmp_path, one=marked(mark, body)))
    assert code == 1
    assert output.splitlines()[-1].startswith("make test: FAILED")
    assert output.splitlines()[-1].endswith(": test_one.py::test_it")


def test_many_failures_are_no_accident(tmp_path: Path) -> None:
    tests = "".join(marked("sip", STUMBLES.format(n), f"it{n}") for n in range(6))
    code, output = ended(project(tmp_path, one=tests))
    assert code == 1
    assert "by itself" not in output


def test_a_module_that_cannot_be_loaded_fails(tmp_path: Path) -> None:
    code, output = ended(project(tmp_path, one=marked("unit", PASSES), two="raise OSError(1)"))
    assert code == 1
    assert "OSError" in output
    assert output.splitlines()[-1].startswith("make test: FAILED: ")


def test_a_skip_is_no_pass(tmp_path: Path) -> None:
    stumbles = STUMBLES.format("a").replace("assert not first", "first or pytest.skip(); assert 0")
    code, output = ended(project(tmp_path, one=marked("sip", stumbles)))
    assert code == 1
    assert output.splitlines()[-1].endswith(": test_one.py::test_it")


def test_nothing_to_run_is_no_success(tmp_path: Path) -> None:
    code, output = ended(project(tmp_path))
    assert code == 1
    assert output.splitlines()[-1] == "make test: FAILED: there are no tests"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_it_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    body = (
        "pathlib.Path('pid').write_text(str(__import__('os').getpid()))\n"
        "    try: time.sleep(60)\n    finally: pathlib.Path('cleaned').touch()"
    )
    process = suite(project(tmp_path, one=marked("unit", body)))
    until = time.monotonic() + 30
    while not (tmp_path / "pid").exists() and time.monotonic() < until:
        time.sleep(0.05)
    if number == signal.SIGINT:  # which a terminal sends to all of them
        os.kill(int((tmp_path / "pid").read_text()), number)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode != 0
    assert (tmp_path / "cleaned").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
