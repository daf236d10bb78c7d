"""The SIP messages between baresip and the network, and the responses sent in its place."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from aiosipua.message import SipRequest, SipResponse

from dev.phone.call import PhoneCall
from dev.sip import messages
from dev.sip.messages import Address
from dev.sip.relay import SipRelay

logger = logging.getLogger(__name__)


class Front:
    """The policy of a phone's relay, for messages from the network and from baresip."""

    def __init__(
        self,
        relay: SipRelay,
        *,
        stack: Address,
        user: str,
        calls: Mapping[str, PhoneCall],
        invited: Callable[[SipRequest, SipRelay], bool],
        transfer_route: str | None,
    ) -> None:
        """
        Args:
            stack: The address on which baresip listens.
            user: The phone's user name in baresip.
            calls: The phone's calls by Call-ID.
            invited: Called with each INVITE for this phone; True forwards it to baresip.
            transfer_route: See :class:`dev.phone.Phone`.
        """
        self._relay = relay
        self._stack = stack
        self._user = user
        self._calls = calls
        self._invited = invited
        self._transfer_route = transfer_route
        self._goodbyes: set[str] = set()  # Call-IDs of our unanswered BYEs
        self._all_heard = asyncio.Event()
        self._all_heard.set()

    async def goodbyes_heard(self, timeout: float) -> None:
        """Wait until the far ends have answered our BYEs."""
        try:
            await asyncio.wait_for(self._all_heard.wait(), timeout)
        except TimeoutError:
            logger.warning("a BYE got no answer", extra={"calls": len(self._goodbyes)})

    # --- the relay's policy

    def request(self, request: SipRequest, source: Address, for_us: bool) -> bool:
        call = self._calls.get(request.call_id or "")
        outside = source != self._stack
        if for_us and messages.to_tag(request) is None:
            if request.method == "INVITE":
                if not self._invited(request, self._relay):
                    return False
                self._to_own_stack(request)
                return True
            if request.method == "OPTIONS":
                self._relay.answer(messages.reply(request, 200))
                return False
        if not outside and request.method == "BYE":
            self._goodbyes.add(request.call_id or "")
            self._all_heard.clear()
        if call is not None and not outside and self._is_needless_offer(call, request):
            if request.method == "INVITE":
                self._relay.answer(messages.reply(request, 488))
            return False
        if call is not None and outside:
            if request.method in {"BYE", "CANCEL"}:
                call.farewell = request.headers.get_first("reason") or ""
            elif request.method == "REFER":
                self._route_telephone_number(request)
            if call.refusal is not None:
                return self._after_refusal(call, request)
        if for_us:
            self._to_own_stack(request)
        return True

    def response(self, response: SipResponse, source: Address) -> bool:
        cseq = response.cseq
        if cseq is not None and cseq.method == "BYE" and response.status_code >= 200:
            self._goodbyes.discard(response.call_id or "")
            if not self._goodbyes:
                self._all_heard.set()
        call = self._calls.get(response.call_id or "")
        if call is not None and source == self._stack:
            call.audio_port = messages.audio_port(response) or call.audio_port
        return True

    def _to_own_stack(self, request: SipRequest) -> None:
        """Replace the dialled number by the phone's user name in baresip."""
        host, port = self._stack
        request.uri = f"sip:{self._user}@{host}:{port}"

    def _route_telephone_number(self, request: SipRequest) -> None:
        """Turn a REFER's tel: target (RFC 3966) into a SIP URI, as an operator's switch does."""
        target = request.headers.get_first("refer-to") or ""
        scheme, _, number = target.strip("<> ").partition(":")
        if scheme.lower() == "tel" and self._transfer_route is not None:
            number = number.partition(";")[0]
            request.set_header("Refer-To", f"<sip:{number}@{self._transfer_route}>")

    def _is_needless_offer(self, call: PhoneCall, request: SipRequest) -> bool:
        """Return True for a re-INVITE that changes nothing.

        baresip sends one within 0.2 s of every answer, to say that there is no video, which
        was never offered. It makes each end restart its stream and drop the packets in its
        socket, so it is not forwarded.
        """
        return (
            call.inbound
            and not call.renegotiates
            and request.method in {"INVITE", "ACK"}
            and messages.to_tag(request) is not None
        )

    def _after_refusal(self, call: PhoneCall, request: SipRequest) -> bool:
        """Handle the rest of a transaction that never reached baresip."""
        if request.method == "CANCEL":
            self._relay.answer(messages.reply(request, 200))
            call.canceled_while_refusing.set()
        elif request.method != "ACK":
            self._relay.answer(messages.reply(request, 481))
        return False
