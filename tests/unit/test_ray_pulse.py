"""The loss of Ray's head is felt at once, and once."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from reconciler.loop.ray_pulse import RayPulse
from reconciler.ray_serve.engine_calls import EngineCallError


class Gcs:
    """Listens, or does not."""

    def __init__(self) -> None:
        self.port, self.asked, self.known = 0, 0, True
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def address(self) -> str:
        self.asked += 1
        if not self.known:
            raise EngineCallError("the dashboard does not say")
        return f"127.0.0.1:{self.port}"


@pytest.fixture
async def gcs() -> AsyncIterator[Gcs]:
    gcs = Gcs()
    await gcs.start()
    yield gcs
    await gcs.stop()


async def test_a_loss_wakes_once_and_a_return_is_no_loss(gcs: Gcs) -> None:
    woken: list[None] = []
    now = [0.0]
    pulse = RayPulse(gcs.address, lambda: woken.append(None), monotonic=lambda: now[0])
    for _ in range(3):
        await pulse.feel()
    assert (gcs.asked, woken) == (1, [])
    await gcs.stop()
    for _ in range(3):
        await pulse.feel()
    assert len(woken) == 1
    assert gcs.asked == 2, "not every two seconds"
    now[0] = 60.0
    await gcs.start()
    await pulse.feel()
    await pulse.feel()
    assert len(woken) == 1
    await gcs.stop()
    await pulse.feel()
    assert len(woken) == 2


async def test_where_nobody_knows_where_it_is_nothing_is_lost(gcs: Gcs) -> None:
    woken: list[None] = []
    pulse = RayPulse(gcs.address, lambda: woken.append(None))
    gcs.known = False
    await pulse.feel()
    await gcs.stop()
    gcs.known = True
    await pulse.feel()
    assert woken == []
