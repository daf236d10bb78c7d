"""Names that rooms and participants may have, on every path that takes one."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import jwt
import pytest
from pydantic import BaseModel, ValidationError

from core.settings import Settings
from core.transfers import human_identity
from gateway.api.livekit_rooms import MuteRequest, ParticipantRequest, TokenRequest
from gateway.api.sip_call import SipCallRequest
from gateway.api.sip_transfer import TransferRequest
from gateway.calls.room_tokens import PersonsIdentity, join_token
from gateway.calls.rooms import LABEL
from gateway.fields.names import GivenName, Name, fault, is_name
from gateway.store.room_names import Claim
from tests.support.inprocess import KEY, SECRET

pytestmark = [pytest.mark.unit, pytest.mark.attack]

UNSEEN = [
    *(chr(code) for code in range(0x20)),  # C0
    *(chr(code) for code in range(0x7F, 0xA0)),  # DEL, C1
    "\u00ad",  # soft hyphen
    "\u061c",  # Arabic letter mark
    "\u180e",
    "\u200b",  # zero width space
    "\u200e",
    "\u200f",
    "\u2028",
    "\u2029",
    *(chr(code) for code in range(0x202A, 0x202F)),  # embeddings and overrides
    "\u2060",
    "\u2063",
    *(chr(code) for code in range(0x2066, 0x2070)),  # isolates
    "\ufeff",
    "\ufff9",
    "\U000e0041",  # a tag: text that only a model reads
    "\U000e007f",
    "\U0001d173",
    "\u034f",  # combining grapheme joiner
    "\u115f",  # Hangul fillers
    "\u1160",
    "\u3164",
    "\uffa0",
    "\u17b4",  # Khmer vowels that are never written
    "\u17b5",
    "\u2065",  # reserved
    "\ufff0",
    "\U000e0080",
    "\u2800",  # Braille blank
    "\U000e0100",  # 240 more variation selectors, which can encode bytes
    "\U000e0141",
    "\U000e01ef",
    "\ud800",
    "\udfff",
]
GOOD = [
    "r",
    "call-room-123",
    "John Doe",
    "  padded ",
    "Zoë",
    "Ångström",
    "山田太郎",
    "می\u200cخواهم",
    "क्\u200dष",
    "👩\u200d🚀",
    "❤\ufe0f",
    "❤\ufe0f\u200d🔥",
    "1\ufe0f\u20e3",
    "☎\ufe0e Zoë",
    "葛\ufe00城",
    "ᠠ\u180bᠮ",
    "각",
    "a#b",
    "../..",
    "in_+15105550123_x",
    "O'Neil; DROP TABLE",
    "é" * 128,
    "x" * 256,
    "\u00a0x",
]


class Named(BaseModel):
    name: Name
    given: GivenName = "x"
    identity: PersonsIdentity = "x"


_SCHEMA = Named.model_json_schema()["properties"]
PATTERNS = [re.compile(_SCHEMA[field]["pattern"]) for field in ("name", "given")]


@pytest.mark.parametrize("character", UNSEEN, ids=lambda c: f"U+{ord(c):04X}")
@pytest.mark.parametrize("form", ["{}a", "a{}", "a{}b"])
def test_what_cannot_be_seen_is_in_no_name(character: str, form: str) -> None:
    name = form.format(character)
    assert fault(name) is not None
    assert not is_name(name)
    for field in ("name", "given", "identity"):
        with pytest.raises(ValidationError):
            Named(**{"name": "x", field: name})


@pytest.mark.parametrize("selector", ["\ufe00", "\ufe0e", "\ufe0f", "\u180b", "\u180d", "\u180f"])
@pytest.mark.parametrize(
    "form", ["{}", "{}a", "a {}", "a\u00a0{}b", "a{0}{0}", "a\u200d{}", " {} "]
)
def test_a_selector_needs_something_to_select_of(selector: str, form: str) -> None:
    name = form.format(selector)
    assert fault(name) is not None
    for pattern in PATTERNS:
        assert not pattern.fullmatch(name)
    with pytest.raises(ValidationError):
        Named(name="x", given=name)


@pytest.mark.parametrize("name", [*GOOD, "a", "\u3000a", "\u1680\u205fa\u202f"])
def test_the_schema_takes_what_the_rule_takes(name: str) -> None:
    for pattern in PATTERNS:
        assert pattern.fullmatch(name)


def test_the_schema_refuses_what_the_rule_refuses() -> None:
    """Schema and rule agree on all characters of plane 0; the "x" keeps names from being blank."""
    for code in range(0x10000):
        if 0xD800 <= code < 0xE000:
            continue  # a surrogate: half a character of another plane in UTF-16
        for form in ("x{}", "x {}", "{}x"):
            name = form.format(chr(code))
            for pattern in PATTERNS:
                assert bool(pattern.fullmatch(name)) == (fault(name) is None), hex(code)


@pytest.mark.parametrize("name", GOOD)
def test_names_as_people_and_programs_have_them(name: str) -> None:
    assert is_name(name)
    named = Named(name=name, given=name, identity=name)
    assert (named.name, named.given, named.identity) == (name, name, name)


@pytest.mark.parametrize(
    "name",
    ["x" * 257, "é" * 129, "山" * 86, "🚀" * 65, "\u200d", "\u200c\u200c", " \u200d "],
)
def test_names_that_livekit_or_a_reader_could_not_take(name: str) -> None:
    assert not is_name(name)
    with pytest.raises(ValidationError):
        Named(name=name)
    with pytest.raises(ValidationError):
        Named(name="x", given=name)


@pytest.mark.parametrize(
    "blank", ["", " ", "\t", "\n", "\r\n", "\u00a0", "\u2003", "\u2028", "\x1c"]
)
def test_blank_is_left_to_those_with_words_for_it(blank: str) -> None:
    """POST /sip/call has its own error messages for blank names."""
    assert Named(name="x", given=blank).given == blank
    assert not is_name(blank)
    with pytest.raises(ValidationError):
        Named(name=blank)


@pytest.mark.parametrize("value", [7, None, True, ["r"], {"a": 1}, 1.5, b"r"])
def test_a_name_is_a_string(value: Any) -> None:
    for field in ("name", "given", "identity"):
        with pytest.raises(ValidationError):
            Named(**{"name": "x", field: value})


_PARTICIPANT: dict[str, Any] = {"room_name": "r", "participant_identity": "i"}
_PATHS: list[tuple[type[BaseModel], dict[str, Any], list[str]]] = [
    (
        SipCallRequest,
        {
            **_PARTICIPANT,
            "participant_name": "n",
            "from_phone_number": "1",
            "to_phone_number": "2",
        },
        ["room_name", "participant_name", "participant_identity"],
    ),
    (
        TokenRequest,
        {**_PARTICIPANT, "participant_name": "n"},
        ["room_name", "participant_name", "participant_identity"],
    ),
    (ParticipantRequest, _PARTICIPANT, ["room_name", "participant_identity"]),
    (
        MuteRequest,
        {**_PARTICIPANT, "track_sid": "TR_x", "muted": True},
        ["room_name", "participant_identity", "track_sid"],
    ),
    (
        TransferRequest,
        {**_PARTICIPANT, "transfer_to": "1234"},
        ["room_name", "participant_identity"],
    ),
]


@pytest.mark.parametrize(
    ("model", "values", "fields"), _PATHS, ids=lambda p: getattr(p, "__name__", "")
)
@pytest.mark.parametrize(
    "bad", ["a\nb", "a\r\nb", "\x7fa", "a\x85b", "a\u202eb", "a\u2066b", "a\u200bb", "é" * 129]
)
def test_one_rule_on_all_paths(
    model: type[BaseModel], values: dict[str, Any], fields: list[str], bad: str
) -> None:
    model(**values)
    for field in fields:
        with pytest.raises(ValidationError) as refusal:
            model(**{**values, field: bad})
        assert [fault["loc"] for fault in refusal.value.errors()] == [(field,)]


# --- what a token may carry


@pytest.mark.parametrize(
    "identity",
    [
        "agent-call_0123456789abcdef01234567",
        "agent-in_x_1",
        "agent-AJ_x",
        "agent-",
        "AGENT-x",
        " agent-x",
        "agent-x#y",
        "sip_+15105550123",
        "sip_",
        "SIP_x",
        "ſip_x",
        human_identity("trf_0123456789abcdef01234567"),
        "transfer-",
        "Transfer-x",
        "\u00a0transfer-x",
    ],
)
def test_no_token_carries_an_agents_or_a_phones_identity(identity: str) -> None:
    with pytest.raises(ValidationError, match="must not begin as"):
        TokenRequest(room_name="r", participant_name="n", participant_identity=identity)
    # A phone that is dialled may have any identity.
    SipCallRequest(
        room_name="r",
        participant_name="n",
        participant_identity=identity,
        from_phone_number="1",
        to_phone_number="2",
    )


@pytest.mark.parametrize(
    "identity",
    ["agent", "agents-x", "travel-agent-7", "sip", "sipho", "transfer", "visitor", "alice"],
)
def test_people_may_be_called_much_like_them(identity: str) -> None:
    TokenRequest(room_name="r", participant_name="n", participant_identity=identity)


@pytest.mark.parametrize("owner", ["acme", None])
def test_a_token_names_what_its_holder_needs(owner: str | None) -> None:
    settings = Settings(_env_file=None, livekit_api_key=KEY, livekit_api_secret=SECRET)
    signed = join_token(
        settings,
        Claim("room", owner, "rml_1"),
        identity="alice",
        name="Alice",
        sources=["microphone"],
        data=False,
        valid=timedelta(minutes=5),
    )
    claims = jwt.decode(signed, SECRET, algorithms=["HS256"])
    assert claims["video"] == {
        "roomJoin": True,
        "room": "room",
        "canPublish": True,
        "canPublishSources": ["microphone"],
        "canSubscribe": True,
        "canPublishData": False,
        "canUpdateOwnMetadata": False,
    }
    assert claims["exp"] - claims["nbf"] == 300
    assert not claims.keys() & {"sip", "agent", "inference", "observability", "metadata", "kind"}
    config = claims["roomConfig"]
    assert config.get("metadata", "") == (f'{{"{LABEL}": "rml_1"}}' if owner else "")
    assert config.keys() <= {"metadata", "emptyTimeout", "departureTimeout"}
    assert "acme" not in str(claims)
