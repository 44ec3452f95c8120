"""Engines put to sleep and woken, seen from the reconciler: asks `engine_worker`, the one process that speaks Ray.

It is started with the first call, and anew when it ended, or when nobody can tell what became of a call: a driver
of Ray's does not survive its Ray. It holds some 200 MB, and a call that has to start it takes seconds more.
"""

import asyncio
import contextlib
import json
import os
import sys
import time
import weakref
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from reconciler.core.state import Json
from reconciler.ray_serve.client import ServeClient, ServeUnreachableError

WORKER = (sys.executable, "-P", "-m", "reconciler.ray_serve.engine_worker")
_INHERITED = ("PATH", "HOME", "USER", "LANG", "LD_LIBRARY_PATH", "TMPDIR", "TZ", "VIRTUAL_ENV")
"""What the process gets of our environment, which holds tokens; beside Ray's own variables."""
_FLAG = "--gcs-address="
_ANSWER_SECONDS = 5.0
"""How much earlier the worker gives up than we do, so that its words arrive."""
_END_SECONDS = 2.0
"""How long a process may take to end that has closed its output."""
_TAIL_BYTES = 2000
_LONGEST = 300


class EngineCallError(Exception):
    """A call failed, or nobody can tell what became of it: some engines may sleep, and others may not."""


class EngineRefusedError(EngineCallError):
    """The engine itself said no, or is not afterwards as it was told to be; another try would go the same way."""


async def gcs_address(serve: ServeClient) -> str:
    """Host and port of the cluster's GCS, which drivers connect to, asked of Ray's dashboard.

    Every raylet is started with it, and each node's agent reports how its raylet was started.

    Raises:
        EngineCallError: The dashboard does not say.
    """
    try:
        for node in await serve.nodes():
            detail = await serve.node_details(str(node["node_id"]))
            for word in map(str, detail.get("cmdline") or []):
                if word.startswith(_FLAG):
                    return word.removeprefix(_FLAG)
    except ServeUnreachableError as error:
        raise EngineCallError(str(error)) from error
    raise EngineCallError("Ray's dashboard does not say where its GCS is")


class EngineCalls:
    """Calls to all replicas of an application at a time, one call after the other for each application.

    Args:
        address: Finds the GCS, whenever the process has to be started: Ray may have been started anew meanwhile.
        token_path: File with the token of Ray's token authentication; None where our own environment says it all.
        timeout: Seconds that one call may take, with the start of the process. Putting weights into main memory
            that has to be pinned first goes at some GB a second.
        command: The process; it gets the address as its last argument.
    """

    def __init__(
        self,
        address: Callable[[], Awaitable[str]],
        token_path: Path | None = None,
        *,
        timeout: float = 180.0,
        command: Sequence[str] = WORKER,
    ) -> None:
        self._address = address
        self._token_path = token_path
        self._timeout = timeout
        self._command = command
        self._worker: _Worker | None = None
        self._starting = asyncio.Lock()
        self._turns: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    async def sleep(self, application: str) -> None:
        """Put all engines of an application to sleep: weights to main memory, KV cache dropped (level 1).

        Requests in flight are aborted, so it must have been drained. Later ones wait in the engine, for ever.
        vLLM on a CPU, or without `enable_sleep_mode`, answers as if all were well and frees nothing.

        Raises:
            EngineRefusedError: An engine said no.
            EngineCallError: Nobody can tell whether they sleep.
        """
        if not all(await self._call("sleep", application)):
            raise EngineRefusedError("not all of its engines sleep, though none said why")

    async def wake(self, application: str) -> None:
        """Wake all engines of an application; does nothing to those that are awake.

        Raises:
            EngineRefusedError: An engine said no.
            EngineCallError: Nobody can tell whether they are awake.
        """
        if any(await self._call("wake", application)):
            raise EngineRefusedError("some of its engines still sleep, though none said why")

    async def is_sleeping(self, application: str) -> bool:
        """Whether any engine of an application sleeps, or only keeps requests waiting.

        Raises:
            EngineCallError: Nobody can tell.
        """
        return any(await self._call("is_sleeping", application))

    async def close(self) -> None:
        """End the process; calls under way fail."""
        worker, self._worker = self._worker, None
        if worker is not None:
            await worker.end()

    async def _call(self, call: str, application: str) -> list[bool]:
        turn = self._turns.setdefault(application, asyncio.Lock())
        until = time.monotonic() + self._timeout
        try:
            async with asyncio.timeout(self._timeout), turn:
                worker = await self._running()
                seconds = max(0.0, until - time.monotonic() - _ANSWER_SECONDS)
                answer = await worker.ask({"call": call, "application": application, "seconds": seconds})
        except TimeoutError as error:
            raise EngineCallError(f"no answer within {self._timeout:.0f} s") from error
        if "refused" in answer:
            raise EngineRefusedError(str(answer["refused"])[:_LONGEST])
        sleeping = answer.get("sleeping")
        if not isinstance(sleeping, list) or not sleeping:
            reason = answer.get("error") or answer.get("lost") or "no answer that makes sense"
            raise EngineCallError(str(reason)[:_LONGEST])
        return [bool(each) for each in sleeping]

    async def _running(self) -> "_Worker":
        async with self._starting:
            if self._worker is None or self._worker.spent:
                try:
                    command = [*self._command, await self._address()]
                    self._worker = await _Worker.start(command, self._environment())
                except OSError as error:
                    raise EngineCallError(f"the process that speaks to Ray cannot be started: {error}") from error
            return self._worker

    def _environment(self) -> dict[str, str]:
        ours = {key: value for key, value in os.environ.items() if key in _INHERITED or key.startswith("RAY_")}
        ours.pop("RAY_ADDRESS", None)
        if self._token_path is not None:
            ours |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self._token_path.absolute())}
        return ours | {"RAY_USAGE_STATS_ENABLED": "0"}


class _Worker:
    """One process and the calls it has not answered yet.

    Attributes:
        spent: It takes no further calls; it is ended as soon as it has answered those that it has.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._calls: dict[int, asyncio.Future[Json]] = {}
        self._last_id = 0
        self._said = b""
        self._killed = False
        self.spent = False
        self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._read_errors())]

    @classmethod
    async def start(cls, command: Sequence[str], environment: dict[str, str]) -> "_Worker":
        """Start the process."""
        pipe = asyncio.subprocess.PIPE
        return cls(
            await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment)
        )

    async def ask(self, request: dict[str, Any]) -> Json:
        """The answer to a call. Whoever gives up waiting leaves a process that is not asked again."""
        assert self._process.stdin is not None
        self._last_id += 1
        number, answer = self._last_id, asyncio.get_running_loop().create_future()
        self._calls[number] = answer
        try:
            self._process.stdin.write(json.dumps({"id": number, **request}).encode() + b"\n")
            found: Json = await answer
        except BaseException:
            self.spent = True
            raise
        finally:
            self._calls.pop(number, None)
            if self.spent and not self._calls:
                self._kill()
        return found

    async def end(self) -> None:
        """Kill the process and wait until it is gone."""
        self.spent = True
        self._kill()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _listen(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError, KeyError, TypeError):  # What it says makes no sense.
            while line := await self._process.stdout.readline():
                answer = json.loads(line)
                if "lost" in answer:
                    self.spent = True
                call = self._calls.get(answer["id"])
                if call is not None and not call.done():
                    call.set_result(answer)
        self.spent = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), _END_SECONDS)
        self._kill()
        code = await self._process.wait()
        await asyncio.wait(self._tasks[1:], timeout=1)
        said = self._said.decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(said) if line.strip()), "it said nothing")
        for call in self._calls.values():
            if not call.done():
                call.set_exception(
                    EngineCallError(f"the process that speaks to Ray ended ({code}): {last[:_LONGEST]}")
                )

    async def _read_errors(self) -> None:
        assert self._process.stderr is not None
        while text := await self._process.stderr.read(4096):
            self._said = (self._said + text)[-_TAIL_BYTES:]

    def _kill(self) -> None:
        # Once: asking a second time takes its exit code away from asyncio.
        if self._process.returncode is None and not self._killed:
            self._killed = True
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
