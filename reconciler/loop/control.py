"""How other commands speak to the reconciler that runs: over a socket that only its owner can open."""

import asyncio
import time
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
from reconciler.core.turn import Options, Wishes
from reconciler.core.weights_json import states_to_json
from reconciler.loop.by_hand import BAD_REQUEST, NOT_FOUND, STARTING, UNAVAILABLE, ByHand, CommandRefusedError
from reconciler.loop.loop import Loop
from reconciler.loop.told import told_to_json
from reconciler.weights.store import WeightStore

_LONGEST_NAME = 500
_POLL_SECONDS = 0.5

T = TypeVar("T")
A = TypeVar("A", bound="_Asked")


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


def control_app(loop: Loop, weights: WeightStore, by_hand: ByHand) -> Starlette:
    """The ASGI application behind the control socket."""

    async def reconcile(request: Request) -> JSONResponse:
        wishes = await request.json()
        options = Options(
            **{field.name: wishes.get(field.name) is True for field in fields(Wishes)},
            asked_at=time.time(),
            max_loads=loop.options.max_loads,
        )
        look = await _while_asked(request, loop.reconcile_now(options))
        problems = [str(problem) for problem in look.desired.problems]
        return JSONResponse({"plan": plan_to_json(look.plan), "problems": problems})

    async def downloads(_: Request) -> JSONResponse:
        problems = [
            {"repo": repo, "revision": revision, **asdict(problem)}
            for (repo, revision), problem in weights.revisions.problems.items()
        ]
        return JSONResponse({"copies": states_to_json(weights.known()), "revisions": problems})

    async def traffic(_: Request) -> JSONResponse:
        if loop.last is None:
            raise CommandRefusedError(UNAVAILABLE, STARTING)
        return JSONResponse(told_to_json(loop.last.observed))

    async def override(request: Request) -> JSONResponse:
        asked = await _read(request, _Override)
        return JSONResponse(asdict(by_hand.give(asked.kind, asked.model, asked.seconds)))

    async def models(_: Request) -> JSONResponse:
        return JSONResponse(by_hand.models())

    async def suspend(request: Request) -> JSONResponse:
        asked = await _read(request, _Suspend)
        return JSONResponse(asdict(by_hand.suspend(asked.model, asked.seconds, asked.reason)))

    async def resume(request: Request) -> JSONResponse:
        return JSONResponse(asdict(by_hand.resume((await _read(request, _Resume)).model)))

    return Starlette(
        routes=[
            Route("/reconcile", reconcile, methods=["POST"]),
            Route("/downloads", downloads, methods=["GET"]),
            Route("/traffic", traffic, methods=["GET"]),
            Route("/override", override, methods=["POST"]),
            Route("/suspend", suspend, methods=["POST"]),
            Route("/resume", resume, methods=["POST"]),
            Route("/models", models, methods=["GET"]),
        ],
        exception_handlers={CommandRefusedError: _refuse},
    )


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


async def _while_asked(request: Request, work: Coroutine[Any, Any, T]) -> T:
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
    near = {"near": list(refused.near)} if refused.status == NOT_FOUND else {}
    return JSONResponse({"error": str(refused), **near}, status_code=refused.status)
