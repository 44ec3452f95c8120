"""The scratch pad of planning one turn: what is kept, what fits, which steps were taken, all in one place."""

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from reconciler.core.desired import Desired
from reconciler.core.main_memory import main_memory_of
from reconciler.core.placement import Ledger
from reconciler.core.plan import Change, Do, Held, Refusal, Step
from reconciler.core.spec import Policy, parse_duration
from reconciler.core.state import Application, Demand, Json, Observed, Record, Status, homes_of

DRAIN_SETTLE_SECONDS = 1.0
"""How long an application without traffic must have been quiet: a request may still be on its way to it."""
DEFAULT_DRAIN_SECONDS = 600.0
_MOST_IN_THE_WAY = 8


@dataclass(frozen=True, slots=True)
class Wishes:
    """What an operator asks for with a plan, beyond what the files say.

    Attributes:
        allow_removals: Removals that a safety rule would refuse are carried out.
        retry_failed: Versions that failed are tried at once, whatever their backoff.
        force: What does not fit by the estimate is tried all the same.
    """

    allow_removals: bool = False
    retry_failed: bool = False
    force: bool = False


@dataclass(frozen=True, slots=True)
class Options(Wishes):
    """Everything of the operator's that bears on a plan.

    Attributes:
        max_loads: How many applications may be coming up at a time.
        asked_at: Seconds since the epoch when `retry_failed` was asked for: only what failed before is tried at
            once, or else a version that fails again would be tried for ever.
    """

    max_loads: int = 1
    asked_at: float = math.inf


@dataclass
class Turn:
    """Inputs of one turn, and what was decided so far."""

    desired: Desired
    observed: Observed
    options: Options
    keep: dict[str, Json] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    live: dict[str, list[Application]] = field(default_factory=dict)
    """Our applications that are not being deleted, by model."""
    leaving: set[str] = field(default_factory=set)
    """Applications whose room will be free soon: deleted, or of a model that goes."""

    def __post_init__(self) -> None:
        self._placed: dict[str, Demand] = {}
        self._loading = 0
        self._in_the_way: list[tuple[str, list[str]]] | None = None
        for app in self.observed.applications.values():
            if app.model is None:
                if app.config is not None and app.status is not Status.DELETING:
                    self.keep[app.name] = app.config
                continue
            self._placed[app.name] = app.demand
            if app.status is Status.DELETING:
                self.leaving.add(app.name)
            else:
                self.live.setdefault(app.model, []).append(app)
                self._loading += coming_up(app) or self._proves_itself(app)
        self._memory_promised = sum(
            self.memory_of(app.config)
            for apps in self.live.values()
            for app in apps
            if coming_up(app) and app.config is not None
        )
        self.homes = homes_of(self.observed.applications)
        self._ledger = Ledger(self.observed.nodes, self._placed, self.homes)

    # --- facts ------------------------------------------------------------------------------------------

    def routed(self, model: str) -> str | None:
        """The application that has the model's traffic."""
        return self.observed.routes.get(model)

    def record(self, model: str) -> Record | None:
        """What the front door last took over for the model."""
        return self.observed.records.get(model)

    def fits(self, demand: Demand) -> bool:
        """There is room beside everything that is there."""
        return self._ledger.fits(demand)

    def fits_without(self, demand: Demand, names: Collection[str]) -> bool:
        """There would be room if `names` were gone."""
        return self._ledger.fits(demand, names)

    def in_the_way(self, demand: Demand, model: str) -> tuple[str, ...]:
        """The models that would have to go for `demand` to find room, the least important first.

        Empty where a few would not do. Never one that is pinned.
        """
        gone: list[tuple[str, list[str]]] = []
        for other, names in self._movable():
            if other == model:
                continue
            gone.append((other, names))
            if self.fits_without(demand, [name for _, each in gone for name in each]):
                break
        else:
            return ()
        # Whoever went in vain stays.
        for each in gone[:-1]:
            rest = [other for other in gone if other is not each]
            if self.fits_without(demand, [name for _, names in rest for name in names]):
                gone = rest
        return tuple(other for other, _ in gone)

    def _movable(self) -> list[tuple[str, list[str]]]:
        """The least important models that are there, with their applications."""
        if self._in_the_way is None:
            targets = self.desired.targets
            others = [
                (targets[model].spec.lifecycle.priority, model, [app.name for app in apps])
                for model, apps in self.live.items()
                if model in targets and targets[model].spec.lifecycle.policy is not Policy.PINNED
            ]
            self._in_the_way = [(model, names) for _, model, names in sorted(others)[:_MOST_IN_THE_WAY]]
        return self._in_the_way

    def memory_of(self, config: Json) -> int:
        """Bytes of main memory that an application takes, where its engine computes on the CPU."""
        return main_memory_of(config, self.observed.folder_bytes)

    def memory_left(self) -> int | None:
        """Bytes of main memory that nobody has or was promised; None where it is not known what is free."""
        free = self.observed.main_memory
        return None if free is None else max(0, free - self._memory_promised)

    def describe_free(self) -> str:
        """What is free, in words."""
        return self._ledger.describe_free()

    def is_drained(self, app: Application) -> bool:
        """Nothing is in flight any more, or the model's drain limit has passed."""
        quiet_for = self.observed.draining.get(app.name)
        if quiet_for is None or quiet_for < DRAIN_SETTLE_SECONDS:
            return False
        in_flight = self.observed.in_flight
        if in_flight is not None and in_flight.get(app.name, 0) == 0:
            return True
        return quiet_for > self._drain_limit(app.model or "")

    def is_noted(self, app: Application) -> bool:
        """That this application failed is on record already, since it was first seen."""
        failure = self.observed.failures.get(app.name)
        age = self.observed.ages.get(app.name)
        return failure is not None and age is not None and failure.at >= self.observed.now - age

    # --- decisions --------------------------------------------------------------------------------------

    def step(self, do: Do, model: str, application: str, why: str = "") -> None:
        """Note one step."""
        self.steps.append(Step(do, model, application, why))

    def hold(self, apps: Iterable[Application]) -> None:
        """Keep applications exactly as they are."""
        for app in apps:
            if app.config is not None:
                self.keep[app.name] = app.config

    def start(self, model: str, name: str, config: Json, demand: Demand) -> None:
        """Start an application, unless enough others are coming up already."""
        if name in self.observed.applications:
            self.step(Do.AWAIT, model, name, "waits until its predecessor of the same name is gone")
        elif not self.claim_load():
            self.step(Do.AWAIT, model, name, "queued behind another load")
        else:
            self.reserve(name, demand)
            self._memory_promised += self.memory_of(config)
            self.keep[name] = config
            self.step(Do.START, model, name)

    def claim_load(self) -> bool:
        """Take one of the loading slots; False where all are taken."""
        if self._loading >= self.options.max_loads:
            return False
        self._loading += 1
        return True

    def reserve(self, name: str, demand: Demand) -> None:
        """Set room aside, so that what is planned later in this turn leaves it alone."""
        self._placed[name] = demand
        self._ledger.take(demand, name)

    def fail(self, app: Application, reason: str) -> None:
        """Let a version go that failed: note it, once, and remove it."""
        if not self.is_noted(app):
            self.step(Do.FAIL, app.model or "", app.name, reason)
        if app.status is Status.DEPLOY_FAILED or not any(replica.state == "RUNNING" for replica in app.replicas):
            self.drop(app, "it failed")
        else:
            self.retire([app], "it failed")

    def drop(self, app: Application, why: str) -> None:
        """Remove an application now: it is left out of what is kept."""
        self.step(Do.REMOVE, app.model or "", app.name, why)

    def retire(self, apps: Iterable[Application], why: str) -> None:
        """Remove applications that have no traffic, each once it is drained."""
        for app in apps:
            if self.is_drained(app):
                self.drop(app, why)
            else:
                self.hold([app])
                self.step(Do.DRAIN, app.model or "", app.name, self._drain_state(app))

    # --- helpers ----------------------------------------------------------------------------------------

    def _proves_itself(self, app: Application) -> bool:
        # Up, but its first request decides. Until then nothing else is interrupted for a load of its own.
        target = self.desired.targets.get(app.model or "")
        observed = self.observed
        return (
            target is not None
            and app.name == target.application
            and app.name != self.routed(target.model)
            and any(replica.state == "RUNNING" for replica in app.replicas)
            and app.name not in observed.ready
            and app.name not in observed.unanswered
        )

    def _drain_limit(self, model: str) -> float:
        target = self.desired.targets.get(model)
        if target is not None:
            return parse_duration(target.spec.lifecycle.drain_timeout)
        record = self.record(model)
        if record is not None:
            return parse_duration(record.spec.get("lifecycle", {}).get("drain_timeout", "10m"))
        return DEFAULT_DRAIN_SECONDS

    def _drain_state(self, app: Application) -> str:
        if self.observed.in_flight is None:
            return "requests in flight are unknown, which counts as in use"
        count = self.observed.in_flight.get(app.name, 0)
        return f"{count} request{'s' if count != 1 else ''} in flight"


def coming_up(app: Application) -> bool:
    """The application occupies a loading slot: it is built or its first replica starts."""
    return app.status in (Status.DEPLOYING, Status.NOT_STARTED) and not any(
        replica.state == "RUNNING" for replica in app.replicas
    )
