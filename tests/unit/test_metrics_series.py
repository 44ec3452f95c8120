"""The last hour: rates, whatever counters do, quantiles, a ring of points, and samples beside the loop."""

import asyncio
import math
from collections.abc import Collection, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.desired import Desired
from reconciler.core.metric_names import FIRST_TOKEN, GENERATION_TOKENS, KV_CACHE, REQUESTS, RUNNING, WAITING
from reconciler.core.plan import Plan
from reconciler.core.series import POINTS, STEP_SECONDS, UNITS, Hour, Meter, Reading, quantile
from reconciler.core.state import Application, Demand, Observed, Replica, Status, Waiting
from reconciler.loop.last_hour import LastHour
from reconciler.loop.loop import Look
from reconciler.ray_serve.client import ServeUnreachableError


def requests(count: float) -> Reading:
    return Reading({(REQUESTS, ""): count})


# --- rates ------------------------------------------------------------------------------------------------


def test_a_rate_goes_over_two_steps() -> None:
    meter, rates = Meter(), []
    for step, count in enumerate([100, 130, 190, 190, 190]):
        meter.see({"r"}, step * 15.0)
        rates.append(meter.measure({"r": requests(count)}).get("requests"))
    # Of a replica that was there before, the first reading says nothing.
    assert rates == [None, 30 / 15, 90 / 30, 60 / 30, 0.0]


def test_a_replica_that_comes_later_began_at_nought() -> None:
    meter = Meter()
    meter.see({"old"}, 0.0)
    assert "requests" not in meter.measure({"old": requests(1_000)})
    meter.see({"old", "new"}, 15.0)
    found = meter.measure({"old": requests(1_000), "new": requests(30)})
    assert found["requests"] == 30 / 15


def test_it_began_when_it_was_first_seen_also_if_it_says_nothing_for_long() -> None:
    meter = Meter()
    meter.see(set(), 0.0)
    for step in range(1, 5):
        meter.see({"new"}, step * 15.0)
        assert meter.measure({}) == {}
    meter.see({"new"}, 75.0)
    assert meter.measure({"new": requests(75)})["requests"] == 1.0


def test_a_counter_that_is_missing_for_once_did_not_begin_anew() -> None:
    meter, rates = Meter(), []
    for step, reading in enumerate([requests(1_000), Reading(), requests(1_030)]):
        meter.see({"r"}, step * 15.0)
        rates.append(meter.measure({"r": reading}).get("requests"))
    assert rates == [None, 0.0, 1.0]


def test_a_replica_that_goes_takes_nothing_back() -> None:
    meter = Meter()
    meter.see({"a", "b"}, 0.0)
    meter.measure({"a": requests(5), "b": requests(500)})
    meter.see({"a"}, 15.0)
    assert meter.measure({"a": requests(20)})["requests"] == 1.0


@given(st.lists(st.tuples(st.integers(0, 50), st.booleans()), min_size=1, max_size=20))
def test_whatever_is_counted_is_shown_once_however_often_a_counter_begins_anew(
    steps: list[tuple[int, bool]],
) -> None:
    """As Prometheus has it: a counter that is smaller than before began at nought since."""
    meter, count, seen = Meter(), 0, [0]
    meter.see(set(), 0.0)
    for step, (grows, begins_anew) in enumerate(steps, start=1):
        before, count = count, grows if begins_anew else count + grows
        seen.append(seen[-1] + (count - before if count >= before else count))
        meter.see({"r"}, step * 15.0)
        first = max(0, step - 2)
        expected = (seen[step] - seen[first]) / ((step - first) * 15.0)
        assert meter.measure({"r": requests(count)})["requests"] == pytest.approx(expected)


def test_gauges_are_added_up_and_the_fullest_cache_counts() -> None:
    meter = Meter()
    meter.see({"a", "b"}, 0.0)
    found = meter.measure({
        "a": Reading(gauges={KV_CACHE: 0.25, RUNNING: 3.0, WAITING: 0.0}),
        "b": Reading(gauges={KV_CACHE: 0.5, RUNNING: 4.0}),
    })  # fmt: skip
    assert found == {"kv_cache_use": 0.5, "running": 7.0, "waiting": 0.0}


# --- quantiles --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("buckets", "share", "value"),
    [
        ({"1": 0, "2": 10, "+Inf": 10}, 0.5, 1.5),
        ({"1": 10, "2": 10, "+Inf": 10}, 0.95, 0.95),
        ({"1": 5, "2": 5, "4": 10, "+Inf": 10}, 0.75, 3.0),
        ({"1": 0, "2": 0, "+Inf": 10}, 0.5, 2.0),  # beyond all bounds
        ({"1": 0, "+Inf": 0}, 0.5, None),
        ({}, 0.5, None),
        ({"1": 3}, 0.5, None),
        ({"+Inf": 3}, 0.5, None),
        ({"1": 1, "x": 2, "nan": 3, "+Inf": 1}, 1.0, 1.0),
    ],
)
def test_a_quantile_is_prometheus_own(buckets: dict[str, float], share: float, value: float | None) -> None:
    found = quantile(share, buckets)
    assert found == (None if value is None else pytest.approx(value))


@given(st.lists(st.floats(0.01, 20), min_size=1, max_size=50), st.sampled_from([0.5, 0.95]))
def test_a_quantile_is_in_the_bucket_of_the_value(values: list[float], share: float) -> None:
    bounds = [0.1, 1.0, 5.0, 20.0]
    buckets = {str(bound): float(sum(value <= bound for value in values)) for bound in bounds}
    found = quantile(share, {**buckets, "+Inf": float(len(values))})
    true = sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
    at = next(index for index, bound in enumerate(bounds) if true <= bound)
    assert found is not None
    low = [0.0, *bounds][at]
    assert low - 1e-9 <= found <= bounds[at] + 1e-9


# --- the ring ---------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 3 * POINTS), min_size=1, max_size=30, unique=True), st.integers(0, 2 * POINTS))
def test_an_hour_holds_each_point_in_its_place_and_nothing_else(ticks: list[int], later: int) -> None:
    hour, last = Hour(), max(ticks)
    for tick in sorted(ticks):
        hour.put(tick, {"running": float(tick)})
    now = last + later
    series = {each.name: each for each in hour.series(now)}
    assert series.keys() == UNITS.keys()
    running = series["running"]
    assert len(running.points) == POINTS
    assert running.start + (POINTS - 1) * running.step == now * STEP_SECONDS
    expected = {tick for tick in ticks if now - POINTS < tick and last - POINTS < tick}
    found = {now - POINTS + 1 + place: value for place, value in enumerate(running.points) if value is not None}
    assert found == {tick: float(tick) for tick in expected}
    assert not any(value is not None for value in series["waiting"].points)
    assert hour.is_over(now) == (later >= POINTS)


def test_a_clock_that_is_set_back_begins_anew() -> None:
    hour = Hour()
    hour.put(1_000, {"running": 1.0})
    hour.put(990, {"running": 2.0})
    (running,) = [each for each in hour.series(990) if each.name == "running"]
    assert [value for value in running.points if value is not None] == [2.0]


# --- beside the loop --------------------------------------------------------------------------------------


class Engines:
    """Engines that say what they are told to, or whose cluster does not answer."""

    def __init__(self) -> None:
        self.says: dict[str, Reading] = {}
        self.asked: list[set[str]] = []
        self.broken: Exception | None = None

    async def read(self, replicas: Collection[str]) -> Mapping[str, Reading]:
        self.asked.append(set(replicas))
        if self.broken is not None:
            raise self.broken
        return {name: each for name, each in self.says.items() if name in replicas}


def app(name: str, model: str | None, *replicas: str, gpus: float = 0.0) -> Application:
    rows = tuple(Replica(each, "RUNNING") for each in replicas)
    return Application(name, Status.RUNNING, {"name": name}, model, replicas=rows, demand=Demand(gpus=gpus))


class World:
    """A last hour, on a clock that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1_500.0
        self.engines = Engines()
        self.observed: Observed | None = None
        self.held: dict[str, int | None] = {}
        self.hour = LastHour(self.look, self.engines, self.memory, wall_clock=lambda: self.now)

    def look(self) -> Look | None:
        return Look(Desired(), self.observed, Plan()) if self.observed is not None else None

    async def memory(self, application: str) -> int | None:
        return self.held.get(application)

    async def sample(self, *apps: Application, age: float = 1.0, **more: object) -> None:
        self.observed = Observed(applications={each.name: each for each in apps}, now=self.now - age, **more)  # type: ignore[arg-type]
        await self.hour.sample()

    def values(self, model: str) -> dict[str, list[float]]:
        found = {each.name: [v for v in each.points if v is not None] for each in self.hour.of(model)}
        return {name: values for name, values in found.items() if values}


async def test_engines_are_asked_only_while_there_are_any() -> None:
    world = World()
    await world.hour.sample()
    await world.sample()
    await world.sample(app("m-1", "m"), app("foreign", None, "x"))
    assert world.engines.asked == []
    await world.sample(app("m-1", "m", "r"), app("foreign", None, "x"))
    assert world.engines.asked == [{"r"}]


async def test_the_versions_of_a_model_count_together() -> None:
    world = World()
    await world.sample()
    world.engines.says = {
        "a": Reading({(GENERATION_TOKENS, ""): 30.0, (FIRST_TOKEN, "1.0"): 2.0, (FIRST_TOKEN, "+Inf"): 2.0}),
        "b": Reading({(GENERATION_TOKENS, ""): 60.0}),
        "c": Reading({(GENERATION_TOKENS, ""): 15.0}),
    }
    world.now += STEP_SECONDS
    await world.sample(
        app("m-1", "m", "a"), app("m-2", "m", "b"), app("n-1", "n", "c"),
        in_flight={"m-1": 2, "m-2": 3}, waiting={"n": Waiting(4, 1.0), "cold": Waiting(1, 9.0)},
    )  # fmt: skip
    assert world.values("m") == {
        "requests": [0.0], "errors": [0.0], "prompt_tokens": [0.0], "generation_tokens": [6.0],
        "first_token_p50": [0.5], "first_token_p95": [pytest.approx(0.95)], "in_flight": [5.0], "held": [0.0],
    }  # fmt: skip
    assert world.values("n")["generation_tokens"] == [1.0]
    assert world.values("n")["held"] == [4.0]
    assert world.values("cold") == {"held": [1.0]}
    assert world.hour.of("unknown") == ()


async def test_a_look_that_is_old_says_nothing_of_now() -> None:
    world = World()
    await world.sample(app("m-1", "m", "r"), age=61.0)
    assert world.engines.asked == []
    assert world.hour.of("m") == ()


async def test_a_cluster_that_does_not_answer_leaves_a_gap() -> None:
    world = World()
    world.engines.says = {"r": Reading({(REQUESTS, ""): 30.0}, {RUNNING: 1.0})}
    await world.sample(app("m-1", "m", "r"))
    for broken in (ServeUnreachableError("Ray is away"), None):
        world.engines.broken = broken
        world.now += STEP_SECONDS
        world.engines.says["r"] = Reading({(REQUESTS, ""): world.now - 1_470.0}, {RUNNING: 1.0})
        await world.sample(app("m-1", "m", "r"))
    (running,) = [each for each in world.hour.of("m") if each.name == "running"]
    assert running.points[-3:] == (1.0, None, 1.0)
    # Nothing is lost meanwhile: the rate is that of all the time since.
    assert world.values("m")["requests"] == [1.0]


async def test_a_model_that_is_gone_is_forgotten_after_an_hour() -> None:
    world = World()
    await world.sample(app("m-1", "m", "r"))
    world.now += 3_599.0
    await world.sample()
    assert world.hour.of("m")
    world.now += 2.0
    await world.sample()
    assert world.hour.of("m") == ()


async def test_the_memory_of_engines_on_gpus_is_asked_for_once_a_minute() -> None:
    world = World()
    world.held = {"m-1": 7, "n-1": 9}
    both = app("m-1", "m", "r", gpus=0.5), app("n-1", "n", "s", gpus=1.0)
    await world.sample(*both)
    assert world.hour.memory() == {"m-1": 7, "n-1": 9}
    world.held = {"m-1": 8, "n-1": None}
    for _ in range(3):
        world.now += STEP_SECONDS
        await world.sample(*both)
        assert world.hour.memory() == {"m-1": 7, "n-1": 9}
    world.now += STEP_SECONDS
    await world.sample(*both)
    assert world.hour.memory() == {"m-1": 8, "n-1": 9}
    world.now += 4 * STEP_SECONDS
    await world.sample(both[0])
    assert world.hour.memory() == {"m-1": 8}


async def test_whatever_happens_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.engines.broken = RuntimeError("a fault")
    world.observed = Observed(applications={"m-1": app("m-1", "m", "r")}, now=world.now)
    waits: list[float] = []
    yield_once = asyncio.sleep

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        world.now += seconds
        await yield_once(0)

    monkeypatch.setattr("reconciler.loop.last_hour.asyncio.sleep", sleep)
    world.now += 5.0
    task = asyncio.create_task(world.hour.watch())
    while len(world.engines.asked) < 3:
        await yield_once(0)
    assert not task.done()
    task.cancel()
    # Samples are taken where a step begins.
    assert waits[:3] == [10.0, 15.0, 15.0]
