"""A simulated world: Serve, GPUs, the edge and the clock, with the manners of the real ones (see FACTS.md).

`World.turn` does what `loop.Loop.turn` and `loop.act.Actor` do, with the real memory and the real planner, and can
die before or after each effect; each call may fail before or after it did what it does (`calls`). What must never
happen is noted in `violations` at the moment it happens.
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reconciler.activator.directory import Directory
from reconciler.core.application import basis_of, demand_of, model_of
from reconciler.core.desired import Desired, Snapshot, compile_desired, revision_of, wanted_in
from reconciler.core.keep import recent_after
from reconciler.core.overrides import Override, active
from reconciler.core.parse import ParsedSet, Problem, parse_all
from reconciler.core.plan import Action, Do, Order, Plan, Step
from reconciler.core.planner import BUILD_SECONDS as BUILD_PATIENCE
from reconciler.core.planner import make_plan, observed_digest
from reconciler.core.render import Renderer
from reconciler.core.rollback import Rollback, Version, resolutions, version_of, why_ended
from reconciler.core.rollback import apply as roll_back
from reconciler.core.spec import parse_duration
from reconciler.core.state import Demand, Json, Node, Observed, Record, Waiting
from reconciler.core.suspension import Suspension
from reconciler.core.target import Platform, Target
from reconciler.core.turn import Options
from reconciler.core.weights import Phase
from reconciler.core.windows import Window
from reconciler.edge.errors import EdgeUnreachableError
from reconciler.loop.directory import build_directory
from reconciler.loop.memory import Memory
from reconciler.ray_serve.client import ServeRefusedError, ServeUnreachableError
from reconciler.ray_serve.observed import applications, serve_settings

from .fake_hub import FakeHub, Known
from .fake_serve import (
    BUILD,
    BUILD_SECONDS,
    DELETE_SECONDS,
    MUTE,
    REASON,
    REPLICA,
    START_SECONDS,
    FakeServe,
    SimApp,
)
from .fake_source import FakeGit
from .faults import Call, FallibleMemory, Faults, When

__all__ = [
    "BUILD", "BUILD_SECONDS", "DELETE_SECONDS", "MUTE", "NO_ROOM", "PROBE_SECONDS", "REASON", "REPLICA",
    "START_SECONDS", "TEMPLATE", "Request", "World", "model_file", "show",
]  # fmt: skip

TEMPLATE = (Path(__file__).parents[2] / "templates" / "application.json.j2").read_text(encoding="utf-8")
PLATFORM = Platform(device="cpu", simulate_gpus=True)
PROBE_SECONDS = 1.0
FOLDER = "/models"
NO_ROOM = "no room for two versions at once"
KEEP_VERSIONS = 2
FAILED_TURN = Plan(steps=(Step(Do.AWAIT, "", "", "the turn failed; the next one looks again"),))
_EXPECTED = (ServeUnreachableError, ServeRefusedError, EdgeUnreachableError, OSError)
"""What a turn of the loop may end with."""


class Killed(Exception):  # noqa: N818 -- not an error of ours
    """The reconciler's process died here."""


@functools.cache
def renderer(template: str) -> Renderer:
    return Renderer(template, PLATFORM)


@functools.lru_cache(maxsize=2_000)
def parsed(files: tuple[tuple[str, bytes], ...]) -> ParsedSet:
    return parse_all(dict(files))


@functools.lru_cache(maxsize=2_000)
def compiled(
    files: tuple[tuple[str, bytes], ...],
    template: str,
    revision: str = "",
    locked: tuple[str, ...] = (),
    known: Known | None = None,
) -> Desired:
    contents = dict(files)
    problems = tuple(Problem(path, 1, 1, "Permission denied") for path in locked)
    snapshot = Snapshot(revision or revision_of(contents), contents, FOLDER, problems=problems)
    found = None if known is None else dict(known)
    return compile_desired(snapshot, renderer(template), found, parsed=parsed(files))


@dataclass
class Stream:
    """One request in flight."""

    application: str
    until: float
    since: float


@dataclass
class Request:
    """A request that waits at the activator, or what became of it."""

    model: str
    since: float
    seconds: float
    began: float | None = None
    """When it was passed on to the model."""
    refused: str = ""
    deadline: float = math.inf
    ends: int = 0
    """How often somebody had done with it: more than once is a fault."""

    @property
    def over(self) -> bool:
        """It waits no more."""
        return self.began is not None or bool(self.refused)

    def pass_on(self, now: float) -> None:
        """It goes to the model."""
        self.began, self.ends = now, self.ends + 1

    def refuse(self, why: str) -> None:
        """Nobody answers it."""
        self.refused, self.ends = why, self.ends + 1


@dataclass
class World:
    """Everything outside the planner. `gpus` are the devices of one node."""

    folder: Path
    gpus: int = 0
    options: Options = field(default_factory=Options)
    files: dict[str, str] = field(default_factory=dict)
    template: str = TEMPLATE
    now: float = 1_000_000.0
    git: FakeGit | None = None
    """Where the model files come from; without one, `files` are a folder that is read as it is."""
    use_hub: bool = False
    """Weights are fetched by us; without, engines find what they need."""
    routes: dict[str, str] = field(default_factory=dict)
    streams: list[Stream] = field(default_factory=list)
    edge_counts: bool = True
    unreadable: str = ""
    locked: set[str] = field(default_factory=set)
    """Files that nobody may read."""
    crash_at: int | None = None
    """Die before this effect of the next turn (even: before, odd: after the half of it)."""
    puts: list[list[str]] = field(default_factory=list)
    writes: int = 0
    violations: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    cut: int = 0
    queue: list[Request] = field(default_factory=list)
    """Requests that wait at the activator."""
    overrides: dict[str, Override] = field(default_factory=dict)
    suspensions: dict[str, Suspension] = field(default_factory=dict)
    rollbacks: dict[str, Rollback] = field(default_factory=dict)
    served: dict[str, list[Version]] = field(default_factory=dict)
    """The texts of each model that had the traffic, the newest first."""
    windows: dict[str, Window] = field(default_factory=dict)
    load_seconds: dict[str, float] = field(default_factory=dict)
    asleep: set[str] = field(default_factory=set)
    """Applications whose engines sleep."""
    broken: dict[str, str] = field(default_factory=dict)
    """Applications that did not stand a sleep or a wake, with the reason."""
    sleep_left: int | None = None
    race: Callable[[], object] | None = None
    """Happens once, between the look at Serve and the next PUT."""
    directory: Directory = field(default_factory=lambda: Directory(settled=False))

    def __post_init__(self) -> None:
        self._probes: dict[str, float] = {}
        self._unrouted: dict[str, float] = {}
        self._ended: dict[str, float] = {}
        self._unloads: set[str] = set()
        self.calls = Faults()
        self.serve = FakeServe(lambda: self.now, self.gpus, gone=self._cut)
        self.hub = FakeHub(lambda: self.now, self.calls) if self.use_hub else None
        self.start_process()

    # --- parts of Serve ------------------------------------------------------------------------------------

    @property
    def apps(self) -> dict[str, SimApp]:
        """Serve's applications."""
        return self.serve.apps

    @property
    def faults(self) -> dict[str, str]:
        """By application or model name: `build`, `replica` or `mute`."""
        return self.serve.faults

    @faults.setter
    def faults(self, faults: dict[str, str]) -> None:
        self.serve.faults = faults

    @property
    def start_seconds(self) -> dict[str, float]:
        """How long a model's replica takes to start, where that is not `START_SECONDS`."""
        return self.serve.start_seconds

    @property
    def _free(self) -> list[float]:
        return self.serve.free

    def add(self, name: str, config: Json | None, *, imperative: bool = False) -> SimApp:
        """Somebody deploys an application."""
        return self.serve.add(name, config, imperative=imperative)

    def delete(self, name: str) -> None:
        """Somebody deletes an application."""
        self.serve.delete(name)

    def occupy(self, share: float, name: str = "stranger") -> None:
        """A foreign declarative application takes its share of the first GPU with room."""
        self.serve.occupy(share, name)

    def fail_running(self, name: str) -> None:
        """A running application breaks for good, and with it what it was answering."""
        self.serve.fail_running(name)
        self.streams = [stream for stream in self.streams if stream.application != name]

    def lose_head(self) -> None:
        """The head node dies, and every application with it."""
        self.log.append("the head is lost")
        self.serve.lose_head()
        self.asleep.clear()
        self.broken.clear()

    # --- the process ---------------------------------------------------------------------------------------

    def start_process(self) -> None:
        """A reconciler starts: only what is on disk is remembered."""
        self.memory: Memory = FallibleMemory(self.folder, self.calls, monotonic=lambda: self.now)
        self._probes = {}
        if self.hub is not None:
            self.hub.forget_pending()

    @property
    def desired(self) -> Desired:
        if self.unreadable:
            return Desired(unreadable=self.unreadable)
        source = self.source
        if source.unreadable:
            return Desired(unreadable=source.unreadable)
        held = self.rollbacks_in_force(source)
        texts = {path: content.decode() for path, content in roll_back(source, held).files.items()}
        return self._compile(texts, source.revision if self.git is not None else "", held)

    @property
    def source(self) -> Snapshot:
        """What the source says, whatever was rolled back."""
        if self.git is not None:
            return self.git.snapshot(FOLDER)
        contents = {path: text.encode() for path, text in self.files.items() if path not in self.locked}
        problems = tuple(Problem(path, 1, 1, "Permission denied") for path in self.locked & self.files.keys())
        return Snapshot(revision_of(contents), contents, FOLDER, problems=problems)

    def rollbacks_in_force(self, source: Snapshot) -> tuple[Rollback, ...]:
        """Those that nothing has ended; what was ended once stays so."""
        self.rollbacks = {
            about: each for about, each in self.rollbacks.items() if not why_ended(each, source, self.now)
        }
        return tuple(self.rollbacks.values())

    def read(self) -> Mapping[str, Target]:
        """What the files ask for as they are, wherever the reconciler has its own from."""
        return self._compile(self.files).targets

    def _compile(
        self, texts: Mapping[str, str], revision: str = "", rollbacks: tuple[Rollback, ...] = ()
    ) -> Desired:
        given = {path for each in rollbacks for path in each.files}
        locked = tuple(sorted((self.locked & self.files.keys() if self.git is None else set()) - given))
        files = tuple(sorted((path, text.encode()) for path, text in texts.items() if path not in locked))
        if self.hub is None:
            return compiled(files, self.template, revision, locked)
        wanted = wanted_in(parsed(files))
        known = {**dict(self.hub.resolve(wanted)), **resolutions(rollbacks, wanted)}
        return compiled(files, self.template, revision, locked, frozenset(known.items()))

    def observe(self, desired: Desired) -> Observed:
        instance = self.calls.run(Call.GET, self.serve.describe)
        seen = self.memory.see(applications(instance), self.routes)
        # What our own applications do not hold is held by others.
        foreign = sum(share for app in self.apps.values() for _, share in app.gpu or () if app.name not in seen)
        for name, app in seen.items():
            if app.model is None:
                foreign += sum(share for _, share in self.apps[name].gpu or ())
        in_flight = self.in_flight() if self.edge_counts else None
        idle = {name: self.now - ended for name, ended in self._ended.items()} if self.edge_counts else {}
        return Observed(
            applications=seen,
            serve=serve_settings(instance),
            nodes=(Node("n1", self.gpus, foreign),) if self.gpus else (),
            routes=dict(self.routes),
            in_flight=in_flight,
            idle_seconds=self.memory.use(in_flight, idle),
            up_seconds=self.memory.up_seconds(),
            waiting=self.waiting(),
            load_seconds=dict(self.load_seconds),
            asleep=frozenset(self.asleep & seen.keys()),
            broken=dict(self.broken),
            insomniac=dict(self.broken),
            sleep_left=self.sleep_left,
            overrides=active(self.overrides, self.now),
            windows=dict(self.windows),
            suspensions=tuple(self.suspensions.values()),
            declared=dict(self.memory.declared),
            left=dict(self.memory.left),
            ready=frozenset(self.memory.ready),
            probing=frozenset(self.memory.probing),
            unanswered=dict(self.memory.unanswered),
            ages=self.memory.ages(),
            draining=self.memory.draining(),
            records=dict(self.memory.records),
            failures=dict(self.memory.failures),
            missing_paths={path: "no such folder" for t in desired.targets.values() for path in t.paths},
            weights=self.hub.states() if self.hub is not None else {},
            now=self.now,
        )

    def plan(self) -> Plan:
        """What would be done now. Changes nothing that counts."""
        desired = self.desired
        return make_plan(desired, self.observe(desired), self.options)

    def turn(self) -> Plan:
        """One turn of the loop; a planned crash ends it and starts the process anew.

        Where a call fails the turn ends there, as in the loop, and the next one looks again.
        """
        desired = self.desired
        try:
            observed = self.observe(desired)
        except _EXPECTED as error:
            self.log.append(f"turn failed: {error}")
            self.crash_at = None
            return FAILED_TURN
        plan = make_plan(desired, observed, self.options)
        self._effects = 0
        self.directory = build_directory(desired, observed, plan, created=0)
        self._unloads = {change.model for change in plan.changes if change.action in (Action.UNLOAD, Action.SLEEP)}
        self.failed_turn = False
        self.memory.forget_left(each.application for each in plan.drift if each.over)
        try:
            self._act(plan, desired, observed)
            if plan.done and not desired.unreadable:
                self._forget(plan, desired, observed)
        except Killed:
            self.log.append("killed")
            self.start_process()
        except _EXPECTED as error:
            self.log.append(f"turn failed: {error}")
            self.failed_turn = True
            self._release_waiting()
        else:
            self._release_waiting()
        self.crash_at = None
        self._note_served(desired, observed)
        return plan

    def _note_served(self, desired: Desired, observed: Observed) -> None:
        files = roll_back(self.source, self.rollbacks.values()).files
        for model in desired.targets:
            version = version_of(model, desired, observed, files)
            kept = self.served.setdefault(model, [])
            if version is not None and version.text not in (each.text for each in kept):
                kept.insert(0, version)

    def _act(self, plan: Plan, desired: Desired, observed: Observed) -> None:
        by_kind: dict[Do, list[Step]] = {}
        for step in plan.steps:
            by_kind.setdefault(step.do, []).append(step)
        self.memory.declare({model: target.file for model, target in desired.targets.items()})
        self.memory.save_left()
        self.memory.awaited(observed.waiting)
        for step in by_kind.get(Do.FAIL, ()):
            self._effect(functools.partial(self._fail, step, observed))
        for step in by_kind.get(Do.KEEP_PREVIOUS, ()):
            config = observed.applications[step.application].config
            if config is not None:
                self._effect(functools.partial(self.memory.keep_previous, step.model, config))
        for step in by_kind.get(Do.FORGET_PREVIOUS, ()):
            self._effect(functools.partial(self.memory.forget_previous, step.model))
        for step in by_kind.get(Do.RECORD, ()):
            target = desired.targets[step.model]
            recent = recent_after(self.memory.records.get(step.model), target.copies, KEEP_VERSIONS)
            row = Record(
                step.model, target.file, target.application, target.fields, recent=recent, basis=target.basis
            )
            self._effect(functools.partial(self.memory.record, row))
            self._effect(functools.partial(self.memory.forgive, target.application, target.basis))
        for step in by_kind.get(Do.END_OVERRIDE, ()):
            self.overrides.pop(step.model)
        self._fetch(by_kind.get(Do.FETCH, []), desired, observed)
        on, off = by_kind.get(Do.ROUTE, []), by_kind.get(Do.UNROUTE, [])
        if on or off:
            routes = dict(observed.routes)
            for step in off:
                routes.pop(step.model, None)
            for step in on:
                routes[step.model] = step.application
            whys = {step.model: step.why for step in off}
            self._effect(
                lambda: self.calls.run(Call.ROUTES, lambda: self._set_routes(routes, whys, desired)),
            )
        for step in by_kind.get(Do.SLEEP, ()):
            if step.application in self.in_flight():
                self.violations.append(f"{step.application} was put to sleep with requests in flight")
            self.asleep.add(step.application)
        for step in by_kind.get(Do.WAKE, ()):
            self.asleep.discard(step.application)
            self.memory.wakes(step.application)
        for step in by_kind.get(Do.PROBE, ()):
            if step.application in self.asleep:
                self.violations.append(f"{step.application} was asked while it slept")
            self.memory.probing.add(step.application)
            self._probes[step.application] = self.now + PROBE_SECONDS
        if plan.applications is not None:
            body = [plan.applications[name] for name in sorted(plan.applications)]
            if self.race is not None:
                self.race()
                self.race = None
            again = self.calls.run(Call.SECOND_LOOK, self.serve.describe)
            if observed_digest(applications(again)) != plan.observed_digest:
                self.log.append("plan is stale")
                return
            self.memory.will_put(plan.applications)
            self._effect(lambda: self.put(body))

    def _fetch(self, steps: list[Step], desired: Desired, observed: Observed) -> None:
        for step in steps:
            assert self.hub is not None, "nobody fetches without a hub"
            for each in desired.targets[step.model].copies:
                state = observed.weights.get(each)
                if state is None or state.phase not in (Phase.READY, Phase.FAILED):
                    self.hub.fetch([each])

    def _effect(self, do: Callable[[], object]) -> None:
        if self.crash_at == self._effects:
            raise Killed
        do()
        self.writes += 1
        if self.crash_at == self._effects + 1:
            raise Killed
        self._effects += 2

    def _fail(self, step: Step, observed: Observed) -> None:
        app = observed.applications.get(step.application)
        basis = basis_of(app.config or {}) if app is not None else ""
        self.memory.fail(step.model, step.application, step.why, observed.now, basis)
        self.log.append(f"fail {step.application}: {step.why}")

    def _forget(self, plan: Plan, desired: Desired, observed: Observed) -> None:
        wanted = set(desired.targets)
        alive = {app.model for app in observed.applications.values()}
        held = {held.model for held in plan.held} | {m for refusal in plan.refused for m in refusal.models}
        self.memory.forget_models(set(self.memory.records) - wanted - alive - held)
        names = {target.application for target in desired.targets.values()} | observed.applications.keys()
        self.memory.forget_left(self.memory.left.keys() - names)
        previous = {r.previous["name"] for r in self.memory.records.values() if r.previous is not None}
        targets = desired.targets.values()
        self.memory.forget_failures({t.application for t in targets} | previous, {t.basis for t in targets})

    # --- the edge ------------------------------------------------------------------------------------------

    def in_flight(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for stream in self.streams:
            counts[stream.application] = counts.get(stream.application, 0) + 1
        return counts

    def waiting(self) -> dict[str, Waiting]:
        """What the activator tells of its queue."""
        found: dict[str, Waiting] = {}
        for request in self.queue:
            since = self.now - request.since
            first = found.get(request.model, Waiting(0, since))
            found[request.model] = Waiting(first.count + 1, max(first.seconds, since))
        return found

    def ask(self, model: str, seconds: float = 2.0) -> Request:
        """A client asks a model and waits where it may: at the edge, and at the activator where it is not up."""
        request = Request(model, self.now, seconds)
        if self.stream(model, seconds):
            request.pass_on(self.now)
            return request
        self.queue.append(request)
        self._release_waiting()
        return request

    def _release_waiting(self) -> None:
        """The activator, after it got a new directory."""
        for request in self.queue:
            entry = self.directory.find(request.model)
            if entry is None:
                if self.directory.settled:
                    request.refuse("unknown")
            elif entry.application is not None:
                # A new route is in the directory before it is in the edge.
                self.streams.append(Stream(entry.application, self.now + request.seconds, self.now))
                request.pass_on(self.now)
            elif not entry.holds:
                request.refuse(entry.reason or "no reason was given")
            elif self.now - request.since > entry.wait_timeout:
                request.refuse("it took too long")
        self.queue = [request for request in self.queue if not request.over]

    def stream(self, model: str, seconds: float) -> bool:
        """A client asks a model; False where it gets an error."""
        app = self.apps.get(self.routes.get(model, ""))
        if app is None or not app.up:
            return False
        self.streams.append(Stream(app.name, self.now + seconds, self.now))
        return True

    def _set_routes(self, routes: dict[str, str], whys: Mapping[str, str], desired: Desired) -> None:
        for model, old in self.routes.items():
            new = routes.get(model)
            if new == old:
                continue
            self._unrouted[old] = self.now
            healthy = old in self.apps and self.apps[old].up and self.apps[old].status != "DELETING"
            meant = whys.get(model) == NO_ROOM or model in self._unloads
            if healthy and new is None and model in desired.targets and not meant:
                self.violations.append(f"{model} lost its route to {old}: {whys.get(model)}")
        for model, new in routes.items():
            if new in self.asleep:
                self.violations.append(f"{model} was routed to {new}, which sleeps")
            if new != self.routes.get(model) and (new not in self.apps or not self.apps[new].up):
                self.violations.append(f"{model} was routed to {new}, which is not up")
        # The loop tells the edge, which may know a version from a life before.
        self._ended |= dict.fromkeys(set(routes.values()) - set(self.routes.values()), self.now)
        self.log.append(f"routes {routes}")
        self.routes = routes

    # --- Serve ---------------------------------------------------------------------------------------------

    def put(self, configs: list[Json]) -> None:
        """Serve's whole-set PUT."""
        wanted: dict[str, Json] = {config["name"]: config for config in configs}
        self.puts.append(sorted(wanted))
        self.log.append(f"put {sorted(wanted)}")
        self._judge_put(wanted)
        body = {**(self.serve.settings or {"proxy_location": "HeadOnly"}), "applications": configs}
        self.calls.run(Call.PUT, lambda: self.serve.apply(body))
        used = sum(
            _size(demand_of(app.config)) for app in self.apps.values() if app.config and model_of(app.config)
        )
        leaving = sum(share for app in self.apps.values() if app.config is None for _, share in app.gpu or ())
        if used + leaving > self.gpus + 1e-6:
            self.violations.append(f"{used:.2f} + {leaving:.2f} GPU asked of {self.gpus}: {sorted(self.apps)}")

    def _judge_put(self, wanted: Mapping[str, Json]) -> None:
        actual = {a.name: a.config for a in self.apps.values() if a.config is not None and not a.imperative}
        if actual == wanted:
            self.violations.append("a PUT changed nothing")
        building = [
            app.name
            for app in self.apps.values()
            if app.stage == "building" and app.name in wanted and self.now - app.build_began <= BUILD_PATIENCE
        ]
        if building:
            self.violations.append(f"a PUT while {building} build")
        for name, config in actual.items():
            app = self.apps[name]
            if model_of(config) is None and wanted.get(name) != config:
                self.violations.append(f"foreign {name} was touched")
            if name in wanted or not app.up:
                continue
            if name in self.routes.values():
                self.violations.append(f"{name} was removed while it had the traffic")
            asked = [stream.since for stream in self.streams if stream.application == name]
            # The activator may have passed requests on to what never got its route.
            since = self._unrouted.get(name, min(asked, default=0.0))
            if asked and self.now - since <= self.drain_limit(model_of(config) or ""):
                self.violations.append(f"{name} was removed with {len(asked)} requests in flight")
        for name in wanted:
            if name in self.apps and self.apps[name].status == "DELETING":
                self.violations.append(f"{name} was put while it was being deleted")
            if name in self.apps and self.apps[name].imperative:
                self.violations.append(f"imperative {name} was put")

    def drain_limit(self, model: str) -> float:
        """The model's drain limit: its file's, or else the one that was recorded."""
        target = self.desired.targets.get(model)
        if target is not None:
            return parse_duration(target.spec.lifecycle.drain_timeout)
        record = self.memory.records.get(model)
        return parse_duration(record.spec["lifecycle"]["drain_timeout"]) if record and record.spec else 600.0

    def tick(self, seconds: float = 1.0) -> None:
        """Time passes."""
        self.now += seconds
        for stream in self.streams:
            if stream.until <= self.now:
                self._ended[stream.application] = max(stream.until, self._ended.get(stream.application, 0.0))
        self.streams = [stream for stream in self.streams if stream.until > self.now]
        self.serve.progress()
        for name, until in list(self._probes.items()):
            if until <= self.now:
                self._end_probe(name)

    def _cut(self, name: str) -> None:
        """An application's replicas are no more, and what they were answering is cut."""
        before = len(self.streams)
        self.streams = [stream for stream in self.streams if stream.application != name]
        self.cut += before - len(self.streams)

    def _end_probe(self, name: str) -> None:
        del self._probes[name]
        self.memory.probing.discard(name)
        app = self.apps.get(name)
        when = self.calls.take(Call.PROBE)
        if app is None or not app.up or self.serve.fault_of(app) == MUTE:
            self.memory.unanswered[name] = "HTTP 500"
        elif when is not None:
            lost = "Connection refused" if when is When.BEFORE else "the answer broke off"
            self.memory.unanswered[name] = lost
        else:
            self.memory.answered(name)

    # --- for tests -----------------------------------------------------------------------------------------

    def settle(self, turns: int = 300, seconds: float = 1.0) -> Plan:
        """Turns until a plan is settled; it fails where that does not come."""
        for _ in range(turns):
            plan = self.turn()
            if plan.settled:
                return plan
            self.tick(seconds)
        steps = [f"{step.do} {step.application}: {step.why}" for step in plan.steps]
        raise AssertionError(f"not settled after {turns} turns: {steps}")

    def until(self, condition: Callable[[], Any], turns: int = 100, seconds: float = 1.0) -> None:
        """Turns until a condition holds."""
        for _ in range(turns):
            if condition():
                return
            self.turn()
            self.tick(seconds)
        raise AssertionError(f"it did not come to that in {turns} turns; {self.log[-5:]}")

    def edit(self, **texts: str | None) -> None:
        """Write model files by stem; None removes one."""
        for stem, text in texts.items():
            if text is None:
                del self.files[f"models.d/{stem}.yaml"]
            else:
                self.files[f"models.d/{stem}.yaml"] = text

    def target(self, model: str) -> str:
        """The application that the model's file asks for."""
        return self.desired.targets[model].application

    def serves(self, model: str) -> bool:
        """The model's traffic goes to the version that its file wants, and that is up."""
        app = self.apps.get(self.routes.get(model, ""))
        return app is not None and app.up and app.name == self.target(model)

    def versions(self, model: str) -> list[str]:
        """The applications of a model that are not being deleted."""
        return sorted(app.name for app in self.apps.values() if app.config and model_of(app.config) == model)


def model_file(
    length: int = 1024,
    *,
    share: float | None = None,
    replicas: int = 1,
    policy: str = "pinned",
    priority: int = 50,
    drain: str = "10m",
    aliases: str = "",
    path: str = "",
    name: str = "",
    lifecycle: str = "",
    extra: str = "",
) -> str:
    """A model file's text."""
    source = f"{{path: {path}}}" if path else "{repo: o/m}"
    use = f", gpu_memory_utilization: {share}" if share else ""
    accelerator = "auto" if share else "cpu"
    return (
        (f"name: {name}\n" if name else "")
        + f"source: {source}\nengine: {{max_model_len: {length}{use}}}\n"
        + f"resources: {{accelerator: {accelerator}, replicas: {{min: 1, max: {replicas}}}}}\n"
        + f"lifecycle: {{policy: {policy}, priority: {priority}, drain_timeout: {drain}"
        + (f", {lifecycle}}}\n" if lifecycle else "}\n")
        + f"aliases: [{aliases}]\n{extra}"
    )


_SIGNS = {
    Action.ADD: "+",
    Action.REMOVE: "-",
    Action.REPLACE: "±",
    Action.UPDATE: "~",
    Action.FRONT_DOOR: "»",
    Action.RESTORE: "↺",
    Action.LOAD: "▲",
    Action.UNLOAD: "▼",
    Action.SLEEP: "☾",
}


def show(plan: Plan) -> list[str]:
    """A plan in one short line for each model that is not as it should be."""
    lines = [
        f"{_SIGNS[change.action]} {change.model}"
        + (f" {change.order.value}" if isinstance(change.order, Order) else "")
        + (f" [{', '.join(f'{f.path} {f.old} -> {f.new}' for f in change.fields)}]" if change.fields else "")
        for change in plan.changes
    ]
    lines += [f"! {held.model} {held.kind.value}" for held in plan.held]
    lines += [f"refused {', '.join(refusal.models)}" for refusal in plan.refused]
    return sorted(lines)


def _size(demand: Demand) -> float:
    return demand.ranks * demand.gpus
