"""Feel whether Ray's head is there, every few seconds, so that its loss is noticed long before the next look.

A dashboard whose cluster is gone takes calls and never answers; its GCS, once it is gone, refuses a connection at
once. Nothing is concluded here: the loop is woken, looks, and says what it finds.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

from reconciler.ray_serve.engine_calls import EngineCallError

SECONDS = 2.0
"""Between two times."""
_CONNECT_SECONDS = 2.0
_AGAIN_SECONDS = 30.0
"""Before it is asked again where the GCS is: from another network it may never be reached."""


class RayPulse:
    """Connects to the GCS and hangs up.

    Args:
        address: Says where the GCS is, `host:port`; asked until it answers once, and again after a loss.
        wake: Called when it is found to be gone, once for each loss.
        monotonic: Clock, in seconds.
    """

    def __init__(
        self,
        address: Callable[[], Awaitable[str]],
        wake: Callable[[], None],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask, self._wake, self._monotonic = address, wake, monotonic
        self._address: tuple[str, int] | None = None
        self._not_before = monotonic()

    async def feel(self) -> None:
        """Do it once. Where nobody knows where the GCS is, or it cannot be reached from here, that is no loss."""
        known = self._address
        if known is None and self._monotonic() < self._not_before:
            return
        try:
            host, port = known if known is not None else _parts(await self._ask())
            async with asyncio.timeout(_CONNECT_SECONDS):
                _, writer = await asyncio.open_connection(host, port)
        except (OSError, TimeoutError, EngineCallError, ValueError):
            if known is not None:
                self._address = None
                self._wake()
            else:
                self._not_before = self._monotonic() + _AGAIN_SECONDS
            return
        self._address = (host, port)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _parts(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)
