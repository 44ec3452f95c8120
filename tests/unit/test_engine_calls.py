"""Calls to engines: what becomes of them when the process that speaks to Ray, or Ray itself, does not behave."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from reconciler.ray_serve import engine_calls
from reconciler.ray_serve.client import ServeClient
from reconciler.ray_serve.engine_calls import EngineCallError, EngineCalls, EngineRefusedError, gcs_address

GCS = "127.0.0.1:6379"
FAKE = '''
"""Speaks like engine_worker; the application's name says what goes wrong."""
import json, os, sys, threading, time

asleep, lock = {}, threading.Lock()
open(LOG, "a").write(json.dumps({"arguments": sys.argv[1:], "environment": dict(os.environ)}) + "\\n")

def say(request, **answer):
    with lock:
        print(json.dumps({"id": request["id"], **answer}), flush=True)

def carry_out(request):
    name, call = request["application"], request["call"]
    if name == "dies":
        print("Ray is gone", file=sys.stderr, flush=True)
        os._exit(3)
    if name.startswith("slow"):
        open(LOG + ".order", "a").write(f"{name} {call} begins\\n")
        time.sleep(0.5)
        open(LOG + ".order", "a").write(f"{name} {call} ends\\n")
    if name == "hangs":
        return
    if name == "babbles":
        return print("I am not JSON", flush=True)
    if name in ("refused", "error", "lost"):
        return say(request, **{name: f"it is {name}"})
    if name == "stubborn":
        return say(request, ok=True, sleeping=[True, False])
    if name == "empty":
        return say(request, ok=True, sleeping=[])
    if call != "is_sleeping":
        asleep[name] = call == "sleep"
    say(request, ok=True, sleeping=[asleep.get(name, False)] * 2)

for line in sys.stdin:
    threading.Thread(target=carry_out, args=(json.loads(line),), daemon=True).start()
os._exit(0)
'''


class Bench:
    """Calls, with a process of ours at the other end of the line."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.log = folder / "starts"
        script = folder / "worker.py"
        script.write_text(FAKE.replace("LOG", repr(str(self.log))))
        self.address_error = ""
        self.calls = EngineCalls(
            self._address,
            folder / "token",
            command=(sys.executable, "-P", str(script)),
            **{"timeout": 20} | options,
        )

    async def _address(self) -> str:
        if self.address_error:
            raise EngineCallError(self.address_error)
        return GCS

    @property
    def starts(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    @property
    def order(self) -> list[str]:
        return Path(f"{self.log}.order").read_text().splitlines()

    async def reason(self, application: str, kind: type[EngineCallError] = EngineCallError) -> str:
        with pytest.raises(EngineCallError) as error:
            await self.calls.sleep(application)
        assert type(error.value) is kind
        return str(error.value)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    yield made
    await made.calls.close()


async def test_sleep_wake_and_the_question_go_to_one_process_that_the_first_call_starts(bench: Bench) -> None:
    assert bench.starts == []
    assert not await bench.calls.is_sleeping("app")
    await bench.calls.sleep("app")
    assert await bench.calls.is_sleeping("app")
    assert not await bench.calls.is_sleeping("other")
    await bench.calls.wake("app")
    assert not await bench.calls.is_sleeping("app")
    assert [start["arguments"] for start in bench.starts] == [[GCS]]


async def test_the_process_gets_rays_token_and_no_secret_of_ours(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("RAY_ADDRESS", "10.9.9.9:1")
    monkeypatch.setenv("RAY_something", "kept")
    await bench.calls.wake("app")
    (start,) = bench.starts
    environment = start["environment"]
    assert (environment["RAY_AUTH_MODE"], environment["RAY_AUTH_TOKEN_PATH"]) == ("token", str(tmp_path / "token"))
    assert environment["RAY_something"] == "kept"
    assert not {"HF_TOKEN", "RAY_ADDRESS"} & environment.keys()


async def test_calls_to_one_application_wait_for_each_other_and_others_do_not(bench: Bench) -> None:
    await bench.calls.wake("app")
    await asyncio.gather(
        *(bench.calls.wake(f"slow-{number}") for number in range(4)), bench.calls.is_sleeping("slow-0")
    )
    order = bench.order
    assert order[1].endswith("begins"), "they went side by side"
    assert order.index("slow-0 wake ends") < order.index("slow-0 is_sleeping begins")
    assert len(bench.starts) == 1


async def test_an_engine_that_says_no_is_told_from_a_call_that_went_wrong(bench: Bench) -> None:
    assert await bench.reason("refused", EngineRefusedError) == "it is refused"
    assert await bench.reason("error") == "it is error"
    assert "not all of its engines" in await bench.reason("stubborn", EngineRefusedError)
    with pytest.raises(EngineRefusedError, match="still sleep"):
        await bench.calls.wake("stubborn")
    assert await bench.calls.is_sleeping("stubborn"), "one that sleeps is enough"
    assert "makes sense" in await bench.reason("empty")
    assert len(bench.starts) == 1, "the process is none the worse for it"


async def test_a_process_that_dies_in_a_call_fails_it_with_its_last_words_and_is_started_anew(
    bench: Bench,
) -> None:
    assert await bench.reason("dies") == "the process that speaks to Ray ended (3): Ray is gone"
    await bench.calls.sleep("app")
    assert len(bench.starts) == 2


async def test_a_process_that_died_between_two_calls_is_noticed(bench: Bench) -> None:
    await bench.calls.sleep("app")
    assert bench.calls._worker is not None
    bench.calls._worker._process.kill()
    await asyncio.sleep(0.3)
    assert not await bench.calls.is_sleeping("app"), "what was asked is a new process, which knows nothing"


async def test_when_nobody_can_tell_what_was_done_the_next_call_gets_a_new_process(bench: Bench) -> None:
    slow = asyncio.create_task(bench.calls.wake("slow-1"))
    await asyncio.sleep(0.2)
    assert await bench.reason("lost") == "it is lost"
    old = bench.calls._worker
    await bench.calls.sleep("app")
    assert len(bench.starts) == 2
    await slow  # The old one still answers what it was asked before, and is ended then.
    assert old is not None
    assert await asyncio.wait_for(old._process.wait(), 5) != 0


async def test_a_call_that_is_not_answered_ends_in_time_and_so_does_the_process(tmp_path: Path) -> None:
    bench = Bench(tmp_path, timeout=3.0)
    await bench.calls.wake("app")
    hanging = bench.calls._worker
    assert await bench.reason("hangs") == "no answer within 3 s"
    assert hanging is not None
    assert await asyncio.wait_for(hanging._process.wait(), 5) == -9
    await bench.calls.sleep("app")
    await bench.calls.close()


async def test_waiting_for_the_turn_counts(tmp_path: Path) -> None:
    bench = Bench(tmp_path, timeout=3.0)
    began = time.monotonic()
    await asyncio.gather(*(bench.reason("hangs") for _ in range(5)))
    assert time.monotonic() - began < 8
    await bench.calls.close()


async def test_output_that_makes_no_sense_ends_the_process(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_calls, "_END_SECONDS", 0.1)
    assert await bench.reason("babbles") == "the process that speaks to Ray ended (-9): it said nothing"
    await bench.calls.sleep("app")


async def test_what_cannot_be_started_is_said(bench: Bench, tmp_path: Path) -> None:
    bench.address_error = "Ray's dashboard does not answer"
    assert await bench.reason("app") == "Ray's dashboard does not answer"
    bench.address_error = ""
    await bench.calls.sleep("app")
    nothing = EngineCalls(bench._address, command=[str(tmp_path / "nothing")])
    with pytest.raises(EngineCallError, match="cannot be started"):
        await nothing.sleep("app")


async def test_closing_fails_what_is_under_way(bench: Bench) -> None:
    hanging = asyncio.create_task(bench.calls.sleep("hangs"))
    await asyncio.sleep(0.5)
    await bench.calls.close()
    with pytest.raises(EngineCallError, match="ended"):
        await asyncio.wait_for(hanging, 5)


# --- where the GCS is ---------------------------------------------------------------------------------------

# Of GET /nodes/<id> of a real dashboard of Ray 2.60; most words of the command line are left out.
CMDLINE = [
    "/venv/ray/core/src/ray/raylet/raylet",
    "--raylet_socket_name=/run/ray/session/sockets/raylet",
    "--python_worker_command=/venv/bin/python default_worker.py --gcs-address=10.0.0.9:1 --session-name=s",
    "--gcs-address=127.0.0.1:56879",
    "--session-name=session_2026-11-25_21-45-39_153270_4218",
    "--head",
]


class Dashboard:
    def __init__(self) -> None:
        self.details: dict[str, Any] = {"a": {"cmdline": []}, "b": {"cmdline": CMDLINE}}
        self.url = ""

    async def nodes(self, request: web.Request) -> web.Response:
        rows = [{"node_id": node, "state": "ALIVE"} for node in self.details]
        return web.json_response({"data": {"result": {"result": rows}}})

    async def node(self, request: web.Request) -> web.Response:
        return web.json_response({"data": {"detail": self.details[request.match_info["node"]]}})


@pytest.fixture
async def dashboard() -> AsyncIterator[Dashboard]:
    made = Dashboard()
    app = web.Application()
    app.router.add_get("/api/v0/nodes", made.nodes)
    app.router.add_get("/nodes/{node}", made.node)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield made
    await runner.cleanup()


async def test_the_address_is_what_a_raylet_was_started_with(dashboard: Dashboard) -> None:
    async with ServeClient(dashboard.url) as serve:
        assert await gcs_address(serve) == "127.0.0.1:56879"


@pytest.mark.parametrize("cmdline", [None, [], ["raylet"], [None, 3, {"--gcs-address=": 1}], "--gcs-address=x"])
async def test_a_dashboard_that_does_not_say_is_an_error(dashboard: Dashboard, cmdline: Any) -> None:
    dashboard.details = {"a": {"cmdline": cmdline}, "b": {}}
    async with ServeClient(dashboard.url) as serve:
        with pytest.raises(EngineCallError, match="does not say where"):
            await gcs_address(serve)


async def test_a_dashboard_that_is_down_is_an_error() -> None:
    async with ServeClient("http://127.0.0.1:9") as serve:
        with pytest.raises(EngineCallError, match="does not answer"):
            await gcs_address(serve)


# --- the process itself, with a Ray that misbehaves ---------------------------------------------------------

FAKE_RAY = {
    "ray/__init__.py": """
print("Ray talks a lot on standard output")
connected = False
def is_initialized(): return connected
def init(address, **options):
    global connected
    if address == "127.0.0.1:1":
        raise ConnectionError("could not find a cluster at 127.0.0.1:1\\n")
    print("connected to", address); connected = True
""",
    "ray/exceptions.py": """
class RayTaskError(Exception): pass
class ActorDiedError(Exception): pass
""",
    "ray/serve.py": """
import os, time
from types import SimpleNamespace as Made
from ray.exceptions import ActorDiedError, RayTaskError
asleep, closed = {}, []

def status():
    states = {"two": {"RUNNING": 2, "STARTING": 0}, "starting": {"RUNNING": 1, "STARTING": 1}, "none": {}}
    found = {name: Made(deployments={"LLMRouter": Made(replica_states={"RUNNING": 1}),
                                     "LLMServer:m": Made(replica_states=states.get(name, {"RUNNING": 2}))})
             for name in ("two", "starting", "none", "refuses", "died", "fewer", "hangs")}
    helper = Made(deployments={"LLMRouter": Made(replica_states={"RUNNING": 1})})
    return Made(applications=found | {"helper": helper})

class Handle:
    def __init__(self, application): self.application = application
    def shutdown(self): closed.append(self.application)
    def broadcast(self, method, **arguments):
        assert arguments == ({"level": 1} if method == "sleep" else {}), arguments
        name = self.application
        if method != "is_sleeping": asleep[name] = method == "sleep"
        found = [asleep.get(name, False) if method == "is_sleeping" else None] * (1 if name == "fewer" else 2)
        if name == "refuses": found[1] = RayTaskError("ray::x\\n  File y\\nRuntimeError: out of memory")
        if name == "died": found[1] = ActorDiedError("The actor died.")
        def results(timeout_s, return_exceptions):
            assert return_exceptions
            if name == "hangs":
                time.sleep(timeout_s); raise TimeoutError("Timed out waiting for broadcast results.")
            return found
        return Made(results=results)

def get_deployment_handle(deployment, application):
    assert deployment == "LLMServer:m"
    return Handle(application)
""",
}


class Process:
    def __init__(self, folder: Path, address: str = GCS) -> None:
        for name, text in FAKE_RAY.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)
        self.process = subprocess.Popen(
            [*engine_calls.WORKER, address],
            env={**os.environ, "PYTHONPATH": str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ask(self, *requests: tuple[str, str], seconds: float = 5.0) -> dict[int, dict[str, Any]]:
        """The answers by the request's number; the process must end with its input, and say nothing else."""
        lines = [
            json.dumps({"id": number, "call": call, "application": application, "seconds": seconds})
            for number, (call, application) in enumerate(requests)
        ]
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n".join(lines) + "\n")
        self.process.stdin.flush()
        answers = [json.loads(self.process.stdout.readline()) for _ in requests]
        return {answer.pop("id"): answer for answer in answers}

    def end(self) -> str:
        out, errors = self.process.communicate(timeout=20)
        assert (self.process.returncode, out) == (0, "")
        return errors


def test_the_process_answers_for_every_replica_and_keeps_its_output_clean(tmp_path: Path) -> None:
    process = Process(tmp_path)
    assert process.ask(("is_sleeping", "two")) == {0: {"ok": True, "sleeping": [False, False]}}
    assert process.ask(("sleep", "two")) == {0: {"ok": True, "sleeping": [True, True]}}
    assert process.ask(("wake", "two")) == {0: {"ok": True, "sleeping": [False, False]}}
    assert "Ray talks a lot" in process.end()


def test_the_process_tells_what_was_not_done_from_what_nobody_knows(tmp_path: Path) -> None:
    process = Process(tmp_path)
    names = ("absent", "helper", "starting", "none", "refuses", "died", "fewer", "hangs", "two")
    answers = process.ask(*(("sleep", name) for name in names), seconds=1.0)
    found = {name: answers[number] for number, name in enumerate(names)}
    assert {name: next(iter(answer)) for name, answer in found.items()} == {
        "absent": "error", "helper": "error", "starting": "error", "none": "error", "refuses": "refused",
        "died": "lost", "fewer": "lost", "hangs": "lost", "two": "ok",
    }  # fmt: skip
    assert found["refuses"]["refused"] == "RuntimeError: out of memory"
    assert found["died"]["lost"] == "ActorDiedError: The actor died."
    assert found["fewer"]["lost"] == "RuntimeError: 1 of 2 replicas answered"
    assert found["starting"]["error"] == "not all engines of starting run: {'RUNNING': 1, 'STARTING': 1}"
    process.end()


def test_a_ray_that_is_not_there_is_an_answer(tmp_path: Path) -> None:
    process = Process(tmp_path, "127.0.0.1:1")
    answer = process.ask(("sleep", "two"))
    assert answer == {0: {"lost": "ConnectionError: could not find a cluster at 127.0.0.1:1"}}
    process.end()


def test_the_reconciler_itself_imports_no_ray() -> None:
    code = "import sys, reconciler.ray_serve.engine_calls, reconciler.loop.sleeping; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
