"""What the front door tells clients about each model, from the plan and what was observed. Pure."""

from collections.abc import Iterable
from dataclasses import replace

from reconciler.activator.directory import Directory, Entry, ModelState
from reconciler.core.desired import Desired
from reconciler.core.plan import Action, Do, Plan, Step
from reconciler.core.spec import parse_duration
from reconciler.core.state import Application, Observed, Status
from reconciler.core.target import Target
from reconciler.core.weights import in_words

_COMING = frozenset(
    {Do.FETCH, Do.WAKE, Do.START, Do.AWAIT, Do.PROBE, Do.ROUTE, Do.KEEP_PREVIOUS, Do.UNROUTE, Do.DRAIN}
)
_GOING = frozenset({Do.UNROUTE, Do.DRAIN, Do.REMOVE})
_SILENT = frozenset({"STARTING", "STOPPING"})
"""States in which a replica does not answer. One that is RECOVERING, after Serve's controller ended, does."""
_RETRY_FAILED_SECONDS = 60.0


def build_directory(desired: Desired, observed: Observed, plan: Plan, *, created: int) -> Directory:
    """The directory after a turn.

    Args:
        desired: The model files.
        observed: What was seen at the start of the turn.
        plan: What was decided.
        created: Seconds since the epoch, shown as the models' creation time.
    """
    view = _View(observed, plan)
    entries = [_declared(target, view, created) for target in desired.targets.values()]
    alive = {app.model for app in observed.applications.values() if app.model is not None}
    undeclared = (set(observed.routes) | alive) - set(desired.targets)
    entries += [_undeclared(model, view, created) for model in sorted(undeclared)]
    invalid = {name: file.path for file in desired.invalid for name in file.claims or ()}
    for name in sorted(invalid.keys() - set(desired.targets) - undeclared):
        reason = f"{invalid[name]} is invalid"
        entries.append(Entry(name, ModelState.FAILED, None, reason, _RETRY_FAILED_SECONDS, created=created))
    return Directory(entries)


class _View:
    """A turn, by model."""

    def __init__(self, observed: Observed, plan: Plan) -> None:
        self.observed = observed
        self.held = {held.model: held for held in plan.held}
        self.resting = {resting.model: resting for resting in plan.resting}
        self.coming_back = {change.model for change in plan.changes if change.action is Action.RESTORE}
        self.going = {change.model for change in plan.changes if change.action is Action.REMOVE}
        asleep = observed.asleep | observed.turning
        self.sleepers = {observed.applications[name].model for name in asleep if name in observed.applications}
        # Also one that is drained for it: it is not on its way out.
        self.sleepers |= {change.model for change in plan.changes if change.action is Action.SLEEP}
        self.steps: dict[str, list[Step]] = {}
        for step in plan.steps:
            self.steps.setdefault(step.model, []).append(step)

    def next_route(self, model: str) -> str | None:
        """Where the model's traffic goes once this turn's steps are done."""
        route = self.observed.routes.get(model)
        for step in self.steps.get(model, ()):
            if step.do is Do.ROUTE:
                route = step.application
            elif step.do is Do.UNROUTE:
                route = None
        return route


def _declared(target: Target, view: _View, created: int) -> Entry:
    spec = target.spec
    length = spec.engine.max_model_len
    bare = Entry(
        name=target.model,
        state=ModelState.UNLOADED,
        application=None,
        reason="it is not up",
        aliases=spec.aliases,
        adapters=tuple(adapter.name for adapter in spec.adapters),
        task=spec.task.value,
        description=spec.description,
        created=created,
        max_model_len=None if length == "auto" else length,
        max_waiting=spec.lifecycle.max_waiting,
        wait_timeout=parse_duration(spec.lifecycle.wait_timeout),
    )
    return _with_state(bare, target, view)


def _undeclared(model: str, view: _View, created: int) -> Entry:
    """A model whose file is invalid or going: it keeps the aliases that were last recorded."""
    record = view.observed.records.get(model)
    spec = record.spec if record is not None else {}
    application, held = view.next_route(model), view.held.get(model)
    state, reason = ModelState.LOADING, held.reason if held is not None else "its file cannot be read now"
    if application is not None:
        state, reason = _state_of(view.observed.applications.get(application))
    elif model in view.going:
        state, reason = ModelState.UNLOADING, "it is not declared any more"
    return Entry(
        name=model,
        state=state,
        application=application,
        reason=reason,
        holds=state is ModelState.LOADING and any(step.do in _COMING for step in view.steps.get(model, ())),
        aliases=tuple(spec.get("aliases", ())),
        adapters=tuple(adapter["name"] for adapter in spec.get("adapters", ())),
        task=spec.get("task", "generate"),
        description=spec.get("description", ""),
        created=created,
    )


def _with_state(entry: Entry, target: Target, view: _View) -> Entry:
    model, observed = target.model, view.observed
    application = view.next_route(model)
    app = observed.applications.get(application or "")
    if app is not None and app.status is not Status.DELETING:
        state, reason = _state_of(app)
        return replace(entry, state=state, application=application, reason=reason)
    wait = _expected_wait(target, observed)
    others = [step for step in view.steps.get(model, ()) if step.application != target.application]
    back = [step for step in others if step.do in _COMING]
    if model in view.coming_back and back:
        words = f"the version before comes back: {back[0].why or 'it is being started'}"
        return replace(entry, state=ModelState.LOADING, reason=words, holds=True)
    held, resting = view.held.get(model), view.resting.get(model)
    if held is not None:
        retry = max(1.0, held.retry_at - observed.now) if held.retry_at else _RETRY_FAILED_SECONDS
        return replace(
            entry,
            state=ModelState.FAILED,
            reason=f"{held.kind.value}: {held.reason}",
            retry_after=retry,
            holds=held.on_request and held.retry_at is None,
        )
    steps = view.steps.get(model, ())
    if any(step.do is Do.FAIL for step in steps):
        # Its reason is being looked for in the engine's log; the next turn knows it.
        return replace(entry, state=ModelState.LOADING, reason="it failed to load", holds=True)
    step = next((step for step in steps if step.do in _COMING), None)
    words = "" if step is None else step.why or "it is being started"
    if resting is not None and words == resting.reason:
        words = ""
    if step is not None and step.do is Do.FETCH:
        words += _progress(target, observed)
    if resting is not None or not steps:
        return replace(
            entry,
            state=_resting_state(model, view, steps),
            reason="; ".join(filter(None, (resting.reason if resting is not None else entry.reason, words))),
            holds=resting is not None and resting.on_request,
            expected_wait=None if model in view.sleepers else _whole_load(target, observed),
        )
    return replace(entry, state=ModelState.LOADING, reason=words or steps[0].why, holds=True, expected_wait=wait)


def _state_of(app: Application | None) -> tuple[ModelState, str]:
    """Where a model that has the traffic stands, and why it does not answer if it does not."""
    if app is None or app.status is Status.RUNNING or any(each.state not in _SILENT for each in app.replicas):
        return ModelState.LOADED, ""
    why = f": {app.failure}" if app.failure else ""
    if app.status is Status.DEPLOY_FAILED:
        return ModelState.FAILED, f"no engine of it runs, and Ray Serve gave it up{why}"
    return ModelState.LOADING, f"no engine of it runs; Ray Serve starts it again{why}"


def _resting_state(model: str, view: _View, steps: Iterable[Step]) -> ModelState:
    if model in view.sleepers:
        return ModelState.SLEEPING
    return ModelState.UNLOADING if any(step.do in _GOING for step in steps) else ModelState.UNLOADED


def _expected_wait(target: Target, observed: Observed) -> float | None:
    """Seconds until the model answers, by what its loads took lately; None where it was never loaded here."""
    load = observed.load_seconds.get(target.model)
    app = observed.applications.get(target.application)
    if load is not None and app is not None and app.status is not Status.DELETING:
        return max(1.0, load - observed.ages.get(target.application, 0.0))
    return _whole_load(target, observed)


def _whole_load(target: Target, observed: Observed) -> float | None:
    """The same where nothing has been done for it yet."""
    load = observed.load_seconds.get(target.model)
    if load is None:
        return None
    states = [observed.weights.get(copy) for copy in target.copies]
    return load + max((state.seconds_left or 0.0 for state in states if state is not None), default=0.0)


def _progress(target: Target, observed: Observed) -> str:
    """How far the downloads of a model are, in words; empty while nobody knows how much there is to fetch."""
    states = [state for copy in target.copies if (state := observed.weights.get(copy)) is not None]
    total = sum(state.total or 0 for state in states)
    if not total:
        return ""
    done = sum(state.done for state in states)
    left = max((state.seconds_left or 0.0 for state in states), default=0.0)
    return f": {done * 100 // total} % of {in_words(total)}" + (f", about {left:.0f} s left" if left else "")
