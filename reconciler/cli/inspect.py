"""The command that only looks at everything: status."""

import asyncio
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from reconciler.activator.directory import Entry, ModelState
from reconciler.cli.common import exit_code, fail
from reconciler.cli.show import print_json, show_problems, show_status
from reconciler.core.overrides import Override, in_words, is_drift
from reconciler.core.provenance import in_words as source_in_words
from reconciler.core.render import RenderError
from reconciler.core.suspension import in_words as suspension_in_words
from reconciler.core.suspension import suspension_of
from reconciler.core.turn import Options
from reconciler.core.weights import CopyState, Phase
from reconciler.core.weights_json import states_to_json
from reconciler.host import log as logging
from reconciler.host.lock import holder
from reconciler.host.settings import Settings
from reconciler.loop import service
from reconciler.loop.directory import build_directory
from reconciler.loop.loop import Look
from reconciler.ray_serve.client import ServeUnreachableError
from reconciler.weights.revisions import PinsUnreadableError


def status(settings: Settings, *, output: str) -> int:
    """Show what is up; exit as a dry run would."""
    logging.configure(json_lines=False, level="error")
    try:
        look = asyncio.run(service.look_once(settings, Options(max_loads=settings.loads_at_once), ask_hub=False))
    except ServeUnreachableError as error:
        fail(str(error))
    except (RenderError, FileNotFoundError, PinsUnreadableError) as error:
        fail(str(error))
    rows = _status_rows(look)
    pid = holder(settings.state_dir)
    notes = [] if pid else ["no reconciler runs here; `reconcile --watch` keeps models as their files want them"]
    if output == "json":
        print_json(
            {
                "revision": look.desired.revision,
                "source": _source(look),
                "reconciler_pid": pid,
                "models": rows,
                "problems": [str(problem) for problem in look.desired.problems],
                "refused": [refusal.reason for refusal in look.plan.refused],
            }
        )
    else:
        show_problems(look.desired.problems)
        if look.desired.provenance is not None:
            notes.append(source_in_words(look.desired.provenance, look.observed.now))
        show_status(rows, notes + [f"refused: {refusal.reason}" for refusal in look.plan.refused])
    return exit_code(look.plan, problems=bool(look.desired.problems))


def _status_rows(look: Look) -> list[dict[str, Any]]:
    directory = build_directory(look.desired, look.observed, look.plan, created=0)
    pending = {change.model: change.action.value for change in look.plan.changes}
    held = {held.model: held for held in look.plan.held}
    rows: list[dict[str, Any]] = []
    for model in sorted({*look.desired.targets, *look.observed.routes, *_live_models(look)}):
        entry = directory.find(model)
        target = look.desired.targets.get(model)
        routed = look.observed.routes.get(model)
        app = look.observed.applications.get(routed or "")
        in_flight = look.observed.in_flight
        record = look.observed.records.get(model)
        override = look.observed.overrides.get(model)
        rows.append(
            {
                "model": model,
                "state": (entry.state if entry is not None else ModelState.UNLOADED).value,
                "sync": "held" if model in held else pending.get(model, "in sync"),
                "reason": held[model].reason if model in held else _coming(entry),
                "policy": target.spec.lifecycle.policy.value if target is not None else None,
                "override": _override(look, override),
                "suspended": _suspended(look, model),
                "expected_wait": entry.expected_wait if entry is not None else None,
                "application": app.name if app is not None else None,
                "health": app.status.value if app is not None else None,
                "replicas": _replicas(app.replicas if app is not None else ()),
                "in_flight": in_flight.get(routed or "", 0) if in_flight is not None else None,
                "idle_seconds": look.observed.idle_seconds.get(routed or ""),
                "file": target.file if target is not None else (record.file if record is not None else None),
                "revision": look.desired.revision,
                "changed_by": _changed_by(look, target.file if target is not None else ""),
                "weights": _weights(look, model),
                "pids": [replica.pid for replica in app.replicas] if app is not None else [],
            }
        )
    return rows


def _coming(entry: Entry | None) -> str:
    """What a model waits for that is not up."""
    return entry.reason if entry is not None and entry.state is not ModelState.LOADED else ""


def _source(look: Look) -> dict[str, Any] | None:
    """Where the files come from, where the source can tell."""
    provenance = look.desired.provenance
    if provenance is None:
        return None
    return {
        "url": provenance.url,
        "ref": provenance.ref,
        **asdict(provenance.commit),
        "signed_by": provenance.signed_by,
        "checked_at": provenance.checked_at,
        "age_seconds": max(0.0, look.observed.now - provenance.checked_at),
        "problem": provenance.problem,
    }


def _changed_by(look: Look, file: str) -> dict[str, Any] | None:
    """The commit that changed a model file last, where that is known."""
    provenance = look.desired.provenance
    commit = provenance.changed.get(file) if provenance is not None else None
    return asdict(commit) if commit is not None else None


def _suspended(look: Look, model: str) -> str | None:
    suspension = suspension_of(look.observed.suspensions, model, look.observed.now)
    return None if suspension is None else suspension_in_words(suspension, look.observed.now)


def _override(look: Look, override: Override | None) -> dict[str, Any] | None:
    """What holds by hand; `drift` where the file wants something else."""
    target = look.desired.targets.get(override.model) if override is not None else None
    if override is None or target is None:
        return None
    policy = target.spec.lifecycle.policy
    text = in_words(override, policy, look.observed.now)
    return {
        "kind": override.kind.value,
        "until": override.until,
        "drift": is_drift(override, policy),
        "text": text,
    }


def _weights(look: Look, model: str) -> list[dict[str, Any]]:
    """The repositories a model is made of: which commit, and how far the copy is."""
    target = look.desired.targets.get(model)
    if target is None:
        return []
    live = target.application in look.observed.applications
    there = CopyState(Phase.READY)
    states = {copy: look.observed.weights.get(copy, there if live else CopyState()) for copy in target.copies}
    rows = states_to_json(states)
    return [{**row, "revision": target.copies[copy]} for row, copy in zip(rows, states, strict=True)]


def _replicas(replicas: Iterable[Any]) -> str:
    states = [replica.state for replica in replicas]
    return f"{states.count('RUNNING')}/{len(states)}" if states else "-"


def _live_models(look: Look) -> set[str]:
    return {app.model for app in look.observed.applications.values() if app.model is not None}
