"""`reconcile plan` and `reconcile apply`: what would change, for a person, a machine or a pull request."""

import asyncio
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import click

from reconciler import __version__
from reconciler.cli.common import (
    OK,
    PARTIAL,
    PENDING,
    REFUSED,
    configure_log,
    exit_code,
    fail,
    quiet,
    ray_hint,
    unobserved,
)
from reconciler.cli.progress import download_bars
from reconciler.cli.run import no_lease, run_to_end, show_outcome
from reconciler.cli.show import print_json, show_plan, show_problems
from reconciler.cli.show_difference import show_difference
from reconciler.core.desired import Desired, Snapshot, compile_desired
from reconciler.core.git_names import GitError, folder_name
from reconciler.core.plan_json import plan_to_json
from reconciler.core.plan_markdown import difference_markdown, plan_markdown
from reconciler.core.render import RenderError
from reconciler.core.saved_plan import (
    MAX_CHARACTERS,
    SavedPlan,
    SavedPlanError,
    saved_from_text,
    saved_to_text,
)
from reconciler.core.tree_difference import difference, difference_to_json
from reconciler.core.turn import Options
from reconciler.core.weights import Copy, CopyState
from reconciler.core.words import in_time
from reconciler.host.files import write_atomic
from reconciler.host.lock import AlreadyRunningError, exclusive
from reconciler.host.settings import Settings
from reconciler.loop import service
from reconciler.loop.applying import StaleError, ask_to_apply, check
from reconciler.loop.lease import NoLeaseError
from reconciler.loop.loop import Look
from reconciler.loop.rendering import make_renderer
from reconciler.loop.running import NoReconcilerError
from reconciler.loop.source import make_source
from reconciler.ray_serve.client import ServeUnreachableError
from reconciler.sources.git import GitSource
from reconciler.sources.proposed import FixedSource, ProposedError, is_folder, proposed

_WITHOUT = (
    "A plan needs Ray's dashboard (RECONCILE_RAY_DASHBOARD) and the file with its token\n"
    "  (RECONCILE_RAY_TOKEN_PATH). Where there is no access, `reconcile plan --without-cluster` compares the\n"
    "  files of two trees."
)


def plan(
    settings: Settings, *, against: str | None, out: Path | None, output: str, detailed_exitcode: bool
) -> int:
    """Print the plan between what runs and the model files, or a proposed tree; change nothing but `out`."""
    quiet(settings)
    snapshot, look = run_to_end(_look(settings, against))
    known = plan_to_json(look.plan)
    if out is not None:
        commit = snapshot.provenance.commit.id if snapshot.provenance is not None else ""
        _save(out, SavedPlan(time.time(), __version__, commit, known))
    if output == "json":
        print_json({"plan": known, "problems": [str(p) for p in look.desired.problems], "against": against})
    elif output == "markdown":
        sys.stdout.write(plan_markdown(look.plan, look.desired.problems, proposed=against or ""))
    else:
        if against is not None:
            click.echo(f"If {against} were what the models folder has:")
        show_problems(look.desired.problems)
        show_plan(look.plan, now=look.observed.now)
    code = exit_code(look.plan, problems=bool(look.desired.problems))
    return PENDING if code == OK and detailed_exitcode and not look.plan.converged else code


def compare(
    settings: Settings, base: str | None, against: str | None, *, output: str, detailed_exitcode: bool
) -> int:
    """Print what two trees of model files differ in, without a look at the cluster."""
    quiet(settings)
    here = make_source(settings).place
    trees = [_tree(settings, base), _tree(settings, against)]
    if any(tree.provenance is None for tree in trees):
        # Of a folder on the disk nobody knows what the folders hold that its models name.
        trees = [replace(tree, objects={}) for tree in trees]
    found = difference(*(_compiled(settings, tree) for tree in trees))
    if output == "json":
        problems = [str(problem) for problem in found.problems]
        print_json({"difference": difference_to_json(found), "problems": problems, "without_cluster": True})
    elif output == "markdown":
        sys.stdout.write(difference_markdown(found, base=base or here, proposed=against or here))
    else:
        show_problems(found.problems)
        show_difference(found, base=base or here, proposed=against or here)
    if found.problems:
        return PARTIAL
    return PENDING if detailed_exitcode and found.changes else OK


def apply(settings: Settings, file: Path, *, output: str) -> int:
    """Carry out a saved plan; through the reconciler that runs here, if one does."""
    saved = _load(file)
    try:
        with exclusive(settings.state_dir), download_bars() as show:
            configure_log(settings, keep=True)
            look = run_to_end(_apply(settings, saved, show))
    except NoLeaseError as error:
        return no_lease(error)
    except AlreadyRunningError as running:
        click.echo(f"A reconciler is running here (process {running.pid}); it is asked to do it.", err=True)
        return _ask_running(settings, file, saved, output=output)
    except StaleError as error:
        return _refused(file, saved, error, output=output)
    return show_outcome(look, output=output)


async def _look(settings: Settings, against: str | None) -> tuple[Snapshot, Look]:
    snapshot = await _files(settings, against)
    if against is not None and settings.source != "git":
        # The folders that models name are those on the disk, whatever is proposed.
        snapshot = replace(snapshot, objects={})
    try:
        # The same files as the plan is saved with, whatever is written meanwhile.
        look = await service.look_once(settings, _options(settings), source=FixedSource(snapshot))
    except ServeUnreachableError as error:
        unobserved(error, f"{ray_hint(settings)}\n  {_WITHOUT}")
    return snapshot, look


async def _apply(
    settings: Settings, saved: SavedPlan, on_downloads: Callable[[Mapping[Copy, CopyState]], None]
) -> Look:
    # Fixed, so that a file which changes while models load is none of this plan.
    source = FixedSource(await _files(settings, None))
    check(saved, await service.look_once(settings, _options(settings), source=source))
    return await service.converge_once(settings, _options(settings), on_downloads, source=source, saved=saved)


async def _files(settings: Settings, against: str | None) -> Snapshot:
    """The model files, or those of a proposed tree."""
    source = make_source(settings)
    if against is None:
        return await source.read()
    try:
        if not isinstance(source, GitSource):
            return await proposed(against, settings.models_dir)
        if await asyncio.to_thread(is_folder, against):
            return await proposed(against, Path(folder_name(settings.git_url, settings.git_path)))
        return await source.look_at(against)
    except (ProposedError, GitError) as error:
        fail(f"{against}: {error}")


def _tree(settings: Settings, name: str | None) -> Snapshot:
    snapshot = asyncio.run(_files(settings, name))
    if snapshot.unreadable:
        fail(snapshot.unreadable)
    return snapshot


def _compiled(settings: Settings, snapshot: Snapshot) -> Desired:
    try:
        return compile_desired(snapshot, make_renderer(settings))
    except (RenderError, FileNotFoundError) as error:
        fail(str(error))


def _save(out: Path, saved: SavedPlan) -> None:
    try:
        write_atomic(out, saved_to_text(saved))
    except OSError as error:
        fail(f"the plan could not be saved: {out}: {error.strerror or error}")


def _load(file: Path) -> SavedPlan:
    if file.exists() and not file.is_file():
        fail(f"{file}: it is no saved plan: it is not a regular file")
    try:
        with file.open(encoding="utf-8") as opened:
            return saved_from_text(opened.read(MAX_CHARACTERS + 1))
    except OSError as error:
        fail(f"{file}: {error.strerror or error}")
    except UnicodeDecodeError:
        fail(f"{file}: it is no saved plan: it is not UTF-8")
    except SavedPlanError as error:
        fail(f"{file}: {error}")


def _ask_running(settings: Settings, file: Path, saved: SavedPlan, *, output: str) -> int:
    try:
        outcome = asyncio.run(ask_to_apply(settings.state_dir, saved))
    except NoLeaseError as error:
        return no_lease(error)
    except NoReconcilerError as error:
        fail(f"it does not do it: {error}")
    except StaleError as error:
        return _refused(file, saved, error, output=output)
    if output == "json":
        print_json(outcome)
    else:
        summary = outcome["plan"]["summary"]
        for problem in outcome["problems"]:
            click.echo(problem)
        for held in outcome["plan"]["held"]:
            click.echo(f"{held['model']}: {held['kind']}: {held['reason']}")
        for refusal in outcome["plan"]["refused"]:
            click.echo(f"refused: {refusal['reason']} (allowed by {refusal['flag']})")
        click.echo(f"{summary['unchanged']} models are as their files want them, {summary['resting']} at rest.")
    if outcome["plan"]["refused"]:
        return REFUSED
    return PARTIAL if outcome["plan"]["held"] or outcome["problems"] else OK


def _refused(file: Path, saved: SavedPlan, error: StaleError, *, output: str) -> int:
    if output == "json":
        print_json({"stale": list(error.reasons), "created_at": saved.created_at})
        return REFUSED
    age = in_time(time.time() - saved.created_at)
    click.echo(f"reconcile: {file} is stale (it was made {age} ago); nothing was done:", err=True)
    for reason in error.reasons:
        click.echo(f"  {reason}", err=True)
    if saved.program != __version__:
        click.echo(f"  it was made by version {saved.program}, and this is {__version__}", err=True)
    click.echo("`reconcile plan` shows what would be done now.", err=True)
    return REFUSED


def _options(settings: Settings) -> Options:
    return Options(asked_at=time.time(), max_loads=settings.loads_at_once)
