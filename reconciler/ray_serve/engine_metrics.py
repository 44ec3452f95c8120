"""What engines measure of themselves, from the metrics agent that Ray runs on each node. Beside the loop.

    Ray's dashboard (where the agents are) -> each agent's /metrics -> `samples` -> core.series

Only the dashboard gets the token: agents ask for none. What they answer is read up to a limit of time and bytes.
"""

import asyncio
import json
import math
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from reconciler.core.metric_names import COUNTERS, GAUGES
from reconciler.core.series import Reading, Sample, readings
from reconciler.ray_serve.client import ServeUnreachableError

_DISCOVERY = "/api/prometheus/sd"
_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9.-]{1,253}):[0-9]{1,5}")
_MOST_TARGETS = 256
_AT_ONCE = 8
_MOST_DISCOVERED = 2**20
_MOST_READ = 2**26
"""Bytes of one agent's page. That of a node with one replica has half a megabyte."""
_MOST_KEPT = 2**22
_CHUNK, _LONGEST_LINE = 2**16, 2**14
_WANTED = tuple(name.encode() for name in COUNTERS | GAUGES)


class EngineMetrics:
    """Reads the measures of one Ray cluster's engines.

    Args:
        dashboard: URL of the Ray dashboard, without a path.
        token_path: File with the token of Ray's token authentication, read anew each time.
        timeout: Seconds that all of one reading may take. Agents that took longer say nothing.
    """

    def __init__(self, dashboard: str, token_path: Path | None = None, *, timeout: float = 5.0) -> None:
        self._url = dashboard.rstrip("/") + _DISCOVERY
        self._token_path = token_path
        self._timeout = timeout

    async def read(self, replicas: Collection[str]) -> dict[str, Reading]:
        """What the engines of these replicas say, by Serve's id of the replica.

        An agent that does not answer takes nothing away from the others. Agents renew what they show every few
        seconds (10 by default).

        Raises:
            ServeUnreachableError: Ray's dashboard does not say where the agents are.
        """
        until = asyncio.get_running_loop().time() + self._timeout
        timeout = aiohttp.ClientTimeout(total=self._timeout)
        # What is packed is left so, and then makes no sense: a small answer cannot become a large one.
        async with aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session:
            targets = await self._targets(session)
            limit = asyncio.Semaphore(_AT_ONCE)
            tasks = [asyncio.create_task(_page(session, limit, target)) for target in targets]
            try:
                left = max(0.0, until - asyncio.get_running_loop().time())
                done = (await asyncio.wait(tasks, timeout=left))[0] if tasks else set()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        pages = [task.result() for task in tasks if task in done]
        return await asyncio.to_thread(_readings, pages, frozenset(replicas))

    async def _targets(self, session: aiohttp.ClientSession) -> list[str]:
        headers = {"User-Agent": "llm-reconciler"}
        try:
            if self._token_path is not None:
                token = (await asyncio.to_thread(self._token_path.read_text)).strip()
                headers["Authorization"] = f"Bearer {token}"
            async with session.get(self._url, headers=headers, allow_redirects=False) as answer:
                text = b""
                while len(text) <= _MOST_DISCOVERED and (chunk := await answer.content.read(_CHUNK)):
                    text += chunk
                if not answer.ok:
                    raise ServeUnreachableError(f"{self._url} answered HTTP {answer.status}")
            return _addresses(json.loads(text))
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, RecursionError) as error:
            reason = str(error) or type(error).__name__
            raise ServeUnreachableError(f"{self._url} does not say where Ray's agents are: {reason}") from error


def _addresses(found: object) -> list[str]:
    groups = found if isinstance(found, list) else []
    lists = [group.get("targets") for group in groups if isinstance(group, dict)]
    each = [target for targets in lists if isinstance(targets, list) for target in targets]
    sound = [target for target in each if isinstance(target, str) and _ADDRESS.fullmatch(target)]
    return list(dict.fromkeys(sound))[:_MOST_TARGETS]


async def _page(session: aiohttp.ClientSession, limit: asyncio.Semaphore, target: str) -> bytes:
    """The lines of an agent's page that are wanted; none where it does not answer as one."""
    headers = {"User-Agent": "llm-reconciler", "Accept-Encoding": "identity", "Accept": "text/plain"}
    kept, rest, read = bytearray(), b"", 0
    try:
        async with (
            limit,
            session.get(f"http://{target}/metrics", headers=headers, allow_redirects=False) as answer,
        ):
            while answer.ok and read < _MOST_READ and len(kept) < _MOST_KEPT:
                chunk = await answer.content.read(_CHUNK)
                if not chunk:
                    kept += _wanted([rest])
                    break
                read += len(chunk)
                *lines, rest = (rest + chunk).split(b"\n")
                kept += _wanted(lines)
                if len(rest) > _LONGEST_LINE:
                    break
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
        return b""
    return bytes(kept)


def _wanted(lines: list[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines if line.startswith(_WANTED) and len(line) <= _LONGEST_LINE)


def samples(lines: Iterable[str]) -> Iterator[Sample]:
    """Finite numbers out of lines in Prometheus's text format; a line that is no sample is passed over."""
    for line in lines:
        # One by one, so that a bad line costs no other; all together would hardly be faster.
        try:
            found = [each for family in text_string_to_metric_families(line) for each in family.samples]
            numbers = [Sample(each.name, each.labels, float(each.value)) for each in found]
        # The last two come for lines that the parser's author did not think of.
        except (ValueError, IndexError, OverflowError):
            continue
        yield from (each for each in numbers if math.isfinite(each.value))


def _readings(pages: list[bytes], replicas: frozenset[str]) -> dict[str, Reading]:
    lines = b"".join(pages).decode(errors="replace").split("\n")
    return readings(samples(lines), replicas)
