"""``/v1/agents/{id}/tasks``: have Twilio call somebody, and repeat it until somebody answers."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any, Self

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, StrictStr, field_validator
from pydantic.alias_generators import to_camel

from core.errors import Conflict, Detail, NotFound, Unprocessable
from core.models import Model, PhoneNumber, Timestamp, new_id
from gateway.api import faults
from gateway.api.from_number import E164, Metadata
from gateway.calls.tasks.dialler import calls_by_twilio, not_a_caller_id
from gateway.calls.variables import Variables
from gateway.fields.recording import AsksForRecording
from gateway.fields.times import UtcTime
from gateway.http.body import parse_body, parse_query
from gateway.http.idempotency import once
from gateway.http.paging import Listing, Page
from gateway.http.principal import PRINCIPAL, scope_of
from gateway.http.route import Route
from gateway.keys import AGENTS, CLOCK, NUMBERS, STORE, TASKS, call_services
from gateway.store.database import Scope
from gateway.store.streams.tasks import Retry, RetryOn, Task, TaskStatus, Wanted

_UNTIL = timedelta(hours=24)
_WORDS = Annotated[StrictStr, Field(min_length=1, max_length=5_000)]


class RetryPolicy(BaseModel):
    """Whether and when a call that nobody answered is repeated."""

    model_config = ConfigDict(alias_generator=to_camel, extra="forbid")

    max_attempts: int = Field(1, ge=1, le=10, strict=True, description="The first one counts.")
    delay_seconds: int = Field(
        300, ge=10, le=86_400, strict=True, description="From the end of one call to the next."
    )
    on: list[RetryOn] = Field(["busy", "no-answer"], min_length=1, max_length=3)
    until: UtcTime | None = Field(
        None, description="No attempt begins later; default: 24 hours after the request."
    )

    @field_validator("on")
    @classmethod
    def _once(cls, value: list[RetryOn]) -> list[RetryOn]:
        return sorted(set(value))


class CreateTask(AsksForRecording):
    model_config = ConfigDict(alias_generator=to_camel, extra="forbid")

    to: E164 = Field(description="E.164.", examples=["+15551234567"])
    from_number: E164 | None = Field(
        None,
        alias="from",
        description="A Twilio number of the caller's, E.164; default: the first of the agent's "
        "that may call out.",
    )
    instance_id: StrictStr | None = Field(
        None, min_length=1, max_length=200, description="{{instanceId}} in the agent's texts."
    )
    goal: _WORDS | None = Field(None, description="{{goal}} in the agent's texts.")
    metadata: Metadata | None = Field(None, description="Stored on the record of each call.")
    variables: Variables | None = Field(
        None, description="Replace {{name}} in the agent's texts and prompts."
    )
    retry: RetryPolicy | None = Field(None, description="Default: one attempt.")


class RetryView(Model):
    max_attempts: int
    delay_seconds: int
    on: list[RetryOn]
    until: Timestamp


class TaskView(Model):
    """A task, and how far it is."""

    id: str = Field(examples=["task_…"])
    agent_id: str
    status: TaskStatus = Field(
        description="queued: waits for an attempt. in-progress: its call rings or goes on. "
        "completed: somebody answered, and the call has ended."
    )
    failure: str | None = Field(
        description="Why it failed, or why it waits: a call's disconnectionReason (dial_busy), or "
        "an error's code (CONCURRENCY_LIMIT)."
    )
    to: str
    from_number: str = Field(alias="from")
    from_number_id: str
    instance_id: str | None
    goal: str | None
    metadata: dict[str, Any]
    variables: dict[str, str | None]
    record: bool = Field(description="Record its calls.")
    retry: RetryView
    attempts: int
    call_id: str | None = Field(description="The newest attempt's call, for GET /v1/calls/{id}.")
    calls: list[str] = Field(description="The calls of all attempts, the oldest first.")
    next_attempt_at: Timestamp | None
    created_at: Timestamp
    ended_at: Timestamp | None

    @classmethod
    def of(cls, task: Task) -> Self:
        return cls(
            **task.model_dump(include={"id", "agent_id", "status", "failure", "attempts", "calls"}),
            **task.wanted.model_dump(exclude={"retry"}),
            to=task.to_number,
            from_number=task.from_number,
            from_number_id=task.phone_number_id,
            retry=RetryView(**task.wanted.retry.model_dump(), until=task.until),
            call_id=task.calls[-1] if task.calls else None,
            next_attempt_at=task.due_at if task.status == "queued" else None,
            created_at=task.created_at,
            ended_at=task.ended_at,
        )


class TaskList(Listing[TaskView]):
    pass


class TasksQuery(Page):
    status: TaskStatus | None = None


async def create(request: web.Request) -> web.StreamResponse:
    """Accept a task. Its calls are placed after the response; each has a record of its own."""
    principal = request[PRINCIPAL]
    body = await parse_body(request, CreateTask)
    tasks = call_services(request.app).tasks

    async def effect() -> dict[str, Any]:
        task = _task(request, body, await _caller_id(request, body))
        await tasks.add(task)
        return TaskView.of(task).wire()

    return await once(request, request.app[STORE], principal, body, effect, status=202)


async def listing(request: web.Request) -> web.StreamResponse:
    query = parse_query(request, TasksQuery)
    scope, agent_id = scope_of(request), request.match_info["id"]
    await request.app[AGENTS].require(scope, agent_id)
    found, total = await request.app[TASKS].page(
        scope, agent_id, query.status, limit=query.limit, offset=query.offset
    )
    return web.json_response(
        TaskList.of([TaskView.of(task) for task in found], total, query).wire()
    )


async def show(request: web.Request) -> web.StreamResponse:
    return web.json_response(TaskView.of(await _found(request)).wire())


async def cancel(request: web.Request) -> web.StreamResponse:
    """Cancel the task, and end its call while that rings. No further attempt is made."""
    tasks = call_services(request.app).tasks
    return web.json_response(TaskView.of(await tasks.cancel(await _found(request))).wire())


async def _found(request: web.Request) -> Task:
    task = await request.app[TASKS].find(scope_of(request), request.match_info["taskId"])
    if task is None or task.agent_id != request.match_info["id"]:
        raise NotFound("Task not found", code="TASK_NOT_FOUND")
    return task


def _task(request: web.Request, body: CreateTask, number: PhoneNumber) -> Task:
    moment = request.app[CLOCK]()
    retry = body.retry or RetryPolicy()
    until = retry.until or moment + _UNTIL
    if until <= moment:
        fault = Detail("retry.until", "It is in the past", "value_error")
        raise Unprocessable(f"retry.until: {fault.message}", details=[fault])
    return Task(
        id=new_id("task"),
        auth_id=number.auth_id,
        agent_id=request.match_info["id"],
        phone_number_id=number.id,
        credential_id=number.credential_id or "",
        from_number=number.phone_number,
        to_number=body.to,
        wanted=Wanted(
            instance_id=body.instance_id,
            goal=body.goal,
            metadata=body.metadata or {},
            variables=body.variables or {},
            record=bool(body.wants_recording),
            retry=Retry(**retry.model_dump(exclude={"until"})),
        ),
        created_at=moment,
        until=until,
        due_at=moment,
    )


async def _caller_id(request: web.Request, body: CreateTask) -> PhoneNumber:
    """Return the number to call from.

    Raises NotFound, Conflict ``NO_NUMBER``, Forbidden ``FROM_NUMBER_NOT_ALLOWED``.
    """
    scope, agent_id = scope_of(request), request.match_info["id"]
    if body.from_number is not None:
        number = await request.app[NUMBERS].by_number(scope, body.from_number)
        if number is None or not calls_by_twilio(number):
            raise not_a_caller_id()
        # An operator calls on behalf of the number's owner, with an agent that the owner may use.
        await request.app[AGENTS].require(Scope(number.auth_id), agent_id)
        return number
    await request.app[AGENTS].require(scope, agent_id)
    numbers = await request.app[NUMBERS].of_agent(scope, agent_id)
    if not any(number.provider == "twilio" for number in numbers):
        raise Conflict("The agent has no Twilio number to call from", code="NO_NUMBER")
    for number in numbers:
        if calls_by_twilio(number):
            return number
    raise not_a_caller_id()


_NO_TASK = (404, "TASK_NOT_FOUND")

ROUTES: tuple[Route, ...] = (
    Route(
        "POST /v1/agents/{id}/tasks",
        create,
        "Have Twilio call somebody, until somebody answers",
        body=CreateTask,
        answer=TaskView,
        status=202,
        errors=(
            (403, "FROM_NUMBER_NOT_ALLOWED"),
            faults.DESTINATION,
            *faults.CALLED_AGENT,
            (409, "NO_NUMBER"),
            faults.NOT_CONFIGURED,
            faults.STORE,
        ),
        idempotent=True,
    ),
    Route(
        "GET /v1/agents/{id}/tasks",
        listing,
        "An agent's tasks, newest first",
        query=TasksQuery,
        answer=TaskList,
        errors=(faults.NO_AGENT, faults.STORE),
    ),
    Route(
        "GET /v1/agents/{id}/tasks/{taskId}",
        show,
        "One task",
        answer=TaskView,
        errors=(_NO_TASK, faults.STORE),
    ),
    Route(
        "DELETE /v1/agents/{id}/tasks/{taskId}",
        cancel,
        "Cancel a task",
        answer=TaskView,
        errors=(
            _NO_TASK,
            (409, "CALL_ANSWERED"),
            (409, "TASK_FINISHED"),
            faults.NOT_CONFIGURED,
            faults.STORE,
        ),
    ),
)
