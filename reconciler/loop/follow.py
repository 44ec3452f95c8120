"""`reconcile edge follow`: keep an edge on another node running as the reconciler says, and report its use.

On the other side is edges.py. No request needs this process: while it is away, or the reconciler is, the edge goes
on serving by the routes, and for the keys, that it had last.
"""

import asyncio
import re
import secrets
from pathlib import Path
from typing import Final

import aiohttp
from pydantic import TypeAdapter, ValidationError

from reconciler.edge.edge import Edge, EdgeUnreachableError
from reconciler.edge.reports import SYNC_PATH, Answer, Name, Report, Use, read_token
from reconciler.host.log import get_logger
from reconciler.loop.front_door import FrontDoor

_CHECK_SECONDS: Final = 1.0
_ANSWER_SECONDS: Final = 5.0
_SHORTEST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 1.0
_MOST_BYTES: Final = 4 * 2**20
_URL: Final = re.compile(r"http://[^\s/@?#]+/?")

log = get_logger()


class _LostError(Exception):
    """The reconciler has no report of ours; the message says why."""


async def follow(
    edge: Edge, url: str, token_path: Path, edge_id: str, stop: asyncio.Event, *, exposed: bool = False
) -> None:
    """Follow a reconciler until told to stop. The edge goes on afterwards.

    Args:
        edge: The edge of this node.
        url: Where the reconciler's activator listens, as seen from here: `http://127.0.0.1:4001`.
        token_path: File with a copy of the reconciler's token. It is read for each report, so it may be replaced.
        edge_id: The edge's name, of all that follow this reconciler.
        stop: Set to end.
        exposed: Strangers reach this edge, so it runs only where the reconciler asks for keys.

    Raises:
        ValueError: The URL or the name has characters that it may not have.
    """
    if not _URL.fullmatch(url):
        raise ValueError(f"the reconciler's URL must be http://HOST:PORT, not {url!r}")
    try:
        TypeAdapter(Name).validate_python(edge_id)
    except ValidationError:
        raise ValueError(f"an edge's name has letters, digits, '.', '_' and '-', unlike {edge_id!r}") from None
    front_door = FrontDoor(edge)
    reporter = _Reporter(edge, url.rstrip("/"), token_path, edge_id, exposed=exposed)
    if reporter.may_run:
        await front_door.ensure_running()
    tasks = [
        asyncio.create_task(_keep_running(front_door, reporter)),
        asyncio.create_task(reporter.run()),
        asyncio.create_task(stop.wait()),
    ]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


async def _keep_running(front_door: FrontDoor, reporter: "_Reporter") -> None:
    while True:
        await asyncio.sleep(_CHECK_SECONDS)
        if reporter.may_run:
            await front_door.ensure_running()


class _Reporter:
    """Reports, and takes routes, one call after the other."""

    def __init__(self, edge: Edge, url: str, token_path: Path, edge_id: str, *, exposed: bool) -> None:
        self._exposed = exposed
        self.may_run = not exposed
        """The edge may be started: nobody is let in whom the reconciler would ask for a key."""
        self._edge = edge
        self._url = url
        self._token_path = token_path
        self._edge_id = edge_id
        self._agent = secrets.token_hex(8)
        self._version: str | None = None
        self._routes: dict[str, str] | None = None
        self._wait = 0.0
        self._complaint: str | None = None
        self._connected = False

    async def run(self) -> None:
        pause = _SHORTEST_PAUSE
        # No redirects, no cookies, no proxy of the environment: the token is for one address.
        async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), trust_env=False) as session:
            while True:
                try:
                    await self._sync(session)
                except _LostError as error:
                    self._note_loss(str(error))
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE)
                else:
                    pause = _SHORTEST_PAUSE

    async def _sync(self, session: aiohttp.ClientSession) -> None:
        if not self.may_run:
            await self._wait_for_keys(session)
            return
        try:
            # Whoever else changed them, or took them away: they are asked for again.
            if await self._edge.routes() != self._routes:
                self._version = None
            # After the routes: what begins from here on goes by them.
            usage = await self._edge.usage()
            key_usage = await self._edge.key_usage()
        except EdgeUnreachableError as error:
            raise _LostError(str(error)) from error
        uses = {name: Use(in_flight=use.in_flight, idle_seconds=use.idle_seconds) for name, use in usage.items()}
        report = Report(
            edge=self._edge_id, agent=self._agent, version=self._version, usage=uses, key_usage=key_usage
        )
        answer = await self._call(session, report)
        if answer.routes is not None:
            await self._check(answer)
            try:
                # Before the routes: a model that they bring is open to nobody for whom it is not meant.
                if answer.access is not None:
                    await self._edge.set_access(answer.access)
                if answer.revisions is not None:
                    await self._edge.set_revisions(answer.revisions)
                await self._edge.set_routes(answer.routes)
            except (EdgeUnreachableError, OSError, ValueError) as error:
                raise _LostError(f"what it gave cannot be set: {error}") from error
            self._version, self._routes = answer.version, answer.routes
        self._wait = answer.wait
        if not self._connected:
            log.info("follow.connected", reconciler=self._url)
        self._connected, self._complaint = True, None

    async def _wait_for_keys(self, session: aiohttp.ClientSession) -> None:
        """Ask who may infer, while this edge does not run."""
        report = Report(edge=self._edge_id, agent=self._agent, version=None, usage={}, key_usage={})
        answer = await self._call(session, report)
        await self._check(answer)
        assert answer.access is not None
        try:
            await self._edge.set_access(answer.access)
        except (EdgeUnreachableError, OSError, ValueError) as error:
            raise _LostError(f"what it gave cannot be set: {error}") from error
        self.may_run = True

    async def _check(self, answer: Answer) -> None:
        if answer.access is None:
            raise _LostError("it does not say who may infer; it is of another version")
        if self._exposed and not answer.access.required:
            self.may_run = False
            await self._edge.stop()
            raise _LostError(
                "it asks nobody for a key, and strangers reach this edge, which is stopped; "
                "`reconcile keys add NAME` there makes one"
            )

    async def _call(self, session: aiohttp.ClientSession, report: Report) -> Answer:
        try:
            token = await asyncio.to_thread(read_token, self._token_path)
        except (OSError, ValueError) as error:
            raise _LostError(str(error)) from error
        try:
            async with session.post(
                f"{self._url}{SYNC_PATH}",
                data=report.model_dump_json(),
                headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
                timeout=aiohttp.ClientTimeout(total=self._wait + _ANSWER_SECONDS),
                allow_redirects=False,
            ) as response:
                body = await _body(response)
        except (aiohttp.ClientError, OSError) as error:
            raise _LostError(str(error) or "it does not answer in time") from error
        if response.status != 200:  # noqa: PLR2004 -- OK
            raise _LostError(f"it answered {response.status}: {body[:200].decode(errors='replace')!r}")
        try:
            return Answer.model_validate_json(body)
        except ValidationError as error:
            raise _LostError(f"it gave no routes: {error.errors()[0]['msg']}") from error

    def _note_loss(self, reason: str) -> None:
        if reason != self._complaint:
            log.warning("follow.lost", reconciler=self._url, reason=reason)
        self._connected, self._complaint = False, reason


async def _body(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > _MOST_BYTES:
            raise _LostError("its answer is too large")
    return bytes(body)
