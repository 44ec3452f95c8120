"""All edges as one: the loop's view of the edge of this machine and of those on other nodes, its followers.

A follower (follow.py) calls here, so no node has to be reached from this one. Each call says which routes it has
and how much it is used; it is answered at once where there is something new, else after a second. What a follower
has in flight that is silent, or behind with its routes, is unknown, and unknown counts as in use.
"""

import asyncio
import contextlib
import hmac
import json
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, Field, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from reconciler.core.keys import KeyRing
from reconciler.edge.access import Access
from reconciler.edge.edge import Edge, EdgeUnreachableError, Usage
from reconciler.edge.reports import SYNC_PATH, Answer, Name, Report, read_token
from reconciler.edge.usage import add_up
from reconciler.host.files import write_atomic
from reconciler.host.log import get_logger

_SHARED_FILE: Final = "edge-token"
_KNOWN_FILE: Final = "edges.json"
_LOST_NAMES: Final = "(one whose name edges.json lost)"
_HOLD_SECONDS: Final = 1.0
_SILENT_SECONDS: Final = 3.0
_ACKNOWLEDGE_SECONDS: Final = 5.0
_LEASE_SECONDS: Final = 600.0
_BODY_SECONDS: Final = 10.0
_MOST_BYTES: Final = 2**20
_MOST_FOLLOWERS: Final = 64

log = get_logger()


@dataclass(slots=True)
class _Follower:
    """What is known about one.

    Attributes:
        heard_at: When it last reported, or when this process, which knew it from before, began.
        heard: It has reported to this process and was not silent since.
        silent: Its silence was noticed.
        agent: The process that speaks for it.
        version: Of the routes that it had.
        usage: What it reported.
        key_usage: Requests by a key's fingerprint, as it reported last; kept where it is silent.
    """

    heard_at: float
    heard: bool = False
    silent: bool = False
    agent: str = ""
    version: str | None = None
    usage: dict[str, Usage] = field(default_factory=dict)
    key_usage: dict[str, int] = field(default_factory=dict)


class Edges:
    """Every edge there is, with the interface of one.

    Args:
        local: The edge of this machine.
        state_dir: Where the names of followers and their token are kept.
        lease_seconds: After so long a silence a follower is taken to be gone.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        local: Edge,
        state_dir: Path,
        *,
        lease_seconds: float = _LEASE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._local = local
        self._state_dir = state_dir
        self._lease = lease_seconds
        self._clock = clock
        # A number alone would mean other routes after a restart.
        self._epoch = secrets.token_hex(8)
        self._changes = 0
        self._routes: dict[str, str] | None = None
        self._access: Access | None = None
        self._revisions: dict[str, str] | None = None
        self._changing_routes = asyncio.Lock()
        self._news = asyncio.Condition()
        self._followers = {name: _Follower(clock()) for name in self._known()}

    async def ensure_running(self) -> bool:
        """`Edge.ensure_running` of the local edge. Notices followers that fell silent."""
        self._look_around()
        return await self._local.ensure_running()

    async def is_running(self) -> bool:
        """Whether the local edge accepts connections now."""
        return await self._local.is_running()

    async def routes(self) -> dict[str, str]:
        """Model name to application, as the local edge has it; followers have it from there."""
        return await self._local.routes()

    async def set_routes(self, routes: Mapping[str, str]) -> None:
        """Make these the routes of every edge.

        Followers that report have them on return, unless one takes longer than 5 seconds. For as long as one has
        not, usage is unknown.

        Args:
            routes: Model name to application name; all of them.

        Raises:
            ValueError: As `Edge.set_routes`; nothing was changed.
            OSError: As `Edge.set_routes`; nothing was changed.
            EdgeUnreachableError: The local edge answers and yet does not take them. No follower was told.
        """
        async with self._changing_routes:
            await self._local.set_routes(routes)
            if routes != self._routes:
                self._routes = dict(routes)
                self._changes += 1
        self._look_around()
        async with self._news:
            self._news.notify_all()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ACKNOWLEDGE_SECONDS):
                    await self._news.wait_for(self._all_acknowledged)

    async def set_keys(self, ring: KeyRing, now: float) -> None:
        """Let the keys that are valid infer at every edge, and no other. Followers get digests, and at once.

        A follower that is silent keeps those that it had, each until it expires.

        Args:
            ring: All keys.
            now: Seconds since the epoch.

        Raises:
            ValueError: As `Edge.set_keys`; nothing was changed.
            OSError: As `Edge.set_keys`. Followers were told.
            EdgeUnreachableError: As `Edge.set_keys`. Followers were told.
        """
        access = Access.of(ring, now)
        if access != self._access:
            # First: a key that was revoked ends everywhere, whatever becomes of the edge here.
            self._access = access
            await self._changed()
        await self._local.set_access(access)

    async def set_revisions(self, revisions: Mapping[str, str]) -> None:
        """`Edge.set_revisions` at every edge.

        Raises:
            ValueError: As there; nothing was changed.
            OSError: As there. No follower was told.
            EdgeUnreachableError: As there. No follower was told.
        """
        await self._local.set_revisions(revisions)
        if revisions != self._revisions:
            self._revisions = dict(revisions)
            await self._changed()

    async def key_usage(self) -> dict[str, int]:
        """Requests that were let through, by a key's fingerprint, over all edges; each since it was started.

        Of a follower, what it said last. So a sum falls where an edge was started anew, or was forgotten.

        Raises:
            EdgeUnreachableError: The local edge is down.
        """
        total = Counter(await self._local.key_usage())
        for follower in self._followers.values():
            total.update(follower.key_usage)
        return dict(total)

    async def usage(self) -> dict[str, Usage]:
        """What is in flight and for how long nothing was, by application, over all edges.

        What followers say is about a second old at the most, so something may have begun since that is not in it.
        Route away first: whatever began before that is in what is said afterwards.

        Raises:
            EdgeUnreachableError: The local edge is down, or a follower is silent or has not the newest routes.
        """
        here = await self._local.usage()
        self._look_around()
        for name, follower in sorted(self._followers.items()):
            if not follower.heard:
                quiet = self._clock() - follower.heard_at
                raise EdgeUnreachableError(f"the edge {name} has not reported for {quiet:.0f} seconds")
            if follower.version != self._version:
                raise EdgeUnreachableError(f"the edge {name} has not taken the newest routes yet")
        return add_up([here, *(follower.usage for follower in self._followers.values())])

    async def touch(self, applications: Iterable[str]) -> None:
        """`Edge.touch` of the local edge: of several idle times the shortest counts."""
        await self._local.touch(applications)

    def asgi(self, app: ASGIApp) -> ASGIApp:
        """`app` with the address that followers call. Their token is made where there is none.

        Raises:
            OSError: The token's file cannot be read or written.
            ValueError: It holds no token.
        """
        expected = f"Bearer {_token(self._state_dir / _SHARED_FILE)}".encode()

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or scope["path"] != SYNC_PATH:
                await app(scope, receive, send)
                return
            request = Request(scope, receive)
            given = request.headers.get("Authorization", "").encode("latin-1")
            if not hmac.compare_digest(given, expected):
                response = _refusal(401, "this needs the token of the reconciler's edges")
            elif request.method != "POST":
                response = _refusal(405, "only POST")
            else:
                response = await self._sync(request)
            await response(scope, receive, send)

        return answer

    async def _sync(self, request: Request) -> JSONResponse:
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                report = Report.model_validate_json(await _body(request))
        except ValidationError as error:
            return _refusal(400, f"no report: {error.errors()[0]['msg']}")
        except (ValueError, TimeoutError, ClientDisconnect):
            return _refusal(400, "no report: its body is too large, or it did not arrive")
        complaint = self._hear(report)
        if complaint is not None:
            return complaint
        if self._access is None:
            return _refusal(503, "it is not known yet who may infer")
        if self._routes is None:
            async with self._changing_routes:
                # Nobody has set any since this process began.
                self._routes = self._routes if self._routes is not None else await self._local.routes()
        async with self._news:
            self._news.notify_all()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_HOLD_SECONDS):
                    await self._news.wait_for(lambda: self._version != report.version)
        answer = Answer(version=self._version, routes=None, wait=_HOLD_SECONDS)
        if self._version != report.version:
            news = {"routes": self._routes, "access": self._access, "revisions": self._revisions}
            answer = answer.model_copy(update=news)
        return JSONResponse(answer.model_dump(exclude_unset=True))

    def _hear(self, report: Report) -> JSONResponse | None:
        """Take a report in, or say why not."""
        self._look_around()
        follower = self._followers.get(report.edge)
        if follower is None:
            if len(self._followers) >= _MOST_FOLLOWERS:
                return _refusal(429, f"there are {_MOST_FOLLOWERS} edges already")
            follower = self._followers[report.edge] = _Follower(self._clock())
            self._save()
        elif follower.heard and follower.agent != report.agent:
            return _refusal(409, f"another process speaks for the edge {report.edge}, or did a moment ago")
        if not follower.heard:
            log.info("edge.joined", edge=report.edge)
        follower.heard, follower.silent, follower.heard_at = True, False, self._clock()
        follower.agent, follower.version = report.agent, report.version
        follower.usage = {name: Usage(use.in_flight, use.idle_seconds) for name, use in report.usage.items()}
        follower.key_usage = dict(report.key_usage)
        return None

    async def _changed(self) -> None:
        self._changes += 1
        async with self._news:
            self._news.notify_all()

    def _look_around(self) -> None:
        for name, follower in list(self._followers.items()):
            quiet = self._clock() - follower.heard_at
            if quiet > self._lease:
                log.warning("edge.forgotten", edge=name)
                del self._followers[name]
                self._save()
            elif quiet > _SILENT_SECONDS and not follower.silent:
                log.warning("edge.silent", edge=name)
                follower.heard, follower.silent = False, True

    def _all_acknowledged(self) -> bool:
        return all(each.version == self._version for each in self._followers.values() if each.heard)

    @property
    def _version(self) -> str:
        return f"{self._epoch}.{self._changes}"

    def _known(self) -> list[str]:
        try:
            return list(_Known.model_validate_json((self._state_dir / _KNOWN_FILE).read_bytes()).edges)
        except FileNotFoundError:
            return []
        except (OSError, ValidationError):
            # There was at least one: for a lease, usage is unknown.
            return [_LOST_NAMES]

    def _save(self) -> None:
        file = self._state_dir / _KNOWN_FILE
        try:
            write_atomic(file, json.dumps({"edges": sorted(self._followers.keys() - {_LOST_NAMES})}))
        except OSError as error:
            log.warning("edges.unsaved", file=str(file), reason=str(error))


class _Known(BaseModel):
    """edges.json."""

    edges: Annotated[list[Name], Field(max_length=_MOST_FOLLOWERS)]


def _token(path: Path) -> str:
    if not path.exists():
        write_atomic(path, secrets.token_hex(32))
    return read_token(path)


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MOST_BYTES:
            raise ValueError("too large")
    return bytes(body)


def _refusal(status: int, reason: str) -> JSONResponse:
    # What is left of the body is not read.
    return JSONResponse({"error": reason}, status, headers={"Connection": "close"})
