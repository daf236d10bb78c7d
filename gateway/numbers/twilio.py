"""Operations on a tenant's Twilio account: finding, buying and routing numbers.

A number is routed to the SIP service as LiveKit's documentation describes: it is assigned to an
Elastic SIP trunk in the account, whose origination URL is SIP_PUBLIC_ADDRESS. Each account has one
such trunk, which is identified by its name. A number whose calls come in as streams has the
gateway's address as its voice URL instead.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlencode, urlsplit, urlunsplit

import aiohttp
from twilio.base.exceptions import (  # type: ignore[import-untyped]
    TwilioException,
    TwilioRestException,
    TwilioServiceException,
)
from twilio.http import AsyncHttpClient  # type: ignore[import-untyped]
from twilio.http.response import Response  # type: ignore[import-untyped]
from twilio.rest import Client  # type: ignore[import-untyped]

from core.errors import AppError, Conflict, Detail, Unavailable, Unprocessable
from core.models import Model
from gateway.store.credentials import TwilioSecret

log = logging.getLogger(__name__)

DEADLINE_S = 10.0
"""The deadline of one request to Twilio."""

# The library would log requests with their phone numbers.
_QUIET = logging.getLogger("gateway.twilio_http")
_QUIET.setLevel(logging.WARNING)
# Not empty, since the library would replace an empty one with the process's environment.
_NO_ENVIRONMENT = {"": ""}
# Exceptions that the library raises for a response that is not Twilio's.
_UNEXPECTED = (ValueError, TypeError, LookupError, AttributeError)
_NOT_AVAILABLE = 21422
_MANY = 1000


class Routing(Model):
    """The routing of calls to a number: a trunk, else an application, else its own URLs.

    Assigning a number to a trunk clears its application. The URLs stay, and apply again later.
    """

    trunk_sid: str | None = None
    voice_application_sid: str | None = None
    voice_url: str | None = None
    voice_method: str | None = None
    voice_fallback_url: str | None = None
    status_callback: str | None = None

    def urls(self) -> dict[str, str]:
        """Return the URLs as the fields of an update; an empty string unsets one."""
        return {
            "voice_url": self.voice_url or "",
            "voice_method": self.voice_method or "POST",
            "voice_fallback_url": self.voice_fallback_url or "",
            "status_callback": self.status_callback or "",
        }

    def posts_to(self, voice_url: str) -> bool:
        """Return True if calls are sent to ``voice_url`` with POST."""
        elsewhere = self.trunk_sid or self.voice_application_sid
        return not elsewhere and (self.voice_url, self.voice_method) == (voice_url, "POST")


class OwnedNumber(Model):
    sid: str
    phone_number: str
    friendly_name: str
    routing: Routing


class AvailableNumber(Model):
    """A number in Twilio's inventory; unknown fields are null."""

    phone_number: str
    country: str
    city: str | None
    state: str | None
    postal_code: str | None
    rate_center: str | None
    area_code: str | None


class NotThere(Exception):
    """Twilio answered 404: the number, trunk or country does not exist there."""


class TwilioHttp(AsyncHttpClient):  # type: ignore[misc]
    """The library's requests on aiohttp; TWILIO_BASE_URL replaces all of Twilio's hosts.

    The library's own client has no deadline, and uses deprecated parts of aiohttp. Call ``close``.
    """

    def __init__(self, base_url: str | None = None, *, deadline_s: float = DEADLINE_S) -> None:
        super().__init__(_QUIET, is_async=True)
        self._deadline_s = deadline_s
        self._base = urlsplit(base_url) if base_url else None
        self._session = aiohttp.ClientSession()

    async def request(
        self,
        method: str,
        uri: str,
        params: Mapping[str, Any] | None = None,
        data: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        auth: tuple[str, str] | None = None,
        timeout: float | None = None,
        allow_redirects: bool = False,
    ) -> Response:
        to = urlsplit(uri)
        base = self._base or to
        query = urlencode(params, doseq=True) if params else to.query
        url = urlunsplit((base.scheme, base.netloc, to.path, query, ""))
        login = {} if auth is None else {"Authorization": aiohttp.encode_basic_auth(*auth)}
        async with self._session.request(
            method,
            url,
            data=urlencode(data, doseq=True) if data else None,
            headers={**(headers or {}), **login},
            timeout=aiohttp.ClientTimeout(total=timeout or self._deadline_s),
            allow_redirects=allow_redirects,
        ) as response:
            return Response(response.status, await response.text(), response.headers)

    async def close(self) -> None:
        await self._session.close()


class TwilioAccount:
    """One account.

    Methods raise Unprocessable ``CREDENTIAL_REFUSED`` or ``PROVIDER_REFUSED``, Unavailable
    ``PROVIDER_UNAVAILABLE``, and NotThere where documented.
    """

    def __init__(self, secret: TwilioSecret, http: TwilioHttp) -> None:
        self.client = Client(
            secret.account_sid,
            secret.auth_token.get_secret_value(),
            http_client=http,
            environment=_NO_ENVIRONMENT,
        )

    async def owned(self, phone_number: str) -> OwnedNumber | None:
        """Return the number if the account owns it, else None."""
        with translated():
            # The filter also matches parts of numbers.
            found = await self.client.incoming_phone_numbers.list_async(
                phone_number=phone_number, limit=20
            )
            return next((_owned(each) for each in found if each.phone_number == phone_number), None)

    async def number(self, sid: str) -> OwnedNumber:
        """Return the number. Raises NotThere."""
        with translated():
            return _owned(await self.client.incoming_phone_numbers(sid).fetch_async())

    async def routings(self) -> dict[str, Routing]:
        """Return the routings of all numbers of the account, by SID."""
        with translated():
            numbers = await self.client.incoming_phone_numbers.list_async(page_size=_MANY)
            return {each.sid: _owned(each).routing for each in numbers}

    async def available(
        self,
        country: str,
        *,
        area_code: str | None = None,
        city: str | None = None,
        state: str | None = None,
        postal_code: str | None = None,
        limit: int = 20,
    ) -> list[AvailableNumber]:
        """Return local voice numbers that can be bought. Raises NotThere: none in that country."""
        wanted: dict[str, Any] = {
            "area_code": area_code,
            "in_locality": city,
            "in_region": state,
            "in_postal_code": postal_code,
        }
        filters = {name: value for name, value in wanted.items() if value is not None}
        with translated():
            inventory = self.client.available_phone_numbers(country).local
            found = await inventory.list_async(voice_enabled=True, limit=limit, **filters)
            return [_available(each, country) for each in found]

    async def buy(self, phone_number: str, friendly_name: str) -> OwnedNumber:
        """Buy a number. Raises Conflict ``NUMBER_UNAVAILABLE``."""
        with translated():
            bought = await self.client.incoming_phone_numbers.create_async(
                phone_number=phone_number, friendly_name=friendly_name
            )
            return _owned(bought)

    async def release(self, sid: str) -> None:
        """Release a number to Twilio permanently. A number that is already gone is fine."""
        with contextlib.suppress(NotThere), translated():
            await self.client.incoming_phone_numbers(sid).delete_async()

    async def trunk(self, name: str, sip_url: str) -> str:
        """Return the SID of the trunk ``name``, created if missing, with ``sip_url`` as its URL."""
        with translated():
            trunks = self.client.trunking.v1.trunks
            found = [t for t in await trunks.list_async(limit=_MANY) if t.friendly_name == name]
            ours = found[0] if found else await trunks.create_async(friendly_name=name)
            urls = trunks(ours.sid).origination_urls
            known = [url for url in await urls.list_async(limit=20) if url.friendly_name == name]
            if not known:
                await urls.create_async(
                    weight=1, priority=1, enabled=True, friendly_name=name, sip_url=sip_url
                )
            elif known[0].sip_url != sip_url or not known[0].enabled:
                await urls(known[0].sid).update_async(sip_url=sip_url, enabled=True)
            return str(ours.sid)

    async def assign(self, number: OwnedNumber, trunk_sid: str) -> None:
        """Route the number to the trunk, whatever its routing is now."""
        former = number.routing.trunk_sid
        if former == trunk_sid:
            return
        if former is not None:
            await self._unassign(number.sid, former)
        with translated():
            await self.client.trunking.v1.trunks(trunk_sid).phone_numbers.create_async(
                phone_number_sid=number.sid
            )

    async def point(self, number: OwnedNumber, voice_url: str) -> None:
        """Send the number's calls to ``voice_url``, whatever its routing is now.

        It is the fallback too: a call whose gateway dies while Twilio asks it is asked for again.
        The URL is set first: it shows from then on that this system has changed the routing, and
        calls that leave the trunk find it.
        """
        now = number.routing
        changes = Routing(voice_url=voice_url, voice_fallback_url=voice_url).urls()
        if now.voice_application_sid is not None:
            changes["voice_application_sid"] = ""
        if changes.items() - now.urls().items():
            await self._update(number.sid, changes)
        if now.trunk_sid is not None:
            await self._unassign(number.sid, now.trunk_sid)

    async def reset(self, number: OwnedNumber, before: Routing, voice_url: str) -> None:
        """Restore the number's former URLs, unless its voice URL is no longer ``voice_url``."""
        if number.routing.voice_url == voice_url:
            await self._update(number.sid, before.urls())

    async def restore(self, sid: str, before: Routing, ours: Routing) -> None:
        """Restore the number's former routing, unless it is routed elsewhere than to ``ours``.

        A number, trunk or application that no longer exists is ignored.
        """
        with contextlib.suppress(NotThere):
            number = await self.number(sid)
            now = number.routing
            if ours.trunk_sid is None and now.voice_url != ours.voice_url:
                return
            with contextlib.suppress(NotThere):
                await self._leave(sid, now, before, ours)
            # Last, since the URL shows that there is something to restore.
            if ours.voice_url is not None:
                await self.reset(number, before, ours.voice_url)

    async def _leave(self, sid: str, now: Routing, before: Routing, ours: Routing) -> None:
        """Restore the number's former trunk or application."""
        former = (before.trunk_sid, before.voice_application_sid)
        if (now.trunk_sid, now.voice_application_sid) == former:
            return
        # None: the process stopped after removing the former trunk, before assigning its own.
        if now.trunk_sid not in (None, ours.trunk_sid) or now.voice_application_sid is not None:
            return
        if now.trunk_sid is not None:
            await self._unassign(sid, now.trunk_sid)
        if before.trunk_sid is not None:
            with translated():
                trunk = self.client.trunking.v1.trunks(before.trunk_sid)
                await trunk.phone_numbers.create_async(phone_number_sid=sid)
        elif before.voice_application_sid is not None:
            await self._update(sid, {"voice_application_sid": before.voice_application_sid})

    async def _update(self, sid: str, changes: Mapping[str, str]) -> None:
        with translated():
            await self.client.incoming_phone_numbers(sid).update_async(**changes)

    async def redirect(self, call_sid: str, url: str) -> None:
        """Let a live call go on with the TwiML at ``url``; one that is over is fine."""
        with contextlib.suppress(NotThere), translated():
            await self.client.calls(call_sid).update_async(url=url, method="POST")

    async def _unassign(self, sid: str, trunk_sid: str) -> None:
        with contextlib.suppress(NotThere), translated():
            trunk = self.client.trunking.v1.trunks(trunk_sid)
            await trunk.phone_numbers(sid).delete_async()


def _owned(number: Any) -> OwnedNumber:
    return OwnedNumber(
        sid=number.sid,
        phone_number=number.phone_number,
        friendly_name=number.friendly_name or "",
        # Twilio returns empty strings for unset fields.
        routing=Routing(
            trunk_sid=number.trunk_sid or None,
            voice_application_sid=number.voice_application_sid or None,
            voice_url=number.voice_url or None,
            voice_method=number.voice_method or None,
            voice_fallback_url=number.voice_fallback_url or None,
            status_callback=number.status_callback or None,
        ),
    )


def _available(number: Any, country: str) -> AvailableNumber:
    national = re.fullmatch(r"\+1([0-9]{3})[0-9]{7}", number.phone_number)
    return AvailableNumber(
        phone_number=number.phone_number,
        country=number.iso_country or country,
        city=number.locality or None,
        state=number.region or None,
        postal_code=number.postal_code or None,
        rate_center=number.rate_center or None,
        area_code=national[1] if national else None,
    )


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Translate the library's errors to this project's. Twilio's messages are not passed on."""
    try:
        yield
    except TwilioException as error:
        raise _refused(error) from None
    except (aiohttp.ClientError, TimeoutError, *_UNEXPECTED) as error:
        log.warning("Twilio not reached", extra={"problem": type(error).__name__})
        raise _unavailable() from None


def _refused(error: TwilioException) -> AppError | NotThere:
    status, code = _status(error)
    log.info("Twilio refused", extra={"status": status, "problem": code})
    match status:
        case 401 | 403:
            return Unprocessable("Twilio refuses the credential", code="CREDENTIAL_REFUSED")
        case 404:
            return NotThere()
        case 400 | 409 if code == _NOT_AVAILABLE:
            return Conflict("The number cannot be bought any more", code="NUMBER_UNAVAILABLE")
        case int() if 400 <= status < 500 and status != 429:
            detail = Detail("provider", f"Twilio error {code}", "provider_refused")
            return Unprocessable(
                "Twilio refuses the request", code="PROVIDER_REFUSED", details=[detail]
            )
    return _unavailable()


def _status(error: TwilioException) -> tuple[int | None, int | None]:
    """Return HTTP status and Twilio's code; for a failed list only its response has them."""
    if isinstance(error, TwilioRestException | TwilioServiceException):
        return error.status, error.code
    response = next((each for each in error.args if isinstance(each, Response)), None)
    if response is None:
        return None, None
    try:
        return response.status_code, json.loads(response.text)["code"]
    except _UNEXPECTED:
        return response.status_code, None


def _unavailable() -> Unavailable:
    return Unavailable("Twilio cannot be reached", code="PROVIDER_UNAVAILABLE", retry_after_s=5)
