"""Beside the loop: one worker of Ray's that waits, with vLLM imported, for Serve's next build task.

    ensure -> /proc: is one there? -> the head's raylet: `PrestartWorkers` -> a worker, which runs `spare.preload`

Serve builds every application in a fresh worker, which imports vLLM first (7 s). Ray gives a waiting worker to the
next task or actor whose environment is just `core.fast_start.BUILD_ENVIRONMENT`, and ends it after its task; the
spare is then replaced. All of it is a favour: without a spare, or with a Ray that knows the call no more, a build
only takes longer. The call is Ray's own and not public (Ray 2.60, node_manager.proto).
"""

import asyncio
import contextlib
import importlib
import json
import os
import signal
import time
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path

from reconciler.core.fast_start import BUILD_ENVIRONMENT, HOOK_ENV, SPARE_HOOK
from reconciler.core.state import Json
from reconciler.host.log import get_logger
from reconciler.host.main_memory import available_bytes
from reconciler.ray_serve.client import ServeClient
from reconciler.ray_serve.spare import JOB_ENV, NO_JOB

log = get_logger()

KEEP_SECONDS = 3600
"""How long Ray keeps a spare at any rate. It may end one later; whoever looks next has it replaced."""
_LEAST_FREE_BYTES, _END_BELOW_BYTES = 4 * 2**30, 3 * 2**30
"""Main memory that must be free for a spare to be started, and to be kept: it takes 0.7 GiB itself."""
_AGAIN_SECONDS = 600.0
"""Pause after one that did not come up, or that is gone though nothing was built."""
_RISE_SECONDS, _LOOK_SECONDS = 30.0, 0.5
_CALL = "/ray.rpc.NodeManagerService/PrestartWorkers"
_CALL_SECONDS = 5.0
_RUN_ENV = "RECONCILE_RAY_RUN"
"""What `start.sh` marks every process of the Ray that it started with."""
_AT_WORK = b"ray::"
_WAITS = b"ray::IDLE"


class NotWarmedError(Exception):
    """There is no spare, for a reason that the text gives."""


async def prestart(address: str, token: str, environment: Json, seconds: int) -> None:
    """Have a raylet start a worker for `environment` that it keeps for `seconds`, work or none.

    Args:
        address: Host and port of the raylet.
        token: Of Ray's token authentication; empty without.
        environment: A `runtime_env` of environment variables alone.
        seconds: How long the worker is kept at any rate.

    Raises:
        NotWarmedError: The raylet, or the gRPC package that comes with Ray, says no.
    """
    try:
        grpc = importlib.import_module("grpc")
        aio = importlib.import_module("grpc.aio")
    except ImportError as error:
        raise NotWarmedError(f"gRPC cannot be imported: {error}") from error
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    async with aio.insecure_channel(address) as channel:
        try:
            await channel.unary_unary(_CALL)(
                _request(environment, seconds), metadata=metadata, timeout=_CALL_SECONDS
            )
        except grpc.RpcError as error:
            raise NotWarmedError(f"Ray's raylet says {error.code().name}: {error.details()}"[:300]) from error


def spares(run: str, proc: Path = Path("/proc")) -> list[int]:
    """The processes of this user that wait for a build, or are about to.

    Args:
        run: The mark of the Ray that they belong to.
        proc: Where processes are looked up.
    """
    marks = {f"{_RUN_ENV}={run}".encode(), f"{HOOK_ENV}={SPARE_HOOK}".encode(), f"{JOB_ENV}={NO_JOB}".encode()}
    found = []
    for folder in proc.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            # The title tells one that has work now; what starts has none of Ray's yet.
            title = (folder / "cmdline").read_bytes()
            waits = not title.startswith(_AT_WORK) or title.startswith(_WAITS)
            if title and waits and marks <= set((folder / "environ").read_bytes().split(b"\0")):
                found.append(int(folder.name))
        except OSError:
            continue  # It has ended, or is somebody else's.
    return sorted(found)


def _terminate(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)


class WarmBuild:
    """Keeps one spare on the head node, which must be this machine; or none.

    Args:
        client: Open.
        token_path: File with the token of Ray's token authentication.
        run_file: Where `start.sh` keeps the mark of the Ray that it started.
        wanted: Keep one. Else one that an earlier reconciler has left is ended, once.
        start: Starts a spare, as `prestart`; another one for tests, as what follows.
        find: Finds spares, as `spares`.
        end: Ends a process.
        free: Bytes of main memory that are free.
        clock: Seconds, monotonic.
        rise_seconds: How long it may take until a spare is seen that was started.
    """

    def __init__(
        self,
        client: ServeClient,
        token_path: Path | None,
        run_file: Path,
        *,
        wanted: bool,
        start: Callable[[str, str, Json, int], Awaitable[None]] = prestart,
        find: Callable[[str], list[int]] = spares,
        end: Callable[[int], None] = _terminate,
        free: Callable[[], int | None] = available_bytes,
        clock: Callable[[], float] = time.monotonic,
        rise_seconds: float = _RISE_SECONDS,
    ) -> None:
        self._client = client
        self._token_path = token_path
        self._run_file = run_file
        self._wanted = wanted
        self._start = start
        self._find = find
        self._end = end
        self._free = free
        self._clock = clock
        self._rise_seconds = rise_seconds
        self._run = ""
        self._known: frozenset[str] = frozenset()
        self._used = True
        self._tried_at = 0.0
        self._complaint = ""
        self._task: asyncio.Task[None] | None = None

    def ensure(self, applications: Collection[str]) -> None:
        """See to it that a spare waits, beside the loop; to be called when nothing is being loaded.

        Args:
            applications: Serve's applications by name: a new one has used up the spare that was there.
        """
        if self._task is None or (self._wanted and self._task.done()):
            self._task = asyncio.create_task(self._ensure(frozenset(applications)))

    async def close(self) -> None:
        """Give up what is under way. The spare stays for the next reconciler; it ends with Ray."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _ensure(self, applications: frozenset[str]) -> None:
        try:
            run = (await asyncio.to_thread(self._run_file.read_text, encoding="ascii")).strip()
            self._used = self._used or run != self._run or bool(applications - self._known)
            self._run, self._known = run, applications
            await self._keep_one(run)
        except Exception as error:  # noqa: BLE001 -- whatever it is: builds take longer, and nothing else
            reason = str(error) or type(error).__name__
            if self._wanted and reason != self._complaint:
                log.warning("build.not_warmed", reason=reason)
            self._complaint = reason

    async def _keep_one(self, run: str) -> None:
        waiting = await asyncio.to_thread(self._find, run)
        free = (self._free() or 0) if self._wanted else 0
        enough = free >= (_END_BELOW_BYTES if waiting else _LEAST_FREE_BYTES)
        for pid in waiting[1:] if enough else waiting:
            self._end(pid)
        if waiting:
            self._used = False
        elif enough and (self._used or self._clock() - self._tried_at >= _AGAIN_SECONDS):
            self._used, self._tried_at = False, self._clock()
            await self._start_one(run)
            self._complaint = ""

    async def _start_one(self, run: str) -> None:
        token = ""
        if self._token_path is not None:
            token = (await asyncio.to_thread(self._token_path.read_text, encoding="ascii")).strip()
        await self._start(await self._raylet(), token, BUILD_ENVIRONMENT, KEEP_SECONDS)
        until = time.monotonic() + self._rise_seconds
        while not await asyncio.to_thread(self._find, run):
            if time.monotonic() > until:
                raise NotWarmedError(f"Ray has started no worker within {self._rise_seconds:.0f} s")
            await asyncio.sleep(_LOOK_SECONDS)

    async def _raylet(self) -> str:
        """Host and port of the head's raylet.

        Raises:
            NotWarmedError: The dashboard does not say.
            ServeUnreachableError: It does not answer.
        """
        head = next((node for node in await self._client.nodes() if node.get("is_head_node")), None)
        if head is not None:
            raylet: Json = (await self._client.node_details(str(head["node_id"]))).get("raylet") or {}
            if raylet.get("nodeManagerAddress") and raylet.get("nodeManagerPort"):
                return f"{raylet['nodeManagerAddress']}:{raylet['nodeManagerPort']}"
        raise NotWarmedError("Ray's dashboard does not say where the head's raylet is")


def _request(environment: Json, seconds: int) -> bytes:
    """`PrestartWorkersRequest` with one worker, in protobuf's wire format: Ray's own classes would import Ray."""
    # Ray tells environments apart by the hash of this text: keys sorted, separators as they are by default.
    text = json.dumps(environment, sort_keys=True).encode()
    # RuntimeEnvConfig: setup_timeout_seconds 600, eager_install.
    config = b"\x08\xd8\x04\x10\x01"
    # RuntimeEnvInfo: serialized_runtime_env (1), runtime_env_config (3). Both are shorter than 16 KiB.
    info = b"\x0a" + _varint(len(text)) + text + b"\x1a" + _varint(len(config)) + config
    # language (1) PYTHON is the default; runtime_env_info (3), keep_alive_duration_secs (4), num_workers (5).
    return b"\x1a" + _varint(len(info)) + info + b"\x20" + _varint(seconds) + b"\x28\x01"


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:  # noqa: PLR2004 -- seven bits a byte
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])
