"""The commands that look at or change the cluster: converge, watch, dry run."""

import asyncio
import sys
import time
from collections.abc import Coroutine
from dataclasses import asdict
from typing import Any, TypeVar

import aiohttp
import click

from reconciler.activator.server import ListenError
from reconciler.cli.common import (
    IS_RAY_RUNNING,
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
from reconciler.cli.show import print_json, show_plan, show_problems
from reconciler.core.lease import LeaseStoreError
from reconciler.core.plan_json import plan_to_json
from reconciler.core.render import RenderError
from reconciler.core.turn import Options, Wishes
from reconciler.daemon.watch import watch as stay
from reconciler.edge.edge import EdgeStartError, EdgeUnreachableError
from reconciler.host.event_feed import EventFeed
from reconciler.host.lock import AlreadyRunningError, exclusive
from reconciler.host.settings import Settings
from reconciler.loop import service
from reconciler.loop.exposed import check_exposure
from reconciler.loop.lease import NoLeaseError
from reconciler.loop.loop import Look
from reconciler.loop.running import RefusedError, ask_running, nothing_newer
from reconciler.loop.source import check_source
from reconciler.ray_serve.client import ServeRefusedError, ServeUnreachableError
from reconciler.weights.revisions import PinsUnreadableError

T = TypeVar("T")


def dry_run(settings: Settings, wishes: Wishes, *, output: str, detailed_exitcode: bool) -> int:
    """Print the plan; change nothing."""
    quiet(settings)
    look = run_to_end(service.look_once(settings, _options(settings, wishes)), ray_hint(settings))
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
            configure_log(settings, keep=True)
            look = run_to_end(service.converge_once(settings, options, show), ray_hint(settings))
    except NoLeaseError as error:
        return no_lease(error)
    except AlreadyRunningError as running:
        click.echo(f"A reconciler is running here (process {running.pid}); it is asked to do it.", err=True)
        return _ask_running(settings, wishes, output=output)
    return _unless_held_back(show_outcome(look, output=output), nothing_newer(look.desired.provenance))


def show_outcome(look: Look, *, output: str) -> int:
    """Print what was reached; gives the exit code."""
    if output == "json":
        print_json({"plan": plan_to_json(look.plan), "problems": [str(p) for p in look.desired.problems]})
    else:
        show_problems(look.desired.problems)
        show_plan(look.plan, now=look.observed.now, done=True)
    return exit_code(look.plan, problems=bool(look.desired.problems))


def no_lease(error: NoLeaseError) -> int:
    """Somebody else may write to the cluster."""
    click.echo(f"reconcile: {error}; nothing more was changed. `reconcile lock` shows who may write.", err=True)
    return REFUSED


def watch(settings: Settings, wishes: Wishes) -> int:
    """Stay and keep the cluster as the files want it."""
    feed = EventFeed()
    try:
        with exclusive(settings.state_dir):
            configure_log(settings, keep=True, feed=feed)
            check_exposure(settings)
            check_source(settings)
            settings.remember()
            run_to_end(stay(settings, _options(settings, wishes), feed))
    except AlreadyRunningError as running:
        fail(f"a reconciler is running already in {settings.state_dir} (process {running.pid})")
    return OK


def _ask_running(settings: Settings, wishes: Wishes, *, output: str) -> int:
    try:
        outcome = asyncio.run(ask_running(settings.state_dir, wishes))
    except RefusedError as error:
        if not error.lease:
            fail(str(error))
        click.echo(f"reconcile: {error}; nothing was changed. `reconcile lock` shows who may write.", err=True)
        return REFUSED
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
    code = PARTIAL if plan["held"] or problems else OK
    # One of an earlier version does not say it.
    return _unless_held_back(REFUSED if plan["refused"] else code, str(outcome.get("source_problem", "")))


def _unless_held_back(code: int, held_back: str) -> int:
    """Say what keeps newer files away; gives the exit code with that."""
    if not held_back:
        return code
    click.echo(f"reconcile: {held_back}", err=True)
    return PARTIAL if code == OK else code


def _options(settings: Settings, wishes: Wishes) -> Options:
    return Options(
        **asdict(wishes),
        asked_at=time.time(),
        max_loads=settings.loads_at_once,
    )


def run_to_end(work: Coroutine[Any, Any, T], hint: str = IS_RAY_RUNNING) -> T:
    """Run it; what a person can mend is a message and exit 1.

    Args:
        work: What is to be done.
        hint: What would help where Ray does not answer.
    """
    try:
        return asyncio.run(work)
    except ServeUnreachableError as error:
        unobserved(error, hint)
    except (ServeRefusedError, LeaseStoreError) as error:
        fail(f"{error}\n  {hint}")
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
