"""The loop. Everything this tool does happens in `turn`: observe, plan, act; the next turn observes again.

A file event, a timer, a probe that ended, an operator's command: each only wakes the loop, which then looks at
everything. So a change that arrives while a turn runs is seen by the next one, and nothing depends on events
being complete.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

import structlog

from reconciler.core.desired import Desired, Snapshot, compile_desired, models_of_invalid_files, wanted_in
from reconciler.core.fitting import Fitter
from reconciler.core.parse import ParsedSet, parse_all
from reconciler.core.plan import Do, Plan
from reconciler.core.planner import make_plan
from reconciler.core.render import Renderer
from reconciler.core.rollback import notes as rollback_notes
from reconciler.core.state import Observed
from reconciler.core.turn import Options
from reconciler.core.weights import Resolutions
from reconciler.edge.edge import EdgeUnreachableError
from reconciler.host.log import get_logger
from reconciler.host.nobody import nobody
from reconciler.loop.act import Actor
from reconciler.loop.front_door import FrontDoor
from reconciler.loop.journal import Journal
from reconciler.loop.load_times import LoadTimes, Stopwatch, phases_of
from reconciler.loop.memory import Memory
from reconciler.loop.observe import Observer
from reconciler.loop.overrides import OverrideStore
from reconciler.loop.report import Reporter
from reconciler.loop.rollbacks import RollbackStore
from reconciler.loop.told import Told
from reconciler.ray_serve.client import ServeRefusedError, ServeUnreachableError
from reconciler.sources import Source
from reconciler.weights.facts import FactsStore
from reconciler.weights.store import WeightStore

log = get_logger()

BUSY_SECONDS = 0.5
"""Pause between turns while something is under way."""
_LEAST_PAUSE_SECONDS = 0.05
"""Between any two turns, however often the loop is woken."""
_EXPECTED = (ServeUnreachableError, ServeRefusedError, EdgeUnreachableError, OSError)
"""What a turn may meet in a world that is not well. Anything else is a fault of ours, logged with its trace."""
_RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class Look:
    """What one turn saw and decided."""

    desired: Desired
    observed: Observed
    plan: Plan


class Loop:
    """Makes the cluster match the model files, and keeps it so."""

    def __init__(
        self,
        source: Source,
        renderer: Renderer,
        observer: Observer,
        *,
        memory: Memory,
        weights: WeightStore,
        facts: FactsStore,
        fitter: Fitter,
        load_times: LoadTimes,
        overrides: OverrideStore,
        rollbacks: RollbackStore,
        journal: Journal,
        options: Options,
    ) -> None:
        self._source = source
        self._renderer = renderer
        self._observer = observer
        self._memory = memory
        self._weights = weights
        self._facts = facts
        self._fitter = fitter
        self._load_times = load_times
        self._overrides = overrides
        self._rollbacks = rollbacks
        self._journal = journal
        self._stopwatch = Stopwatch()
        self._parsed: tuple[Snapshot, ParsedSet] | None = None
        self._compiled: tuple[ParsedSet, Resolutions, Desired] | None = None
        self._woken = asyncio.Event()
        self._settled = asyncio.Condition()
        self._asked = asyncio.Lock()
        self._one_look = asyncio.Lock()
        self._turns = 0
        self.laps = 0
        """Turns that `watch` began, whatever became of them: it gets on for as long as this grows."""
        self.options = options
        self.last: Look | None = None
        self.ray_missing: Callable[[], None] = nobody
        """Called whenever Ray does not answer."""
        self.ray_answers: Callable[[], None] = nobody
        self.seen: Callable[[Desired, Plan], None] = nobody
        """Called with what each turn saw."""
        self.turn_ended: Callable[[float, str], None] = nobody
        """Called with how many seconds a turn took, and `ok`, `failed` or `crashed`."""
        self.loaded: Callable[[str, Mapping[str, float]], None] = nobody
        """Called with a model that came up, and the seconds that each phase of its load took."""

    def wake(self) -> None:
        """Take the next turn now."""
        self._woken.set()

    async def look(self, *, patience: float = 0.0, ask_hub: bool = False, told: Told | None = None) -> Look:
        """Observe and plan, and change nothing.

        Args:
            patience: Seconds to wait for what is found out beside the loop, for one who looks only once. The loop
                itself never waits for it.
            ask_hub: Wait for the hub too, and find out how large downloads would be.
            told: What the reconciler that runs knows of the traffic, for one who looks beside it.

        Raises:
            ServeUnreachableError: The cluster could not be observed; nothing may be concluded.
        """
        snapshot = self._rollbacks.apply(await self._source.read())
        parsed = self._parse(snapshot)
        resolutions = await self._weights.revisions.resolve(
            wanted_in(parsed), patience=patience if ask_hub else 0.0
        )
        resolutions = {**resolutions, **self._rollbacks.resolutions(wanted_in(parsed))}
        read = self._compile(snapshot, parsed, resolutions)
        cluster = await self._observer.cluster()
        places = self._fitter.places(read)
        facts = await self._facts.look(places, patience=patience)
        # A hundred new models take seconds to weigh; the activator answers meanwhile.
        desired = await asyncio.to_thread(self._fitter.fitted, read, cluster, facts)
        desired = replace(desired, provenance=snapshot.provenance, taken_back=snapshot.taken_back)
        observed = await self._observer.observe(desired, cluster, sizes=ask_hub)
        if told is not None:
            observed = replace(observed, **{each.name: getattr(told, each.name) for each in fields(told)})
        plan = await asyncio.to_thread(make_plan, desired, observed, self.options)
        rolled_back = rollback_notes(self._rollbacks.active(), observed.now)
        return Look(desired, observed, replace(plan, notes=plan.notes + rolled_back))

    async def look_apart(self) -> Look:
        """For another task than the loop's own: look between two turns, not in the middle of one."""
        async with self._one_look:
            return await self.look()

    async def turn(
        self,
        actor: Actor,
        front_door: FrontDoor,
        reporter: Reporter,
        approve: Callable[[Look], None] = nobody,
    ) -> Look:
        """One turn: observe, plan, act, unless `approve` raises because of what was planned."""
        async with self._one_look:
            look = await self.look()
            approve(look)
            return await self._carry_out(look, actor, front_door, reporter)

    async def _carry_out(self, look: Look, actor: Actor, front_door: FrontDoor, reporter: Reporter) -> Look:
        # Whatever is logged from here on, by what this turn starts too, says of which revision it is.
        structlog.contextvars.bind_contextvars(revision=look.desired.revision)
        front_door.publish(look.desired, look.observed, look.plan)
        reporter.report(look.plan, look.desired)
        # Before anything is done: that may fail, in turn after turn, or be the last thing that this process does.
        self.last = look
        if actor.may_write():
            self._note(look)
        # What need not be up is not missed, once that was said.
        self._memory.forget_left(each.application for each in look.plan.drift if each.over)
        await front_door.note_use()
        await front_door.tell_revisions(look.desired, look.observed)
        await actor.act(look.plan, look.desired, look.observed)
        if actor.may_write():
            self._note_done(look)
        return look

    async def converge(
        self,
        actor: Actor,
        front_door: FrontDoor,
        reporter: Reporter,
        *,
        approve: Callable[[Look], None] = nobody,
    ) -> Look:
        """Take turns until there is nothing left to do or to wait for.

        Args:
            actor: Does what is planned.
            front_door: Is told what there is.
            reporter: Says what is new.
            approve: Called with what the first turn saw and decided, before anything is done; it may raise.

        Raises:
            ServeUnreachableError: Serve did not answer, several times in a row.
            ServeRefusedError: Serve refused the configuration.
        """
        await front_door.ensure_running()
        failures = 0
        while True:
            try:
                look = await self.turn(actor, front_door, reporter, approve)
            except ServeUnreachableError:
                failures += 1
                if failures > len(_RETRY_SECONDS):
                    raise
                await self._pause(_RETRY_SECONDS[failures - 1])
                continue
            failures, approve = 0, nobody
            if look.plan.done:
                return look
            await self._pause(BUSY_SECONDS)

    async def watch(
        self, actor: Actor, front_door: FrontDoor, reporter: Reporter, *, resync_seconds: float
    ) -> None:
        """Take turns for ever: often while something is under way, and at least every `resync_seconds`."""
        failures = 0
        while True:
            self.laps += 1
            began = time.monotonic()
            try:
                look = await self.turn(actor, front_door, reporter)
            except Exception as error:  # whatever it is: what serves goes on serving, and so do we
                pause = _RETRY_SECONDS[min(failures, len(_RETRY_SECONDS) - 1)]
                failures += 1
                if isinstance(error, ServeUnreachableError):
                    self.ray_missing()
                self.turn_ended(time.monotonic() - began, "failed" if isinstance(error, _EXPECTED) else "crashed")
                if isinstance(error, _EXPECTED):
                    log.warning("turn.failed", reason=str(error), next_try_in_seconds=pause)
                else:
                    log.exception("turn.crashed", reason=repr(error), next_try_in_seconds=pause)
                await self._pause(pause)
                continue
            failures = 0
            self.turn_ended(time.monotonic() - began, "ok")
            self.ray_answers()
            await self._note_turn()
            idle = look.plan.settled or not actor.may_write()
            await self._pause(resync_seconds if idle else BUSY_SECONDS)

    async def reconcile_now(self, options: Options) -> Look:
        """For `watch` in another task: wake it, and wait until it is settled with these options in force."""
        async with self._asked:
            before, self.options = self.options, options
            if options.retry_failed:
                self._weights.forgive()
                self._facts.forgive()
            try:
                async with self._settled:
                    # The turn that runs now may have read the files before we were asked.
                    since = self._turns
                    self.wake()
                    await self._settled.wait_for(
                        lambda: self._turns >= since + 2 and self.last is not None and self.last.plan.done
                    )
            finally:
                self.options = before
            assert self.last is not None
            return self.last

    async def _pause(self, seconds: float) -> None:
        await asyncio.sleep(_LEAST_PAUSE_SECONDS)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._woken.wait(), seconds)
        self._woken.clear()

    async def _note_turn(self) -> None:
        async with self._settled:
            self._turns += 1
            self._settled.notify_all()

    def _parse(self, snapshot: Snapshot) -> ParsedSet:
        if self._parsed is None or self._parsed[0] != snapshot:
            self._parsed = (snapshot, parse_all(snapshot.files))
        return self._parsed[1]

    def _compile(self, snapshot: Snapshot, parsed: ParsedSet, resolutions: Resolutions) -> Desired:
        if self._compiled is None or self._compiled[0] is not parsed or self._compiled[1] != resolutions:
            desired = compile_desired(snapshot, self._renderer, resolutions, parsed=parsed)
            self._compiled = (parsed, resolutions, desired)
        return self._compiled[2]

    def _note(self, look: Look) -> None:
        """Write down, and tell, what this turn was about."""
        assert self._parsed is not None
        snapshot = self._parsed[0]
        self._journal.note(look.desired, look.observed, look.plan, snapshot, self._rollbacks.active())
        if not self._rollbacks.active():  # Else what is served is not what the revision says.
            self.seen(look.desired, look.plan)

    def _note_done(self, look: Look) -> None:
        """Keep what a load took, once the traffic is switched, and forget what nobody needs any more."""
        self._time_loads(look)
        # On a busy machine some model comes or goes at any time.
        if look.plan.done and not look.desired.unreadable:
            self._forget(look)

    def _time_loads(self, look: Look) -> None:
        self._stopwatch.see(phases_of(look.desired, look.observed))
        for step in look.plan.steps:
            if step.do is Do.ROUTE and (phases := self._stopwatch.done(step.application)) is not None:
                self.loaded(step.model, phases)
                try:
                    self._load_times.note(step.model, step.application, phases)
                except OSError as error:
                    log.warning("load_times.unsaved", model=step.model, reason=str(error))

    def _forget(self, look: Look) -> None:
        wanted = set(look.desired.targets)
        alive = {app.model for app in look.observed.applications.values()}
        held = {held.model for held in look.plan.held} | {
            m for refusal in look.plan.refused for m in refusal.models
        }
        self._memory.forget_models(set(self._memory.records) - wanted - alive - held)
        with contextlib.suppress(OSError):
            self._load_times.keep(wanted | set(self._memory.records))
        others = models_of_invalid_files(look.desired)
        if others is not None:
            self._overrides.forget(set(self._overrides.active()) - wanted - alive - held - others)
        apps = {target.application for target in look.desired.targets.values()} | look.observed.applications.keys()
        self._memory.forget_left(self._memory.left.keys() - apps)
        previous = {r.previous["name"] for r in self._memory.records.values() if r.previous is not None}
        if others is not None and self._parsed is not None:
            self._weights.revisions.forget(wanted_in(self._parsed[1]), others)
            self._weights.forget({copy for target in look.desired.targets.values() for copy in target.copies})
            self._facts.forget({place for target in look.desired.targets.values() for place in target.reads})
        targets = look.desired.targets.values()
        self._memory.forget_failures({t.application for t in targets} | previous, {t.basis for t in targets})
