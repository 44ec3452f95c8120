"""The cluster's GPUs as the loop sees them: this machine's through NVML, others' through Ray, made-up ones."""

from pathlib import Path
from typing import Any

import pytest

from reconciler.core.devices import Process, Reading
from reconciler.core.fit.gpus import GIB, MIB
from reconciler.core.state import Application, Demand, Json, Node, Status
from reconciler.loop.gpus import GpuObserver, here_alone
from reconciler.loop.memory import Memory
from reconciler.ray_serve.client import ServeUnreachableError


class Dashboard:
    """Ray's dashboard: two nodes with two GPUs each."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.broken: set[str] = set()
        self.on_third: tuple[str, Json] | None = None
        self.details: dict[str, Json] = {"a": gpus("GPU-a0", "GPU-a1"), "b": gpus("GPU-b0", "GPU-b1")}

    async def nodes(self) -> list[Json]:
        return [
            {
                "node_id": name,
                "node_name": f"host-{name}",
                "resources_total": {"GPU": 2.0, "accelerator_type:X": 1.0},
            }
            for name in self.details
        ]

    async def gpu_usage(self) -> dict[str, tuple[float, float]]:
        return dict.fromkeys(self.details, (0.0, 2.0))

    async def node_details(self, node_id: str) -> Json:
        self.asked.append(node_id)
        if self.on_third is not None and self.asked.count(self.on_third[0]) == 3:
            self.details[self.on_third[0]] = self.on_third[1]
        if node_id in self.broken:
            raise ServeUnreachableError("HTTP 500")
        return self.details[node_id]


def gpus(*uuids: str) -> Json:
    rows = [
        {"index": index, "uuid": uuid, "name": "X", "memoryTotal": 24576, "memoryUsed": 400, "processesPids": []}
        for index, uuid in enumerate(uuids)
    ]
    return {"gpus": rows}


class Here:
    """NVML on the node `a`."""

    def __init__(self) -> None:
        self.foreign = 0
        self.failed = ""
        self.gone = False

    def readings(self) -> tuple[Reading, ...]:
        if self.gone:
            return ()
        stranger = Process(self.foreign, False)
        return (
            Reading(0, "GPU-a0", "X", 23 * GIB, self.foreign, (stranger,) if self.foreign else (), self.failed),
            Reading(1, "GPU-a1", "X", 23 * GIB),
        )


class World:
    def __init__(self, folder: Path) -> None:
        self.now = 100.0
        self.dashboard, self.here = Dashboard(), Here()
        self.memory = Memory(folder, monotonic=lambda: self.now)
        self.observer = self.make(self.here)

    def make(self, here: Any, *, simulated: int = 0) -> GpuObserver:
        dashboard: Any = self.dashboard
        return GpuObserver(
            dashboard, self.memory, here=here, simulated=simulated, clock=lambda: self.now, pause=0.0
        )

    async def nodes(self, *apps: Application) -> dict[str, Node]:
        return {node.id: node for node in await self.observer.nodes({app.name: app for app in apps})}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_this_machine_is_found_among_the_nodes_and_read_through_nvml(world: World) -> None:
    nodes = await world.nodes()
    assert [device.total for device in nodes["a"].devices] == [23 * GIB] * 2
    assert [device.uuid for device in nodes["b"].devices] == ["GPU-b0", "GPU-b1"]
    assert nodes["a"].host == "host-a"
    world.dashboard.asked.clear()
    world.now += 60
    await world.nodes()
    assert world.dashboard.asked == ["b"]


async def test_other_nodes_are_not_asked_at_every_turn(world: World) -> None:
    await world.nodes()
    world.dashboard.asked.clear()
    world.now += 1
    await world.nodes()
    assert world.dashboard.asked == []


async def test_memory_of_others_counts_once_it_lasts(world: World) -> None:
    await world.nodes()
    world.here.foreign = 5 * GIB
    assert (await world.nodes())["a"].devices[0].foreign == 0
    world.now += 13
    assert (await world.nodes())["a"].devices[0].foreign == 5 * GIB
    world.here.foreign = 0
    assert (await world.nodes())["a"].devices[0].foreign == 0


async def test_a_failed_gpu_is_told(world: World) -> None:
    world.here.failed = "it fell off the bus"
    assert (await world.nodes())["a"].devices[0].failed == "it fell off the bus"


async def test_a_gpu_that_another_node_does_not_list_any_more_failed(world: World) -> None:
    await world.nodes()
    world.dashboard.details["b"] = gpus("GPU-b0")
    world.now += 10
    first, second = (await world.nodes())["b"].devices
    assert (first.failed, bool(second.failed)) == ("", True)
    world.dashboard.details["b"] = gpus("GPU-b0", "GPU-b1")
    world.now += 10
    assert not any(device.failed for device in (await world.nodes())["b"].devices)


async def test_an_agent_that_says_nothing_for_a_while_changes_nothing(world: World) -> None:
    before = (await world.nodes())["b"].devices
    world.dashboard.details["b"] = {}
    world.now += 10
    assert (await world.nodes())["b"].devices == before


async def test_an_agent_that_has_just_started_is_waited_for(world: World) -> None:
    """Or models would be started unweighed, because nobody knows how large the GPUs are."""
    late = world.dashboard.details["b"]
    world.dashboard.details["b"] = {}
    world.dashboard.on_third = ("b", late)
    assert len((await world.nodes())["b"].devices) == 2
    assert world.dashboard.asked.count("b") == 3


async def test_one_agent_that_does_not_answer_stops_nothing(world: World) -> None:
    before = await world.nodes()
    del world.dashboard.details["b"]["gpus"]
    world.dashboard.broken = {"b"}
    world.now += 10
    assert await world.nodes() == before


async def test_a_driver_that_went_away_takes_its_gpus_with_it(world: World) -> None:
    await world.nodes()
    world.here.gone = True
    assert all(device.failed for device in (await world.nodes())["a"].devices)


async def test_where_ray_counts_other_gpus_than_the_driver_nobody_can_tell(world: World) -> None:
    world.dashboard.details["b"] = gpus("GPU-b0", "GPU-b1", "GPU-b2")
    assert (await world.nodes())["b"].devices == ()


async def test_memory_of_no_process_may_be_ours_while_anything_of_ours_is_there(world: World) -> None:
    world.dashboard.details["b"]["gpus"][0]["memoryUsed"] = 9000
    app = Application("m-1", Status.RUNNING, model="m", demand=Demand(gpus=0.5))
    assert (await world.nodes(app))["b"].devices[0].foreign == 0
    world.now += 13
    await world.nodes()
    world.now += 13
    assert (await world.nodes())["b"].devices[0].foreign > 8000 * MIB


async def test_made_up_gpus_have_the_memory_that_was_asked_for(world: World) -> None:
    world.observer = world.make(None, simulated=24 * GIB)
    assert [device.total for device in (await world.nodes())["a"].devices] == [24 * GIB] * 2
    world.observer = world.make(None)
    assert (await world.nodes())["a"].devices == ()


def test_without_a_cluster_this_machine_is_the_only_node() -> None:
    here: Any = Here()
    (node,) = here_alone(here)
    assert (node.gpus, len(node.devices)) == (2, 2)
