"""A SIP trunk for tests: it challenges, refuses or ignores calls, or relays them to a phone.

    async with Phone() as phone, Trunk(phone.address, Credentials("alice", "s3cret")) as trunk:
        ...  # dial trunk.address; the call reaches the phone only with that password
        assert trunk.invites == 1 and trunk.gate.challenges == 1

UDP on loopback. The trunk is a stateless proxy (:mod:`dev.sip.relay`) with Record-Route,
so ACK, BYE, CANCEL, REFER and re-INVITE take the same path. Media does not pass through it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Self

from aiosipua.headers import parse_uri
from aiosipua.message import SipRequest, SipResponse

from dev.sip import messages
from dev.sip.digest import Credentials, DigestGate
from dev.sip.messages import Address
from dev.sip.relay import SipRelay

__all__ = ["Blackhole", "Credentials", "FixedReply", "Seen", "Trunk"]


@dataclass(frozen=True)
class FixedReply:
    """Refuse every call with one status."""

    status: int
    reason: str | None = None


@dataclass(frozen=True)
class Blackhole:
    """Answer nothing, like a host that drops every packet."""


@dataclass
class Seen:
    """The requests that have reached a trunk."""

    call_ids: set[str] = field(default_factory=set)
    called: list[str] = field(default_factory=list)  # numbers, one per call, in order
    callers: list[str] = field(default_factory=list)
    methods: Counter[str] = field(default_factory=Counter)  # every request, with retransmissions


class Trunk:
    """One trunk on an address of its own."""

    def __init__(
        self,
        target: str | None = None,
        credentials: Credentials | None = None,
        *,
        mode: FixedReply | Blackhole | None = None,
        port: int = 0,
        realm: str = "trunk.test",
        challenge_status: int = 407,
        qop: bool = True,
        wrong_answers_allowed: int = 1,
    ) -> None:
        """
        Args:
            target: ``host:port`` to which calls are relayed (a phone's address).
            credentials: The trunk challenges for them if given; else it accepts every call.
            mode: Refuse or ignore everything instead.
            port: The port to listen on; 0 takes a free one.
            challenge_status: 407 with Proxy-Authenticate, or 401 with WWW-Authenticate.
            qop: True asks for ``qop=auth`` (RFC 7616), False for the old form.
            wrong_answers_allowed: The number of wrong answers of one call that are
                challenged again; the next one is refused with 403.
        """
        if target is None and mode is None:
            raise ValueError("a trunk needs a target or a mode")
        if challenge_status not in {401, 407}:
            raise ValueError("a challenge is a 401 or a 407")
        self.address = ""
        self.seen = Seen()
        self._target = target
        self._mode = mode
        self._port = port
        self.gate = (  # counts challenges, answers and user names
            None
            if credentials is None
            else DigestGate(
                credentials,
                realm=realm,
                status=challenge_status,
                qop=qop,
                wrong_answers_allowed=wrong_answers_allowed,
            )
        )
        self._refused: set[str] = set()  # Call-IDs whose ACK ends here
        self._decided: dict[str, SipResponse | None] = {}  # by branch, for retransmissions
        self._relay: SipRelay | None = None

    async def __aenter__(self) -> Self:
        self._relay = await SipRelay.open(lambda _: self, port=self._port)
        host, port = self._relay.address
        self.address = f"{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop answering and free the port."""
        if self._relay is not None:
            await self._relay.close()

    @property
    def invites(self) -> int:
        """The number of calls that have reached the trunk: INVITEs with distinct Call-IDs.
        Zero proves that nothing was dialled."""
        return len(self.seen.call_ids)

    @property
    def malformed(self) -> int:
        """The number of datagrams that were not SIP messages."""
        return 0 if self._relay is None else self._relay.malformed

    # --- the relay's policy

    def request(self, request: SipRequest, source: Address, for_us: bool) -> bool:
        self.seen.methods[request.method] += 1
        outside_dialog = messages.to_tag(request) is None
        if outside_dialog and request.method == "INVITE":
            self._count(request)
        if isinstance(self._mode, Blackhole):
            return False
        assert self._relay is not None
        call_id = request.call_id or ""
        if request.method == "ACK" and call_id in self._refused:
            return False  # it acknowledges our refusal
        if isinstance(self._mode, FixedReply):
            if request.method != "ACK":
                status = 481 if request.method == "CANCEL" else self._mode.status
                self._refuse(request, messages.reply(request, status, reason=self._mode.reason))
            return False
        if outside_dialog and request.method == "OPTIONS" and for_us:
            self._relay.answer(messages.reply(request, 200))
            return False
        if outside_dialog and request.method == "INVITE" and self.gate is not None:
            branch = request.via[0].branch or ""
            if branch not in self._decided:
                self._decided[branch] = self.gate.check(request)
            refusal = self._decided[branch]
            if refusal is not None:
                self._refuse(request, refusal)
                return False
        self._refused.discard(call_id)
        if for_us and self._target is not None:
            user = parse_uri(request.uri).user
            request.uri = f"sip:{user}@{self._target}" if user else f"sip:{self._target}"
        request.remove_header("Proxy-Authorization")  # meant for this hop
        return True

    def response(self, response: SipResponse, source: Address) -> bool:
        return not isinstance(self._mode, Blackhole)

    def _count(self, request: SipRequest) -> None:
        call_id = request.call_id or ""
        if call_id in self.seen.call_ids:
            return
        self.seen.call_ids.add(call_id)
        self.seen.called.append(parse_uri(request.uri).user or "")
        sender = request.from_addr
        self.seen.callers.append((sender.uri.user if sender else None) or "")

    def _refuse(self, request: SipRequest, refusal: SipResponse) -> None:
        assert self._relay is not None
        self._refused.add(request.call_id or "")
        self._relay.answer(refusal)
