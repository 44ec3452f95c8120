"""Sleep and wake through a real Ray, as `start.sh` starts it: which replicas are reached, and what if Ray ends.

The engines are stand-ins without vLLM, so that this takes a minute and can make them refuse and hang.
"""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from stack import Stack

from reconciler.ray_serve.client import ServeClient
from reconciler.ray_serve.engine_calls import EngineCallError, EngineCalls, EngineRefusedError, gcs_address

pytestmark = pytest.mark.e2e


class Engine:
    """What Ray's `LLMServer` offers, on the second of two replicas with a mind of its own."""

    def __init__(self, mind: str) -> None:
        self._mind = mind
        self._asleep = False

    async def __call__(self) -> str:
        return "ok"

    async def sleep(self, **options: Any) -> None:
        assert options == {"level": 1}
        if self._mind == "refuses":
            raise RuntimeError("CUDA Error: out of memory")
        if self._mind == "hangs":
            await asyncio.sleep(600)
        self._asleep = True

    async def wakeup(self, **options: Any) -> None:
        assert options == {}
        self._asleep = False

    async def is_sleeping(self) -> bool:
        return self._asleep


def build(args: dict[str, Any]) -> Any:
    """For Serve, which imports this module by name."""
    from ray import serve

    options = {"name": "LLMServer:tiny", "num_replicas": 2, "ray_actor_options": {"num_cpus": 0}}
    deployment: Any = serve.deployment(Engine, **options)
    return deployment.bind(args["mind"])


async def test_every_replica_is_reached_and_a_ray_that_ends_is_an_error(bare: Stack) -> None:
    token = bare.state / "ray-token"
    minds = ("willing", "refuses", "hangs")
    config = {
        "proxy_location": "Disabled",
        "applications": [
            {
                "name": mind,
                "import_path": f"{Path(__file__).stem}:build",
                "args": {"mind": mind},
                "route_prefix": f"/{mind}",
            }
            for mind in minds
        ],
    }
    async with ServeClient(bare.dashboard, token) as serve:
        await serve.put(config)
        for _ in range(240):
            applications = (await serve.instance())["applications"]
            if [each["status"] for each in applications.values()] == ["RUNNING"] * len(minds):
                break
            await asyncio.sleep(0.5)
        assert await gcs_address(serve) == f"127.0.0.1:{bare.ports['RAY_PORT']}"
        calls = EngineCalls(lambda: gcs_address(serve), token, timeout=90)
        try:
            assert not await calls.is_sleeping("willing")
            await calls.sleep("willing")
            assert await calls._call("is_sleeping", "willing") == [True, True]
            await calls.wake("willing")
            assert await calls._call("is_sleeping", "willing") == [False, False]
            with pytest.raises(EngineRefusedError, match="RuntimeError: CUDA Error: out of memory"):
                await calls.sleep("refuses")
            with pytest.raises(EngineCallError, match="no application nobody"):
                await calls.sleep("nobody")

            worker = calls._worker
            hanging = asyncio.create_task(calls.sleep("hangs"))
            await asyncio.sleep(2)
            await asyncio.to_thread(bare.stop)
            began = time.monotonic()
            with pytest.raises(EngineCallError) as lost:
                await hanging
            assert type(lost.value) is EngineCallError, "no engine said no"
            assert time.monotonic() - began < 90
            assert calls._worker is worker, "until then it was one process for all calls"
            with pytest.raises(EngineCallError, match="does not answer"):
                await calls.is_sleeping("willing")
        finally:
            await calls.close()
