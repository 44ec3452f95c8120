"""The commands that look at or change the cluster: converge, watch, dry run, edge."""

import asyncio
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

import aiohttp
import click

from reconciler.activator.server import ListenError
from reconciler.cli.common import ERROR, OK, PARTIAL, PENDING, REFUSED, exit_code, fail
from reconciler.cli.show import print_json, show_plan, show_problems
from reconciler.core.plan_json import plan_to_json
from reconciler.core.render import RenderError
from reconciler.core.turn import Options
from reconciler.edge.edge import Edge, EdgeStartError, EdgeUnreachableError
from reconciler.host import log as logging
from reconciler.host.lock import AlreadyRunningError, exclusive
from reconciler.host.settings import Settings
from reconciler.host.templates import read_template
from reconciler.loop import service
from reconciler.ray_serve.client import ServeRefusedError, ServeUnreachableError

T = TypeVar("T")


def dry_run(
    settings: Settings, *, output: str, detailed_exitcode: bool, allow_removals: bool, retry_failed: bool
) -> int:
    """Print the plan; change nothing."""
    _quiet(settings)
    look = _run(service.look_once(settings, _options(settings, allow_removals, retry_failed)))
    if output == "json":
        print_json({"plan": plan_to_json(look.plan), "problems": [str(p) for p in look.desired.problems]})
    else:
        show_problems(look.desired.problems)
        show_plan(look.plan, now=look.observed.now)
    code = exit_code(look.plan, problems=bool(look.desired.problems))
    if code == OK and detailed_exitcode and not look.plan.converged:
        return PENDING
    return code


def converge(settings: Settings, *, output: str, allow_removals: bool, retry_failed: bool) -> int:
    """Make the cluster match, once; through the reconciler that runs here, if one does."""
    _configure_log(settings)
    try:
        with exclusive(settings.state_dir):
            look = _run(service.converge_once(settings, _options(settings, allow_removals, retry_failed)))
    except AlreadyRunningError as running:
        click.echo(f"A reconciler is running here (process {running.pid}); it is asked to do it.", err=True)
        return _ask_running(settings, output=output, allow_removals=allow_removals, retry_failed=retry_failed)
    if output == "json":
        print_json({"plan": plan_to_json(look.plan), "problems": [str(p) for p in look.desired.problems]})
    else:
        show_problems(look.desired.problems)
        show_plan(look.plan, now=look.observed.now, done=True)
    return exit_code(look.plan, problems=bool(look.desired.problems))


def watch(settings: Settings, *, allow_removals: bool, retry_failed: bool) -> int:
    """Stay and keep the cluster as the files want it."""
    _configure_log(settings)
    try:
        with exclusive(settings.state_dir):
            settings.remember()
            _run(service.watch(settings, _options(settings, allow_removals, retry_failed)))
    except AlreadyRunningError as running:
        fail(f"a reconciler is running already in {settings.state_dir} (process {running.pid})")
    return OK


def edge(settings: Settings, verb: str) -> int:
    """Start, stop or look at the edge."""
    options = service.edge_options(settings)
    door = Edge(options, read_template("edge.cfg.j2", settings.templates_dir))
    if verb == "start":
        started = _run(door.ensure_running())
        click.echo("started" if started else "it runs already")
    elif verb == "stop":
        _run(door.stop())
    elif not _run(door.is_running()):
        click.echo("the edge does not run")
        return ERROR
    else:
        for model, application in sorted(_run(door.routes()).items()):
            click.echo(f"{model} -> {application}")
    return OK


def _ask_running(settings: Settings, *, output: str, allow_removals: bool, retry_failed: bool) -> int:
    try:
        outcome = asyncio.run(
            service.ask_running(settings.state_dir, allow_removals=allow_removals, retry_failed=retry_failed)
        )
    except (aiohttp.ClientError, OSError) as error:
        fail(f"the running reconciler does not answer: {error}")
    plan: dict[str, Any] = outcome["plan"]  # type: ignore[assignment]
    problems: list[str] = outcome["problems"]  # type: ignore[assignment]
    if output == "json":
        print_json(outcome)
    else:
        for problem in problems:
            click.echo(problem)
        for held in plan["held"]:
            click.echo(f"{held['model']}: {held['kind']}: {held['reason']}")
        for refusal in plan["refused"]:
            click.echo(f"refused: {refusal['reason']} (allowed by {refusal['flag']})")
        click.echo(f"{plan['summary']['unchanged']} models are as their files want them.")
    if plan["refused"]:
        return REFUSED
    troubled = any(held["kind"] != "manual" for held in plan["held"])
    return PARTIAL if troubled or problems else OK


def _options(settings: Settings, allow_removals: bool, retry_failed: bool) -> Options:
    return Options(allow_removals=allow_removals, retry_failed=retry_failed, max_loads=settings.loads_at_once)


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(work)
    except (ServeUnreachableError, ServeRefusedError) as error:
        fail(f"{error}\n  Is Ray running? ./start.sh starts it; RECONCILE_RAY_DASHBOARD names another one.")
    except (RenderError, FileNotFoundError, ListenError, EdgeStartError, EdgeUnreachableError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        sys.exit(130)


def _configure_log(settings: Settings) -> None:
    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not sys.stderr.isatty())
    logging.configure(json_lines=as_json, level=settings.log_level)


def _quiet(settings: Settings) -> None:
    logging.configure(json_lines=settings.log_format == "json", level="error")
