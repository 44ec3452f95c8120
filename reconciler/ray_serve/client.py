"""Ray's dashboard over HTTP: Serve's declarative API, the nodes, and the logs of replicas.

The only module that speaks to Serve. It moves JSON and raises `ServeUnreachableError` or `ServeRefusedError`;
what the JSON means is `ray_serve.observed`'s business.
"""

import asyncio
import json
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp

from reconciler.core.secrets import without_secrets
from reconciler.core.state import Json

_APPLICATIONS = "/api/serve/applications/"
_PUT_SECONDS = 60.0
"""The first PUT starts Serve, which takes its time."""
_REDACTED = "<redacted>"


class ServeUnreachableError(Exception):
    """Ray's dashboard did not answer, or answered that it cannot at the moment. Nothing may be concluded."""


class ServeRefusedError(Exception):
    """Serve understood the request and refused it."""


class ServeClient:
    """A client of one Ray cluster.

    Args:
        dashboard: URL of the Ray dashboard, without a path.
        token_path: File with the token of Ray's token authentication, read anew for every session.
        timeout: Seconds that a look may take. A dashboard whose cluster is gone takes calls and never answers, so
            this is how soon that is noticed.
    """

    def __init__(self, dashboard: str, token_path: Path | None = None, *, timeout: float = 5.0) -> None:
        self._url = dashboard.rstrip("/")
        self._token_path = token_path
        self._timeout = timeout
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        headers = {"User-Agent": "llm-reconciler"}
        if self._token_path is not None:
            try:
                token = (await asyncio.to_thread(self._token_path.read_text)).strip()
            except OSError as error:
                raise ServeUnreachableError(f"Ray's token file {self._token_path}: {error.strerror}") from error
            headers["Authorization"] = f"Bearer {token}"
        self._session = aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=self._timeout))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def instance(self, *, patience: float | None = None) -> Json:
        """Serve's own description of itself: settings, applications, deployments, replicas.

        Args:
            patience: Seconds that it may take, where that is not what every look may take.

        Raises:
            ServeUnreachableError: Ray's dashboard or Serve's controller did not answer.
        """
        details: Json = json.loads(await self._call("GET", _APPLICATIONS, patience=patience))
        return details

    async def put(self, config: Json) -> None:
        """Replace Serve's whole declarative configuration. What `config` leaves out is deleted.

        Raises:
            ServeRefusedError: The configuration is not valid, or would pass on redacted values.
            ServeUnreachableError: Nobody answered; whether it was taken is for the next observation to say.
        """
        text = json.dumps(config)
        if f'"{_REDACTED}"' in text:
            raise ServeRefusedError("Ray redacted environment variables; passing them on would destroy them")
        await self._call("PUT", _APPLICATIONS, text, patience=_PUT_SECONDS)

    async def gpu_usage(self) -> dict[str, tuple[float, float]]:
        """Reserved and total GPUs by node id, as Ray's autoscaler last saw them (some seconds old)."""
        answer = json.loads(await self._call("GET", "/api/cluster_status"))
        report = ((answer.get("data") or {}).get("clusterStatus") or {}).get("loadMetricsReport") or {}
        usage: dict[str, tuple[float, float]] = {}
        for node, resources in (report.get("usageByNode") or {}).items():
            reserved, total = (resources or {}).get("GPU", (0.0, 0.0))
            usage[node] = (float(reserved), float(total))
        return usage

    async def nodes(self) -> list[Json]:
        """The nodes that are alive, as Ray's state API describes them."""
        answer = json.loads(await self._call("GET", "/api/v0/nodes?detail=1&limit=1000"))
        rows: list[Json] = ((answer.get("data") or {}).get("result") or {}).get("result") or []
        return [row for row in rows if row.get("state") == "ALIVE"]

    async def node_details(self, node_id: str) -> Json:
        """What a node's own agent reports: GPUs, workers, actors, all of it at most some seconds old.

        A node that Ray does not know has none of these.

        Raises:
            ServeUnreachableError: Ray's dashboard did not answer.
        """
        # Ray's cache answers with what it was asked last, however long ago, and asks anew for the next time.
        answer = json.loads(await self._call("GET", f"/nodes/{node_id}?nocache=1"))
        detail: Json = (answer.get("data") or {}).get("detail") or {}
        return detail

    async def replica_log(self, node_id: str, actor_id: str, *, suffix: str, lines: int = 400) -> str:
        """The end of what a replica printed (`suffix`: out or err), also of one that died; empty if unknown."""
        path = f"/api/v0/logs/file?node_id={node_id}&actor_id={actor_id}&suffix={suffix}&lines={lines}"
        try:
            return await self._call("GET", path)
        except (ServeRefusedError, ServeUnreachableError):
            return ""

    async def actors(self) -> list[Json]:
        """The actors that are alive, as Ray's state API describes them.

        Raises:
            ServeUnreachableError: Ray's dashboard did not answer.
        """
        alive = "detail=1&limit=10000&filter_keys=state&filter_predicates=%3D&filter_values=ALIVE"
        answer = json.loads(await self._call("GET", f"/api/v0/actors?{alive}"))
        rows: list[Json] = ((answer.get("data") or {}).get("result") or {}).get("result") or []
        return rows

    async def start_logs(self, actor_id: str, *, most: int = 2**20) -> list[str]:
        """The beginnings of what a replica and the workers of its engine printed; empty where nobody can say.

        With Ray's executor, which engines on GPUs use, a worker is an actor with a log of its own, in the
        replica's placement group. The other executors' workers print to the replica's log.

        Args:
            actor_id: The replica.
            most: Bytes that are read of each log. Its end may say anything: requests can get into it.
        """
        assert self._session is not None, "use the client as a context manager"
        found: list[str] = []
        try:
            rows = await self.actors()
            group = next((row.get("placement_group_id") for row in rows if row["actor_id"] == actor_id), None)
            for row in rows:
                if row["actor_id"] != actor_id and (group is None or row.get("placement_group_id") != group):
                    continue
                path = f"/api/v0/logs/file?node_id={row['node_id']}&actor_id={row['actor_id']}&suffix=out&lines=-1"
                async with self._session.get(self._url + path) as log:
                    text = b""
                    while log.ok and len(text) < most and (chunk := await log.content.read(most - len(text))):
                        text += chunk
                    found.append(text.decode(errors="replace"))
        except (ServeRefusedError, ServeUnreachableError, aiohttp.ClientError, TimeoutError, OSError):
            return found
        return found

    async def _call(
        self, method: str, path: str, body: str | None = None, *, patience: float | None = None
    ) -> str:
        assert self._session is not None, "use the client as a context manager"
        headers = {"Content-Type": "application/json"} if body is not None else {}
        try:
            async with self._session.request(
                method,
                self._url + path,
                data=body,
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=patience or self._timeout),
            ) as answer:
                text = await answer.text()
                status = answer.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise ServeUnreachableError(f"Ray's dashboard at {self._url} does not answer: {reason}") from error
        if status in (401, 403):
            raise ServeUnreachableError(
                f"Ray's dashboard at {self._url} wants a token (HTTP {status}): set RAY_AUTH_TOKEN_PATH"
            )
        if status < 400:  # noqa: PLR2004
            return text
        text = without_secrets(text)
        if status >= 500:  # noqa: PLR2004
            raise ServeUnreachableError(f"Ray's dashboard at {self._url} answered HTTP {status}: {text[:300]}")
        raise ServeRefusedError(f"HTTP {status}: {text[:2000]}")
