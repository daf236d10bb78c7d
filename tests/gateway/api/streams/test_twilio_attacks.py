"""Streams and requests that are not Twilio's, or not for this session: refused before audio."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
import pytest_asyncio

from core.models import now
from core.tokens import TokenIssuer
from gateway.calls.streams.tokens import SessionTokens
from gateway.http.pace import Pace
from gateway.store.call_status import Call
from tests.conftest import RIVAL, bearer
from tests.support.clock import Clock
from tests.support.inprocess import SECRET, running, settings_in
from tests.support.number_rig import NUMBER
from tests.support.twilio_calls import (
    CALL_SID,
    CONNECTED,
    PATH,
    PUBLIC,
    STREAM_URL,
    StreamRig,
    Twiml,
    close_code,
    form,
    signature,
    start,
    stream_rig,
)

pytestmark = [pytest.mark.store, pytest.mark.attack]

HOUR = timedelta(hours=1)
OTHER_ACCOUNT, OTHER_TOKEN = "AC" + "9" * 32, "another-auth-token"
SIGNED = {"X-Twilio-Signature": signature(STREAM_URL)}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def rig(tmp_path: Path, clock: Clock) -> AsyncIterator[StreamRig]:
    async with stream_rig(tmp_path, clock) as rig:
        await rig.credential()
        yield rig


@dataclass(frozen=True)
class Made:
    """What an attacker may know."""

    token: str
    call_id: str
    rig: StreamRig

    def forged(self, **changes: Any) -> str:
        """Return the token with other claims, and its own signature."""
        head, body, tail = self.token.split(".")
        claims = {**jwt.decode(self.token, options={"verify_signature": False}), **changes}
        unsigned = jwt.encode(claims, "x" * 32, algorithm="HS256").split(".")
        return f"{head}.{unsigned[1]}.{tail}"

    def signed_by(self, key: str, algorithm: str = "HS256", **changes: Any) -> str:
        claims = {**jwt.decode(self.token, options={"verify_signature": False}), **changes}
        return jwt.encode(claims, key, algorithm=algorithm)


Attack = Callable[[Made], list[Any]]
"""The messages of a stream, from what the attacker knows."""


def with_token(made: Callable[[Made], Any]) -> Attack:
    return lambda known: [CONNECTED, start(made(known))]


def with_start(**changes: Any) -> Attack:
    return lambda known: [CONNECTED, start(known.token, **changes)]


def parameters(value: Any) -> Attack:
    return lambda known: [CONNECTED, start(known.token, customParameters=value)]


def cut(count: int) -> Attack:
    return with_token(lambda known: known.token[:-count])


def flipped(place: int) -> Attack:
    """One character of the token is another one."""

    def make(known: Made) -> str:
        index = place * (len(known.token) - 2) // 45
        other = "A" if known.token[index] != "A" else "B"
        return known.token[:index] + other + known.token[index + 1 :]

    return with_token(make)


MEDIA = {"event": "media", "media": {"payload": "//8="}}
FORMAT = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}

ATTACKS: dict[str, Attack] = {
    # No token, or no token at all.
    "no token": with_token(lambda _: None),
    "empty": with_token(lambda _: ""),
    "a number": parameters({"token": 7}),
    "a list": parameters({"token": ["x"]}),
    "no parameters": parameters(None),
    "another name": lambda known: [CONNECTED, start(None, customParameters={"Token": known.token})],
    "text": with_token(lambda _: "letmein"),
    "very long": with_token(lambda known: known.token + "A" * 5000),
    "spaces": with_token(lambda known: f" {known.token}"),
    "bearer": with_token(lambda known: f"Bearer {known.token}"),
    "call id": with_token(lambda known: known.call_id),
    "deep": with_token(lambda _: "." * 4000),
    # Signed wrongly.
    "no signature": with_token(lambda known: known.token.rpartition(".")[0] + "."),
    "alg none": with_token(lambda known: known.signed_by("", "none")),
    "another key": with_token(lambda known: known.signed_by("k" * 32)),
    "livekit's secret": with_token(lambda known: known.signed_by(SECRET)),
    "hs512": with_token(lambda known: known.signed_by("k" * 64, "HS512")),
    "another session": with_token(lambda known: known.forged(sub="call_" + "0" * 24)),
    "another agent": with_token(lambda known: known.forged(agent="agt_other")),
    "another caller": with_token(lambda known: known.forged(**{"from": "+15550000000"})),
    "another number": with_token(lambda known: known.forged(to="+15550000000")),
    "another instance": with_token(lambda known: known.forged(instance="inst_2")),
    "longer": with_token(lambda known: known.forged(exp=2**31)),
    "another id": with_token(lambda known: known.forged(jti="tok_" + "0" * 24)),
    # Of this gateway, for something else.
    "a call's token": with_token(lambda known: TokenIssuer(SECRET).for_call(known.call_id)),
    "a stream's token": with_token(lambda known: TokenIssuer(SECRET).for_stream(known.call_id)),
    "a worker's token": with_token(lambda _: TokenIssuer(SECRET).for_worker("w1")),
    # For another call of Twilio's.
    "no account": with_start(accountSid=""),
    "account is a number": with_start(accountSid=1),
    "no call": with_start(callSid=None),
    "empty call": with_start(callSid=""),
    "call with spaces": with_start(callSid="CA 1"),
    "long call": with_start(callSid="C" * 65),
    "no stream": with_start(streamSid=""),
    "stream with a line break": with_start(streamSid="MZ\r\n1"),
    # Messages that are not those two.
    "nothing but start": lambda known: [start(known.token)],
    "start twice": lambda known: [start(known.token), start(known.token)],
    "connected twice": lambda known: [CONNECTED, CONNECTED, start(known.token)],
    "audio first": lambda known: [CONNECTED, MEDIA, start(known.token)],
    "audio at once": lambda known: [MEDIA, CONNECTED, start(known.token)],
    "stop": lambda _: [CONNECTED, {"event": "stop"}],
    "not json": lambda _: [CONNECTED, "{"],
    "a string": lambda _: [CONNECTED, '"start"'],
    "null": lambda _: ["null"],
    "array": lambda known: [CONNECTED, json.dumps([start(known.token)])],
    "empty text": lambda _: ["", ""],
    "deep json": lambda _: [CONNECTED, "[" * 30_000],
    "huge": lambda _: [CONNECTED, " " * (64 * 1024 + 1)],
    "start without content": lambda _: [CONNECTED, {"event": "start"}],
    "start is a list": lambda _: [CONNECTED, {"event": "start", "start": []}],
    "another audio": with_start(mediaFormat={**FORMAT, "encoding": "audio/l16"}),
    "another rate": with_start(mediaFormat={**FORMAT, "sampleRate": 16000}),
    "stereo": with_start(mediaFormat={**FORMAT, "channels": 2}),
    "no format": with_start(mediaFormat=None),
    "nan": lambda _: [CONNECTED, '{"event": "start", "start": NaN}'],
    **{f"cut by {count}": cut(count) for count in (1, 2, 10, 43)},
    **{f"changed at {place}": flipped(place) for place in range(45)},
}


async def made(rig: StreamRig) -> Made:
    await rig.worker.beat(rig.own)
    answer = await rig.create(await rig.agent(), instanceId="inst_1")
    token = Twiml.of(answer["twiml"]).token
    assert token
    return Made(token, answer["sessionId"], rig)


def test_there_are_a_hundred() -> None:
    assert len(ATTACKS) >= 100


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def attacked(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[StreamRig]:
    """One gateway for all attacks."""
    async with stream_rig(tmp_path_factory.mktemp("attacked")) as rig:
        await rig.credential()
        yield rig


@pytest.mark.asyncio(loop_scope="module")
class TestStreams:
    @pytest.mark.parametrize("name", ATTACKS)
    async def test_it_is_refused(self, attacked: StreamRig, name: str) -> None:
        known = await made(attacked)
        async with attacked.stream(headers=SIGNED) as socket:
            for message in ATTACKS[name](known):
                text = message if isinstance(message, str) else json.dumps(message)
                await socket.send_str(text)
            expected = {1008, 1009} if name == "huge" else {1008}
            assert await close_code(socket) in expected
        assert not attacked.worker.asked
        assert (await attacked.record(known.call_id)).status == "queued"

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"X-Twilio-Signature": ""},
            {"X-Twilio-Signature": "AAAA"},
            {"X-Twilio-Signature": signature(STREAM_URL, token=OTHER_TOKEN)},
            {"X-Twilio-Signature": signature(STREAM_URL.replace("wss", "https"))},
            {"X-Twilio-Signature": signature(STREAM_URL.replace("voice", "evil"))},
            {"X-Twilio-Signature": signature(STREAM_URL, {"CallSid": CALL_SID})},
            {"X-Twilio-Signature": signature(f"{STREAM_URL}?a=b")},
        ],
    )
    async def test_the_handshake_is_signed_by_the_account(
        self, attacked: StreamRig, headers: dict[str, str]
    ) -> None:
        known = await made(attacked)
        messages = [CONNECTED, start(known.token)]
        async with attacked.stream(*messages, headers=headers) as socket:
            assert await close_code(socket) == 1008
        assert not attacked.worker.asked


async def test_a_refused_stream_does_not_use_the_token_up(rig: StreamRig) -> None:
    known = await made(rig)
    messages = [CONNECTED, start(known.token)]
    async with rig.stream(*messages) as socket:
        assert await close_code(socket) == 1008
    async with rig.stream(*messages, headers=SIGNED):
        await rig.worker_session(known.call_id)


@pytest.mark.parametrize("slash", ["", "/"])
async def test_either_form_of_the_streams_url_may_be_signed(rig: StreamRig, slash: str) -> None:
    known = await made(rig)
    headers = {"X-Twilio-Signature": signature(f"{STREAM_URL}{slash}")}
    async with rig.stream(CONNECTED, start(known.token), headers=headers):
        await rig.worker_session(known.call_id)


async def test_an_account_that_nobody_knows_needs_the_token_only(rig: StreamRig) -> None:
    known = await made(rig)
    async with rig.stream(CONNECTED, start(known.token, accountSid=OTHER_ACCOUNT)):
        await rig.worker_session(known.call_id)


async def test_another_tenants_credential_signs_nothing(rig: StreamRig) -> None:
    """The rival has stored a credential for the same account, with a token of its own."""
    await rig.credential("rival", authToken=OTHER_TOKEN)
    known = await made(rig)
    headers = {"X-Twilio-Signature": signature(STREAM_URL, token=OTHER_TOKEN)}
    async with rig.stream(CONNECTED, start(known.token), headers=headers) as socket:
        assert await close_code(socket) == 1008


@pytest.mark.parametrize("late", [timedelta(seconds=60), HOUR])
async def test_an_expired_token(rig: StreamRig, clock: Clock, late: timedelta) -> None:
    known = await made(rig)
    clock.forward(late)
    async with rig.stream(CONNECTED, start(known.token), headers=SIGNED) as socket:
        assert await close_code(socket) == 1008


async def test_a_token_is_used_once_on_two_gateways(tmp_path: Path, rig: StreamRig) -> None:
    known = await made(rig)
    messages = [CONNECTED, start(known.token)]
    settings = settings_in(tmp_path, public_url=PUBLIC)
    async with running(settings) as second, AsyncExitStack() as stack:
        gateways = [rig, StreamRig(second, rig.worker)] * 10
        sockets = [
            await stack.enter_async_context(each.stream(*messages, headers=SIGNED))
            for each in gateways
        ]
        session = await rig.worker_session(known.call_id)
        # The one that was attached stays open; its worker ends it.
        codes: list[int] = []
        for index, socket in enumerate(sockets):
            if index == len(sockets) - 1 and len(codes) == len(sockets) - 1:
                break
            try:
                message = await socket.receive(timeout=1)
                codes.append(message.data)
            except TimeoutError:
                continue
        assert codes == [1008] * (len(sockets) - 1)
        assert len(session.attaches) == 1


async def test_a_socket_that_says_nothing_is_closed(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, public_url=PUBLIC)
    async with running(settings, pace=Pace(first_words_s=0.05)) as own:
        rig = StreamRig(own, None)  # type: ignore[arg-type]
        for messages in ([], [CONNECTED]):
            async with rig.stream(*messages) as socket:
                assert await close_code(socket) == 1008


class TestForms:
    """Twilio's requests to the voice URL and the callbacks."""

    async def test_a_wrong_signature(self, rig: StreamRig) -> None:
        await rig.number(await rig.agent("rival"), "rival")
        url = f"{PUBLIC}{PATH}"
        for signed in (
            None,
            "AAAA",
            "ü",
            signature(url, form(), OTHER_TOKEN),
            signature(url, form(From="+1")),
            signature(f"{url}/", form()),
            signature(url.replace("https", "http"), form()),
        ):
            headers = {} if signed is None else {"X-Twilio-Signature": signed}
            async with rig.own.http.post(PATH, data=form(), headers=headers) as response:
                answer = await response.json()
                assert (response.status, answer["error"]["code"]) == (403, "FORBIDDEN")
        assert (await rig.post(url, form()))[0] == 200

    @pytest.mark.parametrize(
        "fields",
        [
            form(To="+15550001111"),
            form(To=""),
            form(To=f" {NUMBER}"),
            form(AccountSid=OTHER_ACCOUNT),
            form(AccountSid=""),
            form(CallSid=""),
            form(CallSid="C" * 65),
            form(CallSid="CA\n"),
            {},
        ],
    )
    async def test_not_for_a_number_of_the_account(
        self, rig: StreamRig, fields: dict[str, str]
    ) -> None:
        await rig.number(await rig.agent("rival"), "rival")
        assert (await rig.post(f"{PUBLIC}{PATH}", fields))[0] == 403

    async def test_no_tenant_takes_over_anothers_call(self, rig: StreamRig) -> None:
        """The rival signs a request to its own number with the CallSid of acme's call."""
        own, others = await rig.agent(), await rig.agent("rival")
        number = "+14155550177"
        credential = await rig.credential("rival", accountSid=OTHER_ACCOUNT, authToken=OTHER_TOKEN)
        await rig.number(own, credential=await rig.credential_id())
        ours = await rig.ring()
        await rig.number(others, "rival", credential=credential, phone_number=number)
        fields = form(To=number, AccountSid=OTHER_ACCOUNT)
        status, text = await rig.post(f"{PUBLIC}{PATH}", fields, token=OTHER_TOKEN)
        assert status == 200
        theirs = Twiml.of(text)
        assert theirs.resume != ours.resume

    @pytest.mark.parametrize("what", ["resume", "status"])
    async def test_callbacks_need_the_key(self, rig: StreamRig, what: str) -> None:
        known, other = await made(rig), await made(rig)
        tokens = SessionTokens(SECRET)
        right = f"{PUBLIC}{PATH}/{known.call_id}/{what}?key={tokens.callback_key(known.call_id)}"
        for url in (
            right.partition("?")[0],
            right[:-1],
            f"{right}A",
            right.replace(known.call_id, other.call_id),
            right.replace(known.call_id, "call_" + "0" * 24),
            f"{right.partition('=')[0]}=%F0%9F%98%80",
        ):
            assert (await rig.post(url, form()))[0] == 403, url
        assert (await rig.post(right, form()))[0] in {200, 204}

    @pytest.mark.parametrize("what", ["resume", "status"])
    async def test_callbacks_are_for_one_call_and_signed(self, rig: StreamRig, what: str) -> None:
        known = await made(rig)
        key = SessionTokens(SECRET).callback_key(known.call_id)
        url = f"{PUBLIC}{PATH}/{known.call_id}/{what}?key={key}"
        async with rig.stream(CONNECTED, start(known.token), headers=SIGNED):
            await rig.worker_session(known.call_id)
            assert (await rig.post(url, form(CallSid="CA" + "8" * 32)))[0] == 403
            assert (await rig.post(url, form(AccountSid=OTHER_ACCOUNT)))[0] == 403
            assert (await rig.post(url, form(), None))[0] == 403
            assert (await rig.post(url, form(), token=OTHER_TOKEN))[0] == 403
            assert (await rig.post(url, form()))[0] in {200, 204}

    async def test_only_the_voice_url_takes_forms_without_a_token(self, rig: StreamRig) -> None:
        for path in ("/v1/calls", "/v1/agents", "/sip/call"):
            async with rig.own.http.post(path, data=form()) as response:
                assert response.status == 401
        headers = {"Content-Type": "application/json"}
        async with rig.own.http.post(PATH, data=b"{}", headers=headers) as response:
            assert response.status == 401

    async def test_a_flood_of_fields(self, rig: StreamRig) -> None:
        fields = {f"F{number}": "x" for number in range(500)}
        assert (await rig.post(f"{PUBLIC}{PATH}", fields))[0] == 400
        assert (await rig.post(f"{PUBLIC}{PATH}", {"To": "x" * 70_000}))[0] == 413


async def test_tokens_and_keys_are_in_no_log(
    rig: StreamRig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    await rig.number(await rig.agent("rival"), "rival")
    first = await rig.ring()
    known = await made(rig)
    messages = [CONNECTED, start(known.token)]
    for headers in (SIGNED, SIGNED, {}):
        async with rig.stream(*messages, headers=headers) as socket:
            if not rig.worker.sessions:
                await rig.worker_session(known.call_id)
                await rig.post(first.status or "", form(StreamEvent="stream-error"))
                continue
            await close_code(socket)
    async with rig.own.http.post(PATH, headers=RIVAL, json={"token": known.token}) as response:
        await response.read()
    async with rig.own.http.post(PATH, headers=bearer(known.token), json={}) as response:
        await response.read()
    # The gateway has no access log (gateway.__main__); the test's server has one.
    records = [record for record in caplog.records if record.name != "aiohttp.access"]
    lines = [f"{record.getMessage()} {record.__dict__}" for record in records]
    assert any("a stream was refused" in line for line in lines)
    for secret in (known.token, first.token or "", (first.resume or "").partition("key=")[2]):
        assert secret
        assert [line for line in lines if secret in line] == []


def test_representations_hide_it() -> None:
    call = Call(
        id="call_1", direction="inbound", room_name="r", participant_identity="i", created_at=now()
    )
    token = SessionTokens(SECRET).issue(call)
    assert token.text not in repr(token)
