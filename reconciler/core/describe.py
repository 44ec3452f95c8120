"""The difference of one model as a person wants to read it: what changes, why, and at what cost."""

from dataclasses import replace

from reconciler.core.approach import differs_in_place, phase_of, was_changed
from reconciler.core.diff import Effect, FieldChange, config_changes, field_changes, in_place_changes
from reconciler.core.drift import Deed
from reconciler.core.local_paths import only_content
from reconciler.core.plan import Action, Change, Order
from reconciler.core.state import Application, Json, Record
from reconciler.core.target import Target
from reconciler.core.turn import Turn
from reconciler.core.weights import DEFAULT_REVISION


def describe(turn: Turn, target: Target) -> Change | None:
    """The change that `target` means for its model, or None where the model is as its file wants it."""
    live = turn.live.get(target.model, [])
    routed = turn.routed(target.model)
    record = turn.record(target.model)
    wanted = next((app for app in live if app.name == target.application), None)
    others = [app for app in live if app is not wanted]
    if wanted is not None and routed == wanted.name and not others:
        return _describe_running(turn, target, wanted, record)
    serving = next((app for app in others if app.name == routed), None) or next(iter(others), None)
    phase = _phase(turn, wanted, routed)
    if serving is None:
        made_way = record is not None and record.previous is not None
        if not made_way:
            cause = _cause_of_add(turn, target, record) if wanted is None else f"{target.file} declares it"
            return Change(target.model, Action.ADD, cause, new=target.application, phase=phase, file=target.file)
    if wanted is not None and routed == wanted.name and record is not None and record.application == wanted.name:
        cause = f"{wanted.name} has the traffic; what it replaced drains"
        old = serving.name if serving is not None else None
        return Change(target.model, Action.REPLACE, cause, old=old, new=wanted.name, phase=phase, file=target.file)
    fields = _fields(target, serving, record)
    in_turn = serving is None or (wanted is None and not turn.fits(target.demand))
    return Change(
        target.model,
        Action.REPLACE,
        _cause_of_replace(target, fields, record),
        fields,
        old=serving.name if serving is not None else (record.application if record else None),
        new=target.application,
        order=Order.IN_TURN if in_turn else Order.BESIDE,
        phase=phase,
        file=target.file,
    )


def _describe_running(turn: Turn, target: Target, app: Application, record: Record | None) -> Change | None:
    if was_changed(turn, app, target):
        cause = Deed.CHANGED.of(app.name)
        put_right = config_changes(app.config or {}, target.config)
        return Change(target.model, Action.RESTORE, cause, put_right, new=app.name, file=target.file)
    fields = tuple(
        # The version that runs is the wanted one, so whatever was written differently costs no engine.
        replace(change, effect=Effect.FRONT_DOOR) if change.effect is Effect.NEW_ENGINE else change
        for change in (_changes(record, target) if record is not None else ())
    )
    cause = f"{target.file} changed"
    if differs_in_place(turn, app, target):
        running: Json = next(iter((app.config or {}).get("deployments", ())), {})
        in_place = tuple(change for change in fields if change.effect is Effect.IN_PLACE)
        shown = fields if in_place else (*fields, *in_place_changes(running, target.in_place))
        return Change(target.model, Action.UPDATE, cause, shown, new=app.name, file=target.file)
    if record is None or record.application != app.name:
        return None
    if fields:
        return Change(target.model, Action.FRONT_DOOR, cause, fields, new=app.name, file=target.file)
    if record.file != target.file:
        cause = f"declared in {target.file}, no longer in {record.file}"
        return Change(target.model, Action.FRONT_DOOR, cause, new=app.name, file=target.file)
    return None


def _changes(record: Record, target: Target) -> tuple[FieldChange, ...]:
    # Of a thousand models next to none has changed.
    return () if record.spec == target.fields else field_changes(record.spec, target.fields)


def _phase(turn: Turn, wanted: Application | None, routed: str | None) -> str:
    if wanted is None:
        return ""
    return "the old version drains" if routed == wanted.name else phase_of(turn, wanted)


def _fields(target: Target, serving: Application | None, record: Record | None) -> tuple[FieldChange, ...]:
    fields: tuple[FieldChange, ...] = ()
    old_config = serving.config if serving is not None else (record.previous if record else None)
    if record is not None and (serving is None or record.application == serving.name):
        fields = field_changes(record.spec, target.fields)
    if any(change.effect is Effect.NEW_ENGINE for change in fields) or old_config is None:
        return fields
    # The files do not explain a new engine: the template, a setting or a default does.
    return (*fields, *config_changes(old_config, target.config))


def _cause_of_add(turn: Turn, target: Target, record: Record | None) -> str:
    if turn.deeds.get(target.application) is Deed.DELETED:
        return Deed.DELETED.of(target.application)
    if record is None:
        return f"{target.file} declares it"
    return f"{target.file} declares it, and it does not run any more"


def _cause_of_replace(target: Target, fields: tuple[FieldChange, ...], record: Record | None) -> str:
    known = _paths(target.fields) | _paths(record.spec if record is not None else {})
    changed = {change.path: change for change in fields if change.effect is Effect.NEW_ENGINE}
    engine = list(changed)
    if engine == ["source.commit"]:
        moved = changed["source.commit"]
        revision = target.spec.source.revision or DEFAULT_REVISION
        return f"revision {revision} moved: {str(moved.old)[:8]} -> {str(moved.new)[:8]}"
    if only_content(engine):
        return f"the content of a folder that {target.file} names changed"
    if engine and known.issuperset(engine):
        return f"{target.file} changed"
    return "the template or the settings of the reconciler changed"


def _paths(value: object, path: str = "") -> set[str]:
    if not isinstance(value, dict):
        return {path}
    return {
        found
        for key, item in value.items()
        for found in _paths(item, f"{path}.{key}" if path else str(key)) | ({path} if path else set())
    }
