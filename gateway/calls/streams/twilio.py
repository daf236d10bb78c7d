"""Sessions of Twilio's calls: what Twilio is told to do, and which of its requests are genuine."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Mapping
from urllib.parse import urlencode

from core.errors import AppError, Forbidden, ServerFault
from core.models import CallEvent, PhoneNumber
from gateway.calls.handover import is_referring
from gateway.calls.limits import CallLimits
from gateway.calls.streams import twiml
from gateway.calls.streams.sessions import CALLER, StreamSessions
from gateway.calls.streams.tokens import SessionToken, SessionTokens
from gateway.lookup.agents import Agents, answering_agent
from gateway.numbers.accounts import Accounts
from gateway.numbers.signatures import is_signed
from gateway.store.call_status import Call
from gateway.store.calls import LiveIdentity, NewCall, Store
from gateway.store.credentials import TwilioSecret
from gateway.store.database import Scope
from gateway.store.numbers import NumberStore
from gateway.store.streams.sessions import Session, SessionStore
from gateway.store.webhooks import WebhookStore
from sip.far_end import LONGEST_NAME, is_text, told

log = logging.getLogger(__name__)

_PATH = "/v1/sessions/twilio"


class TwilioSessions:
    """Answers Twilio's requests about calls; owns the tasks that bring broken streams back."""

    def __init__(
        self,
        *,
        public_url: str,
        store: Store,
        sessions: SessionStore,
        streams: StreamSessions,
        tokens: SessionTokens,
        numbers: NumberStore,
        agents: Agents,
        webhooks: WebhookStore,
        limits: CallLimits,
        accounts: Accounts,
        comes_back_s: float = 2.0,
    ) -> None:
        """``public_url``: the gateway's base URL as Twilio knows it.

        ``comes_back_s``: how long Twilio gets to ask by itself, after a stream broke.
        """
        self._public_url = public_url
        self._store = store
        self._sessions = sessions
        self._streams = streams
        self._tokens = tokens
        self._numbers = numbers
        self._agents = agents
        self._webhooks = webhooks
        self._limits = limits
        self._accounts = accounts
        self._comes_back_s = comes_back_s
        self._tasks: set[asyncio.Task[None]] = set()

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- what Twilio is told

    @property
    def stream_url(self) -> str:
        return f"ws{self._public_url.removeprefix('http')}{_PATH}/stream"

    def connect(self, call: Call, token: SessionToken) -> str:
        """Return TwiML that connects Twilio's call to the session."""
        return twiml.connect(
            self.stream_url,
            token=token.text,
            status_url=self.callback(call.id, "status"),
            resume_url=self.callback(call.id, "resume"),
        )

    async def answer(self, number: PhoneNumber, form: Mapping[str, str]) -> str:
        """Return TwiML for a call that has come in by the number.

        Twilio repeats a request that it believes lost; the call's session is the same then.
        """
        call_id = call_id_of(number, form["CallSid"])
        known = await self._store.call(Scope(None), call_id)
        call = known or await self._admit(call_id, number, form)
        return await self.go_on(call, await self._sessions.find(call_id), form)

    async def go_on(self, call: Call, session: Session | None, form: Mapping[str, str]) -> str:
        """Return TwiML for the call as it stands now: connect it (again), or end it."""
        match await self._streams.standing(call, session):
            case "live":
                account_sid, call_sid = form.get("AccountSid"), form.get("CallSid")
                token = await self._streams.renew(
                    call, "twilio", account_sid=account_sid, call_sid=call_sid
                )
                return self.connect(call, token)
            case "over":
                return twiml.hang_up()
            case "failed":
                return twiml.apologize(await self._language(call.id))

    async def _admit(self, call_id: str, number: PhoneNumber, form: Mapping[str, str]) -> Call:
        agent, refusal = await answering_agent(number, self._agents, self._webhooks)
        new = NewCall(
            id=call_id,
            auth_id=number.auth_id,
            direction="inbound",
            type="stream",
            room_name=call_id,
            participant_identity=CALLER,
            from_number=told(form.get("From")),
            to_number=number.phone_number,
            max_duration_ms=agent.config.max_duration_ms if agent else 0,
            agent=agent,
            phone_number_id=number.id,
            metadata={},
            record=number.record,
        )
        queued = CallEvent(id=f"{call_id}_queued", type="call.queued")
        ringing = CallEvent(id=f"{call_id}_ringing", type="call.ringing", at=queued.at)
        try:
            call, refusal = await self._limits.admit(
                new, [queued, ringing], refusal, may_wait=False
            )
        except LiveIdentity:
            # The same request at another gateway created the record first.
            if known := await self._store.call(Scope(None), call_id):
                return known
            raise
        if refusal:
            log.info("call refused", extra={"call_id": call_id, "why": refusal})
        else:
            self._streams.follow(call_id)
        return call

    async def _language(self, call_id: str) -> str:
        try:
            found = await self._store.call_and_agent(call_id)
        except ServerFault:
            found = None
        return found[1].config.language if found and found[1] else "en"

    # --- which requests are genuine

    async def number_of(
        self, form: Mapping[str, str], path: str, signature: str | None
    ) -> PhoneNumber:
        """Return the called number. Raises Forbidden unless its Twilio account signed the request.

        ``path``: with the query, as it was received.
        """
        number = await self._numbers.by_number(Scope(None), form.get("To", ""))
        secret = None
        if number is not None and number.status not in {"pending", "detaching"}:
            secret = await self._accounts.secret(number)
        if (
            number is None
            or not isinstance(secret, TwilioSecret)
            or form.get("AccountSid") != secret.account_sid
            or not is_text(form.get("CallSid", ""), LONGEST_NAME)
            or not is_signed(secret, self._public_url + path, signature, form)
        ):
            raise _forbidden()
        return number

    async def session_of(
        self,
        call_id: str,
        key: str,
        form: Mapping[str, str],
        path: str,
        signature: str | None,
        *,
        of_child: bool = False,
    ) -> tuple[Call, Session | None]:
        """Return the call of a callback, and its session unless that is long over.

        Raises Forbidden: a wrong key, another Twilio call, or a wrong signature although the
        account's auth token is known. ``of_child``: about a call that the session's call dialled.
        """
        if not self._tokens.is_callback_key(call_id, key):
            raise _forbidden()
        call = await self._store.call(Scope(None), call_id)
        session = await self._sessions.find(call_id)
        if call is None or call.type != "stream":
            raise _forbidden()
        account = form.get("AccountSid", "")
        call_sid = form.get("ParentCallSid" if of_child else "CallSid", "")
        if session is not None and (
            session.call_sid not in (None, call_sid) or session.account_sid not in (None, account)
        ):
            raise _forbidden()
        secret = await self._accounts.named(Scope(call.auth_id), account)
        if secret and not is_signed(secret, self._public_url + path, signature, form):
            raise _forbidden()
        return call, session

    async def check_handshake(self, call: Call, account_sid: str, signature: str | None) -> None:
        """Raises Forbidden if the account's auth token is known, and did not sign the handshake."""
        secret = await self._accounts.named(Scope(call.auth_id), account_sid)
        if secret and not is_signed(secret, self.stream_url, signature):
            raise _forbidden()

    # --- broken streams

    def bring_back(self, call: Call, session: Session) -> None:
        """Let Twilio ask how the call goes on, unless it does by itself.

        It is not documented whether Twilio goes on with the TwiML's next verb after every way in
        which a stream can break.
        """
        if call.ended or session.call_sid is None or session.account_sid is None:
            return
        work = self._bring_back(call, session, session.account_sid, session.call_sid)
        task = asyncio.create_task(work, name=f"bring back {call.id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _bring_back(
        self, call: Call, session: Session, account_sid: str, call_sid: str
    ) -> None:
        await asyncio.sleep(self._comes_back_s)
        try:
            known = await self._sessions.find(call.id)
            if known is None or known.token_until != session.token_until:
                return  # it has asked, and was given a new token
            if self._streams.is_connected(call.id):
                return  # the error did not end the stream
            if await is_referring(self._store, call.id):
                return  # the stream ended because the human is dialled
            secret = await self._accounts.named(Scope(call.auth_id), account_sid)
            if secret is not None:
                url = self.callback(call.id, "resume")
                await self._accounts.account(secret).redirect(call_sid, url)
        except AppError as error:
            facts = {"call_id": call.id, "problem": error.code}
            log.warning("a broken stream was not brought back", extra=facts)

    def callback(self, call_id: str, what: str, **query: str) -> str:
        """Return a URL that Twilio may ask about the call."""
        query = {"key": self._tokens.callback_key(call_id), **query}
        return f"{self._public_url}{_PATH}/{call_id}/{what}?{urlencode(query)}#{twiml.ASK_AGAIN}"


def call_id_of(number: PhoneNumber, call_sid: str) -> str:
    """Return the id of the number's call that Twilio names so.

    The number is a part of it, since its tenant could sign another tenant's CallSid.
    """
    return f"call_{hashlib.sha256(f'{number.id} {call_sid}'.encode()).hexdigest()[:24]}"


def _forbidden() -> Forbidden:
    """Return the same error for every reason: the reason would only help an attacker."""
    return Forbidden("The request is not one of Twilio's, or not signed by the right account")
