"""A turn as the API answers it: models, the plan, the cluster, the source. Only translates."""

from collections.abc import Collection, Mapping
from typing import Any

from reconciler.api.context import Place
from reconciler.api.history import view_of
from reconciler.api.schemas import (
    ActualView,
    ClusterView,
    CommitView,
    DesiredView,
    EditView,
    GpuUse,
    GpuView,
    MemoryView,
    ModelDetail,
    ModelList,
    ModelView,
    NodeView,
    OverrideView,
    PlanView,
    ReplicaView,
    SourceView,
    WeightsView,
)
from reconciler.core.edit import Edit, File
from reconciler.core.journal_entry import Entry
from reconciler.core.memory_plan import memory_of
from reconciler.core.placement import Ledger
from reconciler.core.plan_json import plan_to_json
from reconciler.core.plan_markdown import plan_markdown
from reconciler.core.provenance import Commit
from reconciler.core.rollback import Rollback
from reconciler.core.rollback import in_words as rollback_in_words
from reconciler.core.state import Demand, Device, Json, Node, homes_of
from reconciler.core.suspension import ALL, suspension_of
from reconciler.core.suspension import in_words as suspension_in_words
from reconciler.core.target import Target
from reconciler.loop.loop import Look
from reconciler.loop.status import ModelStatus, statuses

_Places = Mapping[tuple[str, int], Collection[str]]
"""The applications on each GPU, by the node's id and the GPU's index."""


def model_list(look: Look, newest: Mapping[str, Entry]) -> ModelList:
    """All models, those of invalid files included."""
    places, now = places_now(look), look.observed.now
    of_all = suspension_of(look.observed.suspensions, ALL, now)
    return ModelList(
        revision=look.desired.revision,
        looked_at=look.observed.now,
        models=tuple(ModelView(**_fields(status, newest, places)) for status in statuses(look, invalid=True)),
        problems=tuple(map(str, look.desired.problems)),
        refused=tuple(refusal.reason for refusal in look.plan.refused),
        suspended=suspension_in_words(of_all, now) if of_all is not None else None,
    )


def model_detail(
    look: Look,
    model: str,
    newest: Mapping[str, Entry],
    *,
    file: File | None,
    logs: Mapping[str, str],
    rollback: Rollback | None,
) -> ModelDetail | None:
    """One model with everything; None where there is none.

    Args:
        look: Of one turn.
        model: Its own name.
        newest: The newest line of the journal about each model.
        file: Its file, where it can be read.
        logs: The log file of each replica, as far as Serve says.
        rollback: What holds for it by hand instead of the source.
    """
    status = next((each for each in statuses(look, invalid=True) if each.model == model), None)
    if status is None:
        return None
    fields = _fields(status, newest, places_now(look))
    actual: ActualView = fields["actual"]
    replicas = tuple(each.model_copy(update={"log": logs.get(each.id, "")}) for each in actual.replicas)
    fields["actual"] = actual.model_copy(update={"replicas": replicas})
    target = status.target
    files = {target.file} if target is not None else _invalid_files(look, model)
    return ModelDetail(
        **fields,
        spec=dict(target.fields) if target is not None else None,
        text=file.text if file is not None else None,
        digest=file.digest if file is not None else None,
        rolled_back=rollback_in_words(rollback, look.observed.now) if rollback is not None else None,
        rolled_back_by_all=rollback is not None and rollback.model is None,
        engine=target.config if target is not None else None,
        problems=tuple(str(problem) for problem in look.desired.problems if problem.path in files),
    )


def file_of(look: Look, model: str) -> str | None:
    """The file that speaks for a model, valid or not."""
    target = look.desired.targets.get(model)
    return target.file if target is not None else min(_invalid_files(look, model), default=None)


def plan_view(look: Look) -> PlanView:
    """The plan of a turn."""
    return PlanView(
        plan=plan_to_json(look.plan),
        text=plan_markdown(look.plan, look.desired.problems),
        problems=tuple(map(str, look.desired.problems)),
    )


def cluster_view(look: Look) -> ClusterView:
    """Every node, with what is on each of its GPUs now and after the plan."""
    now = places_now(look)
    after = {(gpu.node, gpu.index): gpu.applications for gpu in look.plan.gpus}
    return ClusterView(nodes=tuple(_node(look, node, now, after) for node in look.observed.nodes))


def source_view(look: Look, place: Place) -> SourceView:
    """Where the files come from."""
    provenance = look.desired.provenance
    if provenance is None:
        return SourceView(kind=place.kind, place=place.place, problem=look.desired.unreadable)
    checked = provenance.checked_at or None
    return SourceView(
        kind=place.kind,
        place=provenance.url,
        ref=provenance.ref,
        commit=_commit(provenance.commit),
        signed_by=provenance.signed_by,
        checked_at=checked,
        age_seconds=max(0.0, look.observed.now - checked) if checked is not None else None,
        problem=provenance.problem or look.desired.unreadable,
    )


def weights_view(row: Json) -> WeightsView:
    """One repository, from a row of `core.weights_json`."""
    return WeightsView(
        repo=row["repo"],
        commit=row["commit"],
        revision=row.get("revision", ""),
        phase=row["phase"],
        done=row["done"],
        total=row["total"],
        seconds_left=row["seconds_left"],
        rate=row["rate"],
        reason=row["reason"],
    )


def edit_view(edit: Edit) -> EditView:
    """A change of a file."""
    return EditView(
        path=edit.path,
        diff=edit.diff,
        problems=edit.problems,
        written=edit.written,
        backup=edit.backup,
        commit=edit.commit,
        branch=edit.branch,
        patch=edit.patch,
    )


def places_now(look: Look) -> dict[tuple[str, int], tuple[str, ...]]:
    """Which of our applications is on which GPU, by the rules that Ray places by."""
    observed = look.observed
    if not observed.nodes:
        return {}
    ours = {app.name: app.demand for app in observed.applications.values() if app.model is not None}
    loads = Ledger(observed.nodes, ours, homes_of(observed.applications)).loads()
    return {(observed.nodes[place].id, device): load.applications for (place, device), load in loads.items()}


def _fields(status: ModelStatus, newest: Mapping[str, Entry], places: _Places) -> dict[str, Any]:
    target, entry, observed = status.target, status.entry, status.look.observed
    window = observed.windows.get(status.model)
    suspension = suspension_of(observed.suspensions, status.model, observed.now)
    spec = target.spec if target is not None else None
    last = newest.get(status.model)
    return {
        "name": status.model,
        "description": entry.description if entry is not None else "",
        "task": spec.task.value if spec is not None else (entry.task if entry is not None else "generate"),
        "aliases": entry.aliases if entry is not None else (),
        "sync": "invalid" if status.invalid else status.sync,
        "reason": status.reason or (status.change.cause if status.change is not None else ""),
        "desired": _desired(status, target) if target is not None else None,
        "actual": _actual(status, places),
        "memory": _memory(target) if target is not None else None,
        "weights": tuple(map(weights_view, status.weights)),
        "window_open": window is not None and window.open,
        "override": OverrideView(**status.override) if status.override is not None else None,
        "suspended": status.suspended,
        "suspended_by_all": suspension is not None and suspension.model == ALL,
        "last": view_of(last) if last is not None else None,
    }


def _desired(status: ModelStatus, target: Target) -> DesiredView:
    commit = status.look.desired.changed_last(target.file)
    return DesiredView(
        file=target.file,
        policy=target.spec.lifecycle.policy.value,
        revision=status.look.desired.revision_of(target.file),
        changed_by=_commit(commit) if commit is not None else None,
        application=target.application,
    )


def _actual(status: ModelStatus, places: _Places) -> ActualView:
    observed, app, entry = status.look.observed, status.app, status.entry
    hosts = {node.id: node.host or node.id[:12] for node in observed.nodes}
    waiting = observed.waiting.get(status.model)
    apps = [app] if app is not None else observed.of_model(status.model)
    return ActualView(
        state=status.state.value,
        application=app.name if app is not None else None,
        health=app.status.value if app is not None else None,
        replicas=tuple(
            ReplicaView(
                id=replica.id,
                state=replica.state,
                node=hosts.get(replica.node_id, replica.node_id[:12]),
                gpus=tuple(
                    index
                    for (node, index), names in sorted(places.items())
                    if node == replica.node_id and each.name in names
                ),
                pid=replica.pid,
            )
            for each in apps
            for replica in each.replicas
        ),
        in_flight=status.in_flight,
        waiting=waiting.count if waiting is not None else 0,
        idle_seconds=observed.idle_seconds.get(status.routed),
        up_seconds=observed.up_seconds.get(status.routed),
        expected_wait=entry.expected_wait if entry is not None else None,
    )


def _memory(target: Target) -> MemoryView | None:
    memory = memory_of(target)
    if memory is None:
        return None
    return MemoryView(
        where=memory.where,
        ranks=memory.ranks,
        total=memory.total,
        needed=memory.needed,
        needed_safe=memory.needed_safe,
        # Only then are the numbers what the engine said.
        measured=memory.needed if memory.basis == "measured" else None,
        basis=memory.basis,
    )


def _node(look: Look, node: Node, now: _Places, after: _Places) -> NodeView:
    name = node.host or node.id[:12]
    devices = node.devices or tuple(Device(index) for index in range(int(node.gpus)))
    return NodeView(
        id=node.id,
        host=node.host,
        gpus=node.gpus,
        accelerator=node.accelerator,
        devices=tuple(
            _gpu(look, device, now.get((node.id, device.index), ()), after.get((name, device.index), ()))
            for device in devices
        ),
    )


def _gpu(look: Look, device: Device, now: Collection[str], after: Collection[str]) -> GpuView:
    return GpuView(
        index=device.index,
        uuid=device.uuid,
        name=device.name,
        total=device.total,
        foreign=device.foreign,
        failed=device.failed,
        models=tuple(_use(look, device, name, "" if name in after else "going") for name in sorted(now)),
        after=tuple(_use(look, device, name, "" if name in now else "coming") for name in sorted(after)),
    )


def _use(look: Look, device: Device, application: str, pending: str) -> GpuUse:
    app = look.observed.applications.get(application)
    target = next((each for each in look.desired.targets.values() if each.application == application), None)
    demand = app.demand if app is not None else target.demand if target is not None else Demand()
    model = app.model if app is not None else target.model if target is not None else None
    share = min(1.0, demand.memory or demand.gpus)
    return GpuUse.model_validate(
        {"model": model or application, "bytes": round(share * device.total), "pending": pending}
    )


def _invalid_files(look: Look, model: str) -> set[str]:
    return {file.path for file in look.desired.invalid if model in (file.claims or ())}


def _commit(commit: Commit) -> CommitView:
    return CommitView(commit=commit.id, at=commit.at, author=commit.author, subject=commit.subject)
