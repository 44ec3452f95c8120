"""What Ray's agents say of engines: the text, which is recorded from Ray 2.60, and how it is fetched."""

import asyncio
import contextlib
import importlib.util
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from reconciler.core.desired import Desired
from reconciler.core.metric_names import (
    COUNTERS,
    FIRST_TOKEN,
    GAUGES,
    GENERATION_TOKENS,
    KV_CACHE,
    LATENCY,
    PROMPT_TOKENS,
    REQUESTS,
    RUNNING,
    WAITING,
)
from reconciler.core.plan import Plan
from reconciler.core.series import readings
from reconciler.core.state import Application, Observed, Replica, Status
from reconciler.loop.last_hour import LastHour
from reconciler.loop.loop import Look
from reconciler.ray_serve.client import ServeUnreachableError
from reconciler.ray_serve.engine_metrics import EngineMetrics, samples

RECORDED = (Path(__file__).parent / "test_metrics_ray_agent.txt").read_text(encoding="utf-8")
REPLICA = "6xvgb39k"
TOKEN = "a-token-of-rays"

# --- the text ---------------------------------------------------------------------------------------------


LINES = RECORDED.split("\n")


def test_of_what_ray_writes_every_sample_is_read() -> None:
    whole = [each for family in text_string_to_metric_families(RECORDED) for each in family.samples]
    assert len(whole) > 20
    assert list(samples(LINES)) == [(each.name, each.labels, each.value) for each in whole]


@given(st.lists(st.text(st.sampled_from('a{}="\\,: 1_e+.\t\n\r#'))))
@example(["a{\t\t, =#}} 1", "a{} " + "9" * 400, "a{} " + "9" * 9_000])
def test_what_is_no_sample_is_passed_over(lines: list[str]) -> None:
    for sample in samples(lines):
        assert isinstance(sample.value, float)
        assert math.isfinite(sample.value)


@pytest.mark.parametrize(
    "line", ['a{b="c"', 'a{b="c",b="d"} 1', "a{b=c} 1", "a{} nan", "a{} +Inf", "a{,} 1 {", ""]
)
def test_a_line_that_is_no_sample_takes_no_other_with_it(line: str) -> None:
    assert [each.name for each in samples(["x 1", line, "y 2 1700000000000"])] == ["x", "y"]


def test_a_line_that_is_meant_to_take_long_does_not() -> None:
    began = time.process_time()
    evil = ['a{b="' + "\\" * 16_000, 'a{b="' + '\\"' * 8_000 + '"} 1', "a{" + "," * 16_000, 'a{b="c"' * 2_000]
    evil.append("a{" + ",".join(f'b{number}="c"' for number in range(1_500)) + "} 1")
    assert len(list(samples(evil))) <= 2
    assert time.process_time() - began < 1.0


def test_a_reading_adds_up_what_a_replica_says() -> None:
    found = readings(samples(LINES), {REPLICA, "another"})
    assert found.keys() == {REPLICA}
    reading = found[REPLICA]
    assert reading.gauges == {KV_CACHE: 0.25, RUNNING: 1.0, WAITING: 2.0}
    assert reading.counters[REQUESTS, ""] == 3.0
    assert (reading.counters[PROMPT_TOKENS, ""], reading.counters[GENERATION_TOKENS, ""]) == (30.0, 9.0)
    assert reading.counters[FIRST_TOKEN, "0.1"] == reading.counters[FIRST_TOKEN, "+Inf"] == 3.0
    assert (reading.counters[LATENCY, "0.3"], reading.counters[LATENCY, "1.0"]) == (0.0, 3.0)


def test_several_engines_of_a_replica_count_together_and_the_fullest_cache_counts() -> None:
    text = "".join(
        f'{name}{{ReplicaId="r",engine="{engine}"}} {value}\n'
        for name, each in ((KV_CACHE, (0.2, 0.7)), (RUNNING, (3, 4)), (REQUESTS, (5, 6)))
        for engine, value in enumerate(each)
    )
    reading = readings(samples(text.split("\n")), {"r"})["r"]
    assert reading.gauges == {KV_CACHE: 0.7, RUNNING: 7.0}
    assert reading.counters == {(REQUESTS, ""): 11.0}


# --- how it is fetched ------------------------------------------------------------------------------------

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextlib.asynccontextmanager
async def served(path: str, handler: Handler) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get(path, handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield runner.addresses[0][0] + ":" + str(runner.addresses[0][1])
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def cluster(tmp_path: Path, *agents: Handler, patience: float = 3.0) -> AsyncIterator[EngineMetrics]:
    token = tmp_path / "token"
    token.write_text(TOKEN + "\n")
    async with contextlib.AsyncExitStack() as stack:
        targets = [await stack.enter_async_context(served("/metrics", agent)) for agent in agents]

        async def discover(request: web.Request) -> web.Response:
            if request.headers.get("Authorization") != f"Bearer {TOKEN}":
                return web.Response(status=401)
            # Ray also lists ports of its own where nobody listens.
            return web.json_response([{"labels": {"job": "ray"}, "targets": [*targets, "127.0.0.1:1"]}])

        dashboard = await stack.enter_async_context(served("/api/prometheus/sd", discover))
        yield EngineMetrics(f"http://{dashboard}/", token, timeout=patience)


async def recorded(request: web.Request) -> web.Response:
    # Whoever sits at an agent's port learns no token.
    assert "Authorization" not in request.headers
    return web.Response(text=RECORDED)


def says(text: str) -> Handler:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(text=text)

    return answer


async def test_the_agents_are_found_and_read(tmp_path: Path) -> None:
    other = RECORDED.replace(REPLICA, "other")
    async with cluster(tmp_path, recorded, says(other)) as metrics:
        found = await metrics.read({REPLICA, "other"})
    assert found.keys() == {REPLICA, "other"}
    assert found[REPLICA] == found["other"] == readings(samples(LINES), {REPLICA})[REPLICA]


async def test_what_nobody_asked_for_is_not_kept(tmp_path: Path) -> None:
    many = "".join(f'{REQUESTS}{{ReplicaId="r{number}"}} 1\n' for number in range(1_000))
    async with cluster(tmp_path, says(many)) as metrics:
        assert (await metrics.read({"r7", "none"})).keys() == {"r7"}


async def hangs(_request: web.Request) -> web.Response:
    await asyncio.sleep(60)
    raise AssertionError


async def never_ends(request: web.Request) -> web.StreamResponse:
    answer = web.StreamResponse()
    await answer.prepare(request)
    while True:
        await answer.write(f'{REQUESTS}{{ReplicaId="r"}} 1\n'.encode() * 1_000)


async def one_line(request: web.Request) -> web.StreamResponse:
    answer = web.StreamResponse()
    await answer.prepare(request)
    while True:
        await answer.write(REQUESTS.encode() * 1_000)


async def packed(_request: web.Request) -> web.Response:
    return web.Response(body=b"\x1f\x8b" + b"x" * 99, headers={"Content-Encoding": "gzip"})


async def sends_elsewhere(_request: web.Request) -> web.Response:
    return web.Response(status=302, headers={"Location": "http://127.0.0.1:1/"})


async def failing(_request: web.Request) -> web.Response:
    return web.Response(status=500, text=RECORDED)


@pytest.mark.parametrize("ill", [hangs, never_ends, one_line, packed, sends_elsewhere, failing, says("\0\xff{")])
async def test_an_agent_that_is_ill_takes_nothing_from_the_others(tmp_path: Path, ill: Handler) -> None:
    began = time.monotonic()
    async with cluster(tmp_path, ill, recorded, patience=1.5) as metrics:
        found = await metrics.read({REPLICA})
        # Of the 60 s that one of them would take; the machine may be busy.
        assert time.monotonic() - began < 30
    assert found.keys() == {REPLICA}


async def test_a_dashboard_that_says_no_or_nothing_is_one_error(tmp_path: Path) -> None:
    async def hostile(_request: web.Request) -> web.Response:
        return web.Response(text="[" * 100_000)

    async with served("/api/prometheus/sd", hostile) as dashboard:
        with pytest.raises(ServeUnreachableError):
            await EngineMetrics(f"http://{dashboard}").read({REPLICA})
    with pytest.raises(ServeUnreachableError):
        await EngineMetrics("http://127.0.0.1:1").read({REPLICA})
    with pytest.raises(ServeUnreachableError):
        await EngineMetrics("http://127.0.0.1:1", tmp_path / "missing").read({REPLICA})
    async with cluster(tmp_path) as metrics:
        (tmp_path / "token").write_text("wrong")
        with pytest.raises(ServeUnreachableError, match="401"):
            await metrics.read({REPLICA})


@pytest.mark.parametrize(
    "found",
    ["{}", "null", "[1, null]", '[{"targets": 1}]', '[{"targets": ["a b:1", "x:1/y", "u@h:1", 7, "h:123456"]}]'],
)
async def test_addresses_that_are_none_are_passed_over(found: str) -> None:
    async with served("/api/prometheus/sd", says(found)) as dashboard:
        assert await EngineMetrics(f"http://{dashboard}").read({REPLICA}) == {}


def installed(package: str) -> Path:
    """Where a package lies, without importing it."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations)))


def test_the_names_are_those_of_the_installed_engine() -> None:
    """Each comes from a name in vLLM's or Serve's sources, by Ray's rules."""
    sources = {
        package: (installed(name) / file).read_text(encoding="utf-8")
        for package, name, file in (
            ("vllm", "vllm", "v1/metrics/loggers.py"),
            ("serve", "ray", "serve/_private/replica.py"),
        )
    }
    for name in COUNTERS | GAUGES:
        _, package, rest = name.split("_", 2)
        own = rest.removesuffix("_bucket").removesuffix("_total")
        quoted = f'"vllm:{own}"' if package == "vllm" else f'"serve_{own}"'
        assert quoted in sources[package], name


async def test_from_the_agents_to_the_last_hour_of_a_model(tmp_path: Path) -> None:
    now, shown = [1_500.0], [""]

    async def agent(_request: web.Request) -> web.Response:
        return web.Response(text=shown[0])

    def look() -> Look:
        app = Application("demo-1", Status.RUNNING, {}, "demo", replicas=(Replica(REPLICA, "RUNNING"),))
        apps = {"demo-1": app} if shown[0] else {}
        return Look(Desired(), Observed(applications=apps, now=now[0]), Plan())

    async with cluster(tmp_path, agent) as metrics:
        hour = LastHour(look, metrics, wall_clock=lambda: now[0])
        await hour.sample()
        now[0], shown[0] = 1_515.0, RECORDED
        await hour.sample()
    last = {series.name: series.points[-1] for series in hour.of("demo")}
    assert last["requests"] == 3 / 15
    assert last["generation_tokens"] == 9 / 15
    assert last["kv_cache_use"] == 0.25
    assert last["first_token_p95"] == pytest.approx(0.001 + 0.95 * 0.099)
    assert last["latency_p50"] == pytest.approx(0.3 + 0.5 * 0.7)
