"""Start Ray again when its head is gone: by the command that started it, where there is one.

The loop calls `missing` whenever Ray's dashboard does not answer. The command (`start.sh --ray-only`, say) does
nothing where Ray runs, so it may be given at any time. What ran is lost with the head; the loop brings it back.
"""

import asyncio
import shlex
import time
from collections.abc import Callable

from reconciler.host import children
from reconciler.host.log import get_logger

log = get_logger()

PATIENCE_SECONDS = 3.0
"""A dashboard that is only slow answers again within that."""
_AGAIN_SECONDS = 20.0
_COMMAND_SECONDS = 120.0
_LONGEST_COMPLAINT = 400


class RayHead:
    """Runs the command, one at a time.

    Args:
        command: Words as a shell reads them; empty where somebody else looks after Ray.
        wake: Called when the command ended well, so that the loop looks at once.
        monotonic: Clock, in seconds.
    """

    def __init__(
        self, command: str, wake: Callable[[], None], *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._words = shlex.split(command)
        self._wake = wake
        self._monotonic = monotonic
        self._missing_since: float | None = None
        self._last_try = -_AGAIN_SECONDS
        self._task: asyncio.Task[None] | None = None

    def answers(self) -> None:
        """Ray was there a moment ago."""
        self._missing_since = None

    def missing(self) -> None:
        """Ray's dashboard does not answer."""
        now = self._monotonic()
        if self._missing_since is None:
            self._missing_since = now
        patient = now - self._missing_since < PATIENCE_SECONDS or now - self._last_try < _AGAIN_SECONDS
        if not self._words or patient or (self._task is not None and not self._task.done()):
            return
        self._last_try = now
        self._task = asyncio.create_task(self._start())

    async def close(self) -> None:
        """Wait for a start that is under way: half a Ray helps nobody."""
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    async def _start(self) -> None:
        log.warning("ray.start_again", command=self._words[0])
        began = self._monotonic()
        try:
            # A session of its own: what ends the reconciler does not end Ray.
            process = await asyncio.create_subprocess_exec(
                *self._words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            log.error("ray.start_failed", reason=str(error))  # noqa: TRY400 -- the reason says it all
            return
        try:
            output, _ = await asyncio.wait_for(process.communicate(), _COMMAND_SECONDS)
        except TimeoutError:
            await children.end(process)
            log.error("ray.start_failed", reason=f"not done within {_COMMAND_SECONDS:.0f} s")  # noqa: TRY400
            return
        if process.returncode:
            reason = output.decode(errors="replace").strip()[-_LONGEST_COMPLAINT:]
            log.error("ray.start_failed", reason=reason or f"exit code {process.returncode}")
            return
        log.info("ray.started", seconds=round(self._monotonic() - began, 1))
        self._wake()
