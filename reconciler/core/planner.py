"""The planner: (desired, observed) -> plan. Pure: the same inputs always give the same plan.

It decides what goes (`safety` has a say) and who should be up (`residency`), takes one step for every declared
model (`approach`, which looks for `room`), words the difference (`describe`), and says which configurations Serve
should hold after this turn.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import replace

from reconciler.core.approach import approach, heals, let_go, put_to_sleep, rest, stay
from reconciler.core.describe import describe
from reconciler.core.desired import Desired
from reconciler.core.drift import Deed, Drift
from reconciler.core.memory_plan import gpus_of, memory_of
from reconciler.core.overrides import Kind, in_words, is_drift
from reconciler.core.parse import InvalidFile
from reconciler.core.plan import Action, Change, Do, Held, HeldKind, Note, Plan, Resting, Step
from reconciler.core.residency import finished, want_of
from reconciler.core.safety import refuse_removals
from reconciler.core.state import Application, Observed, Status
from reconciler.core.suspension import in_words as suspension_in_words
from reconciler.core.target import Target
from reconciler.core.turn import Options, Turn
from reconciler.core.waiting_for_weights import downloads_of
from reconciler.core.want import Want, Wish

_ORDER = (Wish.UP, Wish.STAY, Wish.SLEEP, Wish.REST)
BUILD_SECONDS = 600.0
"""For so long nobody disturbs a build. Ray gives up on a `runtime_env` after as long: what takes longer hangs."""


def make_plan(desired: Desired, observed: Observed, options: Options | None = None) -> Plan:
    """The plan for one turn."""
    turn = Turn(desired, observed, options or Options())
    removed = _decide_removals(turn)
    turn.wants = {model: want_of(turn, target) for model, target in desired.targets.items()}
    suspended = _suspend(turn)
    order = sorted(desired.targets.values(), key=lambda target: _importance(turn, target))
    if not desired.unreadable:
        for target in order:
            if target.model in suspended:
                _plan_suspended(turn, target, suspended[target.model])
            else:
                _plan_declared(turn, target)
            turn.planned.add(target.model)
    for model in removed:
        _plan_removal(turn, model)
    _unroute_what_is_gone(turn)
    return Plan(
        changes=tuple(turn.changes),
        held=tuple(turn.held),
        refused=tuple(turn.refused),
        unchanged=tuple(turn.unchanged),
        resting=tuple(turn.resting),
        by_traffic=frozenset(turn.by_traffic),
        drift=_drifted(turn, suspended),
        notes=tuple(
            Note(model, text) for model, target in sorted(desired.targets.items()) for text in target.notes
        )
        + _unknown(turn)
        + _by_hand(turn),
        applications=_applications(turn),
        gpus=gpus_of(turn, order, removed),
        steps=tuple(turn.steps),
        revision=desired.revision,
        desired_digest=desired.digest,
        observed_digest=observed_digest(observed.applications),
    )


def observed_digest(applications: Mapping[str, Application]) -> str:
    """A digest of what a plan is based on; a plan whose digest no longer matches is stale."""
    basis = {name: app.config for name, app in applications.items()}
    return hashlib.sha256(json.dumps(basis, sort_keys=True).encode()).hexdigest()[:12]


def _importance(turn: Turn, target: Target) -> tuple[int, bool, bool, float, int, int, str]:
    # Who is to come up, or to be replaced, finds room before those that stay are asked to leave for it. What
    # served and does not now comes first: others would take the room that it made. Then what is always on; then
    # who waits the longest, so that models that cannot be up together take turns.
    want = turn.wants[target.model]
    record = turn.record(target.model)
    served = record is not None and (want.pinned or record.previous is not None)
    interrupted = served and turn.routed(target.model) is None
    place = turn.desired.order.get(target.model, len(turn.desired.order))
    return (
        _rank(turn, target),
        not interrupted,
        not want.pinned,
        0.0 if want.pinned else -want.since,
        -target.spec.lifecycle.priority,
        place,
        target.model,
    )


def _rank(turn: Turn, target: Target) -> int:
    want = turn.wants[target.model]
    if want.wish is Wish.UP and want.pinned:
        return 0
    if want.wish is Wish.STAY and not _is_there(turn, target):
        return 1  # It serves, so it waits for nobody; whom it sent away would else come back before it is through.
    return 2 + _ORDER.index(want.wish)


def _is_there(turn: Turn, target: Target) -> bool:
    return any(app.name == target.application for app in turn.live.get(target.model, ()))


def _plan_declared(turn: Turn, target: Target) -> None:
    model, want = target.model, turn.wants[target.model]
    leaves = model in turn.live and (model in turn.sent_away or want.wish in (Wish.REST, Wish.SLEEP))
    asked = model in turn.observed.waiting and not want.pinned and not _is_replaced(turn, target)
    if model not in turn.observed.overrides and (leaves or asked):
        turn.by_traffic.add(model)
    record = turn.record(model)
    if record is not None and record.previous is not None and turn.routed(model) == record.previous["name"]:
        turn.step(Do.FORGET_PREVIOUS, model, record.previous["name"], "it is back, and has the traffic")
    if ended := finished(turn, target):
        turn.step(Do.END_OVERRIDE, model, target.application, ended)
    if model in turn.live and (model in turn.sent_away or want.wish is Wish.REST):
        _plan_unload(turn, target, want)
    elif want.wish is Wish.REST:
        _plan_rest(turn, target, want)
    elif want.wish is Wish.SLEEP:
        _plan_sleep(turn, target, want)
    else:
        _plan_up(turn, target, want)


def _suspend(turn: Turn) -> dict[str, Want]:
    """Have models that are suspended stay where they are; gives what they would do otherwise."""
    suspended: dict[str, Want] = {}
    for model, want in turn.wants.items():
        suspension = turn.suspension(model)
        if suspension is not None:
            wish = Wish.STAY if model in turn.live else Wish.REST
            why = suspension_in_words(suspension, turn.observed.now)
            turn.wants[model] = Want(wish, why, pinned=wish is Wish.STAY, on_request=False)
            suspended[model] = want
    return suspended


def _plan_suspended(turn: Turn, target: Target, otherwise: Want) -> None:
    """Leave a model exactly as it is, whatever is under way with it."""
    model, why = target.model, turn.wants[target.model].why
    turn.hold(turn.live.get(model, []))
    change = describe(turn, target)
    rests = otherwise.wish in (Wish.REST, Wish.SLEEP) and turn.routed(model) is None
    if rests or (model not in turn.live and otherwise.wish is not Wish.UP):
        turn.resting.append(Resting(model, why, target.file, on_request=False))
    elif change is not None:
        reason = f"{why}; else: {change.action.value}, because {change.cause}"
        turn.held.append(Held(model, HeldKind.SUSPENDED, reason, target.file))
    else:
        turn.unchanged.append(model)


def _is_replaced(turn: Turn, target: Target) -> bool:
    record = turn.record(target.model)
    made_way = record is not None and record.previous is not None
    return made_way or any(app.name != target.application for app in turn.live.get(target.model, ()))


def _plan_unload(turn: Turn, target: Target, want: Want) -> None:
    rests = want.wish is Wish.REST
    routed, why = turn.routed(target.model), want.why if rests else turn.sent_away[target.model]
    turn.resting.append(Resting(target.model, why, target.file, on_request=want.on_request))
    turn.changes.append(
        Change(
            target.model,
            Action.UNLOAD,
            why,
            old=routed or turn.live[target.model][0].name,
            phase="" if routed is not None else "draining",
            file=target.file,
            for_room=not rests,
        )
    )
    let_go(turn, target.model, why)


def _plan_sleep(turn: Turn, target: Target, want: Want) -> None:
    turn.resting.append(Resting(target.model, want.why, target.file))
    phase = put_to_sleep(turn, target, want.why)
    if phase:
        routed = turn.routed(target.model)
        turn.changes.append(
            Change(target.model, Action.SLEEP, want.why, old=routed, phase=phase, file=target.file)
        )


def _plan_rest(turn: Turn, target: Target, want: Want) -> None:
    steps = len(turn.steps)
    record = turn.record(target.model)
    if record is not None and record.previous is not None:
        turn.step(Do.FORGET_PREVIOUS, target.model, record.previous["name"], "its model was unloaded")
    rest(turn, target, want)
    fetches = any(step.do is Do.FETCH for step in turn.steps[steps:])
    if fetches:
        cause = f"{target.file} declares it; its weights are fetched now, a request loads it"
        downloads = downloads_of(turn, target)
        turn.changes.append(
            Change(
                target.model,
                Action.ADD,
                cause,
                new=target.application,
                file=target.file,
                downloads=downloads,
                memory=memory_of(target),
            )
        )


def _plan_up(turn: Turn, target: Target, want: Want) -> None:
    if turn.deeds.get(target.application) is Deed.DELETED and not heals(target) and not want.asked:
        reason = f"{Deed.DELETED.of(target.application)}; lifecycle.heal is off, `reconcile load` starts it again"
        turn.held.append(Held(target.model, HeldKind.DRIFT, reason, target.file))
        turn.hold(turn.live.get(target.model, []))
        return
    change = describe(turn, target)
    steps, held = len(turn.steps), len(turn.held)
    approach(turn, target)
    if len(turn.held) > held:
        _end_load_in_vain(turn, target, turn.held[-1])
        return
    if change is not None:
        if change.action is Action.ADD and want.asked:
            change = replace(change, action=Action.LOAD, cause=want.why)
        if not _is_there(turn, target):
            change = replace(change, downloads=downloads_of(turn, target), memory=memory_of(target))
        turn.changes.append(change)
    elif len(turn.steps) == steps:
        turn.unchanged.append(target.model)


def _end_load_in_vain(turn: Turn, target: Target, held: Held) -> None:
    # Who asked is told; that it happens hours later, when somebody makes room, is not what was meant.
    override = turn.observed.overrides.get(target.model)
    if override is None or override.kind is not Kind.LOAD or override.until is not None:
        return
    if held.kind is not HeldKind.FAILED:
        turn.step(Do.END_OVERRIDE, target.model, target.application, f"it cannot be loaded: {held.kind.value}")


def _unknown(turn: Turn) -> tuple[Note, ...]:
    held = {each.model for each in turn.held}
    return tuple(
        Note(model, f"its memory is not checked: {target.unknown}")
        for model, target in sorted(turn.desired.targets.items())
        if target.unknown and model not in held
    )


def _by_hand(turn: Turn) -> tuple[Note, ...]:
    """What holds by hand and not by the files."""
    suspended = (
        Note(model, want.why)
        for model, want in sorted(turn.wants.items())
        if model in turn.unchanged and turn.suspension(model)
    )
    return (*suspended, *_overridden(turn))


def _overridden(turn: Turn) -> tuple[Note, ...]:
    return tuple(
        Note(model, in_words(override, policy, turn.observed.now))
        for model, override in sorted(turn.observed.overrides.items())
        if (target := turn.desired.targets.get(model)) is not None
        and is_drift(override, policy := target.spec.lifecycle.policy)
    )


def _drifted(turn: Turn, suspended: Collection[str]) -> tuple[Drift, ...]:
    """What was done behind our back to versions that are wanted, or have the traffic."""
    found: list[Drift] = []
    for model, target in sorted(turn.desired.targets.items()):
        for name in sorted({target.application, turn.routed(model) or target.application}):
            deed = turn.deeds.get(name)
            if deed is None:
                continue
            healed = heals(target) and model not in suspended and name == target.application
            app = turn.observed.applications.get(name)
            # Changed to what its file asks for meanwhile: by another reconciler, or by hand before the commit.
            as_wanted = name == target.application and app is not None and app.config == target.config
            needed = turn.wants[model].wish is Wish.UP or model in suspended
            missed = not as_wanted if deed is Deed.CHANGED else needed
            found.append(Drift(model, name, deed, healed=healed and missed, missed=missed))
    return tuple(found)


def _decide_removals(turn: Turn) -> list[str]:
    """The models that go. What may not go, or has an invalid file, is kept."""
    desired = turn.desired
    kept: list[str] = []
    removed: list[str] = []
    made_way = {model for model, record in turn.observed.records.items() if record.previous is not None}
    running = set(turn.live) | made_way
    for model in sorted(running - set(desired.targets)):
        file = None if desired.unreadable else _invalid_file_of(turn, model)
        suspension = turn.suspension(model)
        if suspension is not None:
            reason = f"{suspension_in_words(suspension, turn.observed.now)}; else: remove, it is not declared"
            turn.held.append(Held(model, HeldKind.SUSPENDED, reason))
            turn.hold(turn.live.get(model, []))
        elif file is not None:
            reason = f"{file.path} is invalid; the model stays as it is"
            turn.held.append(Held(model, HeldKind.INVALID, reason, file.path))
            kept.append(model)
        elif model in turn.live:
            removed.append(model)
    _hold_files_without_model(turn)
    refusal = refuse_removals(
        removed,
        running,
        declared=desired.declared,
        unreadable=desired.unreadable,
        allowed=turn.options.allow_removals,
    )
    if refusal is not None:
        turn.refused.append(refusal)
        kept, removed = (sorted(running), []) if desired.unreadable else (kept + removed, [])
    for model in kept:
        if turn.suspension(model) is None:
            stay(turn, model)
        else:
            turn.hold(turn.live.get(model, []))
    turn.leaving.update(app.name for model in removed for app in turn.live[model])
    return removed


def _hold_files_without_model(turn: Turn) -> None:
    spoken_for = {held.file for held in turn.held}
    for file in turn.desired.invalid:
        if file.path not in spoken_for:
            name = ", ".join(sorted(file.claims)) if file.claims else file.path
            turn.held.append(Held(name, HeldKind.INVALID, f"{file.path} is invalid", file.path))


def _invalid_file_of(turn: Turn, model: str) -> InvalidFile | None:
    """The invalid file that this model may come from: by its record, by its name, or because nobody knows."""
    record = turn.record(model)
    for file in turn.desired.invalid:
        if file.claims is not None and model in file.claims:
            return file
        if record is not None and record.file == file.path:
            return file
        # Of one that comes up there is no record yet.
        if turn.observed.declared.get(model) == file.path:
            return file
        # A file that nobody can read, and that is new, may be the model's own under another name.
        if file.claims is None and (record is None or file.path not in _known_files(turn)):
            return file
    return None


def _known_files(turn: Turn) -> set[str]:
    """The files that models were declared in before."""
    return {*turn.observed.declared.values(), *(record.file for record in turn.observed.records.values())}


def _plan_removal(turn: Turn, model: str) -> None:
    record = turn.record(model)
    routed = turn.routed(model)
    cause = f"{record.file} is gone" if record is not None else "no model file declares it"
    turn.changes.append(
        Change(
            model,
            Action.REMOVE,
            cause,
            old=routed or turn.live[model][0].name,
            phase="" if routed is not None else "draining",
            file=record.file if record is not None else "",
        )
    )
    let_go(turn, model, cause)


def _unroute_what_is_gone(turn: Turn) -> None:
    alive = {app.name for apps in turn.live.values() for app in apps}
    handled = {step.model for step in turn.steps if step.do in (Do.ROUTE, Do.UNROUTE)}
    for model, application in turn.observed.routes.items():
        if application not in alive and model not in handled:
            turn.step(Do.UNROUTE, model, application, "its application is gone")


def _applications(turn: Turn) -> dict[str, dict[str, object]] | None:
    """What Serve should hold, or None where it holds that already or must not be disturbed."""
    applications = turn.observed.applications.values()
    actual = {
        app.name: app.config
        for app in applications
        if app.config is not None and app.status is not Status.DELETING
    }
    if turn.keep == actual:
        return None
    building = next((app for app in applications if _must_be_built(turn, app)), None)
    if building is not None:
        why = f"waits until Ray Serve has built {building.name}"
        turn.steps.append(Step(Do.AWAIT, building.model or "", building.name, why))
        return None
    return dict(turn.keep)


def _must_be_built(turn: Turn, app: Application) -> bool:
    # A PUT would cancel and restart the builds of what it names. What it leaves out goes, and it never names what
    # was made with `serve.run`.
    return app.building and app.name in turn.keep and turn.observed.ages.get(app.name, 0.0) <= BUILD_SECONDS
