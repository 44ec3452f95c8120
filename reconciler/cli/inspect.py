"""The commands that only look: validate, status, render, schema."""

import asyncio
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import yaml

from reconciler.activator.directory import ModelState
from reconciler.cli.run import ERROR, OK, PARTIAL, exit_code, fail
from reconciler.cli.show import print_json, show_problems, show_status
from reconciler.core.desired import Snapshot, compile_desired, revision_of
from reconciler.core.parse import Problem
from reconciler.core.render import RenderError
from reconciler.core.schema import json_schema
from reconciler.core.turn import Options
from reconciler.host import log as logging
from reconciler.host.lock import holder
from reconciler.host.settings import Settings
from reconciler.loop import service
from reconciler.loop.directory import build_directory
from reconciler.loop.loop import Look
from reconciler.ray_serve.client import ServeUnreachableError
from reconciler.ray_serve.schema import complaint_about
from reconciler.sources.folder import SUFFIXES, FolderSource


def validate(settings: Settings, paths: tuple[Path, ...], *, output: str) -> int:
    """Check files; exit 3 where one is invalid."""
    snapshots = [_read(path) for path in paths] or [_read(settings.models_dir)]
    problems: list[Problem] = []
    names: list[str] = []
    files = 0
    for snapshot in snapshots:
        if snapshot.unreadable:
            fail(snapshot.unreadable)
        desired = _compile(settings, snapshot)
        problems += desired.problems
        names += desired.targets
        files += len(snapshot.files)
    if output == "json":
        rows = [
            {"path": p.path, "line": p.line, "column": p.column, "message": p.message, "hint": p.hint}
            for p in problems
        ]
        print_json({"files": files, "models": sorted(names), "problems": rows})
    else:
        show_problems(problems)
        mistakes = f"{len(problems)} mistake{'s' if len(problems) != 1 else ''}"
        click.echo(f"{files} file{'s' if files != 1 else ''}, {mistakes if problems else 'no mistake'}.")
    return PARTIAL if problems else OK


def status(settings: Settings, *, output: str) -> int:
    """Show what is up; exit as a dry run would."""
    logging.configure(json_lines=False, level="error")
    try:
        look = asyncio.run(service.look_once(settings, Options(max_loads=settings.loads_at_once)))
    except ServeUnreachableError as error:
        fail(str(error))
    except (RenderError, FileNotFoundError) as error:
        fail(str(error))
    rows = _status_rows(look)
    pid = holder(settings.state_dir)
    notes = [] if pid else ["no reconciler runs here; `reconcile --watch` keeps models as their files want them"]
    if output == "json":
        print_json(
            {
                "revision": look.desired.revision,
                "reconciler_pid": pid,
                "models": rows,
                "problems": [str(problem) for problem in look.desired.problems],
                "refused": [refusal.reason for refusal in look.plan.refused],
            }
        )
    else:
        show_problems(look.desired.problems)
        show_status(rows, notes + [f"refused: {refusal.reason}" for refusal in look.plan.refused])
    return exit_code(look.plan, problems=bool(look.desired.problems))


def render(settings: Settings, names: tuple[str, ...], *, output: str) -> int:
    """Print the Serve config of the models in the files."""
    desired = _compile(settings, _read(settings.models_dir))
    if desired.unreadable:
        fail(desired.unreadable)
    unknown = sorted(set(names) - set(desired.targets))
    if unknown:
        fail(f"no valid model file declares {', '.join(unknown)}")
    chosen = {name: target for name, target in desired.targets.items() if not names or name in names}
    config = {
        "proxy_location": "HeadOnly",
        "http_options": {"host": settings.serve_host, "port": settings.serve_port},
        "applications": [target.config for target in chosen.values()],
    }
    code = OK
    for target in chosen.values():
        complaint = complaint_about(target.config)
        if complaint:
            click.echo(f"reconcile: {target.model}: Ray Serve's schema refuses it: {complaint}", err=True)
            code = ERROR
    if output == "json":
        print_json(config)
    else:
        sys.stdout.write(yaml.safe_dump(config, sort_keys=False))
    for problem in desired.problems:
        click.echo(str(problem), err=True)
    return PARTIAL if code == OK and desired.problems else code


def schema() -> None:
    """Print the JSON Schema."""
    print_json(json_schema())


def _read(path: Path) -> Snapshot:
    """A folder as a source reads it, or one file as a folder of one."""
    if path.is_dir() or not path.exists():
        return asyncio.run(FolderSource(path).read())
    if path.suffix.lower() not in SUFFIXES:
        fail(f"{path}: model files end in .yaml or .yml")
    files = {str(path): path.read_bytes()}
    return Snapshot(revision=revision_of(files), files=files, folder=str(path.resolve().parent))


def _compile(settings: Settings, snapshot: Snapshot) -> Any:  # noqa: ANN401 -- Desired; keeps the import list short
    try:
        return compile_desired(snapshot, service.make_renderer(settings))
    except (RenderError, FileNotFoundError) as error:
        fail(str(error))


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
        rows.append(
            {
                "model": model,
                "state": (entry.state if entry is not None else ModelState.UNLOADED).value,
                "sync": "held" if model in held else pending.get(model, "in sync"),
                "reason": held[model].reason if model in held else "",
                "application": app.name if app is not None else None,
                "health": app.status.value if app is not None else None,
                "replicas": _replicas(app.replicas if app is not None else ()),
                "in_flight": in_flight.get(routed or "", 0) if in_flight is not None else None,
                "file": target.file if target is not None else (record.file if record is not None else None),
                "revision": look.desired.revision,
                "pids": [replica.pid for replica in app.replicas] if app is not None else [],
            }
        )
    return rows


def _replicas(replicas: Iterable[Any]) -> str:
    states = [replica.state for replica in replicas]
    return f"{states.count('RUNNING')}/{len(states)}" if states else "-"


def _live_models(look: Look) -> set[str]:
    return {app.model for app in look.observed.applications.values() if app.model is not None}
