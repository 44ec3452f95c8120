"""How other commands speak to the reconciler that runs: over a socket that only its owner can open."""

import asyncio
from collections.abc import Coroutine
from dataclasses import asdict, fields
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from reconciler.core.overrides import Kind
from reconciler.core.plan_json import plan_to_json
from reconciler.core.turn import Wishes
from reconciler.loop.applying import StaleError
from reconciler.loop.by_hand import (
    BAD_REQUEST,
    CONFLICT,
    NOT_FOUND,
    UNAVAILABLE,
    CommandRefusedError,
    NoLeaseHereError,
)
from reconciler.loop.loop import Look
from reconciler.loop.operations import Operations
from reconciler.loop.rollbacks import RollbackAsked
from reconciler.loop.running import nothing_newer

_LONGEST_NAME = 500
_POLL_SECONDS = 0.5

T = TypeVar("T")
A = TypeVar("A", bound=BaseModel)


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Override(_Asked):
    model: Annotated[str, Field(min_length=1, max_length=_LONGEST_NAME)]
    kind: Kind
    seconds: Annotated[float, Field(allow_inf_nan=False)] | None = None


class _Suspend(_Asked):
    model: Annotated[str, Field(min_length=1, max_length=_LONGEST_NAME)] | None
    """None: all of them."""
    seconds: Annotated[float, Field(allow_inf_nan=False)] | None = None
    reason: str = ""


class _Resume(_Asked):
    model: Annotated[str, Field(min_length=1, max_length=_LONGEST_NAME)] | None


def control_of(operations: Operations) -> Starlette:
    """The ASGI application behind the control socket."""
    answers = _Answers(operations)
    return Starlette(
        routes=[
            Route("/reconcile", answers.reconcile, methods=["POST"]),
            Route("/downloads", answers.downloads, methods=["GET"]),
            Route("/traffic", answers.traffic, methods=["GET"]),
            Route("/override", answers.override, methods=["POST"]),
            Route("/rollback", answers.rollback, methods=["POST"]),
            Route("/apply", answers.apply, methods=["POST"]),
            Route("/sync", answers.sync_now, methods=["POST"]),
            Route("/suspend", answers.suspend, methods=["POST"]),
            Route("/resume", answers.resume, methods=["POST"]),
            Route("/models", answers.models, methods=["GET"]),
        ],
        exception_handlers={CommandRefusedError: _refuse},
    )


class _Answers:
    """What is behind each path."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    async def reconcile(self, request: Request) -> JSONResponse:
        asked = await request.json()
        wishes = Wishes(**{field.name: asked.get(field.name) is True for field in fields(Wishes)})
        return _outcome(await while_asked(request, self._operations.reconcile(wishes)))

    async def downloads(self, _: Request) -> JSONResponse:
        return JSONResponse(self._operations.downloads())

    async def traffic(self, _: Request) -> JSONResponse:
        return JSONResponse(self._operations.traffic())

    async def override(self, request: Request) -> JSONResponse:
        asked = await _read(request, _Override)
        return JSONResponse(asdict(self._operations.give(asked.kind, asked.model, asked.seconds)))

    async def rollback(self, request: Request) -> JSONResponse:
        return JSONResponse(asdict(await self._operations.rollback(await _read(request, RollbackAsked))))

    async def models(self, _: Request) -> JSONResponse:
        return JSONResponse(self._operations.models())

    async def apply(self, request: Request) -> JSONResponse:
        try:
            saved = (await request.body()).decode()
        except UnicodeDecodeError as error:
            raise CommandRefusedError(BAD_REQUEST, str(error)) from error
        try:
            return _outcome(await while_asked(request, self._operations.apply(saved)))
        except StaleError as error:
            return JSONResponse({"stale": list(error.reasons)}, status_code=CONFLICT)

    async def sync_now(self, _: Request) -> JSONResponse:
        return JSONResponse(await self._operations.sync())

    async def suspend(self, request: Request) -> JSONResponse:
        asked = await _read(request, _Suspend)
        return JSONResponse(asdict(self._operations.suspend(asked.model, asked.seconds, asked.reason)))

    async def resume(self, request: Request) -> JSONResponse:
        return JSONResponse(asdict(self._operations.resume((await _read(request, _Resume)).model)))


def _outcome(look: Look) -> JSONResponse:
    problems = [str(problem) for problem in look.desired.problems]
    held_back = nothing_newer(look.desired.provenance)
    return JSONResponse({"plan": plan_to_json(look.plan), "problems": problems, "source_problem": held_back})


async def _read(request: Request, kind: type[A]) -> A:
    """What is asked for.

    Raises:
        CommandRefusedError: It is nothing of that kind; the reason names the first mistake.
    """
    try:
        return kind.model_validate_json(await request.body())
    except ValidationError as error:
        mistake = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in mistake["loc"])
        reason = f"{where}: {mistake['msg']}" if where else mistake["msg"]
        raise CommandRefusedError(BAD_REQUEST, reason) from error


async def while_asked(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Work for as long as the client is there: what it allowed must not hold on after it has left."""
    task = asyncio.create_task(work)
    try:
        while not task.done():
            await asyncio.wait([task], timeout=_POLL_SECONDS)
            if await request.is_disconnected():
                raise CommandRefusedError(UNAVAILABLE, "the client has left")
        return await task
    finally:
        task.cancel()


async def _refuse(_: Request, refused: Exception) -> JSONResponse:
    assert isinstance(refused, CommandRefusedError)
    more: dict[str, object] = {"near": list(refused.near)} if refused.status == NOT_FOUND else {}
    if isinstance(refused, NoLeaseHereError):
        more["lease"] = True
    return JSONResponse({"error": str(refused), **more}, status_code=refused.status)
