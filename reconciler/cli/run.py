"""The commands that look at or change the cluster: converge, watch, dry run, edge."""

import asyncio
import sys
import time
from collections.abc import Coroutine
from dataclasses import asdict
from typing import Any, TypeVar

import aiohttp
import click

from reconciler.activator.server import ListenError
from reconciler.cli.common import ERROR, OK, PARTIAL, PENDING, REFUSED, configure_log, exit_code, fail, quiet
from reconciler.cli.progress import download_bars
from reconciler.cli.show import print_json, show_plan, show_problems
from reconciler.core.plan_json import plan_to_json
from reconciler.core.render import RenderError
from reconciler.core.turn import Options, Wishes
from reconciler.edge.edge import EdgeStartError, EdgeUnreachableError
from reconciler.host.lock import AlreadyRunningError, exclusive
from reconciler.host.settings import Settings
from reconciler.loop import service
from reconciler.loop.running import ask_running
from reconciler.ray_serve.client import ServeRefusedError, ServeUnreachableError
from reconciler.weights.revisions import PinsUnreadableError

T = TypeVar("T")


def dry_run(settings: Settings, wishes: Wishes, *, output: str, detailed_exitcode: bool) -> int:
    """Print the plan; change nothing."""
    quiet(settings)
    look = _run(service.look_once(settings, _options(settings, wishes)))
    if output == "json":
        print_json({"plan": plan_to_json(look.plan), "problems": [str(p) for p in look.desired.problems]})
    else:
        show_problems(look.desired.problems)
        show_plan(look.plan, now=look.observed.now)
    code = exit_code(look.plan, problems=bool(look.desired.problems))
    if code == OK and detailed_exitcode and not look.plan.converged:
        return PENDING
    return code


def converge(settings: Settings, wishes: Wishes, *, output: str) -> int:
    """Make the cluster match, once; through the reconciler that runs here, if one does."""
    options = _options(settings, wishes)
    try:
        with exclusive(settings.state_dir), download_bars() as show:
            configure_log(settings)
            look = _run(service.converge_once(settings, options, show))
    except AlreadyRunningError as running:
        click.echo(f"A reconciler is running here (process {running.pid}); it is asked to do it.", err=True)
        return _ask_running(settings, wishes, output=output)
    if output == "json":
        print_json({"plan": plan_to_json(look.plan), "problems": [str(p) for p in look.desired.problems]})
    else:
        show_problems(look.desired.problems)
        show_plan(look.plan, now=look.observed.now, done=True)
    return exit_code(look.plan, problems=bool(look.desired.problems))


def watch(settings: Settings, wishes: Wishes) -> int:
    """Stay and keep the cluster as the files want it."""
    configure_log(settings)
    try:
        with exclusive(settings.state_dir):
            settings.remember()
            _run(service.watch(settings, _options(settings, wishes)))
    except AlreadyRunningError as running:
        fail(f"a reconciler is running already in {settings.state_dir} (process {running.pid})")
    return OK


def edge(settings: Settings, verb: str, *, output: str) -> int:
    """Start, stop or look at the edge."""
    return _run(_edge(settings, verb, output))


async def _edge(settings: Settings, verb: str, output: str) -> int:
    door = await service.find_edge(settings)
    if verb == "start":
        click.echo("started" if await door.ensure_running() else "it runs already")
        return OK
    if verb == "stop":
        await door.stop()
        return OK
    running, routes = await door.is_running(), await door.routes()
    if output == "json":
        print_json({"running": running, "routes": routes})
    else:
        click.echo("the edge runs" if running else "the edge does not run")
        for model, application in sorted(routes.items()):
            click.echo(f"{model} -> {application}")
    return OK if running else ERROR


def _ask_running(settings: Settings, wishes: Wishes, *, output: str) -> int:
    try:
        outcome = asyncio.run(ask_running(settings.state_dir, wishes))
    except (aiohttp.ClientError, OSError) as error:
        fail(
            f"it does not answer ({error}). It may be another `reconcile` that converges once, or one that waits "
            "for Ray: try again when it is done"
        )
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
        summary = plan["summary"]
        click.echo(f"{summary['unchanged']} models are as their files want them, {summary['resting']} at rest.")
    if plan["refused"]:
        return REFUSED
    return PARTIAL if plan["held"] or problems else OK


def _options(settings: Settings, wishes: Wishes) -> Options:
    return Options(
        **asdict(wishes),
        asked_at=time.time(),
        max_loads=settings.loads_at_once,
    )


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(work)
    except (ServeUnreachableError, ServeRefusedError) as error:
        fail(f"{error}\n  Is Ray running? ./start.sh starts it; RECONCILE_RAY_DASHBOARD names another one.")
    except (
        RenderError,
        FileNotFoundError,
        ListenError,
        EdgeStartError,
        EdgeUnreachableError,
        PinsUnreadableError,
    ) as error:
        fail(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
