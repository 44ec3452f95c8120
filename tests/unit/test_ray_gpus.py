"""The GPUs of other nodes, as Ray's dashboard reports them (Ray 2.60)."""

import copy
import json
from typing import Any

import pytest
from aiohttp import web
from test_nvml import H100, RESERVED, FakeGpu, FakeNvml

from reconciler.core.devices import Process, devices
from reconciler.core.fit.gpus import GIB, MIB, cuda_total
from reconciler.ray_serve.client import ServeClient
from reconciler.ray_serve.gpus import readings

NODE = "500de99b2a36426a72a7cc049a8ee106431f639275fe2599b9f982db"
# GET /nodes/<id> of a real dashboard, with an actor and a driver on a node that has no GPU. Left out: load, disk,
# network, and of each process and actor what is not read.
ANSWER = json.loads("""
{"result": true, "msg": "Node details fetched.", "data": {"detail": {
 "now": 1795629230.1, "hostname": "vm", "ip": "192.0.2.2", "cpus": [2, 2],
 "workers": [
  {"pid": 10106, "createTime": 1795629116.22, "cmdline": ["ray::DashboardAgent", "", ""], "gpuMemoryUsage": 0,
   "gpuUtilization": 0, "coreWorkerStats": [], "language": "PYTHON", "jobId": "ffff"},
  {"pid": 10108, "createTime": 1795629116.22, "cmdline": ["ray::RuntimeEnvAgent", "", ""], "gpuMemoryUsage": 0,
   "gpuUtilization": 0, "coreWorkerStats": [], "language": "PYTHON", "jobId": "ffff"},
  {"pid": 11022, "createTime": 1795629204.14, "cmdline": ["ray::Engine", "", ""], "gpuMemoryUsage": 0,
   "gpuUtilization": 0, "coreWorkerStats": [], "language": "PYTHON", "jobId": "ffff"},
  {"pid": 10947, "createTime": 1795629198.5, "cmdline": ["python", "drv.py"], "gpuMemoryUsage": 0,
   "gpuUtilization": 0, "coreWorkerStats": [], "language": "PYTHON", "jobId": "ffff"}],
 "raylet": {"numWorkers": 2, "nodeId": "500de99b2a36426a72a7cc049a8ee106431f639275fe2599b9f982db",
   "state": "ALIVE", "nodeManagerHostname": "vm", "resourcesTotal": {"GPU": 2.0, "CPU": 1.0}, "isHeadNode": true},
 "agent": {"pid": 10106, "createTime": 1795629116.22, "cmdline": ["ray::DashboardAgent", "", ""],
   "gpuMemoryUsage": null, "gpuUtilization": null},
 "gpus": [], "tpus": [],
 "gcs": {"pid": 9619, "createTime": 1795629112.16, "cmdline": ["gcs_server"]},
 "actors": {"4b01cb8519702aed9529fee901000000": {
   "actorId": "4b01cb8519702aed9529fee901000000", "className": "Engine", "state": "ALIVE", "pid": 11022,
   "address": {"nodeId": "500de99b2a36426a72a7cc049a8ee106431f639275fe2599b9f982db", "port": 18324},
   "requiredResources": {"CPU": 1.0, "GPU": 0.5}, "gpus": [], "processStats": null, "tpus": []}}}}}
""")
UNKNOWN_NODE = json.loads("""
{"result": true, "msg": "Node details fetched.", "data": {"detail": {"raylet": {"objectStoreUsedMemory": 0,
 "objectStoreAvailableMemory": 0, "stateMessage": null}, "tpus": [], "actors": {}, "workers": []}}}
""")
ENGINE, CHILD, YOUNG = 11022, 11120, 12000


def node(*gpus: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**copy.deepcopy(ANSWER["data"]["detail"]), "gpus": list(gpus), **more}


def gpu(used: int, processes: dict[int, int], index: int = 0) -> dict[str, Any]:
    """As it is in the dashboard's answer; sizes in MiB, as Ray rounds them."""
    rows = [{"pid": pid, "gpuMemoryUsage": size, "gpuUtilization": None} for pid, size in processes.items()]
    return {
        "index": index, "name": "NVIDIA H100 80GB HBM3", "uuid": f"GPU-{index}", "utilizationGpu": 3,
        "memoryUsed": used, "memoryTotal": 81559, "processesPids": rows, "powerMw": 70000, "temperatureC": 40,
    }  # fmt: skip


def foreign(detail: dict[str, Any], promised: bool = True) -> list[int]:
    return [device.foreign // MIB for device in devices(readings(detail), promised=promised)]


def test_a_node_without_gpus_and_one_that_is_not_there_have_none() -> None:
    assert readings(ANSWER["data"]["detail"]) == readings(UNKNOWN_NODE["data"]["detail"]) == readings({}) == ()


def test_sizes_are_bytes_that_cuda_can_have() -> None:
    second, first = gpu(20_480, {ENGINE: 20_000}, index=1), gpu(480, {})
    one, two = devices(readings(node(second, first)), promised=True)
    assert (one.index, one.uuid, one.name) == (0, "GPU-0", "NVIDIA H100 80GB HBM3")
    assert one.total == two.total == cuda_total(81559 * MIB)
    assert abs(one.total - (H100 - RESERVED)) < 16 * MIB
    assert (one.foreign, two.foreign, one.failed) == (0, 0, "")


def test_what_is_not_a_workers_is_foreign_once_a_worker_is_seen_on_a_gpu() -> None:
    assert foreign(node(gpu(30_480, {ENGINE: 20_000, CHILD: 10_000}))) == [10_000]
    assert foreign(node(gpu(10_480, {CHILD: 10_000}))) == [0], "it may be an engine's, by another number"
    assert foreign(node(gpu(10_480, {CHILD: 10_000})), promised=False) == [10_000]
    assert foreign(node(gpu(20_480, {ENGINE: 20_000}), gpu(10_480, {CHILD: 10_000}, 1))) == [0, 10_000]


def test_an_actor_is_rays_before_it_is_among_the_workers() -> None:
    actors = {"a": {"pid": YOUNG, "state": "ALIVE"}, "b": {"pid": CHILD, "state": "DEAD"}}
    assert foreign(node(gpu(30_480, {YOUNG: 20_000, CHILD: 10_000}), actors=actors)) == [10_000]
    assert foreign(node(gpu(30_480, {YOUNG: 20_000, CHILD: 10_000}), actors={})) == [0]


def test_a_worker_of_which_only_the_number_is_known_has_what_is_left() -> None:
    assert foreign(node(gpu(50_000, {ENGINE: 0}))) == [0]


@pytest.mark.parametrize(
    "rubbish",
    [
        {"gpus": None},
        {"gpus": {"a": 1}},
        {"gpus": [None, 3, "x", []]},
        {"gpus": [{}]},
        {"gpus": [{"index": "0", "uuid": None, "memoryTotal": "80", "memoryUsed": -5, "processesPids": {"1": 2}}]},
        {"gpus": [{"memoryTotal": 1e400, "memoryUsed": float("nan"), "processesPids": [{"pid": None}]}]},
        {"gpus": [{"memoryTotal": -1, "processesPids": None}], "workers": None, "actors": [1], "agent": 5},
        {"gpus": [{"memoryTotal": 1}], "workers": [{"pid": []}], "actors": {"a": None}},
    ],
)
def test_an_answer_that_is_not_rays_raises_nothing(rubbish: dict[str, Any]) -> None:
    for device in devices(readings({**node(), **rubbish}), promised=False):
        assert device.total <= 0
        assert device.foreign == 0


def test_it_is_what_rays_own_reporter_makes_of_nvml() -> None:
    """Ray's provider reads a fake NVML, its own models turn that into the dashboard's JSON."""
    providers = pytest.importorskip(
        "ray.dashboard.modules.reporter.gpu_providers", reason="no Ray is installed here"
    )
    from ray.dashboard.modules.reporter.reporter_models import GpuUtilizationInfo
    from ray.dashboard.utils import to_google_style

    instance = FakeGpu("MIG-1", "MIG 1g.10gb", total=10 * GIB, used=GIB, processes={CHILD: GIB})
    provider = providers.NvidiaGpuProvider()
    provider._pynvml = FakeNvml(
        FakeGpu("GPU-a", used=30 * GIB, processes={ENGINE: 20 * GIB}, graphics={CHILD: 10 * GIB + 5}),
        FakeGpu("GPU-b", mig=[instance]),
        FakeGpu("GPU-c", errors={"MemoryInfo": 15}),
    )
    provider._initialized = True
    found = provider.get_gpu_utilization()
    assert len(found) == 2, "Ray leaves out what it cannot read"
    for row in found:  # As ReporterAgent._generate_stats_payload does.
        row["processes_pids"] = list(row["processes_pids"].values())
    payload = [GpuUtilizationInfo.model_validate(to_google_style(row)).model_dump() for row in found]
    rows = json.loads(json.dumps(payload))
    whole, part = readings(node(*rows))
    assert (whole.index, whole.uuid, whole.total) == (0, "GPU-a", cuda_total(H100 // MIB * MIB))
    assert whole.processes == (Process(20 * GIB, rays=True), Process(10 * GIB, rays=None))
    assert abs(whole.used - 30 * GIB) < 16 * MIB
    assert (part.index, part.uuid, part.name) == (1000, "MIG-1", "MIG 1g.10gb")
    assert foreign(node(*rows)) == [10 * 1024, 1024]


async def test_the_client_asks_for_what_is_so_now() -> None:
    """Past Ray's cache, which else answers with what somebody was told last."""
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path_qs)
        return web.json_response(ANSWER if NODE in request.path else {"result": False, "msg": "", "data": None})

    app = web.Application()
    app.router.add_get("/nodes/{id}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        async with ServeClient(f"http://127.0.0.1:{runner.addresses[0][1]}") as client:
            assert await client.node_details(NODE) == ANSWER["data"]["detail"]
            assert await client.node_details("0") == {}
    finally:
        await runner.cleanup()
    assert asked == [f"/nodes/{NODE}?nocache=1", "/nodes/0?nocache=1"]
