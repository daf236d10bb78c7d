"""Tests of gateway.lookup.agent_files: which files are agents, and when a change applies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dev.stack.environment import GivenSettings
from gateway.lookup.agent_files import AgentFiles, BadAgentFile

pytestmark = pytest.mark.unit


def write(directory: Path, name: str, text: str) -> Path:
    path = directory / name
    path.write_text(text)
    return path


def test_a_changed_file_counts_for_the_next_call(tmp_path: Path) -> None:
    files = AgentFiles(GivenSettings(agents_dir=tmp_path))
    path = write(tmp_path, "a.yaml", "name: One")
    first = files.get("a")
    assert first is not None and first.config.name == "One"
    assert files.get("a") is first
    path.write_text("name: Other")
    second = files.get("a")
    assert second is not None and second.config.name == "Other"
    assert second.version != first.version
    path.unlink()
    assert files.get("a") is None


def test_a_file_replaced_by_one_of_the_same_size_and_time_is_read(tmp_path: Path) -> None:
    files = AgentFiles(GivenSettings(agents_dir=tmp_path))
    path = write(tmp_path, "a.yaml", "name: One")
    assert files.get("a") is not None
    stat = path.stat()
    new = write(tmp_path, "new", "name: Two")
    os.utime(new, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    new.replace(path)
    agent = files.get("a")
    assert agent is not None and agent.config.name == "Two"


BROKEN = [
    "",
    "[]",
    "name: [",
    "name: ''",
    "name: A\nunknown: 1",
    "name: A\nmaxDurationMs: soon",
    "name: A\ndescription: 2026-02-30",
    "? {}\n: 1",
    "name: A\ntts: other/voice",
    "!!python/object/apply:os.system ['true']",
    "[" * 5000,
]


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_change_keeps_the_last_good_content(tmp_path: Path, text: str) -> None:
    files = AgentFiles(GivenSettings(agents_dir=tmp_path))
    write(tmp_path, "a.yaml", "name: Good")
    assert files.check() == ["a"]
    write(tmp_path, "a.yaml", text)
    kept = files.get("a")
    assert kept is not None and kept.config.name == "Good"
    with pytest.raises(BadAgentFile, match=r"^a\.yaml: "):
        files.check()
    assert AgentFiles(GivenSettings(agents_dir=tmp_path)).get("a") is None


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"name: \xff\xfe\x00")
    with pytest.raises(BadAgentFile):
        AgentFiles(GivenSettings(agents_dir=tmp_path)).check()


def test_a_fault_is_named_without_what_the_file_holds(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "name: A\nmodel: s3cret-value\n")
    with pytest.raises(BadAgentFile) as caught:
        AgentFiles(GivenSettings(agents_dir=tmp_path)).check()
    assert "model" in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "agent_id",
    [
        "",
        ".",
        "..",
        "../a",
        "/etc/passwd",
        "sub/a",
        "a\x00",
        "a\n",
        "ä",
        "a b",
        "a" * 65,
        "a" * 9999,
    ],
)
def test_an_id_names_a_file_here_or_nothing(tmp_path: Path, agent_id: str) -> None:
    directory = tmp_path / "agents"
    (directory / "sub").mkdir(parents=True)
    for folder in (tmp_path, directory / "sub"):
        write(folder, "a.yaml", "name: Elsewhere")
    assert AgentFiles(GivenSettings(agents_dir=directory)).get(agent_id) is None


def test_what_is_no_readable_file(tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    for agent_id in ("folder", "loop"):
        assert AgentFiles(GivenSettings(agents_dir=tmp_path)).get(agent_id) is None
    with pytest.raises(BadAgentFile):
        AgentFiles(GivenSettings(agents_dir=tmp_path)).check()


def test_a_link_is_followed(tmp_path: Path) -> None:
    """Kubernetes mounts configuration as symbolic links."""
    write(tmp_path, "data", "name: Linked")
    (tmp_path / "a.yaml").symlink_to("data")
    assert AgentFiles(GivenSettings(agents_dir=tmp_path)).check() == ["a"]


def test_hidden_files_are_nobodys_agents(tmp_path: Path) -> None:
    write(tmp_path, ".#a.yaml", "broken: [")
    (tmp_path / ".b.yaml").symlink_to("nowhere")
    assert AgentFiles(GivenSettings(agents_dir=tmp_path)).check() == []


def test_a_file_that_no_call_could_name_stops_the_start(tmp_path: Path) -> None:
    write(tmp_path, "my agent.yaml", "name: A")
    with pytest.raises(BadAgentFile, match="my agent.yaml"):
        AgentFiles(GivenSettings(agents_dir=tmp_path)).check()


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    assert AgentFiles(GivenSettings(agents_dir=tmp_path / "none")).check() == []
    assert AgentFiles(GivenSettings(agents_dir=tmp_path / "none")).get("a") is None
