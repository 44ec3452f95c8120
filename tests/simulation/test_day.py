"""A day of random traffic for models that do not all fit: nobody starves, and what must never happen does not.

    traffic, operators, misfortunes by the seed -> `Day` -> `World.turn` -> `Day`'s judgement after every turn

Time goes in steps as long as nothing happens; a load takes as many turns as it has stages. The planner's reasons
are checked against what the test has seen itself. `RECONCILE_DAY_SEEDS` sets how many days are played
(`RECONCILE_DAY_FIRST_SEED` the first one); a failure names its seed, and the same seed plays the same day again.
"""

import math
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import pytest

from reconciler.core.overrides import Kind, Override, OverrideError, active, give
from reconciler.core.plan import Action, Plan
from reconciler.core.residency import AHEAD_FACTOR, AHEAD_SECONDS
from reconciler.core.spec import Lifecycle, Policy, parse_duration
from reconciler.core.turn import Options
from reconciler.core.windows import window_of

from .world import (
    BUILD,
    BUILD_SECONDS,
    DELETE_SECONDS,
    MUTE,
    PROBE_SECONDS,
    REPLICA,
    START_SECONDS,
    Request,
    World,
    model_file,
)

Event: TypeAlias = tuple[float, Callable[[], None]]
"""Seconds since midnight, and what happens then."""
SEEDS = int(os.environ.get("RECONCILE_DAY_SEEDS", "4"))
FIRST_SEED = int(os.environ.get("RECONCILE_DAY_FIRST_SEED", "0"))
DAY, HOUR, MINUTE = 86_400.0, 3600.0, 60.0
MIDNIGHT = 12 * DAY
LONGEST_STREAM, ENDLESS = 8 * MINUTE, 10 * DAY
HERD = 500
WINDOWS = ('{start: "0 8 * * *", end: "30 11 * * *"}', '{start: "0 19 * * *", end: "0 20 * * *"}')
BUSY_STEP, QUIET_STEP = 15.0, 120.0
"""Seconds between two turns, at most: while something is under way, and while nothing is."""
SLACK = 60.0
"""Turns between two steps of a model that comes up or goes, all together."""


@dataclass(frozen=True)
class Size:
    """What a model takes: `ranks` GPUs, `share` of each."""

    share: float
    ranks: int = 1


@dataclass
class Watch:
    """What was seen of one application since it came."""

    first_routed: float | None = None
    last_use: float = 0.0


@dataclass
class Herd:
    """Many requests at once for a model that was not up."""

    model: str
    requests: list[Request]
    starts: int = 0


@dataclass
class Tally:
    """What a day was like."""

    turns: int = 0
    loads: int = 0
    unloads: Counter[str] = field(default_factory=Counter)
    answered: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    longest_wait: float = 0.0
    back: int = 0
    """How often the traffic went back to what was about to go."""


class Day:
    """One seed's models, and what happens to them."""

    longest_stream, busy_step, slack = LONGEST_STREAM, BUSY_STEP, SLACK

    def __init__(self, seed: int, folder: Path) -> None:
        self.seed, self.random = seed, random.Random(seed)
        pick = self.random.choice
        gpus = 1 + seed % 4
        self.world = World(folder, gpus=gpus, options=Options(max_loads=pick([1, 1, 2])), now=MIDNIGHT)
        self.sizes: dict[str, Size] = {}
        self._declare(self.random.randint(6, 10))
        self.until = MIDNIGHT + DAY
        self.watches: dict[str, Watch] = {}
        self.open: list[Request] = []
        self.herds: list[Herd] = []
        self.broken: set[str] = set()
        """Models whose loads fail, or failed at some time."""
        self.pins: set[str] = set()
        """What does not leave to make room, as the test sees it."""
        self.orders: dict[str, Override] = {}
        """What was asked for by hand and held when the last turn began."""
        self.upset: list[tuple[float, float]] = []
        """When nobody could be asked to leave, or had to stay for longer."""
        self.tally = Tally()
        self._writes = -1

    # --- the models ----------------------------------------------------------------------------------------

    def _declare(self, count: int) -> None:
        pick, world = self.random.choice, self.world
        names = "abcdefghij"[:count]
        small = world.gpus > 1
        left = 0.99
        for index, name in enumerate(names):
            share = pick([0.3, 0.4, 0.5, 0.7])
            if small:
                # Small ones all fit on one GPU: which of several a share lies on is unknown to the planner, and a
                # whole one that is free by the sums only is waited for in vain (see the scenarios).
                share = pick([1.0, 1.0, 0.2, 0.3])
                share = share if share == 1.0 or share <= left else 1.0
                left -= share if share < 1.0 else 0.0
            ranks = 2 if world.gpus > 2 and share == 1.0 and self.random.random() < 0.2 else 1
            policy = "on_demand"
            if index < 2:
                policy, share, ranks = ("pinned", "manual")[index], 0.1, 1
                left -= 0.1
            more = [
                f"idle_timeout: {pick(['2m', '10m', '30m'])}",
                f"min_stay: {pick(['20s', '1m', '2m'])}",
                f"wait_timeout: {pick(['2m', '10m', '3h', '3h', '3h'])}",
            ]
            if index in (2, 3):
                more.append("group: g")
            if index == 4:
                more.append(f"schedule: [{', '.join(WINDOWS)}]")
            text = model_file(
                share=share,
                policy=policy,
                priority=pick([10, 50, 50, 90]),
                drain=pick(["2m", "10m"]),
                lifecycle=", ".join(more),
            )
            if ranks > 1:
                text = text.replace("resources: {", f"resources: {{tensor_parallel: {ranks}, ")
            world.edit(**{name: text})
            world.start_seconds[name] = pick([3.0, 10.0, 30.0])
            self.sizes[name] = Size(share, ranks)
        assert len(world.desired.targets) == count, world.desired.invalid

    def lifecycle(self, model: str) -> Lifecycle:
        return self.world.desired.targets[model].spec.lifecycle

    def load_time(self, model: str) -> float:
        """What a load of a model takes at most, where nothing fails."""
        return BUILD_SECONDS + self.world.start_seconds.get(model, START_SECONDS) + PROBE_SECONDS + self.slack / 4

    def pinned(self, model: str) -> bool:
        """It does not leave to make room: by its file, its schedule, or by hand."""
        world, policy = self.world, self.lifecycle(model).policy
        override = active(world.overrides, world.now).get(model)
        kind = override.kind if override is not None else None
        if kind is Kind.UNLOAD:
            return False
        if kind is Kind.PIN or (policy is Policy.PINNED and kind is not Kind.UNPIN):
            return True
        if kind is Kind.LOAD and override is not None and (override.until is not None or policy is Policy.MANUAL):
            return True
        if policy is Policy.MANUAL:
            return bool(world.versions(model))
        window = world.windows.get(model)
        if window is None or policy is Policy.PINNED:
            return False
        ahead = world.load_seconds.get(model, 0.0) * AHEAD_FACTOR + AHEAD_SECONDS
        return window.open or (window.opens_in is not None and window.opens_in <= ahead)

    def fits_with(self, models: set[str]) -> bool:
        """All of these find room at the same time."""
        sizes = [self.sizes[model] for model in models]
        shares = sum(size.share for size in sizes if size.share < 1.0)
        if self.world.gpus == 1:
            return sum(size.share for size in sizes) <= 1.0 + 1e-6
        return sum(size.ranks for size in sizes if size.share == 1.0) + math.ceil(shares) <= self.world.gpus

    # --- what happens --------------------------------------------------------------------------------------

    def traffic(self) -> Iterator[Event]:
        """What clients do: quiet nights, and by day one thing after the other, some of them at the same time."""
        pick, uniform, names = self.random.choice, self.random.uniform, sorted(self.sizes)
        for _ in range(6):
            yield uniform(0, 6 * HOUR), self._asks(pick(names), uniform(1, 8))
        for _ in range(28):
            start, length = uniform(6.5 * HOUR, 21.5 * HOUR), uniform(5, 30) * MINUTE
            kind = pick(["burst", "fight", "fight", "streams", "steady", "herd"])
            fighters = self.random.sample(names, self.random.randint(2, min(5, len(names))))
            now = start
            while now < start + length:
                if kind == "fight":
                    for name in fighters:
                        yield now, self._asks(name, uniform(1, 8))
                    now += uniform(4, 20)
                elif kind == "streams":
                    yield now, self._asks(fighters[0], uniform(MINUTE, LONGEST_STREAM))
                    now += uniform(30, 200)
                elif kind == "steady":
                    yield now, self._asks(fighters[0], uniform(1, 20))
                    now += uniform(2, 60)
                elif kind == "burst":
                    for _ in range(self.random.randint(5, 30)):
                        yield now + uniform(0, 3), self._asks(fighters[0], uniform(1, 30))
                    now += uniform(60, 900)
                else:
                    yield now, self._sends_herd(fighters[0])
                    now += 2 * length

    def hands(self) -> Iterator[Event]:
        """What operators do, and what goes wrong."""
        uniform, pick, names = self.random.uniform, self.random.choice, sorted(self.sizes)
        yield 7 * HOUR, self._orders(names[1], Kind.LOAD, None)
        yield 23 * HOUR, self._orders(names[1], Kind.UNLOAD, None)
        for _ in range(10):
            length = pick([None, uniform(5, 40) * MINUTE])
            yield uniform(7, 21) * HOUR, self._orders(pick(names), pick(list(Kind)), length)
        for _ in range(5):
            yield uniform(0, DAY), self._restarts
        for _ in range(10):
            yield uniform(6 * HOUR, 22 * HOUR), self._will_crash
        for _ in range(3):
            start = uniform(6 * HOUR, 22 * HOUR)
            yield start, self._edge_is_gone
            yield start + uniform(30, 5 * MINUTE), self._edge_is_back
        for _ in range(5):
            start, name = uniform(6 * HOUR, 22 * HOUR), pick(names)
            yield start, self._breaks(name, pick([BUILD, REPLICA, MUTE]))
            yield start + uniform(2, 25) * MINUTE, self._is_mended(name)
        for _ in range(2):
            yield uniform(7 * HOUR, 21 * HOUR), self._fails_while_up

    def _asks(self, model: str, seconds: float) -> Callable[[], None]:
        def ask() -> None:
            self._note(self.world.ask(model, seconds))

        return ask

    def _sends_herd(self, model: str) -> Callable[[], None]:
        def send() -> None:
            cold = not self.world.versions(model) and model not in self.broken
            requests = [self.world.ask(model, self.random.uniform(1, 10)) for _ in range(HERD)]
            for request in requests:
                self._note(request)
            if cold:
                self.herds.append(Herd(model, requests))

        return send

    def _orders(self, model: str, kind: Kind, seconds: float | None) -> Callable[[], None]:
        def order() -> None:
            world = self.world
            policy, current = self.lifecycle(model).policy, world.overrides.get(model)
            try:
                new = give(kind, model, policy, current, now=world.now, for_seconds=seconds)
            except OverrideError:
                return
            if new is None:
                del world.overrides[model]
            else:
                world.overrides[model] = new
            world.log.append(f"by hand: {new or f'{model} no longer'}")

        return order

    def _restarts(self) -> None:
        self.world.start_process()
        self._upsets(0)

    def _will_crash(self) -> None:
        self.world.crash_at = self.random.randint(0, 4)
        self._upsets(0)

    def _edge_is_gone(self) -> None:
        self.world.edge_counts = False

    def _edge_is_back(self) -> None:
        self.world.edge_counts = True
        self._upsets(5 * MINUTE)

    def _upsets(self, seconds: float) -> None:
        """Everybody's minimum stay begins anew, or nobody knew what is in use."""
        longest = max(parse_duration(self.lifecycle(model).min_stay) for model in self.sizes)
        self.upset.append((self.world.now - seconds, self.world.now + longest + SLACK))

    def _breaks(self, model: str, fault: str) -> Callable[[], None]:
        def happen() -> None:
            self.world.faults[model] = fault
            self.broken.add(model)

        return happen

    def _is_mended(self, model: str) -> Callable[[], None]:
        def happen() -> None:
            self.world.faults.pop(model, None)

        return happen

    def _fails_while_up(self) -> None:
        up = sorted(app.name for app in self.world.apps.values() if app.up)
        if up:
            name = self.random.choice(up)
            self.broken.add(self.model_of(name))
            self.world.fail_running(name)

    @staticmethod
    def model_of(application: str) -> str:
        return application.split("-", maxsplit=1)[0]

    # --- time ----------------------------------------------------------------------------------------------

    def play(self) -> None:
        """The day, and the quiet after it."""
        self.pass_time((*self.traffic(), *self.hands()), self.until)
        self.come_to_rest()

    def pass_time(self, events: Iterable[Event], until: float) -> None:
        """Turns, and what happens meanwhile."""
        left = sorted(events, key=lambda event: event[0], reverse=True)
        while self.world.now < until:
            self._advance(self.turn(), left)

    def turn(self) -> Plan:
        """One turn, and what is to be said of it."""
        world = self.world
        for model, target in world.desired.targets.items():
            if (window := window_of(target.spec.lifecycle.schedule, world.now)) is not None:
                world.windows[model] = window
        self.pins = {model for model in self.sizes if self.pinned(model)}
        self.orders = active(world.overrides, world.now)
        before, there = dict(world.routes), set(world.apps)
        healthy = {app.name for app in world.apps.values() if app.up and app.status != "DELETING"}
        waiting = {model: world.now - each.seconds for model, each in world.waiting().items()}
        looks_twice = self.random.random() < 0.1
        foreseen = world.plan() if looks_twice else None
        plan = world.turn()
        # Compared outside of `assert`, which would word all of both plans.
        if foreseen is not None and foreseen != plan:
            raise AssertionError("the same inputs gave two plans")
        if plan.settled and looks_twice and world.waiting().keys() == waiting.keys() and world.plan() != plan:
            raise AssertionError("a settled plan is followed by another")
        self.tally.turns += 1
        started = [name for name in world.apps if name not in there]
        self._judge_state()
        for model, application in before.items():
            if world.routes.get(model) != application and application in healthy:
                self._judge_unroute(model, application, plan)
        for model, application in world.routes.items():
            if before.get(model) != application:
                self._note_route(model, application)
        for name in started:
            self._judge_start(self.model_of(name), waiting)
        self._judge_requests()
        for name in self.watches.keys() - world.apps.keys():
            del self.watches[name]
        return plan

    def _advance(self, plan: Plan, events: list[Event]) -> None:
        """Time passes until a turn is worth it."""
        world = self.world
        busy = world.writes != self._writes or bool(world.memory.probing)
        self._writes = world.writes
        step = 1.0 if busy else QUIET_STEP if plan.settled and not world.queue else self.busy_step
        stages = [app.until - world.now for app in world.apps.values() if app.until > world.now]
        end = world.now + max(0.5, min([step, *stages]))
        while events and MIDNIGHT + events[-1][0] <= end:
            at, happen = events.pop()
            self._tick(max(0.0, MIDNIGHT + at - world.now))
            waits = len(world.queue)
            happen()
            if len(world.queue) > waits:
                end = min(end, world.now + 1.0)
        self._tick(max(0.0, end - world.now))

    def _tick(self, seconds: float) -> None:
        world = self.world
        for stream in world.streams:
            watch = self.watches.setdefault(stream.application, Watch())
            watch.last_use = max(watch.last_use, min(stream.until, world.now + seconds))
        world.tick(seconds)

    def come_to_rest(self) -> None:
        """Nothing happens any more: what is not wanted goes, everything comes to rest."""
        world = self.world
        world.faults.clear()
        world.edge_counts, world.crash_at = True, None
        self.pass_time((), world.now + 6 * HOUR)
        plan = self.turn()
        assert not self.open, self.open
        assert plan.settled, plan.steps
        assert not active(world.overrides, world.now), world.overrides
        for model in self.sizes:
            policy = self.lifecycle(model).policy
            if policy is Policy.PINNED:
                assert world.serves(model), f"{model} is pinned and does not serve"
            if policy is Policy.ON_DEMAND:
                assert not world.versions(model), f"{model} is idle and up"
        writes = world.writes
        self._advance(plan, [])
        self.turn()
        assert world.writes == writes

    # --- judgement -----------------------------------------------------------------------------------------

    def _judge_state(self) -> None:
        """What holds at any moment."""
        world = self.world
        assert not world.violations, world.violations
        assert all(free >= -1e-6 for free in world._free), f"a GPU is over-committed: {world._free}"
        versions = Counter(self.model_of(app.name) for app in world.apps.values() if app.status != "DELETING")
        assert all(count == 1 for count in versions.values()), f"up twice: {versions}"
        groups = Counter(group for model in versions if (group := self.lifecycle(model).group) is not None)
        assert all(count == 1 for count in groups.values()), f"two of one group are up: {sorted(versions)}"
        loading = sum(
            app.stage in ("building", "pending", "starting") and app.config is not None
            for app in world.apps.values()
        )
        assert loading <= world.options.max_loads, f"{loading} load at a time"

    def _judge_unroute(self, model: str, application: str, plan: Plan) -> None:
        world, watch = self.world, self.watches[application]
        cause = next(
            (each.cause for each in plan.changes if (each.model, each.action) == (model, Action.UNLOAD)), ""
        )
        lifecycle, override = self.lifecycle(model), self.orders.get(model)
        by_hand = override is not None and override.kind is Kind.UNLOAD
        assert model not in self.pins, f"{model} is pinned and was sent away: {cause}"
        assert watch.first_routed is not None
        stayed = world.now - watch.first_routed
        if " to make " in cause:
            self.tally.unloads["room"] += 1
            assert stayed >= parse_duration(lifecycle.min_stay), f"{model} left after {stayed:.0f} s: {cause}"
        elif cause.startswith("idle "):
            self.tally.unloads["idle"] += 1
            idle = world.now - max(watch.last_use, watch.first_routed)
            assert not world.in_flight().get(application), f"{model} is in use: {cause}"
            assert idle >= parse_duration(lifecycle.idle_timeout), f"{model} was used {idle:.0f} s ago: {cause}"
        else:
            self.tally.unloads["by hand"] += 1
            assert by_hand, f"{model} lost its traffic without a reason: {cause!r}"

    def _note_route(self, model: str, application: str) -> None:
        watch = self.watches.setdefault(application, Watch())
        if watch.first_routed is not None:
            self.tally.back += 1
            return
        watch.first_routed = self.world.now
        self.tally.loads += 1
        self.world.load_seconds[model] = self.load_time(model)

    def _judge_start(self, model: str, waiting: dict[str, float]) -> None:
        """Whoever has waited for longer, and could have had that room, is not passed by."""
        for herd in self.herds:
            herd.starts += herd.model == model
        for other, since in waiting.items():
            # A model by hand or by schedule has a place of its own in the queue; of a group, only one may come.
            special = self.broken | self.pins | self.orders.keys()
            excused = model in special or other in special or self.lifecycle(other).group is not None
            if excused or self.world.versions(other) or since >= waiting.get(model, -math.inf):
                continue
            waited = self.world.now - since
            assert self._beside(model, other), (
                f"{other} has waited for {waited:.0f} s, and {model} came up before it"
            )

    def _beside(self, model: str, other: str) -> bool:
        """The room that `model` found is none that `other` could have had."""
        mine, theirs = self.sizes[model], self.sizes[other]
        if (mine.share, mine.ranks) >= (theirs.share, theirs.ranks):
            return False
        return self.fits_with({model, other, *self.pins})

    def _judge_requests(self) -> None:
        for request in [each for each in self.open if each.over]:
            self._judge_request(request)
        self.open = [each for each in self.open if not each.over]
        for request in self.open:
            waited = self.world.now - request.since
            limit = min(self.bound(request), parse_duration(self.lifecycle(request.model).wait_timeout))
            assert waited <= limit + QUIET_STEP, f"{request.model} is waited for since {waited:.0f} s"
        for herd in [each for each in self.herds if all(request.over for request in each.requests)]:
            self.herds.remove(herd)
            if herd.model not in self.broken:
                assert herd.starts <= 1, f"{HERD} requests started {herd.model} {herd.starts} times"
                served = any(request.began for request in herd.requests)
                assert herd.starts or not served, f"{herd.model} was not started and serves"

    def bound(self, request: Request) -> float:
        """How long a request may have to wait: every other model may come first, once.

        Of each: its turn (`min_stay`, and as long as the next load takes), its last stream or its drain limit,
        going, and its own load. What disturbs the reconciler comes on top.
        """
        model = request.model
        total = self.load_time(model) + self.slack
        for other in self.sizes.keys() - {model}:
            lifecycle = self.lifecycle(other)
            turn = max(parse_duration(lifecycle.min_stay), *map(self.load_time, self.sizes))
            drain = min(self.longest_stream, parse_duration(lifecycle.drain_timeout))
            total += turn + drain + DELETE_SECONDS + self.load_time(other) + self.slack
        return total + sum(until - since for since, until in self.upset if until >= request.since)

    def _note(self, request: Request) -> None:
        if request.over:
            self._judge_request(request)
        else:
            self.open.append(request)

    def _judge_request(self, request: Request) -> None:
        world, model, reason = self.world, request.model, request.refused
        waited = (request.began or world.now) - request.since
        self.tally.longest_wait = max(self.tally.longest_wait, waited)
        if request.began is not None:
            self.tally.answered += 1
            return
        lifecycle, override = self.lifecycle(model), self.orders.get(model)
        kind = override.kind if override is not None else None
        self.tally.refused[reason.split(":")[0]] += 1
        if reason == "it took too long":
            true = waited > parse_duration(lifecycle.wait_timeout)
        elif reason.startswith("failed: "):
            true = model in self.broken
        elif reason.startswith("no room: "):
            true = self._has_no_room(model)
        elif "by hand" in reason:
            true = kind is Kind.UNLOAD
        else:
            true = reason.startswith("manual: ") and lifecycle.policy is Policy.MANUAL
        assert true, f"a request for {model} was refused after {waited:.0f} s: {reason}; pinned: {self.pins}"

    def _has_no_room(self, model: str) -> bool:
        group = self.lifecycle(model).group
        if group is not None and any(self.lifecycle(other).group == group for other in self.pins - {model}):
            return True
        return not self.fits_with({model, *self.pins})


class Fight(Day):
    """The same from the beginning to the end: all that load on demand are asked at regular intervals."""

    longest_stream, busy_step, slack = 8.0, 5.0, 25.0
    length = 30 * MINUTE

    def __init__(self, seed: int, folder: Path) -> None:
        super().__init__(seed, folder)
        self.until = MIDNIGHT + self.length
        self.models = sorted(self.sizes)[2:]

    def traffic(self) -> Iterator[Event]:
        for model in self.models:
            interval, seconds = self.random.uniform(5, 60), self.random.uniform(1, self.longest_stream)
            for count in range(int(self.length / interval)):
                yield count * interval, self._asks(model, seconds)

    def hands(self) -> Iterator[Event]:
        yield from ()


class Endless(Fight):
    """Every model that loads on demand is asked once, for a stream that never ends."""

    longest_stream = ENDLESS

    def traffic(self) -> Iterator[Event]:
        for model in self.models:
            yield self.random.uniform(0, HOUR), self._asks(model, ENDLESS)


def played(day: Day, play: Callable[[], None]) -> None:
    """Play it; a failure says which seed, when, with which files and after what."""
    try:
        play()
    except AssertionError as error:
        files = "\n".join(f"--- {path}\n{text}" for path, text in sorted(day.world.files.items()))
        tail = "\n".join(day.world.log[-20:])
        clock = day.world.now - MIDNIGHT
        raise AssertionError(f"seed {day.seed} at {clock:.1f} s: {error}\n{files}\n{tail}") from error


@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + SEEDS))
def test_a_day_of_random_traffic(seed: int, tmp_path: Path) -> None:
    day = Day(seed, tmp_path)
    played(day, day.play)
    assert day.tally.answered > 1000
    assert day.tally.loads > 20
    assert day.tally.unloads.keys() >= {"room", "idle"}
    # Traffic goes back only to what is asked for again while it leaves.
    assert day.tally.back <= day.tally.loads / 20


@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + SEEDS))
def test_under_constant_traffic_models_only_take_turns(seed: int, tmp_path: Path) -> None:
    fight = Fight(seed, tmp_path)
    played(fight, fight.play)
    assert fight.tally.answered > 100
    # Each turn is as long as it has to be (see `_judge_unroute`). What leaves gets its traffic back only where
    # nobody waits for its room any more.
    assert fight.tally.back <= fight.tally.loads / 20


@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + SEEDS))
def test_streams_that_never_end_come_to_a_fixed_point(seed: int, tmp_path: Path) -> None:
    endless = Endless(seed, tmp_path)
    played(endless, lambda: endless.pass_time(endless.traffic(), MIDNIGHT + 5 * HOUR))
    assert not endless.world.queue
    writes = endless.world.writes
    played(endless, lambda: endless.pass_time((), endless.world.now + HOUR))
    assert endless.world.writes == writes
