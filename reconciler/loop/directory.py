"""What the front door tells clients about each model, from the plan and what was observed. Pure."""

from reconciler.activator.directory import Directory, Entry, ModelState
from reconciler.core.desired import Desired
from reconciler.core.plan import Do, HeldKind, Plan
from reconciler.core.state import Observed, Status
from reconciler.core.target import Target
from reconciler.core.weights import in_words

_COMING = frozenset({Do.FETCH, Do.START, Do.AWAIT, Do.PROBE, Do.ROUTE, Do.KEEP_PREVIOUS, Do.UNROUTE, Do.DRAIN})
_RETRY_SECONDS = 5.0
_RETRY_FAILED_SECONDS = 60.0


def build_directory(desired: Desired, observed: Observed, plan: Plan, *, created: int) -> Directory:
    """The directory after a turn.

    Args:
        desired: The model files.
        observed: What was seen at the start of the turn.
        plan: What was decided.
        created: Seconds since the epoch, shown as the models' creation time.
    """
    entries = [_declared(target, observed, plan, created) for target in desired.targets.values()]
    alive = {app.model for app in observed.applications.values() if app.model is not None}
    undeclared = (set(observed.routes) | alive) - set(desired.targets)
    entries += [_undeclared(model, observed, plan, created) for model in sorted(undeclared)]
    return Directory(entries)


def _declared(target: Target, observed: Observed, plan: Plan, created: int) -> Entry:
    state, application, reason, retry = _state(target, observed, plan)
    spec = target.spec
    length = spec.engine.max_model_len
    return Entry(
        name=target.model,
        state=state,
        application=application,
        reason=reason,
        retry_after=retry,
        aliases=spec.aliases,
        adapters=tuple(adapter.name for adapter in spec.adapters),
        task=spec.task.value,
        description=spec.description,
        created=created,
        max_model_len=None if length == "auto" else length,
    )


def _undeclared(model: str, observed: Observed, plan: Plan, created: int) -> Entry:
    """A model whose file is invalid or going: it keeps the aliases that were last recorded."""
    record = observed.records.get(model)
    spec = record.spec if record is not None else {}
    application = _next_route(model, observed, plan)
    return Entry(
        name=model,
        state=ModelState.LOADED if application is not None else ModelState.UNLOADING,
        application=application,
        reason="" if application is not None else "it is not declared any more",
        aliases=tuple(spec.get("aliases", ())),
        adapters=tuple(adapter["name"] for adapter in spec.get("adapters", ())),
        task=spec.get("task", "generate"),
        description=spec.get("description", ""),
        created=created,
    )


def _state(target: Target, observed: Observed, plan: Plan) -> tuple[ModelState, str | None, str, float]:
    model = target.model
    application = _next_route(model, observed, plan)
    app = observed.applications.get(application or "")
    if app is not None and app.status is not Status.DELETING:
        return ModelState.LOADED, application, "", _RETRY_SECONDS
    held = next((held for held in plan.held if held.model == model), None)
    if held is not None:
        failed = held.kind is not HeldKind.MANUAL
        state = ModelState.FAILED if failed else ModelState.UNLOADED
        retry = max(1.0, held.retry_at - observed.now) if held.retry_at else _RETRY_FAILED_SECONDS
        return state, None, f"{held.kind.value}: {held.reason}", retry
    step = next((step for step in plan.steps if step.model == model and step.do in _COMING), None)
    if step is not None and step.do is Do.FETCH:
        return ModelState.LOADING, None, f"{step.why}{_progress(target, observed)}", _RETRY_SECONDS
    if step is not None:
        return ModelState.LOADING, None, step.why or "it is being started", _RETRY_SECONDS
    return ModelState.UNLOADED, None, "it is not up", _RETRY_SECONDS


def _progress(target: Target, observed: Observed) -> str:
    """How far the downloads of a model are, in words; empty while nobody knows how much there is to fetch."""
    states = [state for copy in target.copies if (state := observed.weights.get(copy)) is not None]
    total = sum(state.total or 0 for state in states)
    if not total:
        return ""
    done = sum(state.done for state in states)
    left = max((state.seconds_left or 0.0 for state in states), default=0.0)
    return f": {done * 100 // total} % of {in_words(total)}" + (f", about {left:.0f} s left" if left else "")


def _next_route(model: str, observed: Observed, plan: Plan) -> str | None:
    """Where the model's traffic goes once this turn's steps are done."""
    route = observed.routes.get(model)
    for step in plan.steps:
        if step.model == model and step.do is Do.ROUTE:
            route = step.application
        elif step.model == model and step.do is Do.UNROUTE:
            route = None
    return route
