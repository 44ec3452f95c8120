"""The scratch pad of planning one turn: what is kept, what fits, which steps were taken, all in one place."""

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from reconciler.core.desired import Desired
from reconciler.core.drift import Deed, Drift, deeds
from reconciler.core.memory_ledger import MemoryLedger
from reconciler.core.placement import Ledger
from reconciler.core.plan import Change, Do, Held, Refusal, Resting, Step
from reconciler.core.spec import parse_duration
from reconciler.core.state import Application, Demand, Json, Observed, Record, Status, coming_up, homes_of
from reconciler.core.suspension import Suspension, suspension_of
from reconciler.core.target import Target
from reconciler.core.want import Want

DRAIN_SETTLE_SECONDS = 1.0
"""How long an application without traffic must have been quiet: a request may still be on its way to it."""
DEFAULT_DRAIN_SECONDS = 600.0


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
    wants: dict[str, Want] = field(default_factory=dict)
    """Where each declared model should be."""
    planned: set[str] = field(default_factory=set)
    """Models of which this turn has decided already: they cannot be sent away any more."""
    by_traffic: set[str] = field(default_factory=set)
    """Models that come or go as traffic has it, not as their files or somebody's hand."""
    sent_away: dict[str, str] = field(default_factory=dict)
    """Models that leave to make room, with the reason."""
    resting: list[Resting] = field(default_factory=list)
    drift: list[Drift] = field(default_factory=list)
    no_room: dict[tuple[Demand, int, str], str] = field(default_factory=dict)
    """Why models at rest would find no room, by what they need; empty where they may."""

    def __post_init__(self) -> None:
        placed: dict[str, Demand] = {}
        self._loading = 0
        self._promised: list[tuple[str, Demand]] = []
        self._queued: dict[str, Target] = {}
        self.reserved: dict[str, set[str]] = {}
        """Applications for which room was set aside in this turn, by model."""
        for app in self.observed.applications.values():
            if app.model is None:
                if app.config is not None and app.status is not Status.DELETING:
                    self.keep[app.name] = app.config
                continue
            placed[app.name] = app.demand
            if app.status is Status.DELETING:
                self.leaving.add(app.name)
            else:
                self.live.setdefault(app.model, []).append(app)
                self._loading += self.takes_slot(app)
        self.deeds: dict[str, Deed] = deeds(self.observed.left, self.observed.applications)
        """What was done behind our back, by application."""
        self.memory = MemoryLedger(self.observed)
        self.homes = homes_of(self.observed.applications)
        self._ledger = Ledger(self.observed.nodes, placed, self.homes)

    # --- facts ------------------------------------------------------------------------------------------

    def routed(self, model: str) -> str | None:
        """The application that has the model's traffic."""
        return self.observed.routes.get(model)

    def suspension(self, model: str) -> Suspension | None:
        """What has the model left as it is."""
        return suspension_of(self.observed.suspensions, model, self.observed.now)

    def record(self, model: str) -> Record | None:
        """What the front door last took over for the model."""
        return self.observed.records.get(model)

    def fits(self, demand: Demand) -> bool:
        """There is room on the GPUs beside everything that is there, and beside what is promised."""
        return self._finds_place(demand, ())

    def fits_without(self, demand: Demand, names: Collection[str]) -> bool:
        """There would be room on the GPUs if `names` were gone."""
        return self._ledger.fits(demand, names)

    def has_room(self, target: Target, without: Collection[str] = ()) -> bool:
        """There is room for `target`, or would be if the applications `without` were gone.

        What is promised to models that wait for others to leave is not free.
        """
        return self._finds_place(target.demand, without) and self._has_memory(target, without)

    def could_have_room(self, target: Target, without: Collection[str], models: Collection[str]) -> bool:
        """There could be room one day: without these applications, and without what was set aside for `models`."""
        gone = {*without, *(name for model in models for name in self.reserved.get(model, ()))}
        promised = self._promised
        self._promised = [each for each in promised if each[0] not in models]
        found = self._finds_place(target.demand, gone) and self._has_memory(target, gone, at_best=True)
        self._promised = promised
        return found

    def in_the_way_of(self, target: Target, gone: Collection[str]) -> str:
        """A model that waits for longer, and would not find room beside `target` once `gone` are; or empty."""
        before = self._ledger.mark()
        self._ledger.release(gone)
        self._ledger.take(target.demand)
        memory, own = self.memory.left(gone, at_best=True), self.memory.of(target.config)
        blocked = ""
        for elder in self._queued.values():
            no_memory = memory is not None and own > 0 and own + self.memory.of(elder.config) > memory
            if no_memory or not self._ledger.take(elder.demand):
                blocked = elder.model
                break
        self._ledger.back_to(before)
        return blocked

    def has_slot(self, *, for_later: bool = False) -> bool:
        """Another application may come up beside those that do already.

        Args:
            for_later: Beside those, too, that only wait for their room to be free.
        """
        waiting = len({model for model, _ in self._promised}) if for_later else 0
        return self._loading + waiting < self.options.max_loads

    def _finds_place(self, demand: Demand, without: Collection[str]) -> bool:
        if not self._promised:
            return self._ledger.fits(demand, without)
        before = self._ledger.mark()
        if without:
            self._ledger.release(without)
            for _, each in self._promised:
                self._ledger.take(each)
            found = self._ledger.take(demand)
        else:
            found = self._ledger.take(demand)
            self._ledger.release(self.leaving)
            found = found and all(self._ledger.take(each) for _, each in self._promised)
        self._ledger.back_to(before)
        return found

    def _has_memory(self, target: Target, without: Collection[str], *, at_best: bool = False) -> bool:
        # What would take the place of another version of its model is tried: who knows what that one gives back.
        left = self.memory.left(without, at_best=at_best)
        if left is None or self.options.force or self.live.get(target.model):
            return True
        return self.memory.of(target.config) <= left

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

    def takes_slot(self, app: Application) -> bool:
        """It has a loading slot: it comes up, or has not answered its first request yet."""
        # A suspended model may stay half way for days; others are not to wait for it.
        if self.suspension(app.model or "") is not None:
            return False
        return coming_up(app) or self._proves_itself(app)

    def is_noted(self, app: Application) -> bool:
        """That this application failed is on record already, since it was first seen."""
        failure = self.observed.failures.get(app.name)
        age = self.observed.ages.get(app.name)
        now = self.observed.now
        # One of a time to come was noted before the clock was set back.
        return failure is not None and age is not None and now - age <= failure.at <= now

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
            self.reserve(model, name, demand, config)
            self.keep[name] = config
            self.step(Do.START, model, name)

    def claim_load(self) -> bool:
        """Take one of the loading slots; False where all are taken."""
        if not self.has_slot():
            return False
        self._loading += 1
        return True

    def reserve(self, model: str, name: str, demand: Demand, config: Json) -> None:
        """Set room aside, so that what is planned later in this turn leaves it alone."""
        self.memory.promise(name, config)
        self.reserved.setdefault(model, set()).add(name)
        if not self._ledger.take(demand, name):
            self._promised.append((model, demand))

    def queue_of(self) -> tuple[str, ...]:
        """Models that came earlier and wait for room."""
        return tuple(self._queued)

    def queue(self, target: Target) -> None:
        """Have a model wait for room; who came later must leave it its way."""
        self._queued[target.model] = target

    def send_away(self, model: str, why: str) -> None:
        """Have a model leave, so that another one finds room."""
        self.sent_away[model] = why
        self.leaving.update(app.name for app in self.live.get(model, ()))

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
            and app.name not in observed.asleep
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
