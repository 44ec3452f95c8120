"""How other commands speak to the reconciler that runs: over a socket that only its owner can open."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import asdict, fields
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from reconciler.activator.directory import Directory
from reconciler.core.overrides import Kind, OverrideError, in_words
from reconciler.core.plan_json import plan_to_json
from reconciler.core.spec import Policy
from reconciler.core.target import Target
from reconciler.core.turn import Options, Wishes
from reconciler.core.weights_json import states_to_json
from reconciler.loop.loop import Loop
from reconciler.loop.overrides import OverrideStore
from reconciler.loop.running import Given
from reconciler.loop.told import told_to_json
from reconciler.weights.store import WeightStore

_BAD_REQUEST, _NOT_FOUND, _CONFLICT, _FAULT, _UNAVAILABLE = 400, 404, 409, 500, 503
_STARTING = "the reconciler has not finished its first look yet; try again shortly"
_LONGEST_NAME = 500
_POLL_SECONDS = 0.5

T = TypeVar("T")


class CommandRefusedError(Exception):
    """A command by hand that is not carried out; the message says why, and `status` is its HTTP status."""

    def __init__(self, status: int, reason: str, near: tuple[str, ...] = ()) -> None:
        super().__init__(reason)
        self.status = status
        self.near = near


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    model: Annotated[str, Field(min_length=1, max_length=_LONGEST_NAME)]
    kind: Kind
    seconds: Annotated[float, Field(allow_inf_nan=False)] | None = None


class ByHand:
    """Commands about one model, from the control socket and from the front door."""

    def __init__(self, loop: Loop, overrides: OverrideStore, directory: Callable[[], Directory]) -> None:
        """Carry out nothing yet.

        Args:
            loop: Knows what is declared.
            overrides: Keeps what is asked for, and wakes the loop.
            directory: What the front door says of models, as of the last turn.
        """
        self._loop = loop
        self._overrides = overrides
        self._directory = directory

    def give(self, kind: Kind, name: str, seconds: float | None) -> Given:
        """Carry out a command.

        Args:
            kind: The command.
            name: The model, or an alias or adapter of it.
            seconds: How long it is to hold; None where nothing was said.

        Raises:
            CommandRefusedError: It is not carried out.
        """
        if self._loop.last is None:
            raise CommandRefusedError(_UNAVAILABLE, _STARTING)
        target = _target(self._loop.last.desired.targets, name)
        if target is None:
            near = self._directory().near(name)
            raise CommandRefusedError(_NOT_FOUND, f"no valid model file declares {name[:_LONGEST_NAME]!r}", near)
        policy = target.spec.lifecycle.policy
        window = self._loop.last.observed.windows.get(target.model)
        if window is not None and window.open and kind in (Kind.UNLOAD, Kind.UNPIN):
            policy = Policy.PINNED  # Until the window closes.
        now = time.time()
        try:
            given = self._overrides.give(kind, target.model, policy, seconds)
        except OverrideError as error:
            raise CommandRefusedError(_CONFLICT, str(error)) from error
        except OSError as error:
            raise CommandRefusedError(_FAULT, f"the command could not be written down: {error}") from error
        if given is None:
            text = f"what was asked for by hand is ended; its file says {policy}"
            return Given(target.model, kind, None, None, text)
        # As it is at the moment it is given, however long it took to write it down.
        text = in_words(given, policy, max(now, given.since))
        return Given(target.model, kind, given.since, given.until, text)

    async def command(self, verb: str, model: str) -> str | None:
        """For the front door: load or unload a model.

        Args:
            verb: `load` or `unload`.
            model: Its name, or an alias or adapter of it.

        Returns:
            None where it is accepted, else the reason why not.
        """
        try:
            self.give(Kind(verb), model, None)
        except CommandRefusedError as refused:
            return str(refused)
        return None

    def models(self) -> dict[str, Any]:
        """Where each model stands, and what holds for it by hand.

        Raises:
            CommandRefusedError: Nobody has looked yet.
        """
        if self._loop.last is None:
            raise CommandRefusedError(_UNAVAILABLE, _STARTING)
        overrides = self._overrides.active()
        rows = [
            {
                "model": entry.name,
                "state": entry.state.value,
                "reason": entry.reason,
                "expected_wait": entry.expected_wait,
                "override": asdict(overrides[entry.name]) if entry.name in overrides else None,
            }
            for entry in self._directory().entries
        ]
        return {"looked_at": self._loop.last.observed.now, "models": rows}


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
            raise CommandRefusedError(_UNAVAILABLE, _STARTING)
        return JSONResponse(told_to_json(loop.last.observed))

    async def override(request: Request) -> JSONResponse:
        try:
            asked = _Asked.model_validate_json(await request.body())
        except ValidationError as error:
            mistake = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in mistake["loc"])
            reason = f"{where}: {mistake['msg']}" if where else mistake["msg"]
            raise CommandRefusedError(_BAD_REQUEST, reason) from error
        return JSONResponse(asdict(by_hand.give(asked.kind, asked.model, asked.seconds)))

    async def models(_: Request) -> JSONResponse:
        return JSONResponse(by_hand.models())

    return Starlette(
        routes=[
            Route("/reconcile", reconcile, methods=["POST"]),
            Route("/downloads", downloads, methods=["GET"]),
            Route("/traffic", traffic, methods=["GET"]),
            Route("/override", override, methods=["POST"]),
            Route("/models", models, methods=["GET"]),
        ],
        exception_handlers={CommandRefusedError: _refuse},
    )


async def _while_asked(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Work for as long as the client is there: what it allowed must not hold on after it has left."""
    task = asyncio.create_task(work)
    try:
        while not task.done():
            await asyncio.wait([task], timeout=_POLL_SECONDS)
            if await request.is_disconnected():
                raise CommandRefusedError(_UNAVAILABLE, "the client has left")
        return await task
    finally:
        task.cancel()


async def _refuse(_: Request, refused: Exception) -> JSONResponse:
    assert isinstance(refused, CommandRefusedError)
    near = {"near": list(refused.near)} if refused.status == _NOT_FOUND else {}
    return JSONResponse({"error": str(refused), **near}, status_code=refused.status)


def _target(targets: Mapping[str, Target], name: str) -> Target | None:
    """The declared model of that name, or with that alias or adapter."""
    if name in targets:
        return targets[name]
    return next((target for target in targets.values() if name in _other_names(target)), None)


def _other_names(target: Target) -> tuple[str, ...]:
    return (*target.spec.aliases, *(adapter.name for adapter in target.spec.adapters))
