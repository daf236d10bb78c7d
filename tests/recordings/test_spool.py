"""Tests of recordings.spool: one owner at a time, orphans adopted, nobody else may read."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from core.recordings.plan import RecordingPlan
from recordings.spool import RecordingFile, Spooled, clean, leftovers
from recordings.wav import blocks

pytestmark = pytest.mark.unit

PLAN = RecordingPlan(key="_/2026/01/31/call_1.wav")
SOME = np.ones((100, 2), np.int16)


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_a_recording_in_progress_has_an_owner_and_is_adopted_after_it(tmp_path: Path) -> None:
    directory = tmp_path / "spool" / "recordings"
    file = RecordingFile.create(directory, "call_1", PLAN)
    file.append(SOME)
    assert file.frames == 100
    [path] = leftovers(directory)
    assert Spooled.adopt(path) is None
    file.close()
    adopted = Spooled.adopt(path)
    assert adopted is not None
    assert (adopted.call_id, adopted.plan) == ("call_1", PLAN)
    assert np.array_equal(next(blocks(adopted.wav)), SOME)
    assert Spooled.adopt(path) is None
    with adopted:
        pass
    again = Spooled.adopt(path)
    assert again is not None
    again.lock.close()


def test_only_its_owner_may_read_it(tmp_path: Path) -> None:
    directory = tmp_path / "recordings"
    RecordingFile.create(directory, "call_1", PLAN).close()
    assert directory.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}


@pytest.mark.parametrize("call_id", ["../call_1", "a/b", ".", "", "call_1\n", "a" * 200])
def test_a_call_id_that_is_no_file_name_is_refused(tmp_path: Path, call_id: str) -> None:
    with pytest.raises(OSError, match="not a call's id"):
        RecordingFile.create(tmp_path, call_id, PLAN)
    assert not names(tmp_path)


def test_a_second_recording_of_a_call_does_not_touch_the_first(tmp_path: Path) -> None:
    file = RecordingFile.create(tmp_path, "call_1", PLAN)
    file.append(SOME)
    with pytest.raises(FileExistsError):
        RecordingFile.create(tmp_path, "call_1", PLAN)
    file.close()
    adopted = Spooled.adopt(tmp_path / "call_1.json")
    assert adopted is not None
    with adopted:
        adopted.reject()
    with pytest.raises(FileExistsError):
        RecordingFile.create(tmp_path, "call_1", PLAN)
    assert names(tmp_path) == {"call_1.rejected", "call_1.wav"}
    assert len(next(blocks(tmp_path / "call_1.wav"))) == 100


def test_the_next_agent_of_a_call_has_a_recording_of_its_own(tmp_path: Path) -> None:
    """The one of the agent that was lost may wait on the same disk."""
    RecordingFile.create(tmp_path, "call_1", PLAN).close()
    RecordingFile.create(tmp_path, "call_1", PLAN.model_copy(update={"part": 1})).close()
    assert names(tmp_path) == {
        "call_1.json",
        "call_1.wav",
        "call_1-part1.json",
        "call_1-part1.wav",
    }
    adopted = Spooled.adopt(tmp_path / "call_1-part1.json")
    assert adopted is not None
    with adopted:
        assert (adopted.call_id, adopted.plan.part) == ("call_1", 1)
        adopted.remove()
    assert names(tmp_path) == {"call_1.json", "call_1.wav"}


def test_a_stored_recording_is_removed_even_if_that_was_interrupted(tmp_path: Path) -> None:
    for call_id in ("call_1", "call_2"):
        RecordingFile.create(tmp_path, call_id, PLAN).close()
    adopted = Spooled.adopt(tmp_path / "call_1.json")
    assert adopted is not None
    with adopted:
        adopted.remove()
    assert names(tmp_path) == {"call_2.json", "call_2.wav"}
    (tmp_path / "call_2.json").rename(tmp_path / "call_2.done")
    (tmp_path / "call_2.ogg").touch()
    clean(tmp_path)
    assert not names(tmp_path)


def test_what_a_process_killed_while_it_created_a_recording_left_is_removed(tmp_path: Path) -> None:
    for name in ("call_1_a.new", "call_2_b.new"):
        (tmp_path / name).touch()
    os.utime(tmp_path / "call_1_a.new", (0, 0))
    clean(tmp_path)
    assert names(tmp_path) == {"call_2_b.new"}  # perhaps it is in creation now


@pytest.mark.parametrize("plan", ["", '{"callId": "call_1"', '{"callId": "call_2", "plan": {}}'])
def test_a_recording_without_a_readable_plan_is_set_aside(tmp_path: Path, plan: str) -> None:
    RecordingFile.create(tmp_path, "call_1", PLAN).close()
    (tmp_path / "call_1.json").write_text(plan)
    assert Spooled.adopt(tmp_path / "call_1.json") is None
    assert names(tmp_path) == {"call_1.rejected", "call_1.wav"}


def test_a_recording_uploaded_since_the_listing_is_not_adopted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening and locking the file, another process uploads and removes it."""
    RecordingFile.create(tmp_path, "call_1", PLAN).close()
    path = tmp_path / "call_1.json"
    other = Spooled.adopt(path)
    assert other is not None
    import recordings.spool as module

    real = module._open

    def slow(opened: Path, flags: int) -> object:
        file = real(opened, flags)
        monkeypatch.setattr(module, "_open", real)
        with other:
            other.remove()
        return file

    monkeypatch.setattr(module, "_open", slow)
    assert Spooled.adopt(path) is None


def test_no_directory_means_no_recordings(tmp_path: Path) -> None:
    assert leftovers(tmp_path / "none") == []
    clean(tmp_path / "none")
