"""How other commands speak to the reconciler that runs: over a socket that only its owner can open."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import asdict, fields
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from reconciler.core.overrides import Kind
from reconciler.core.plan_json import plan_to_json
from reconciler.core.saved_plan import SavedPlanError, saved_from_text
from reconciler.core.turn import Options, Wishes
from reconciler.core.weights_json import states_to_json
from reconciler.loop.applying import StaleError, apply_now
from reconciler.loop.by_hand import (
    BAD_REQUEST,
    CONFLICT,
    NOT_FOUND,
    STARTING,
    UNAVAILABLE,
    ByHand,
    CommandRefusedError,
    NoLeaseHereError,
)
from reconciler.loop.lease import Keeper
from reconciler.loop.loop import Loop
from reconciler.loop.rollbacks import RollbackHand, rollback_endpoint
from reconciler.loop.told import freshness_to_json, told_to_json
from reconciler.ray_serve.client import ServeUnreachableError
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


def control_app(
    loop: Loop,
    weights: WeightStore,
    by_hand: ByHand,
    *,
    rollback: RollbackHand,
    sync: Callable[[], Awaitable[dict[str, object]]],
    lease: Keeper,
) -> Starlette:
    """The ASGI application behind the control socket.

    Args:
        loop: Takes turns when it is asked to.
        weights: Says how far downloads are.
        by_hand: Carries out commands about models.
        rollback: Takes models back to earlier versions.
        sync: Looks at the source, and says what it found.
        lease: Without it nothing is written, and nobody is to wait for it.
    """
    answers = _Answers(loop, weights, by_hand, sync, lease)
    return Starlette(
        routes=[
            Route("/reconcile", answers.reconcile, methods=["POST"]),
            Route("/downloads", answers.downloads, methods=["GET"]),
            Route("/traffic", answers.traffic, methods=["GET"]),
            Route("/override", answers.override, methods=["POST"]),
            Route("/rollback", rollback_endpoint(rollback), methods=["POST"]),
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

    def __init__(
        self,
        loop: Loop,
        weights: WeightStore,
        by_hand: ByHand,
        sync: Callable[[], Awaitable[dict[str, object]]],
        lease: Keeper,
    ) -> None:
        self._loop, self._weights, self._by_hand, self._sync = loop, weights, by_hand, sync
        self._lease = lease

    async def reconcile(self, request: Request) -> JSONResponse:
        wishes = await request.json()
        options = Options(
            **{field.name: wishes.get(field.name) is True for field in fields(Wishes)},
            asked_at=time.time(),
            max_loads=self._loop.options.max_loads,
        )
        self._must_write()
        await self._sync()  # Who asks by hand asks for what is wanted now.
        look = await _while_asked(request, self._loop.reconcile_now(options))
        problems = [str(problem) for problem in look.desired.problems]
        return JSONResponse({"plan": plan_to_json(look.plan), "problems": problems})

    async def downloads(self, _: Request) -> JSONResponse:
        problems = [
            {"repo": repo, "revision": revision, **asdict(problem)}
            for (repo, revision), problem in self._weights.revisions.problems.items()
        ]
        return JSONResponse({"copies": states_to_json(self._weights.known()), "revisions": problems})

    async def traffic(self, _: Request) -> JSONResponse:
        if self._loop.last is None:
            raise CommandRefusedError(UNAVAILABLE, STARTING)
        last = self._loop.last
        return JSONResponse({"traffic": told_to_json(last.observed), "source": freshness_to_json(last.desired)})

    async def override(self, request: Request) -> JSONResponse:
        asked = await _read(request, _Override)
        return JSONResponse(asdict(self._by_hand.give(asked.kind, asked.model, asked.seconds)))

    async def models(self, _: Request) -> JSONResponse:
        return JSONResponse(self._by_hand.models())

    async def apply(self, request: Request) -> JSONResponse:
        try:
            saved = saved_from_text((await request.body()).decode())
        except (SavedPlanError, UnicodeDecodeError) as error:
            raise CommandRefusedError(BAD_REQUEST, str(error)) from error
        self._must_write()
        if self._loop.last is None:
            raise CommandRefusedError(UNAVAILABLE, STARTING)
        options = Options(asked_at=time.time(), max_loads=self._loop.options.max_loads)
        try:
            look = await _while_asked(request, apply_now(self._loop, saved, options))
        except StaleError as error:
            return JSONResponse({"stale": list(error.reasons)}, status_code=CONFLICT)
        except ServeUnreachableError as error:
            raise CommandRefusedError(UNAVAILABLE, str(error)) from error
        problems = [str(problem) for problem in look.desired.problems]
        return JSONResponse({"plan": plan_to_json(look.plan), "problems": problems})

    def _must_write(self) -> None:
        if not self._lease.holds():
            raise NoLeaseHereError(self._lease.why_not())

    async def sync_now(self, _: Request) -> JSONResponse:
        return JSONResponse(await self._sync())

    async def suspend(self, request: Request) -> JSONResponse:
        asked = await _read(request, _Suspend)
        return JSONResponse(asdict(self._by_hand.suspend(asked.model, asked.seconds, asked.reason)))

    async def resume(self, request: Request) -> JSONResponse:
        return JSONResponse(asdict(self._by_hand.resume((await _read(request, _Resume)).model)))


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
    more: dict[str, object] = {"near": list(refused.near)} if refused.status == NOT_FOUND else {}
    if isinstance(refused, NoLeaseHereError):
        more["lease"] = True
    return JSONResponse({"error": str(refused), **more}, status_code=refused.status)
