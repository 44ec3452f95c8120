"""The commands that need only the model files: validate, render, schema."""

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

import click
import yaml

from reconciler.cli.common import ERROR, OK, PARTIAL, fail, open_weights
from reconciler.cli.show import print_json, show_problems
from reconciler.core.desired import Desired, Snapshot, compile_desired, revision_of, wanted_in
from reconciler.core.parse import SUFFIXES, Problem, parse_all
from reconciler.core.render import RenderError
from reconciler.core.schema import json_schema
from reconciler.host.settings import Settings
from reconciler.loop.rendering import make_renderer
from reconciler.loop.rollbacks import RollbackStore
from reconciler.loop.source import make_source
from reconciler.ray_serve.schema import complaint_about
from reconciler.sources.folder import FolderSource, read_file
from reconciler.weights.store import WeightStore


def validate(settings: Settings, paths: tuple[Path, ...], *, output: str) -> int:
    """Check files; exit 3 where one is invalid."""
    snapshots = [_read(path) for path in paths] or [asyncio.run(make_source(settings).read())]
    for snapshot in snapshots:
        if snapshot.unreadable:
            fail(snapshot.unreadable)
    # As one set, so that two files which claim one name are found wherever they lie.
    whole = replace(
        snapshots[0],
        files={path: content for snapshot in snapshots for path, content in snapshot.files.items()},
        problems=tuple(problem for snapshot in snapshots for problem in snapshot.problems),
    )
    desired = _compile(settings, whole)
    problems, names, files = desired.problems, list(desired.targets), len(whole.files)
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


def render(settings: Settings, names: tuple[str, ...], *, output: str) -> int:
    """Print the Serve config of the models in the files."""
    weights = open_weights(settings, read_only=True, ask_hub=False)
    desired = asyncio.run(read_desired(settings, weights))
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
        for wanted in target.unresolved:
            click.echo(
                f"reconcile: {target.model}: it is not known yet which commit {wanted.repo}@{wanted.revision} is "
                f"(`reconcile pull {target.model}` does)",
                err=True,
            )
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


async def read_desired(settings: Settings, weights: WeightStore, *, patience: float = 0.0) -> Desired:
    """The model files, compiled with the commits that are known, or can be found out in so many seconds."""
    rollbacks = RollbackStore(settings.state_dir, read_only=True)
    snapshot = rollbacks.apply(await make_source(settings).read())
    parsed = parse_all(snapshot.files)
    resolutions = await weights.revisions.resolve(wanted_in(parsed), patience=patience)
    resolutions = {**resolutions, **rollbacks.resolutions(wanted_in(parsed))}
    try:
        return compile_desired(snapshot, make_renderer(settings), resolutions, parsed=parsed)
    except (RenderError, FileNotFoundError) as error:
        fail(str(error))


def schema() -> None:
    """Print the JSON Schema."""
    print_json(json_schema())


def _read(path: Path) -> Snapshot:
    """A folder as a source reads it, or one file as a folder of one."""
    name = str(path).encode("utf-8", "backslashreplace").decode()
    try:
        if path.is_dir() or not path.exists():
            return asyncio.run(FolderSource(path).read())
    except OSError as error:  # Of the folder that it lies in.
        fail(f"{name}: {error.strerror or error}")
    if path.suffix.lower() not in SUFFIXES:
        fail(f"{name}: model files end in .yaml or .yml")
    files: dict[str, bytes] = {}
    problems: list[Problem] = []
    try:
        # As of a folder: what waits for ever, or has no end, is not opened.
        files[name], _ = read_file(path)
    except OSError as error:
        problems.append(Problem(name, 1, 1, f"cannot be read: {error.strerror or error}"))
    folder = str(path.absolute().parent)
    return Snapshot(revision=revision_of(files), files=files, folder=folder, problems=tuple(problems))


def _compile(settings: Settings, snapshot: Snapshot) -> Desired:
    try:
        return compile_desired(snapshot, make_renderer(settings))
    except (RenderError, FileNotFoundError) as error:
        fail(str(error))
