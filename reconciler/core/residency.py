"""Who should be up: each model's wish for this turn, from its policy, what was asked for by hand, and the traffic.

The first decision of a turn. `room` finds the place for those that are to come up, `approach` brings them there.
Idle times are of a clock that nothing sets, so no change of the wall clock unloads a model.
"""

from reconciler.core.memory_plan import footprint_of
from reconciler.core.overrides import Kind, in_words
from reconciler.core.spec import Policy, parse_duration
from reconciler.core.state import Application, Status
from reconciler.core.target import Target
from reconciler.core.turn import Turn
from reconciler.core.want import Want, Wish
from reconciler.core.words import in_time

AHEAD_FACTOR, AHEAD_SECONDS = 1.25, 15.0
"""How much longer than it took lately a load may take, where it has to be done in time."""


def want_of(turn: Turn, target: Target) -> Want:
    """What `target`'s model should do: by the first rule that has something to say."""
    for rule in (_by_hand, _pinned, _by_schedule, _replacing, _waited_for, _manual):
        want = rule(turn, target)
        if want is not None:
            return want
    return _on_demand(turn, target)


def finished(turn: Turn, target: Target) -> str:
    """Why what was asked for by hand is done; empty while it is not, or where it has an end of its own."""
    override = turn.observed.overrides.get(target.model)
    if override is None or override.until is not None:
        return ""
    if override.kind is Kind.UNLOAD:
        gone = not any(app.model == target.model for app in turn.observed.applications.values())
        return "it is unloaded" if gone else ""
    if override.kind is not Kind.LOAD or target.spec.lifecycle.policy is Policy.MANUAL:
        return ""
    if turn.routed(target.model) == target.application:
        return "it is loaded"
    failure = turn.observed.failures.get(target.application)
    if failure is not None and _is_later(failure.at, override.since, turn.observed.now):
        return "the load failed"
    return ""


def last_serving(turn: Turn, model: str) -> Application | None:
    """The version that has, or last had, the model's traffic; None where there is none, or it never had any."""
    live = turn.live.get(model, [])
    routed = turn.routed(model)
    up = turn.observed.up_seconds
    slept = turn.observed.asleep | turn.observed.turning
    record = turn.record(model)
    recorded = record.application if record is not None else ""
    had_traffic = (app for app in live if app.name in (routed, recorded) or app.name in up or app.name in slept)
    return min(had_traffic, key=lambda app: (app.name != routed, up.get(app.name, 0.0)), default=None)


def pin_ends_in(turn: Turn, target: Target) -> float | None:
    """Seconds until `target`'s model may leave that is kept up by hand; None where it has no such end."""
    override, lifecycle = turn.observed.overrides.get(target.model), target.spec.lifecycle
    if override is None or override.until is None or override.kind not in (Kind.PIN, Kind.LOAD):
        return None
    goes = lifecycle.policy is Policy.ON_DEMAND or override.leaves
    if not goes or turn.suspension(target.model) is not None or _by_schedule(turn, target) is not None:
        return None
    return override.until - turn.observed.now


def _is_later(at: float, since: float, now: float) -> bool:
    # A time to come was noted before the clock was set back, any other one after that.
    return at > since if (at > now) == (since > now) else since > now


def _by_hand(turn: Turn, target: Target) -> Want | None:
    override = turn.observed.overrides.get(target.model)
    if override is None or override.kind is Kind.UNPIN:
        return None
    policy, now = target.spec.lifecycle.policy, turn.observed.now
    why, since = in_words(override, policy, now), max(0.0, now - override.since)
    if override.kind is Kind.UNLOAD:
        on_request = override.until is None and policy is not Policy.MANUAL
        return Want(Wish.REST, why, on_request=on_request, asked=True)
    stays = override.kind is Kind.PIN or override.until is not None or policy is not Policy.ON_DEMAND
    pinned = stays or _by_schedule(turn, target) is not None
    return Want(Wish.UP, why, pinned=pinned, since=since, asked=True)


def _pinned(turn: Turn, target: Target) -> Want | None:
    if target.spec.lifecycle.policy is Policy.PINNED and not _unpinned(turn, target):
        return Want(Wish.UP, f"{target.file} declares it", pinned=True)
    return None


def _by_schedule(turn: Turn, target: Target) -> Want | None:
    window = turn.observed.windows.get(target.model)
    if window is None or _unpinned(turn, target):
        return None
    ahead = turn.observed.load_seconds.get(target.model, 0.0) * AHEAD_FACTOR + AHEAD_SECONDS
    if window.open or (window.opens_in is not None and window.opens_in <= ahead):
        return Want(Wish.UP, f"its schedule: {window.words}", pinned=True, asked=True)
    return None


def _unpinned(turn: Turn, target: Target) -> bool:
    override = turn.observed.overrides.get(target.model)
    return override is not None and override.kind is Kind.UNPIN


def _replacing(turn: Turn, target: Target) -> Want | None:
    record = turn.record(target.model)
    if record is not None and record.previous is not None and turn.routed(target.model) != record.previous["name"]:
        return Want(Wish.UP, "the version that it replaces made way for it")
    return None


def _waited_for(turn: Turn, target: Target) -> Want | None:
    waiting = turn.observed.waiting.get(target.model)
    if waiting is None or target.spec.lifecycle.policy is Policy.MANUAL:
        return None
    what = "1 request waits" if waiting.count == 1 else f"{waiting.count} requests wait"
    return Want(Wish.UP, f"{what} for it", since=waiting.seconds, asked=True)


def _manual(turn: Turn, target: Target) -> Want | None:
    if target.spec.lifecycle.policy is not Policy.MANUAL:
        return None
    # One with a schedule is up when that says so.
    if turn.live.get(target.model) and not target.spec.lifecycle.schedule:
        return Want(Wish.STAY, "manual: it leaves by hand only", pinned=True)
    return Want(Wish.REST, f"manual: `reconcile load {target.model}` loads it", on_request=False)


def _on_demand(turn: Turn, target: Target) -> Want:
    if not turn.live.get(target.model):
        return Want(Wish.REST, "on demand: a request loads it")
    app = last_serving(turn, target.model)
    # The failure of the wanted version has to be noted before it goes.
    failed = app is not None and app.status is Status.DEPLOY_FAILED and app.name == target.application
    if app is None or failed:
        return Want(Wish.STAY, "it comes up")
    if reason := _why_it_stays(turn, target, app):
        if _sleeps(turn, target, app):
            return Want(Wish.SLEEP, f"asleep, {reason}")
        return Want(Wish.STAY, reason)
    idle, limit = turn.observed.idle_seconds.get(app.name, 0.0), target.spec.lifecycle.idle_timeout
    return Want(Wish.REST, f"idle {in_time(idle)} (idle_timeout {limit})")


def _sleeps(turn: Turn, target: Target, app: Application) -> bool:
    """A model that need not be unloaded yet sleeps, or should go to sleep."""
    observed, lifecycle = turn.observed, target.spec.lifecycle
    if app.name in observed.asleep or app.name in observed.turning:
        return True
    if lifecycle.sleep_after is None or app.name != target.application or app.name in observed.insomniac:
        return False
    if observed.in_flight is None or observed.in_flight.get(app.name, 0):
        return False
    idle, up = observed.idle_seconds.get(app.name, 0.0), observed.up_seconds.get(app.name, 0.0)
    if idle < parse_duration(lifecycle.sleep_after) or up < parse_duration(lifecycle.min_stay):
        return False
    footprint = footprint_of(target)
    return footprint is not None and (observed.sleep_left or 0) >= footprint.main_memory


def _why_it_stays(turn: Turn, target: Target, app: Application) -> str:
    observed, lifecycle = turn.observed, target.spec.lifecycle
    if observed.in_flight is None:
        return "whether it is in use cannot be told, which counts as in use"
    if count := observed.in_flight.get(app.name, 0):
        return f"{count} request{'s' if count != 1 else ''} in flight"
    idle = observed.idle_seconds.get(app.name, 0.0)
    if idle < parse_duration(lifecycle.idle_timeout):
        return f"used {in_time(idle)} ago"
    if observed.up_seconds.get(app.name, 0.0) < parse_duration(lifecycle.min_stay):
        return f"it stays for {lifecycle.min_stay} at least"
    return ""
