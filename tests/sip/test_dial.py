"""sip.dial: the request for a dial, and the outcomes that LiveKit's errors map to."""

from __future__ import annotations

import pytest
from livekit.api import ServerError, SipCallError

from sip.dial import DialRequest, Joined, Trunk, _ids_of_refused, _refused

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("code", "status", "reason"),
    [
        *((code, "busy", "dial_busy") for code in (486, 600)),
        *((code, "no-answer", "dial_no_answer") for code in (408, 480)),
        (487, "canceled", "canceled"),
        *((c, "failed", "invalid_destination") for c in (404, 410, 416, 484, 485, 604)),
        *((c, "failed", "dial_rejected") for c in (403, 433, 603, 607, 608)),
        *((c, "failed", "dial_failed") for c in (302, 400, 415, 488, 500, 503, 606, 699, 0, -1)),
    ],
)
def test_a_sip_status_decides(code: int, status: str, reason: str) -> None:
    meta = {"sip_status_code": str(code), "sip_status": "Phrase"}
    error = SipCallError("resource_exhausted", "deadline auth", status=429, metadata=meta)
    outcome = _refused(error, gave_up=False)
    assert (outcome.status, outcome.reason) == (status, reason)
    assert (outcome.sip_status_code, outcome.sip_reason) == (code, "Phrase")
    assert not outcome.answered
    assert not outcome.overloaded


@pytest.mark.parametrize(
    ("metadata", "wanted"),
    [
        ({"sip_status_code": "486"}, Joined("", "")),
        (
            {"sip_status_code": "486", "participant_id": "PA_1", "sip_call_id": "SCL_1"},
            Joined("PA_1", "SCL_1"),
        ),
        ({"participant_id": "PA_1", "sip_call_id": "SCL_1"}, None),
        ({}, None),
    ],
)
def test_a_refusal_of_the_far_end_was_a_call(
    metadata: dict[str, str], wanted: Joined | None
) -> None:
    error = SipCallError("unavailable", "", status=503, metadata=metadata)
    assert _ids_of_refused(error) == wanted


@pytest.mark.parametrize(
    ("code", "message", "wanted"),
    [
        ("canceled", "", ("no-answer", "dial_no_answer", False)),
        ("deadline_exceeded", "", ("no-answer", "dial_no_answer", False)),
        (
            "failed_precondition",
            "context deadline exceeded",
            ("no-answer", "dial_no_answer", False),
        ),
        ("failed_precondition", "no auth", ("failed", "dial_rejected", False)),
        ("failed_precondition", "other", ("failed", "dial_failed", False)),
        ("resource_exhausted", "", ("failed", "dial_failed", True)),
        ("unavailable", "", ("failed", "dial_failed", True)),
        ("invalid_argument", "no such host", ("failed", "dial_failed", False)),
        ("not_found", "", ("failed", "dial_failed", False)),
        ("unknown", "", ("failed", "dial_failed", False)),
        ("", "", ("failed", "dial_failed", False)),
    ],
)
@pytest.mark.parametrize("metadata", [None, {"sip_status_code": "many"}, {}])
def test_without_one_the_code_does(
    code: str, message: str, wanted: tuple[str, str, bool], metadata: dict[str, str] | None
) -> None:
    for kind in (ServerError, SipCallError):
        outcome = _refused(kind(code, message, status=500, metadata=metadata), gave_up=False)
        assert (outcome.status, outcome.reason, outcome.overloaded) == wanted
        assert outcome.sip_status_code is None


def request(**changes: object) -> DialRequest:
    trunk = Trunk(address="host:5061", username="anna", password="s3cret-pw", transport="tls")
    values: dict[str, object] = {
        "trunk": trunk,
        "from_number": "+1",
        "to_number": "+2",
        "room_name": "room",
        "participant_identity": "caller",
        "participant_name": "Name",
        "headers": {"X-A": "1"},
        "ringing_timeout_s": 7,
        "max_call_duration_s": 9,
    }
    return DialRequest(**{**values, **changes})  # type: ignore[arg-type]


def test_the_password_is_sent_and_never_printed() -> None:
    dial = request()
    assert "s3cret-pw" not in repr(dial) + str(dial.trunk)
    assert dial.to_proto().trunk.auth_password == "s3cret-pw"


def test_what_is_asked_for() -> None:
    proto = request().to_proto()
    assert proto.wait_until_answered
    assert (proto.trunk.hostname, proto.sip_number, proto.sip_call_to) == ("host:5061", "+1", "+2")
    assert (proto.ringing_timeout.seconds, proto.max_call_duration.seconds) == (7, 9)
    assert not request(max_call_duration_s=None).to_proto().HasField("max_call_duration")


def test_a_dial_cancelled_while_it_may_still_ring_was_given_up_by_us() -> None:
    outcome = _refused(ServerError("canceled", "", status=408), gave_up=True)
    assert (outcome.status, outcome.reason) == ("canceled", "canceled")


@pytest.mark.parametrize(
    ("code", "message", "problem"),
    [
        ("invalid_argument", "the trunk's host could not be resolved", "unresolved"),
        ("invalid_argument", "lookup a.example on 10.0.0.1:53: no such host", "unresolved"),
        ("malformed", "lookup a.example: no such host", "unresolved"),
        ("invalid_argument", "missing sip callee number", "invalid_request"),
        ("failed_precondition", "no auth", "authentication"),
        ("failed_precondition", "INVITE failed: Connection refused [111]", "not_sent"),
        ("permission_denied", "the trunk's host is not allowed", "not_allowed"),
        ("resource_exhausted", "", "overloaded"),
        (
            "canceled",
            "transaction failed to complete (0 intermediate responses)",
            "no_response",
        ),
        ("canceled", "sip request timed out", None),
        ("unknown", "", None),
    ],
)
def test_a_failure_without_a_response_has_a_name(
    code: str, message: str, problem: str | None
) -> None:
    outcome = _refused(ServerError(code, message, status=500), gave_up=False)
    assert outcome.problem == problem
