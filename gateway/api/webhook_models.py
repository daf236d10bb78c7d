"""Requests and responses of ``/v1/webhooks``, as the agentphone client libraries expect them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, RootModel

from core.models import Model, Timestamp, http_url, rfc3339
from gateway.fields.url_login import split_login
from gateway.http.paging import Page
from gateway.store.deliveries import Delivery, DeliveryStatus
from gateway.store.webhooks import WebhookEndpoint

DEFAULT_CONTEXT_LIMIT, DEFAULT_TIMEOUT_S = 10, 30
MAX_HOURS = 720


class WebhookSet(Model):
    model_config = ConfigDict(extra="forbid", strict=True)

    url: Annotated[str, AfterValidator(http_url)] = Field(
        max_length=2048,
        description="http:// or https://; not in a private network.",
        json_schema_extra={
            "format": "uri",
            "pattern": r"^https?://[A-Za-z][A-Za-z0-9.-]*(:[1-9][0-9]{0,3})?"
            r"(/[A-Za-z0-9._~/?=&-]*)?$",
        },
    )
    context_limit: int | None = Field(
        None, ge=0, le=50, description="Most utterances in recentHistory; null: 10."
    )
    timeout: int | None = Field(
        None, ge=5, le=120, description="Seconds a response may take; null: 30."
    )


class WebhookView(Model):
    id: str
    url: str
    secret: str = Field(description="whsec_…: signs deliveries. Every POST creates a new one.")
    status: Literal["active"]
    context_limit: int
    timeout: int
    created_at: Timestamp

    @classmethod
    def of(cls, endpoint: WebhookEndpoint) -> WebhookView:
        # A URL stored before logins were refused is still called with its login.
        shown = {**_taken(cls, endpoint), "url": split_login(endpoint.url)[0]}
        return cls(**shown, status="active", timeout=endpoint.timeout_s)


class WebhookOrNull(RootModel[WebhookView | None]):
    pass


class Done(Model):
    success: Literal[True] = True


class DeliveryView(Model):
    id: str = Field(description="The webhook's message id, the same on each attempt.")
    message_id: str | None = Field(None, description="For text messages; always null here.")
    event_type: str
    channel: Literal["voice"] = "voice"
    status: DeliveryStatus
    http_status: int | None
    error_message: str | None
    response_body: str | None = Field(description="The beginning of the last response.")
    attempt_count: int
    created_at: Timestamp
    last_attempt_at: Timestamp | None
    next_retry_at: Timestamp | None

    @classmethod
    def of(cls, delivery: Delivery) -> DeliveryView:
        return cls(
            **_taken(cls, delivery),
            event_type=delivery.event,
            error_message=delivery.error,
            attempt_count=delivery.attempts,
            next_retry_at=delivery.next_attempt_at,
        )


class DeliveryPage(Model):
    items: list[DeliveryView]
    total: int
    limit: int
    offset: int
    has_more: bool

    @classmethod
    def of(cls, found: Sequence[Delivery], total: int, query: Page) -> DeliveryPage:
        """Return the page; ``found`` are the deliveries on it."""
        return cls(
            items=[DeliveryView.of(delivery) for delivery in found],
            total=total,
            limit=query.limit,
            offset=query.offset,
            has_more=query.offset + len(found) < total,
        )


class DeliveryList(RootModel[list[DeliveryView]]):
    pass


class DeliveryLimit(BaseModel):
    model_config = ConfigDict(extra="forbid")

    limit: int = Field(50, ge=1, le=100)


class DeliveryQuery(Page):
    limit: int = Field(50, ge=1, le=100)
    hours: int | None = Field(
        None, ge=1, le=MAX_HOURS, description="Only the last so many hours; default: all."
    )


class StatsQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    hours: int = Field(24, ge=1, le=MAX_HOURS)


class Counts(Model):
    total: int
    success: int
    failed: int
    success_rate: float = Field(description="success / (success + failed), 0 to 1; 0 if none.")

    @classmethod
    def of(cls, counted: Counter[DeliveryStatus]) -> Counts:
        over = counted["success"] + counted["failed"]
        return cls(
            total=counted.total(),
            success=counted["success"],
            failed=counted["failed"],
            success_rate=round(counted["success"] / over, 4) if over else 0.0,
        )


class HourView(Model):
    hour: str = Field(description="The hour's beginning, RFC 3339.")
    total: int
    success: int
    failed: int
    pending: int


class Stats(Counts):
    pending: int
    by_event_type: dict[str, dict[str, int]]
    by_hour: list[HourView]

    @classmethod
    def made_of(cls, counted: Iterable[tuple[int, str, DeliveryStatus, int]]) -> Stats:
        """Return the statistics of rows of ``Deliveries.counts``."""
        everything: Counter[DeliveryStatus] = Counter()
        events: defaultdict[str, Counter[DeliveryStatus]] = defaultdict(Counter)
        hours: defaultdict[int, Counter[DeliveryStatus]] = defaultdict(Counter)
        for hour, event, status, number in counted:
            for each in (everything, events[event], hours[hour]):
                each[status] += number
        return cls(
            **Counts.of(everything).model_dump(),
            pending=everything["pending"],
            by_event_type={event: _by_status(found) for event, found in events.items()},
            by_hour=[
                HourView(
                    hour=rfc3339(datetime.fromtimestamp(hour * 3600, UTC)), **_by_status(found)
                )
                for hour, found in sorted(hours.items())
            ],
        )


class AllTime(Counts):
    """Counts of all deliveries that are still stored."""


class TestMessage(Model):
    """The content of the test event; every field is optional."""

    model_config = ConfigDict(extra="forbid", strict=True)
    __test__ = False  # not a pytest test case

    from_: str | None = Field(None, alias="from", max_length=64)
    to: str | None = Field(None, max_length=64)
    message: str | None = Field(None, max_length=2000)
    channel: str | None = Field(
        None, max_length=16, description="Accepted; the test is a voice event."
    )


class TestQuery(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)
    __test__ = False

    agent_id: str | None = Field(None, alias="agentId", min_length=1, max_length=64)


class TestResult(Model):
    """The result of the one attempt, which the list of deliveries shows as well."""

    __test__ = False

    success: bool
    delivery: DeliveryView


def _by_status(counted: Counter[DeliveryStatus]) -> dict[str, int]:
    return {
        "total": counted.total(),
        "success": counted["success"],
        "failed": counted["failed"],
        "pending": counted["pending"],
    }


def _taken(view: type[Model], record: Model) -> dict[str, object]:
    """Return the record's fields that the view has, too."""
    known = type(record).model_fields
    return {name: getattr(record, name) for name in view.model_fields if name in known}
