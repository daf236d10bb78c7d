"""The HTTP server: Twirp routes, LiveKit's tokens, errors in Twirp's form."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import jwt
from aiohttp import web
from google.protobuf.message import Message
from livekit import api
from livekit.api.access_token import Claims
from livekit.protocol import sip as pb
from prometheus_client import CollectorRegistry
from prometheus_client.aiohttp import make_aiohttp_handler

from core.process_metrics import watch_process
from sip.bridge import twirp
from sip.bridge.calls.service import SipService
from sip.bridge.registry import Registry
from sip.bridge.twirp import TwirpError
from sip.participant import LiveKit

log = logging.getLogger(__name__)

PREFIX: Final = "/twirp/livekit.SIP/"
MAX_BODY_BYTES: Final = 1 << 20

Handler = Callable[[Any, Claims], Awaitable[Message]]


@dataclass(frozen=True, slots=True)
class Method:
    request: type[Message]
    handler: Handler
    grant: Literal["call", "admin"]


def create_app(
    service: SipService,
    registry: Registry,
    livekit: LiveKit,
    addresses: Callable[[], dict[str, str]],
) -> web.Application:
    """Build the app, in the running loop. ``addresses`` returns the listeners, for ``GET /``."""
    methods = _methods(service, registry)
    verifier = api.TokenVerifier(livekit.api_key, livekit.api_secret)

    async def call(request: web.Request) -> web.Response:
        content_type = request.headers.get("Content-Type", "")
        try:
            name = request.match_info["method"]
            method = methods.get(name)
            if method is None:
                raise TwirpError("bad_route", f"no handler for path {request.path!r}")
            # Before the body is read: an unauthorized client learns nothing about its form.
            claims = _authorize(request, verifier, method.grant)
            body = twirp.decode(content_type, await request.read(), method.request)
            answer, answer_type = twirp.encode(content_type, await method.handler(body, claims))
            await registry.saved()
        except TwirpError as error:
            return _refusal(error)
        except web.HTTPRequestEntityTooLarge:
            return _refusal(TwirpError("invalid_argument", "the request body is too large"))
        except Exception:
            log.exception("a request failed", extra={"method": request.match_info["method"]})
            return _refusal(TwirpError("internal", "internal error"))
        return web.Response(body=answer, content_type=answer_type)

    async def wrong_method(request: web.Request) -> web.Response:
        return _refusal(TwirpError("bad_route", f"unsupported method {request.method!r}"))

    async def health(_request: web.Request) -> web.Response:
        return web.json_response({"status": "OK", **addresses(), "live_calls": service.live_calls})

    metrics = CollectorRegistry()
    watch_process(metrics)
    app = web.Application(client_max_size=MAX_BODY_BYTES)
    app.router.add_get("/", health)
    app.router.add_get("/metrics", make_aiohttp_handler(metrics))
    app.router.add_post(PREFIX + "{method}", call)
    app.router.add_route("*", PREFIX + "{method}", wrong_method)
    return app


def _methods(service: SipService, registry: Registry) -> dict[str, Method]:
    """Return the API's methods by name."""
    admin = _Admin(registry)
    return {
        "CreateSIPParticipant": Method(
            pb.CreateSIPParticipantRequest, service.create_participant, "call"
        ),
        "TransferSIPParticipant": Method(
            pb.TransferSIPParticipantRequest, service.transfer_participant, "call"
        ),
        "CreateSIPInboundTrunk": _admin(pb.CreateSIPInboundTrunkRequest, admin.create_inbound),
        "UpdateSIPInboundTrunk": _admin(pb.UpdateSIPInboundTrunkRequest, admin.update_inbound),
        "GetSIPInboundTrunk": _admin(pb.GetSIPInboundTrunkRequest, admin.get_inbound),
        "ListSIPInboundTrunk": _admin(pb.ListSIPInboundTrunkRequest, admin.list_inbound),
        "CreateSIPOutboundTrunk": _admin(pb.CreateSIPOutboundTrunkRequest, admin.create_outbound),
        "UpdateSIPOutboundTrunk": _admin(pb.UpdateSIPOutboundTrunkRequest, admin.update_outbound),
        "GetSIPOutboundTrunk": _admin(pb.GetSIPOutboundTrunkRequest, admin.get_outbound),
        "ListSIPOutboundTrunk": _admin(pb.ListSIPOutboundTrunkRequest, admin.list_outbound),
        "ListSIPTrunk": _admin(pb.ListSIPTrunkRequest, admin.list_trunks),
        "DeleteSIPTrunk": _admin(pb.DeleteSIPTrunkRequest, admin.delete_trunk),
        "CreateSIPDispatchRule": _admin(pb.CreateSIPDispatchRuleRequest, admin.create_rule),
        "UpdateSIPDispatchRule": _admin(pb.UpdateSIPDispatchRuleRequest, admin.update_rule),
        "ListSIPDispatchRule": _admin(pb.ListSIPDispatchRuleRequest, admin.list_rules),
        "DeleteSIPDispatchRule": _admin(pb.DeleteSIPDispatchRuleRequest, admin.delete_rule),
    }


def _admin(request: type[Message], handle: Callable[[Any], Message]) -> Method:
    async def handler(message: Any, _claims: Claims) -> Message:
        return handle(message)

    return Method(request, handler, "admin")


class _Admin:
    """The handlers for trunks and rules, which map requests to registry operations."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def create_inbound(self, request: pb.CreateSIPInboundTrunkRequest) -> Message:
        return self._registry.create_inbound(request.trunk)

    def update_inbound(self, request: pb.UpdateSIPInboundTrunkRequest) -> Message:
        match request.WhichOneof("action"):
            case "replace":
                return self._registry.replace_inbound(request.sip_trunk_id, request.replace)
            case "update":
                return self._registry.update_inbound(request.sip_trunk_id, request.update)
        raise _no_action()

    def get_inbound(self, request: pb.GetSIPInboundTrunkRequest) -> Message:
        trunk = self._registry.get_inbound(request.sip_trunk_id)
        return pb.GetSIPInboundTrunkResponse(trunk=trunk)

    def list_inbound(self, request: pb.ListSIPInboundTrunkRequest) -> Message:
        return pb.ListSIPInboundTrunkResponse(items=self._registry.list_inbound(request))

    def create_outbound(self, request: pb.CreateSIPOutboundTrunkRequest) -> Message:
        return self._registry.create_outbound(request.trunk)

    def update_outbound(self, request: pb.UpdateSIPOutboundTrunkRequest) -> Message:
        match request.WhichOneof("action"):
            case "replace":
                return self._registry.replace_outbound(request.sip_trunk_id, request.replace)
            case "update":
                return self._registry.update_outbound(request.sip_trunk_id, request.update)
        raise _no_action()

    def get_outbound(self, request: pb.GetSIPOutboundTrunkRequest) -> Message:
        trunk = self._registry.get_outbound(request.sip_trunk_id)
        return pb.GetSIPOutboundTrunkResponse(trunk=trunk)

    def list_outbound(self, request: pb.ListSIPOutboundTrunkRequest) -> Message:
        return pb.ListSIPOutboundTrunkResponse(items=self._registry.list_outbound(request))

    def list_trunks(self, _request: pb.ListSIPTrunkRequest) -> Message:
        inbound = self._registry.list_inbound(pb.ListSIPInboundTrunkRequest())
        outbound = self._registry.list_outbound(pb.ListSIPOutboundTrunkRequest())
        return pb.ListSIPTrunkResponse(items=[*map(_legacy, inbound), *map(_legacy, outbound)])

    def delete_trunk(self, request: pb.DeleteSIPTrunkRequest) -> Message:
        self._registry.delete_trunk(request.sip_trunk_id)
        return pb.SIPTrunkInfo(sip_trunk_id=request.sip_trunk_id)

    def create_rule(self, request: pb.CreateSIPDispatchRuleRequest) -> Message:
        if request.HasField("dispatch_rule"):
            return self._registry.create_rule(request.dispatch_rule)
        info = pb.SIPDispatchRuleInfo(
            rule=request.rule,
            trunk_ids=request.trunk_ids,
            hide_phone_number=request.hide_phone_number,
            inbound_numbers=request.inbound_numbers,
            name=request.name,
            metadata=request.metadata,
            attributes=request.attributes,
            room_preset=request.room_preset,
            room_config=request.room_config if request.HasField("room_config") else None,
        )
        return self._registry.create_rule(info)

    def update_rule(self, request: pb.UpdateSIPDispatchRuleRequest) -> Message:
        match request.WhichOneof("action"):
            case "replace":
                return self._registry.replace_rule(request.sip_dispatch_rule_id, request.replace)
            case "update":
                return self._registry.update_rule(request.sip_dispatch_rule_id, request.update)
        raise _no_action()

    def list_rules(self, request: pb.ListSIPDispatchRuleRequest) -> Message:
        return pb.ListSIPDispatchRuleResponse(items=self._registry.list_rules(request))

    def delete_rule(self, request: pb.DeleteSIPDispatchRuleRequest) -> Message:
        return self._registry.delete_rule(request.sip_dispatch_rule_id)


def _legacy(trunk: pb.SIPInboundTrunkInfo | pb.SIPOutboundTrunkInfo) -> pb.SIPTrunkInfo:
    """Convert a trunk to the single message type that ListSIPTrunk still returns."""
    number = trunk.numbers[0] if trunk.numbers else ""
    if isinstance(trunk, pb.SIPInboundTrunkInfo):
        return pb.SIPTrunkInfo(
            sip_trunk_id=trunk.sip_trunk_id,
            kind=pb.SIPTrunkInfo.TRUNK_INBOUND,
            name=trunk.name,
            metadata=trunk.metadata,
            outbound_number=number,
            inbound_addresses=trunk.allowed_addresses,
            inbound_numbers=trunk.allowed_numbers,
            inbound_username=trunk.auth_username,
            inbound_password=trunk.auth_password,
        )
    return pb.SIPTrunkInfo(
        sip_trunk_id=trunk.sip_trunk_id,
        kind=pb.SIPTrunkInfo.TRUNK_OUTBOUND,
        name=trunk.name,
        metadata=trunk.metadata,
        outbound_address=trunk.address,
        transport=trunk.transport,
        outbound_number=number,
        outbound_username=trunk.auth_username,
        outbound_password=trunk.auth_password,
    )


def _authorize(
    request: web.Request, verifier: api.TokenVerifier, grant: Literal["call", "admin"]
) -> Claims:
    """Check the token. Raises TwirpError ``unauthenticated`` or ``permission_denied``."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise TwirpError("unauthenticated", "invalid authorization header. Must start with Bearer ")
    try:
        claims = verifier.verify(token.strip())
    except (jwt.PyJWTError, ValueError, TypeError):
        raise TwirpError("unauthenticated", "invalid authorization token") from None
    allowed = claims.sip is not None and (claims.sip.call if grant == "call" else claims.sip.admin)
    if not allowed:
        raise TwirpError("permission_denied", f"the token lacks the sip.{grant} grant")
    return claims


def _refusal(error: TwirpError) -> web.Response:
    return web.Response(body=error.body(), status=error.http_status, content_type=twirp.JSON)


def _no_action() -> TwirpError:
    return TwirpError("invalid_argument", "missing or unsupported update action")
