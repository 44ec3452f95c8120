"""One model, one step: what brings this model nearer to its file, read off its observed state.

0.  Its weights are not on disk          -> fetch them; whatever serves goes on serving.
1.  The wanted version is not there      -> start it, beside the old one or in its turn, if there is room.
2.  It is there and not up yet           -> wait; when it failed, say so, remove it, keep what serves.
3.  It is up and has not answered yet    -> probe it with a real request.
4.  It answered and has no traffic       -> route the traffic to it.
5.  It has the traffic                   -> drain and remove every other version; record what now serves.

Because every step is read off the observed state, a reconciler that was killed anywhere goes on where it was.
"""

from dataclasses import replace

from reconciler.core.application import demand_of, with_in_place
from reconciler.core.backoff import is_due
from reconciler.core.diff import Effect, field_changes, in_place_changes
from reconciler.core.drift import Deed
from reconciler.core.overrides import Kind
from reconciler.core.plan import Action, Change, Do, Held, HeldKind, Resting
from reconciler.core.residency import last_serving
from reconciler.core.room import Place, find_place, mates_of, no_room_at_rest, no_room_ever
from reconciler.core.spec import parse_duration
from reconciler.core.state import Application, Failure, Json, Status, failure_of
from reconciler.core.target import Target
from reconciler.core.turn import Turn
from reconciler.core.waiting_for_weights import fetch_weights, lacks_weights, weights_problem
from reconciler.core.want import Want


def approach(turn: Turn, target: Target) -> None:
    """Take the next step towards `target`."""
    live = turn.live.get(target.model, [])
    wanted = next((app for app in live if app.name == target.application), None)
    others = [app for app in live if app is not wanted]
    failure = failure_of(turn.observed.failures, target.model, target.application, target.basis)
    if wanted is not None:
        reason = why_failed(turn, wanted, parse_duration(target.spec.lifecycle.load_timeout))
        if reason:
            turn.fail(wanted, reason)
            fall_back(turn, target.model, others)
        else:
            settle(turn, wanted, others, target)
    elif failure is not None and not _may_retry(turn, target, failure, live):
        turn.held.append(_held_failed(turn, target, failure, live))
        fall_back(turn, target.model, live)
    elif target.waits:
        # Nothing failed, so nothing comes back: what is there stays as it is for the moment.
        turn.step(Do.AWAIT, target.model, target.application, target.waits)
        turn.hold(live)
    else:
        _bring(turn, target, live)


def rest(turn: Turn, target: Target, want: Want) -> None:
    """A model that need not be up and is not: nothing is started, and yet it is known whether it could be."""
    for app in turn.observed.of_model(target.model):
        turn.step(Do.AWAIT, target.model, app.name, "waits until its processes are gone")
    failure = failure_of(turn.observed.failures, target.model, target.application, target.basis)
    if failure is not None:
        held = _held_failed(turn, target, failure, [])
        retry_at = None if is_due(failure.at, failure.retry_at, turn.observed.now) else held.retry_at
        turn.held.append(replace(held, retry_at=retry_at, on_request=want.on_request))
        return
    if target.waits:
        turn.step(Do.AWAIT, target.model, target.application, target.waits)
        return
    hold = why_not(turn, target)
    if hold is None and want.on_request:
        hold = weights_problem(turn, target)
        if hold is None and (why := no_room_at_rest(turn, target)):
            hold = Held(target.model, HeldKind.NO_ROOM, why, target.file)
    if hold is not None:
        turn.held.append(hold)
    # A request is to wait for a load only, so what a request may bring up is fetched beforehand.
    elif want.on_request:
        fetch_weights(turn, target)
    if hold is None:
        turn.resting.append(Resting(target.model, want.why, target.file, on_request=want.on_request))


def let_go(turn: Turn, model: str, why: str) -> None:
    """Take the traffic from a model, and remove it once its last request was answered."""
    routed = turn.routed(model)
    if routed is not None:
        turn.step(Do.UNROUTE, model, routed, why)
        turn.hold(turn.live[model])
    else:
        turn.retire(turn.live[model], why)


def put_to_sleep(turn: Turn, target: Target, why: str) -> str:
    """Take the traffic from a model, and put it to sleep once it is drained; gives the phase, or nothing."""
    model, live = target.model, turn.live[target.model]
    turn.hold(live)
    routed = turn.routed(model)
    if routed is not None:
        turn.step(Do.UNROUTE, model, routed, why)
        return "no new requests"
    # What comes up beside it is not needed: a request starts from the file as it is then.
    sleeper = last_serving(turn, model)
    assert sleeper is not None
    turn.retire([app for app in live if app is not sleeper], "its model sleeps")
    if sleeper.name in turn.observed.broken:
        turn.drop(sleeper, turn.observed.broken[sleeper.name])
        turn.keep.pop(sleeper.name, None)
        return "it cannot sleep"
    if sleeper.name in turn.observed.asleep:
        return ""
    if sleeper.name in turn.observed.turning:
        turn.step(Do.AWAIT, model, sleeper.name, "goes to sleep")
    elif turn.is_drained(sleeper):
        turn.step(Do.SLEEP, model, sleeper.name, why)
    else:
        turn.step(Do.DRAIN, model, sleeper.name, "its last requests are answered first")
    return "goes to sleep"


def stay(turn: Turn, model: str) -> None:
    """Keep a model whose file is invalid (or gone, and may not go) where it is."""
    fall_back(turn, model, turn.live.get(model, []))


def settle(turn: Turn, app: Application, others: list[Application], target: Target | None) -> None:
    """`app` is the version to serve and exists: bring it to the traffic, then let the others go."""
    model = app.model or ""
    _keep(turn, app, target)
    routed = turn.routed(model)
    if routed == app.name:
        turn.retire(others, f"{app.name} has the traffic")
        if target is not None and _record_differs(turn, target):
            turn.step(Do.RECORD, model, app.name)
        return
    _retire_superseded(turn, model, others)
    if app.name in turn.observed.broken:
        turn.keep.pop(app.name, None)
        turn.drop(app, turn.observed.broken[app.name])
    elif app.name in turn.observed.asleep:
        turn.step(Do.WAKE, model, app.name, "it is asked for")
    elif app.name in turn.observed.turning:
        turn.step(Do.AWAIT, model, app.name, "wakes up")
    elif target is not None and was_changed(turn, app, target):
        turn.step(Do.AWAIT, model, app.name, "it is put right, and asked anew then")
    elif app.name in turn.observed.ready:
        turn.step(Do.ROUTE, model, app.name, "it answered a real request")
    elif app.status is Status.RUNNING and app.name not in turn.observed.probing:
        turn.step(Do.PROBE, model, app.name, "it is up; a real request decides")
    else:
        turn.step(Do.AWAIT, model, app.name, phase_of(turn, app))


def fall_back(turn: Turn, model: str, live: list[Application]) -> None:
    """The wanted version cannot be had now: serve what served before, or bring it back."""
    routed = turn.routed(model)
    usable: list[Application] = []
    for app in live:
        if app.name != routed and (reason := why_failed(turn, app, None)):
            turn.fail(app, reason)
        else:
            usable.append(app)
    usable.sort(key=lambda app: (app.name != routed, app.name not in turn.observed.ready, app.name))
    previous = _way_back(turn, model)
    if usable:
        if previous is not None and usable[0].name == previous["name"] != routed:
            _note_restore(turn, model, previous, phase_of(turn, usable[0]))
        settle(turn, usable[0], usable[1:], None)
        return
    if previous is None or live:
        return
    _note_restore(turn, model, previous, "")
    target = turn.desired.targets.get(model)
    if turn.fits(demand_of(previous)) and not (target is not None and mates_of(turn, target)):
        turn.start(model, previous["name"], previous, demand_of(previous))
    else:
        turn.step(Do.AWAIT, model, previous["name"], f"waits for room to come back; {turn.describe_free()}")


def _keep(turn: Turn, app: Application, target: Target | None) -> None:
    """Keep a version, with what can be changed in place as its file wants it."""
    config = app.config
    if target is not None and was_changed(turn, app, target):
        config = target.config
        turn.step(Do.UPDATE, target.model, app.name, Deed.CHANGED.of(app.name))
    elif target is not None and differs_in_place(turn, app, target):
        config = with_in_place(config or {}, target.in_place)
        turn.step(Do.UPDATE, target.model, app.name, "settings that Serve changes without a restart")
    if config is not None:
        turn.keep[app.name] = config


def _note_restore(turn: Turn, model: str, previous: Json, phase: str) -> None:
    cause = "the version that it made way for does not come up"
    turn.changes.append(Change(model, Action.RESTORE, cause, new=previous["name"], phase=phase))


def why_failed(turn: Turn, app: Application, load_timeout: float | None) -> str:
    """Why this version counts as failed; empty while it does not.

    A version that has the traffic is Serve's to heal, until Serve itself gives it up.
    """
    if app.status is Status.DEPLOY_FAILED:
        return app.failure or app.message or "Ray Serve gave it up without a reason"
    if app.name == turn.routed(app.model or "") or app.name in turn.observed.ready:
        return ""
    if app.failure or app.name in turn.observed.asleep or app.name in turn.observed.turning:
        return app.failure
    if app.name in turn.observed.unanswered:
        return f"it came up but does not answer: {turn.observed.unanswered[app.name]}"
    up = any(replica.state == "RUNNING" for replica in app.replicas)  # Then its first request decides.
    if load_timeout is not None and not up and turn.observed.ages.get(app.name, 0.0) > load_timeout:
        return f"not up within {load_timeout:.0f} s: {app.message or phase_of(turn, app)}"
    return ""


def phase_of(turn: Turn, app: Application) -> str:
    """Where an application that is not up yet stands, in words."""
    if app.building:
        return "Ray Serve builds the application"
    if app.name in turn.observed.probing:
        return "answering its first request"
    if not app.replicas:
        return "waits for a replica"
    return "loading the model"


def heals(target: Target) -> bool:
    """What is done to the model behind our back is put right, not only reported."""
    return target.spec.lifecycle.heal == "on"


def was_changed(turn: Turn, app: Application, target: Target) -> bool:
    """Somebody changed the wanted version behind our back, and it is put right."""
    return turn.deeds.get(app.name) is Deed.CHANGED and heals(target) and app.config != target.config


def differs_in_place(turn: Turn, app: Application, target: Target) -> bool:
    """The deployment's settings differ from what the file wants, in what Serve changes without a restart.

    What somebody else changed is left so where the file says `heal: off`, until the file itself asks for more.
    """
    if turn.deeds.get(app.name) is Deed.CHANGED and not heals(target) and not _asks_in_place(turn, target):
        return False
    running: Json = next(iter((app.config or {}).get("deployments", ())), {})
    return bool(in_place_changes(running, target.in_place))


def _asks_in_place(turn: Turn, target: Target) -> bool:
    record = turn.record(target.model)
    changes = field_changes(record.spec, target.fields) if record is not None else ()
    return any(change.effect is Effect.IN_PLACE for change in changes)


def _bring(turn: Turn, target: Target, live: list[Application]) -> None:
    """The wanted version is not there: start it, beside what serves or in its turn."""
    model = target.model
    hold = why_not(turn, target) or weights_problem(turn, target)
    if hold is None and lacks_weights(turn, target) and (why := no_room_ever(turn, target)):
        # Nothing is fetched for what cannot be loaded.
        hold = Held(model, HeldKind.NO_ROOM, why, target.file)
    if hold is not None:
        turn.held.append(hold)
    # One copy that cannot be had is no reason to stop the others; a model that cannot run gets none.
    may_fetch = hold is None or hold.kind is HeldKind.MISSING
    if (may_fetch and fetch_weights(turn, target)) or hold is not None:
        fall_back(turn, model, live)
        return
    place, why = find_place(turn, target, turn.wants[model])
    if place is Place.HERE:
        _retire_superseded(turn, model, live)
        turn.start(model, target.application, target.config, target.demand)
    elif place is Place.SOON:
        _make_way(turn, target, live, why)
    else:
        if place is Place.NEVER:
            turn.held.append(Held(model, HeldKind.NO_ROOM, why, target.file))
        fall_back(turn, model, live)
        if place is Place.QUEUED:
            turn.step(Do.AWAIT, model, target.application, why)


def _make_way(turn: Turn, target: Target, live: list[Application], why: str) -> None:
    """There will be room once something is gone: other models first, then the version that serves."""
    model = target.model
    serving = _retire_superseded(turn, model, live)
    if not serving or not turn.fits_without(target.demand, [app.name for app in live]):
        if _made_way(turn, model):
            turn.claim_load()
        turn.reserve(model, target.application, target.demand, target.config)
        turn.step(Do.AWAIT, model, target.application, why)
    elif (routed := turn.routed(model)) is not None:
        # One at a time: while others load, this one had better go on serving.
        if turn.claim_load():
            turn.reserve(model, target.application, target.demand, target.config)
            turn.step(Do.UNROUTE, model, routed, "no room for two versions at once")
        else:
            turn.step(Do.AWAIT, model, target.application, "queued behind another load")
    else:
        turn.claim_load()
        turn.reserve(model, target.application, target.demand, target.config)
        for app in serving:
            if turn.is_drained(app):
                turn.keep.pop(app.name, None)
                turn.step(Do.KEEP_PREVIOUS, model, app.name, "it comes back if the new version fails")
        turn.retire(serving, f"makes way for {target.application}")


def _retire_superseded(turn: Turn, model: str, others: list[Application]) -> list[Application]:
    """Let versions go that neither have nor had the traffic; the rest is kept and returned."""
    routed = turn.routed(model)
    has_traffic = any(app.name == routed for app in others)
    superseded = [app for app in others if app.name != routed and (has_traffic or not _may_serve(turn, app))]
    serving = [app for app in others if app not in superseded]
    turn.retire(superseded, "superseded before it had traffic")
    turn.hold(serving)
    return serving


def _may_serve(turn: Turn, app: Application) -> bool:
    # The status alone does not tell: every PUT makes it DEPLOYING for a moment.
    record = turn.record(app.model or "")
    had_traffic = app.name in turn.observed.ready or (record is not None and record.application == app.name)
    return app.status is Status.RUNNING or had_traffic


def _made_way(turn: Turn, model: str) -> bool:
    record = turn.record(model)
    return record is not None and record.previous is not None


def _way_back(turn: Turn, model: str) -> Json | None:
    """The configuration of the version that made way, unless it failed itself a moment ago or its room is gone."""
    record = turn.record(model)
    if record is None or record.previous is None:
        return None
    failure = turn.observed.failures.get(record.previous["name"])
    if failure is not None and not is_due(failure.at, failure.retry_at, turn.observed.now):
        return None
    leaving = turn.leaving | {app.name for app in turn.observed.of_model(model)}
    return record.previous if turn.fits_without(demand_of(record.previous), leaving) else None


def why_not(turn: Turn, target: Target) -> Held | None:
    """Why this version could not run here, whatever room there is; None where it could."""
    if target.unsupported:
        return Held(target.model, HeldKind.WRONG_ENGINE, target.unsupported, target.file)
    if target.fit is not None and target.fit.misfit and not turn.options.force:
        fit = target.fit
        return Held(target.model, HeldKind.DOES_NOT_FIT, fit.misfit, target.file, advice=fit.advice)
    return None


def _may_retry(turn: Turn, target: Target, failure: Failure, live: list[Application]) -> bool:
    if turn.options.retry_failed and failure.at < turn.options.asked_at:
        return True
    override = turn.observed.overrides.get(target.model)
    if override is not None and override.kind is Kind.LOAD and failure.at < override.since <= turn.observed.now:
        return True
    if not live and _way_back(turn, target.model) is not None:
        return False  # The version that made way comes back first.
    is_time = is_due(failure.at, failure.retry_at, turn.observed.now)
    return is_time and not _would_displace(turn, target, live)


def _would_displace(turn: Turn, target: Target, live: list[Application]) -> bool:
    # A retry must not take down what serves, again and again, for a version that failed before.
    return bool(live) and not turn.fits(target.demand)


def _held_failed(turn: Turn, target: Target, failure: Failure, live: list[Application]) -> Held:
    times = "once" if failure.attempts == 1 else f"{failure.attempts} times"
    comes_back = not live and _way_back(turn, target.model) is not None
    only_by_change = comes_back or _would_displace(turn, target, live)
    return Held(
        target.model,
        HeldKind.FAILED,
        f"{failure.reason} (version {failure.application}, failed {times})",
        target.file,
        None if only_by_change else failure.retry_at,
    )


def _record_differs(turn: Turn, target: Target) -> bool:
    record = turn.record(target.model)
    return (
        record is None
        or record.application != target.application
        or record.previous is not None
        or record.spec != target.fields
        or record.file != target.file
    )
