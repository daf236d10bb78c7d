"""What a call does once it is answered: it runs TwiML, until the end or an order."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from urllib.parse import urljoin

from dev.standins.twilio import twiml
from dev.standins.twilio.call import Call, Document, End, Fetch, Order, new_sid
from dev.standins.twilio.errors import Fault
from dev.standins.twilio.media.stream import MediaStream
from dev.standins.twilio.media.websocket import Closed
from dev.standins.twilio.outbox import Progress
from dev.standins.twilio.ringing import interruptible, ring
from dev.standins.twilio.services import Services

SAY_MS = 10
"""<Say> takes this long a character: faster than anybody speaks, so that tests need not wait."""
CLOSED, SLOW = 31921, 31930
_INVALID_CALLER_ID = 13214
_TOO_MANY = Fault(12200, "more than 50 documents in one call")
_SORRY = "We are sorry. An application error has occurred. Goodbye."


class Script:
    def __init__(self, call: Call, services: Services) -> None:
        self._call = call
        self._services = services
        self._base = ""
        self._documents = 0
        self._falling_back = False

    async def run(self, first: Order) -> str:
        """Run the first document and all that follow. Return the call's final status."""
        order = first
        while not isinstance(order, End):
            order = await interruptible(self._call, self._document(order))
        return order.status

    async def _document(self, source: Fetch | Document) -> Order:
        try:
            return await self._verbs(await self._fetched(source))
        except Fault as fault:
            self._call.alert(fault)
            if (fallback := self._call.fallback) is not None and not self._falling_back:
                self._falling_back = True
                error = {"ErrorCode": str(fault.code), "ErrorUrl": self._base}
                return replace(fallback, form=error)
            self._call.said.append(_SORRY)
            return End("completed" if self._call.answered else "failed")

    async def _fetched(self, source: Fetch | Document) -> list[twiml.Verb]:
        self._documents += 1
        if self._documents > 50:
            raise _TOO_MANY
        if isinstance(source, Document):
            return twiml.parse_text(source.text)
        self._base = urljoin(self._base, source.url)
        form = {**self._call.form(), **source.form}
        answer = await self._services.webhooks.send(
            self._call.account_sid, self._base, form, source.method
        )
        verbs = twiml.parse(answer.content_type, answer.text)
        self._falling_back = False
        return verbs

    async def _verbs(self, verbs: list[twiml.Verb]) -> Order:
        for verb in verbs:
            if isinstance(verb, twiml.Reject):
                return End("busy" if verb.reason == "busy" else "no-answer")
            # Only a rejected call is not answered.
            self._call.answer()
            following = await self._do(verb)
            if following is not None:
                return following
        return End("completed")

    async def _do(self, verb: twiml.Verb) -> Order | None:
        """Carry out a verb. Return where to go on if it is not the next verb."""
        match verb:
            case twiml.Hangup():
                return End("completed")
            case twiml.Redirect(url, method):
                return Fetch(url, method)
            case twiml.Say(text):
                self._call.said.append(text)
                self._call.changed()
                await asyncio.sleep(len(text) * SAY_MS / 1000)
            case twiml.Pause(length_s):
                await asyncio.sleep(length_s)
            case twiml.Dial():
                return await self._dial(verb)
            case twiml.Connect():
                return await self._connect(verb)
        return None

    # --- <Connect><Stream>

    async def _connect(self, verb: twiml.Connect) -> Order | None:
        call = self._call
        sids = (call.account_sid, call.sid, new_sid("MZ"))
        call.heard.pad_to(call.since_answer_ms())
        stream = MediaStream(sids, call.heard, call.caller.next_payload, call.network)
        try:
            await self._open(stream, verb)
        except Fault as fault:
            call.alert(fault)
            self._report(stream, verb, "stream-error", str(fault))
            return None
        self._report(stream, verb, "stream-started")
        stream.on_loss = lambda: call.alert(Fault(SLOW, "the server does not read"))
        call.streams.append(stream)
        call.changed()
        try:
            closed = await stream.run(self._services.ticker)
        except asyncio.CancelledError:
            self._report(stream, verb, "stream-stopped")
            raise
        return await self._after(stream, verb, closed)

    async def _open(self, stream: MediaStream, verb: twiml.Connect) -> None:
        await stream.open(
            verb.url,
            self._services.hosts.address(verb.url),
            self._services.webhooks.sign(self._call.account_sid, verb.url, {}),
            verb.parameters,
        )

    async def _after(
        self, stream: MediaStream, verb: twiml.Connect, closed: Closed
    ) -> Order | None:
        """Return where the call goes on when its stream's socket has ended."""
        fault = closed.fault or Fault(CLOSED, f"the socket closed with {closed.code}")
        self._call.alert(fault)
        if closed.code is not None:
            self._report(stream, verb, "stream-stopped")
            return None
        self._report(stream, verb, "stream-error", str(fault))
        if closed.fault is not None or self._call.after_break == "redirect":
            return None
        # An order of the REST API interrupts this.
        await asyncio.sleep(self._call.rest_wait_s)
        return End("completed")

    def _report(
        self, stream: MediaStream, verb: twiml.Connect, event: str, error: str | None = None
    ) -> None:
        if verb.status_callback is None:
            return
        form = {
            "AccountSid": self._call.account_sid,
            "CallSid": self._call.sid,
            "StreamSid": stream.sid,
            "StreamName": verb.name or stream.sid,
            "StreamEvent": event,
            "Timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        }
        if error is not None:
            form["StreamError"] = error
        url = urljoin(self._base, verb.status_callback)
        self._call.outbox.post(url, form, verb.status_method)

    # --- <Dial>

    async def _dial(self, verb: twiml.Dial) -> Order | None:
        call = self._call
        caller_id = verb.caller_id or call.from_
        if caller_id not in (call.from_, call.to) and not self._services.owns(
            call.account_sid, caller_id
        ):
            raise Fault(_INVALID_CALLER_ID, f"callerId {caller_id} is not this account's")
        child = Call(
            self._services,
            call.account_sid,
            caller_id,
            verb.number,
            "outbound-dial",
            parent_sid=call.sid,
        )
        if verb.status_callback is not None:
            url = urljoin(self._base, verb.status_callback)
            child.progress = Progress(call.outbox, url, events=verb.status_events)
        call.dialled.append(child)
        call.changed()
        try:
            status = await self._bridge(child, verb.timeout_s)
        except asyncio.CancelledError:
            self._over(child, "completed" if child.answered else "canceled")
            raise
        self._over(child, status)
        if verb.action is None:
            return None
        form = {
            "DialCallSid": child.sid,
            "DialCallStatus": status,
            "DialBridged": "true" if child.answered else "false",
        }
        if child.answered:
            form["DialCallDuration"] = str(child.duration_s)
        return Fetch(urljoin(self._base, verb.action), verb.method, form)

    def _over(self, child: Call, status: str) -> None:
        child.become(status)
        child.progress.fire("completed", {**child.form(), "CallDuration": str(child.duration_s)})

    async def _bridge(self, child: Call, timeout_s: int) -> str:
        """Call, and wait until the child's end hangs up. Return the child's final status."""
        refused = await ring(child, self._services.callees.next(child.to), timeout_s)
        if refused is not None:
            return refused
        child.answer()
        child.progress.fire("answered", child.form())
        order = await child.ordered()
        return order.status if isinstance(order, End) else "completed"
