"""Look once, or converge once, and be done. `daemon.watch` is what stays."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace

from reconciler.core.desired import Desired
from reconciler.core.keep import what_to_keep
from reconciler.core.saved_plan import SavedPlan
from reconciler.core.state import Application, Observed
from reconciler.core.suspension import ALL
from reconciler.core.turn import Options
from reconciler.core.weights import Copy, CopyState, Keep
from reconciler.host.log import get_logger
from reconciler.host.nobody import nobody
from reconciler.host.settings import Settings
from reconciler.loop.applying import check
from reconciler.loop.assemble import assembled
from reconciler.loop.exposed import check_exposure
from reconciler.loop.loop import Look
from reconciler.loop.memory import Memory
from reconciler.loop.running import learn_from_running
from reconciler.ray_serve.client import ServeClient
from reconciler.ray_serve.observed import applications
from reconciler.sources import Source
from reconciler.sources.git import GitSource
from reconciler.weights.store import WeightStore

log = get_logger()

PATIENCE_SECONDS = 20.0
"""How long one who looks only once waits for the hub, and for the disk."""


async def look_once(
    settings: Settings, options: Options, *, ask_hub: bool = True, source: Source | None = None
) -> Look:
    """Observe and plan, and change nothing: no file, no download, no PUT.

    Args:
        settings: The operator's.
        options: What bears on the plan.
        ask_hub: Find out where branches point and how large downloads would be; else what is known has to do.
        source: Where the model files are, instead of where the settings say.
    """
    async with assembled(settings, options, read_only=True, ask_hub=ask_hub, source=source) as parts:
        known = await learn_from_running(settings.state_dir, parts.weights)
        told, freshness = known if known is not None else (None, None)
        look = await parts.loop.look(patience=PATIENCE_SECONDS, ask_hub=ask_hub, told=told)
        provenance = look.desired.provenance
        if provenance is None or freshness is None:
            return look
        provenance = replace(provenance, checked_at=freshness.checked_at, problem=freshness.problem)
        return replace(look, desired=replace(look.desired, provenance=provenance))


async def converge_once(
    settings: Settings,
    options: Options,
    on_downloads: Callable[[Mapping[Copy, CopyState]], None],
    *,
    source: Source | None = None,
    saved: SavedPlan | None = None,
) -> Look:
    """Make the cluster match the files, then return.

    Args:
        settings: The operator's.
        options: What bears on the plan.
        on_downloads: Called with the downloads that are under way, whenever they change.
        source: Where the model files are, instead of where the settings say.
        saved: The plan that is carried out, where there is one.

    Raises:
        StaleError: The saved plan is not what the first turn would do; nothing was done.
    """
    check_exposure(settings, front_door_alone=True)
    async with assembled(settings, options, source=source) as parts, _shown(parts.weights, on_downloads):
        if isinstance(parts.source, GitSource):
            await parts.source.fetch()
        await parts.lease.take()
        if saved is None:
            approve: Callable[[Look], None] = nobody
        else:
            approve = functools.partial(check, saved)
            # So that the first turn, which waits for nothing, knows of hub and disk what the plan was made of.
            await parts.loop.look(patience=PATIENCE_SECONDS, ask_hub=True)
        converging = parts.loop.converge(parts.actor, parts.front_door, parts.reporter, approve=approve)
        look = await parts.lease.while_held(converging)
        if saved is not None:
            parts.journal.command("apply", ALL, "a saved plan was applied by hand", look.plan.revision)
        return look


@contextlib.asynccontextmanager
async def _shown(
    weights: WeightStore, on_downloads: Callable[[Mapping[Copy, CopyState]], None]
) -> AsyncIterator[None]:
    async def show() -> None:
        async for states in weights.subscribe():
            on_downloads(states)

    task = asyncio.create_task(show())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def keep_now(settings: Settings, desired: Desired, *, without_cluster: bool = False) -> Keep | None:
    """Which weights must stay on disk, as things are now; None where that cannot be told.

    Args:
        settings: The operator's.
        desired: The model files.
        without_cluster: No Ray runs, so nothing of it has to be asked.

    Raises:
        ServeUnreachableError: Ray does not answer.
    """
    running: dict[str, Application] = {}
    if not without_cluster:
        async with ServeClient(settings.ray_dashboard, settings.ray_token_path) as client:
            running = applications(await client.instance())
    records = Memory(settings.state_dir).records
    return what_to_keep(desired, Observed(applications=running, records=records))
