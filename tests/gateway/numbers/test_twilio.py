"""The Twilio account behind a credential, through the real library, against a local server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from pydantic import SecretStr

from core.errors import AppError
from dev.standins.twilio import TwilioServer
from gateway.numbers.twilio import NotThere, Routing, TwilioAccount, TwilioHttp
from gateway.store.credentials import TwilioSecret
from tests.support.edge import served

pytestmark = pytest.mark.unit

ACCOUNT, TOKEN = "AC" + "1" * 32, "the-auth-token"
NUMBER = "+14155550123"
VOICE_URL = "https://voice.example.com/v1/sessions/twilio"
NAME, URL = "switchroom", "sip:sip.example.com:5060;transport=tcp"


@pytest.fixture
async def twilio() -> AsyncIterator[TwilioServer]:
    async with TwilioServer({ACCOUNT: TOKEN, "AC" + "2" * 32: "another"}) as twilio:
        yield twilio


@pytest.fixture
async def http(twilio: TwilioServer) -> AsyncIterator[TwilioHttp]:
    http = TwilioHttp(twilio.url)
    yield http
    await http.close()


@pytest.fixture
def account(http: TwilioHttp) -> TwilioAccount:
    return login(http)


def login(http: TwilioHttp, token: str = TOKEN) -> TwilioAccount:
    return TwilioAccount(TwilioSecret(account_sid=ACCOUNT, auth_token=SecretStr(token)), http)


async def code(work: object) -> str:
    with pytest.raises(AppError) as caught:
        await work  # type: ignore[misc]
    assert "http" not in caught.value.message
    return caught.value.code


async def test_a_number_of_the_account(twilio: TwilioServer, account: TwilioAccount) -> None:
    twilio.give(ACCOUNT, "+141555501234")  # the filter finds this one too
    twilio.give("AC" + "2" * 32, "+14155559999")
    row = twilio.give(ACCOUNT, NUMBER, trunk_sid="TK1")
    owned = await account.owned(NUMBER)
    assert owned is not None
    urls = {name: row[name] for name in ("voice_url", "voice_method")}
    assert (owned.sid, owned.routing) == (row["sid"], Routing(trunk_sid="TK1", **urls))
    assert await account.owned("+14155559999") is None


async def test_one_trunk_an_account_found_again(
    twilio: TwilioServer, account: TwilioAccount
) -> None:
    for number in range(60):  # more than a page
        twilio.make_trunk(ACCOUNT, f"theirs {number}")
    sid = await account.trunk(NAME, URL)
    assert [await account.trunk(NAME, URL) for _ in range(2)] == [sid, sid]
    assert len(twilio.trunks) == 61
    assert [(url["trunk_sid"], url["sip_url"]) for url in twilio.urls.values()] == [(sid, URL)]
    await account.trunk(NAME, "sip:elsewhere.example.com")  # SIP_PUBLIC_ADDRESS was changed
    assert [url["sip_url"] for url in twilio.urls.values()] == ["sip:elsewhere.example.com"]


@pytest.mark.parametrize(
    "before",
    [
        {},
        {"trunk_sid": "theirs"},
        {"voice_application_sid": "AP" + "3" * 32},
    ],
)
async def test_assigned_and_given_back(
    twilio: TwilioServer, account: TwilioAccount, before: dict[str, str]
) -> None:
    if "trunk_sid" in before:
        before["trunk_sid"] = twilio.make_trunk(ACCOUNT, "theirs")["sid"]
    row = twilio.give(ACCOUNT, NUMBER, **before)
    former = dict(row)
    owned = await account.owned(NUMBER)
    assert owned is not None
    trunk = await account.trunk(NAME, URL)
    await account.assign(owned, trunk)
    assert (row["trunk_sid"], row["voice_application_sid"]) == (trunk, "")
    for _ in range(2):
        await account.restore(owned.sid, owned.routing, Routing(trunk_sid=trunk))
        assert row == former


@pytest.mark.parametrize(
    "before", [{}, {"trunk_sid": "theirs"}, {"voice_application_sid": "AP" + "3" * 32}]
)
async def test_pointed_at_a_url_and_given_back(
    twilio: TwilioServer, account: TwilioAccount, before: dict[str, str]
) -> None:
    if "trunk_sid" in before:
        before["trunk_sid"] = twilio.make_trunk(ACCOUNT, "theirs")["sid"]
    own = {"voice_method": "GET", "voice_fallback_url": "https://f", "status_callback": "https://s"}
    row = twilio.give(ACCOUNT, NUMBER, **own, **before)
    former = dict(row)
    owned = await account.owned(NUMBER)
    assert owned is not None
    await account.point(owned, VOICE_URL)
    now = (await account.number(owned.sid)).routing
    assert now == Routing(voice_url=VOICE_URL, voice_method="POST", voice_fallback_url=VOICE_URL)
    assert now.posts_to(VOICE_URL)
    assert await account.routings() == {owned.sid: now}
    for _ in range(2):
        await account.restore(owned.sid, owned.routing, Routing(voice_url=VOICE_URL))
        assert row == former


async def test_a_trunk_is_left_only_after_the_url_is_set(
    twilio: TwilioServer, account: TwilioAccount
) -> None:
    """At every moment the number's calls go to one or the other."""
    row = twilio.give(ACCOUNT, NUMBER, trunk_sid=twilio.make_trunk(ACCOUNT, "theirs")["sid"])
    owned = await account.owned(NUMBER)
    assert owned is not None
    twilio.fail("POST .*/IncomingPhoneNumbers/", status=500)
    former = dict(row)
    assert await code(account.point(owned, VOICE_URL)) == "PROVIDER_UNAVAILABLE"
    assert row == former


@pytest.mark.parametrize("step", ["POST .*/PhoneNumbers$", "POST .*/IncomingPhoneNumbers/"])
async def test_stopped_while_it_is_given_back(
    twilio: TwilioServer, account: TwilioAccount, step: str
) -> None:
    row = twilio.give(ACCOUNT, NUMBER, trunk_sid=twilio.make_trunk(ACCOUNT, "theirs")["sid"])
    row |= {"voice_method": "GET", "voice_fallback_url": "", "status_callback": ""}
    former = dict(row)
    owned = await account.owned(NUMBER)
    assert owned is not None
    await account.point(owned, VOICE_URL)
    ours = Routing(voice_url=VOICE_URL)
    for late in (False, True):
        twilio.fail(step, status=500, late=late, times=1)
        work = account.restore(owned.sid, owned.routing, ours)
        assert await code(work) == "PROVIDER_UNAVAILABLE"
    await account.restore(owned.sid, owned.routing, ours)
    assert row == former


@pytest.mark.parametrize("elsewhere", ["url", "trunk", "application"])
async def test_a_url_that_somebody_changed_since_is_left_alone(
    twilio: TwilioServer, account: TwilioAccount, elsewhere: str
) -> None:
    theirs = twilio.make_trunk(ACCOUNT, "theirs")["sid"]
    row = twilio.give(ACCOUNT, NUMBER, trunk_sid=theirs)
    own_url = row["voice_url"]
    owned = await account.owned(NUMBER)
    assert owned is not None
    await account.point(owned, VOICE_URL)
    if elsewhere == "url":
        row["voice_url"] = own_url = "https://new.example.com"
    elif elsewhere == "trunk":
        row["trunk_sid"] = twilio.make_trunk(ACCOUNT, "new")["sid"]
    else:
        row["voice_application_sid"] = "AP" + "4" * 32
    routed = (row["trunk_sid"], row["voice_application_sid"])
    await account.restore(owned.sid, owned.routing, Routing(voice_url=VOICE_URL))
    assert (row["trunk_sid"], row["voice_application_sid"]) == routed
    # Beneath another trunk or application, our URL would only be in the way later.
    assert row["voice_url"] == own_url


async def test_urls_that_were_never_ours_stay(twilio: TwilioServer, account: TwilioAccount) -> None:
    """A switch that stopped before its first change has noted the URL all the same."""
    row = twilio.give(ACCOUNT, NUMBER)
    owned = await account.owned(NUMBER)
    assert owned is not None
    trunk = await account.trunk(NAME, URL)
    await account.assign(owned, trunk)
    row["voice_url"] = "https://new.example.com"
    ours = Routing(trunk_sid=trunk, voice_url=VOICE_URL)
    await account.restore(owned.sid, owned.routing, ours)
    assert (row["trunk_sid"], row["voice_url"]) == (None, "https://new.example.com")


async def test_what_somebody_changed_since_is_left_alone(
    twilio: TwilioServer, account: TwilioAccount
) -> None:
    row = twilio.give(ACCOUNT, NUMBER)
    owned = await account.owned(NUMBER)
    assert owned is not None
    trunk = await account.trunk(NAME, URL)
    await account.assign(owned, trunk)
    row["trunk_sid"] = elsewhere = twilio.make_trunk(ACCOUNT, "new")["sid"]
    await account.restore(owned.sid, owned.routing, Routing(trunk_sid=trunk))
    assert row["trunk_sid"] == elsewhere
    del twilio.numbers[row["sid"]]
    await account.restore(owned.sid, owned.routing, Routing(trunk_sid=trunk))


async def test_stopped_between_two_trunks(twilio: TwilioServer, account: TwilioAccount) -> None:
    theirs = twilio.make_trunk(ACCOUNT, "theirs")["sid"]
    row = twilio.give(ACCOUNT, NUMBER, trunk_sid=theirs)
    owned = await account.owned(NUMBER)
    assert owned is not None
    trunk = await account.trunk(NAME, URL)
    twilio.fail(f"POST /v1/Trunks/{trunk}/PhoneNumbers", status=500)
    assert await code(account.assign(owned, trunk)) == "PROVIDER_UNAVAILABLE"
    assert row["trunk_sid"] is None
    await account.restore(owned.sid, owned.routing, Routing(trunk_sid=trunk))
    assert row["trunk_sid"] == theirs


async def test_looked_for_bought_and_released(twilio: TwilioServer, account: TwilioAccount) -> None:
    for last in range(30):
        twilio.offer(f"+1415555{last:04}", locality="San Francisco", region="CA")
    twilio.offer("+12125550100", region="NY")
    found = await account.available("US", area_code="415", limit=25)
    assert len(found) == 25
    assert (found[0].city, found[0].state, found[0].area_code) == ("San Francisco", "CA", "415")
    assert [n.phone_number for n in await account.available("US", state="NY")] == ["+12125550100"]
    assert await account.available("US", area_code="999") == []
    with pytest.raises(NotThere):
        await account.available("DE")
    bought = await account.buy("+12125550100", "num_1")
    assert (bought.friendly_name, len(twilio.inventory)) == ("num_1", 30)
    assert await code(account.buy("+12125550100", "num_2")) == "NUMBER_UNAVAILABLE"
    for _ in range(2):
        await account.release(bought.sid)
    assert twilio.numbers == {}


@pytest.mark.parametrize(
    ("fault", "wanted"),
    [
        ({"status": 401, "code": 20003}, "CREDENTIAL_REFUSED"),
        ({"status": 403, "code": 20403}, "CREDENTIAL_REFUSED"),
        ({"status": 400, "code": 21631}, "PROVIDER_REFUSED"),
        ({"status": 429, "code": 20429}, "PROVIDER_UNAVAILABLE"),
        ({"status": 500}, "PROVIDER_UNAVAILABLE"),
        ({"status": 503}, "PROVIDER_UNAVAILABLE"),
    ],
)
async def test_refusals(
    twilio: TwilioServer, account: TwilioAccount, fault: dict[str, int], wanted: str
) -> None:
    twilio.fail(".", **fault)
    assert await code(account.owned(NUMBER)) == wanted
    assert await code(account.available("US")) == wanted
    assert await code(account.buy(NUMBER, "n")) == wanted
    assert await code(account.trunk(NAME, URL)) == wanted


async def test_a_wrong_token(http: TwilioHttp) -> None:
    assert await code(login(http, "wrong").owned(NUMBER)) == "CREDENTIAL_REFUSED"


async def test_no_answer_in_time(twilio: TwilioServer) -> None:
    fault = twilio.fail(".", hang=True)
    http = TwilioHttp(twilio.url, deadline_s=0.05)
    try:
        assert await code(login(http).owned(NUMBER)) == "PROVIDER_UNAVAILABLE"
    finally:
        await http.close()
    assert fault.hit.is_set()


async def test_nobody_there() -> None:
    http = TwilioHttp("http://127.0.0.1:9")
    try:
        assert await code(login(http).owned(NUMBER)) == "PROVIDER_UNAVAILABLE"
    finally:
        await http.close()


@pytest.mark.parametrize(
    "answer", ["<html>", "[]", "{}", "null", '{"incoming_phone_numbers": [1]}']
)
async def test_something_else_is_there(answer: str) -> None:
    async def anything(_request: web.Request) -> web.Response:
        return web.Response(text=answer, content_type="application/json")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", anything)
    async with served(app) as edge:
        http = TwilioHttp(f"http://127.0.0.1:{edge.port}")
        try:
            assert await code(login(http).owned(NUMBER)) == "PROVIDER_UNAVAILABLE"
        finally:
            await http.close()


async def test_cancelling_is_safe(twilio: TwilioServer, account: TwilioAccount) -> None:
    fault = twilio.fail(".", hang=True, times=1)
    asking = asyncio.create_task(account.owned(NUMBER))
    await asyncio.wait_for(fault.hit.wait(), 5)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert await account.owned(NUMBER) is None


async def test_nothing_of_a_request_is_logged(
    twilio: TwilioServer, account: TwilioAccount, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="")
    twilio.give(ACCOUNT, NUMBER)
    await account.owned(NUMBER)
    twilio.fail(".", status=401)
    await code(account.owned(NUMBER))
    text = "".join(record.getMessage() + str(record.__dict__) for record in caplog.records)
    assert "Twilio refused" in text
    for secret in (TOKEN, NUMBER, NUMBER.strip("+")):
        assert secret not in text.replace(f"/{NUMBER}", "")
