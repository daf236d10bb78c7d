"""Tests of worker.endings: what every ending means for the record."""

from __future__ import annotations

from typing import get_args

import pytest

from core.events import ended
from core.models import TERMINAL, CallEvent
from gateway.store.call_status import CallState, fold
from worker.endings import ENDINGS, Cause, Ending

pytestmark = pytest.mark.unit


def test_the_table_is_complete() -> None:
    assert set(ENDINGS) == set(get_args(Cause))


@pytest.mark.parametrize("cause", get_args(Cause))
def test_what_is_posted_ends_the_call(cause: Cause) -> None:
    ending: Ending = ENDINGS[cause]
    if ending.status is None or ending.reason is None:
        assert ending == Ending(), "what is not ours to say is not ours to hang up either"
        return
    event = CallEvent(type="call.ended", data=ended(ending.status, ending.reason, cause=cause))
    state = fold(CallState(), event, "worker")
    assert state.status == ending.status
    assert state.status in TERMINAL
    assert state.reason == ending.reason
