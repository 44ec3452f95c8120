"""The cluster's GPUs: what Ray has reserved of them, and their memory as each node's driver sees it."""

import asyncio
import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence

from reconciler.core.devices import Reading, devices
from reconciler.core.fit.gpus import GIB
from reconciler.core.state import Application, Device, Node
from reconciler.host.nvml import Gpus
from reconciler.host.settings import Settings
from reconciler.loop.memory import Memory
from reconciler.ray_serve.client import ServeClient, ServeUnreachableError
from reconciler.ray_serve.gpus import readings
from reconciler.ray_serve.observed import nodes

_REMOTE_SECONDS = 5.0
"""How old a reading of another node may be; its agent makes one every 2.5 s."""
_FIRST_LOOKS = 10
"""How often an agent is asked that has just started: without its answer models would be started unweighed."""


class GpuObserver:
    """Looks at GPUs: NVML's on this machine, through Ray's dashboard on the others.

    Args:
        serve: An open client.
        memory: Settles what others seem to have.
        here: This machine's GPUs; None where engines compute on the CPU.
        simulated: Bytes that each GPU counts as having where there are none; 0 where nobody said.
        clock: In seconds.
        pause: Seconds between two looks at a node that has not said anything yet.
    """

    def __init__(
        self,
        serve: ServeClient,
        memory: Memory,
        *,
        here: Gpus | None,
        simulated: int = 0,
        clock: Callable[[], float] = time.monotonic,
        pause: float = 1.0,
    ) -> None:
        self._serve = serve
        self._memory = memory
        self._here = here
        self._simulated = simulated
        self._clock = clock
        self._pause = pause
        self._local_nodes: dict[str, bool] = {}
        self._remote: dict[str, tuple[float, tuple[Reading, ...]]] = {}
        self._last: dict[str, tuple[Device, ...]] = {}
        self.used: dict[tuple[str, int], int] = {}
        """Bytes in use of each GPU, by Ray's id of its node and its index, as last read."""

    async def nodes(self, applications: Mapping[str, Application]) -> tuple[Node, ...]:
        """Every node with GPUs.

        Raises:
            ServeUnreachableError: Ray's dashboard did not answer.
        """
        ours = sum(_reserved(app) for app in applications.values() if app.model is not None)
        found = nodes(await self._serve.nodes(), await self._serve.gpu_usage(), ours)
        foreign = sum(node.gpus_foreign for node in found)
        settled = self._memory.settle("gpus", foreign)
        scale = settled / foreign if foreign else 0.0
        found = tuple(dataclasses.replace(node, gpus_foreign=node.gpus_foreign * scale) for node in found)
        if self._here is None:
            return tuple(dataclasses.replace(node, devices=self._made_up(node)) for node in found)
        local = await asyncio.to_thread(self._here.readings)
        wanted = any(app.demand.gpus > 0 for app in applications.values())
        return tuple(await asyncio.gather(*(self._with_devices(node, local, wanted=wanted) for node in found)))

    async def _with_devices(self, node: Node, local: tuple[Reading, ...], *, wanted: bool) -> Node:
        known = self._last.get(node.id, ())
        try:
            read = await self._read(node.id, local)
        except ServeUnreachableError:
            read = ()  # One agent that does not answer is no reason to stop everything.
        if not read:
            here = self._local_nodes.get(node.id, False)
            return dataclasses.replace(node, devices=_vanished(known, ()) if here else known)
        self.used.update({(node.id, reading.index): reading.used for reading in read if reading.total})
        seen = devices(read, promised=wanted or node.gpus_foreign > 0)
        seen = (*(self._settled(node.id, device) for device in seen), *_vanished(known, seen))
        if len(seen) != int(node.gpus):
            # Ray was told of other GPUs than the driver shows, so nobody can tell which is which.
            return node
        self._last[node.id] = tuple(sorted(seen, key=lambda device: device.index))
        return dataclasses.replace(node, devices=self._last[node.id])

    async def _read(self, node_id: str, local: tuple[Reading, ...]) -> tuple[Reading, ...]:
        if self._local_nodes.get(node_id):
            return local
        at, remote = self._remote.get(node_id, (float("-inf"), ()))
        if self._clock() - at > _REMOTE_SECONDS:
            remote = await self._ask(node_id, patiently=node_id not in self._remote)
            self._remote[node_id] = (self._clock(), remote)
        if {reading.uuid for reading in local} & {reading.uuid for reading in remote} - {""}:
            self._local_nodes[node_id] = True
            return local
        return remote

    async def _ask(self, node_id: str, *, patiently: bool) -> tuple[Reading, ...]:
        found: tuple[Reading, ...] = ()
        for attempt in range(_FIRST_LOOKS if patiently else 1):
            if attempt:
                await asyncio.sleep(self._pause)
            found = readings(await self._serve.node_details(node_id))
            if found:
                break
        return found

    def _settled(self, node_id: str, device: Device) -> Device:
        # For a moment, the memory of a process of Ray's that ended looks like somebody else's.
        foreign = self._memory.settle(f"{node_id}/{device.uuid or device.index}", device.foreign)
        return dataclasses.replace(device, foreign=int(foreign))

    def _made_up(self, node: Node) -> tuple[Device, ...]:
        if not self._simulated:
            return ()
        return tuple(Device(index, name="simulated", total=self._simulated) for index in range(int(node.gpus)))


def gpu_observer(settings: Settings, client: ServeClient, memory: Memory) -> GpuObserver | None:
    """What looks at the cluster's GPUs; None where no model can reserve any."""
    if settings.device == "cuda":
        return GpuObserver(client, memory, here=Gpus(os.environ.get("CUDA_VISIBLE_DEVICES")))
    if not settings.simulate_gpus:
        return None
    return GpuObserver(client, memory, here=None, simulated=int((settings.simulated_gpu_memory_gib or 0) * GIB))


def here_alone(gpus: Gpus) -> tuple[Node, ...]:
    """This machine as a node, where no Ray runs."""
    found = devices(gpus.readings(), promised=False)
    return (Node("here", len(found), devices=found, host="here"),) if found else ()


def _reserved(app: Application) -> float:
    return app.demand.replicas * app.demand.ranks * app.demand.gpus


def _vanished(known: Sequence[Device], seen: Sequence[Device]) -> tuple[Device, ...]:
    """GPUs that were there and are not listed any more: an agent leaves out those that it cannot read."""
    there = {device.uuid for device in seen}
    return tuple(
        dataclasses.replace(device, failed="its driver does not list it any more; look at `nvidia-smi` and dmesg")
        for device in known
        if device.uuid and device.uuid not in there
    )
