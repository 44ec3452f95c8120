"""Carry out one turn's steps. Nothing is decided here.

The order within a turn: first what must be on disk before anything else happens, then routes, then probes (which
run beside the loop), and last the one PUT, guarded by a second look.
"""

import asyncio
import contextlib
from collections.abc import Callable, Collection, Mapping

from reconciler.core.application import adapter_names, basis_of
from reconciler.core.desired import Desired
from reconciler.core.keep import recent_after, what_to_keep
from reconciler.core.memory_plan import footprint_of
from reconciler.core.plan import Do, Plan, Step
from reconciler.core.planner import observed_digest
from reconciler.core.secrets import without_secrets
from reconciler.core.state import Application, Json, Observed, Record, Status
from reconciler.core.weights import Copy, Phase
from reconciler.edge.errors import EdgeUnreachableError
from reconciler.host.log import get_logger
from reconciler.host.nobody import nobody
from reconciler.loop.after_start import AfterStart
from reconciler.loop.after_stop import AfterStop
from reconciler.loop.edges import Edges
from reconciler.loop.memory import Memory
from reconciler.loop.overrides import OverrideStore
from reconciler.loop.probe import ProbeError, probe, warm_up
from reconciler.loop.sleeping import Sleeping
from reconciler.ray_serve.client import ServeClient, ServeRefusedError
from reconciler.ray_serve.observed import applications
from reconciler.ray_serve.reasons import is_vague, reason_from_log
from reconciler.ray_serve.schema import complaint_about
from reconciler.ray_serve.warm_build import WarmBuild
from reconciler.weights.store import WeightStore

log = get_logger()

_EVENTS = {Do.START: "model.start", Do.UPDATE: "model.update", Do.REMOVE: "model.remove"}


class Actor:
    """Does what plans say.

    Args:
        serve: An open client.
        edge: The front door's first half, on every node that has one.
        memory: Where records and failures are noted.
        serve_url: Serve's HTTP proxy.
        first_put: Settings of a Serve instance that has to be started.
        probe_timeout: Seconds that a version may take to answer its first request.
        weights: Fetches what is missing.
        after_start: Measures what came up.
        after_stop: Follows what goes to its end.
        overrides: What was asked for by hand.
        sleeping: Puts engines to sleep and wakes them; None where none can.
        keep_versions: Of how many earlier versions of a model the weights stay.
        warm_build: Keeps a worker for Serve's next build; None where none is wanted.
        may_write: Asked before each effect: another reconciler may have taken over.
        wake: Called when a probe ended, so that the loop takes its next turn at once.
    """

    def __init__(
        self,
        serve: ServeClient,
        edge: Edges,
        memory: Memory,
        *,
        serve_url: str,
        first_put: Json,
        probe_timeout: float,
        weights: WeightStore,
        after_start: AfterStart,
        after_stop: AfterStop,
        overrides: OverrideStore,
        sleeping: Sleeping | None = None,
        keep_versions: int,
        warm_build: WarmBuild | None = None,
        may_write: Callable[[], bool] = lambda: True,
        wake: Callable[[], None],
    ) -> None:
        self._serve = serve
        self._edge = edge
        self._memory = memory
        self._serve_url = serve_url
        self._first_put = first_put
        self._probe_timeout = probe_timeout
        self._weights = weights
        self._after_start = after_start
        self._after_stop = after_stop
        self._overrides = overrides
        self._sleeping = sleeping
        self._keep_versions = keep_versions
        self._warm_build = warm_build
        self.may_write = may_write
        self._wake = wake
        self._probes: dict[str, asyncio.Task[None]] = {}
        self.evicted: Callable[[str], None] = nobody
        """Called with a model that was removed to make room."""

    async def act(self, plan: Plan, desired: Desired, observed: Observed) -> None:
        """Carry out the steps of `plan`.

        Raises:
            ServeUnreachableError: Serve did not answer; the next turn sees how far this one got.
            ServeRefusedError: Serve refused the configuration as a whole.
        """
        if not self.may_write():
            return
        by_kind: dict[Do, list[Step]] = {}
        for step in plan.steps:
            by_kind.setdefault(step.do, []).append(step)
        self._memory.declare({model: target.file for model, target in desired.targets.items()})
        self._memory.save_left()
        self._memory.awaited(observed.waiting)
        await self._note(by_kind, desired, observed)
        self._fetch(by_kind.get(Do.FETCH, []), desired, observed)
        await self._route(by_kind.get(Do.ROUTE, []), by_kind.get(Do.UNROUTE, []), observed)
        if not self.may_write():
            return  # Switching the traffic may have taken long.
        if self._sleeping is not None:
            self._sleep_and_wake(self._sleeping, by_kind, desired, observed)
        for step in by_kind.get(Do.PROBE, ()):
            self._start_probe(step, desired)
        if plan.applications is not None:
            await self._put(plan, desired, observed)
        elif self._warm_build is not None and not _is_loading(observed):
            self._warm_build.ensure(observed.applications)

    async def close(self) -> None:
        """Give up probes and measurements that are under way."""
        await self._after_start.close()
        await self._after_stop.close()
        if self._warm_build is not None:
            await self._warm_build.close()
        for task in self._probes.values():
            task.cancel()
        await asyncio.gather(*self._probes.values(), return_exceptions=True)

    async def _note(self, steps: Mapping[Do, list[Step]], desired: Desired, observed: Observed) -> None:
        """What must be on disk before anything else happens."""
        for step in steps.get(Do.FAIL, ()):
            await self._fail(step, observed)
        for step in steps.get(Do.KEEP_PREVIOUS, ()):
            self._keep_previous(step, observed)
        for step in steps.get(Do.FORGET_PREVIOUS, ()):
            self._memory.forget_previous(step.model)
        for step in steps.get(Do.RECORD, ()):
            self._record(step, desired)
            self._after_start.measure(desired.targets[step.model], observed)
        for step in steps.get(Do.END_OVERRIDE, ()):
            override = observed.overrides.get(step.model)
            if override is not None:
                self._overrides.end(override, step.why)

    def _sleep_and_wake(
        self, sleeping: Sleeping, steps: Mapping[Do, list[Step]], desired: Desired, observed: Observed
    ) -> None:
        if not desired.unreadable:
            wanted = {target.application for target in desired.targets.values()}
            sleeping.forget(observed.applications.keys(), wanted)
        for step in steps.get(Do.SLEEP, ()):
            footprint = footprint_of(desired.targets[step.model])
            if footprint is not None:
                sleeping.sleep(step.model, step.application, footprint)
        for step in steps.get(Do.WAKE, ()):
            sleeping.wake(step.application)
            self._memory.wakes(step.application)

    async def _fail(self, step: Step, observed: Observed) -> None:
        reason = step.why
        app = observed.applications.get(step.application)
        if is_vague(reason) and app is not None:
            reason = await self._reason_from_logs(app) or reason
        reason = without_secrets(reason)
        basis = basis_of(app.config or {}) if app is not None else ""
        failure = self._memory.fail(step.model, step.application, reason, observed.now, basis)
        log.error(
            "model.failed",
            model=step.model,
            application=step.application,
            reason=reason,
            attempts=failure.attempts,
            retry_in_seconds=round(failure.retry_at - failure.at),
        )

    async def _reason_from_logs(self, app: Application) -> str:
        for replica in (*reversed(app.dead_replicas), *app.replicas):
            if not (replica.node_id and replica.actor_id):
                continue
            for suffix in ("out", "err"):
                text = await self._serve.replica_log(replica.node_id, replica.actor_id, suffix=suffix)
                reason = reason_from_log(text)
                if reason:
                    return reason
        return ""

    def _keep_previous(self, step: Step, observed: Observed) -> None:
        app = observed.applications[step.application]
        if app.config is not None:
            self._memory.keep_previous(step.model, app.config)

    def _record(self, step: Step, desired: Desired) -> None:
        target = desired.targets[step.model]
        recent = recent_after(self._memory.records.get(step.model), target.copies, self._keep_versions)
        self._memory.record(
            Record(step.model, target.file, target.application, target.fields, recent=recent, basis=target.basis)
        )
        self._memory.forgive(target.application, target.basis)
        log.info("model.recorded", model=step.model, application=step.application, revision=desired.revision)

    def _fetch(self, steps: list[Step], desired: Desired, observed: Observed) -> None:
        wanted: dict[Copy, str] = {}
        for step in steps:
            for copy, revision in desired.targets[step.model].copies.items():
                state = observed.weights.get(copy)
                if state is None or state.phase not in (Phase.READY, Phase.FAILED):
                    wanted[copy] = revision
        keep = what_to_keep(desired, observed)
        # Where some files cannot be read, nobody can tell what they want: nothing is stopped and nothing removed.
        declared = None if keep is None else {copy for each in desired.targets.values() for copy in each.copies}
        self._weights.fetch(wanted, still_wanted=declared, keep=keep)

    async def _route(self, on: list[Step], off: list[Step], observed: Observed) -> None:
        if not on and not off:
            return
        routes = dict(observed.routes)
        for step in off:
            routes.pop(step.model, None)
        for step in on:
            routes[step.model] = step.application
        # An adapter is asked for by its own name, at its model's application.
        for application in list(routes.values()):
            app = observed.applications.get(application)
            names = adapter_names(app.config or {}) if app is not None else ()
            routes |= dict.fromkeys(names, application)
        await self._edge.set_routes(routes)
        # It may know the version from a life before, long ago.
        with contextlib.suppress(EdgeUnreachableError):
            await self._edge.touch([step.application for step in on])
        for step in off:
            log.info("traffic.stopped", model=step.model, application=step.application, cause=step.why)
        for step in on:
            previous = observed.routes.get(step.model)
            log.info("traffic.switched", model=step.model, application=step.application, previous=previous)

    def _start_probe(self, step: Step, desired: Desired) -> None:
        target = desired.targets.get(step.model)
        record = self._memory.records.get(step.model)
        task = target.spec.task if target is not None else (record.spec.get("task", "") if record else "")
        self._memory.probing.add(step.application)
        self._probes[step.application] = asyncio.create_task(self._probe(step, str(task)))

    async def _probe(self, step: Step, task: str) -> None:
        name = step.application
        try:
            await probe(f"{self._serve_url}/{name}", step.model, task, patience=self._probe_timeout)
        except ProbeError as error:
            self._memory.unanswered[name] = str(error)
            log.warning("model.unanswered", model=step.model, application=name, reason=str(error))
        else:
            self._memory.answered(name)
            log.info("model.ready", model=step.model, application=name)
        finally:
            self._memory.probing.discard(name)
            self._wake()
        # It gets the traffic meanwhile; whoever asks first need not pay for what this costs once.
        if name in self._memory.ready:
            await warm_up(f"{self._serve_url}/{name}", step.model, task)
        self._probes.pop(name, None)

    async def _put(self, plan: Plan, desired: Desired, observed: Observed) -> None:
        assert plan.applications is not None
        before = {name: app.config for name, app in observed.applications.items()}
        now = applications(await self._serve.instance())
        if observed_digest(now) != plan.observed_digest or _begun_meanwhile(plan.applications, observed, now):
            log.info("plan.stale", revision=plan.revision)
            return
        wanted = await self._valid(plan.applications, before, desired, observed)
        if wanted == {name: config for name, config in before.items() if config is not None}:
            return
        if not self.may_write():
            log.info("plan.stale", revision=plan.revision)
            return
        body = {**(observed.serve or self._first_put), "applications": [wanted[name] for name in sorted(wanted)]}
        for step in plan.steps:
            if step.do in _EVENTS:
                log.info(_EVENTS[step.do], model=step.model, application=step.application, cause=step.why)
        self._memory.will_put(wanted)
        await self._send(body)
        for_room = {change.model for change in plan.changes if change.for_room}
        for step in plan.steps:
            if step.do is Do.REMOVE:
                if step.model in for_room:
                    self.evicted(step.model)
                self._after_stop.follow(observed.applications[step.application])

    async def _valid(
        self, planned: Mapping[str, Json], before: Mapping[str, Json | None], desired: Desired, observed: Observed
    ) -> dict[str, Json]:
        """What is planned, without what Serve would refuse: that stays as it is, or is not sent at all."""
        wanted = dict(planned)
        for name in sorted(planned):
            if planned[name] == before.get(name):
                continue
            complaint = await asyncio.to_thread(complaint_about, planned[name])
            if complaint:
                self._refuse(name, complaint, desired, observed)
                old = before.get(name)
                wanted = {**wanted, name: old} if old else {k: v for k, v in wanted.items() if k != name}
        return wanted

    async def _send(self, body: Json) -> None:
        try:
            await self._serve.put(body)
        except ServeRefusedError as error:
            log.error("serve.refused", reason=str(error))  # noqa: TRY400 -- the reason is Serve's, not a trace
            raise

    def _refuse(self, name: str, complaint: str, desired: Desired, observed: Observed) -> None:
        model = next((model for model, target in desired.targets.items() if target.application == name), name)
        self._memory.fail(model, name, f"Ray Serve's schema refuses it: {complaint}", observed.now)
        log.error("model.failed", model=model, application=name, reason=complaint)


def _begun_meanwhile(kept: Collection[str], observed: Observed, now: Mapping[str, Application]) -> bool:
    """A build was begun since the plan was made, which would be cancelled and begin anew."""
    before = observed.applications
    return any(app.building and name in kept and not before[name].building for name, app in now.items())


def _is_loading(observed: Observed) -> bool:
    return any(app.status is Status.DEPLOYING for app in observed.applications.values())
