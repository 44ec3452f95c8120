"""Run a reconciler: look once, converge once, or stay until told to stop."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable, Mapping

from apscheduler.schedulers.asyncio import AsyncIOScheduler

from reconciler.activator.server import serve, serve_unix
from reconciler.core.desired import Desired
from reconciler.core.keep import what_to_keep
from reconciler.core.state import Application, Observed
from reconciler.core.turn import Options
from reconciler.core.weights import Copy, CopyState, Keep
from reconciler.host.log import get_logger
from reconciler.host.settings import Settings
from reconciler.loop.assemble import Parts, assembled
from reconciler.loop.by_hand import ByHand
from reconciler.loop.control import control_app
from reconciler.loop.loop import Look
from reconciler.loop.memory import Memory
from reconciler.loop.ray_head import RayHead
from reconciler.loop.running import CONTROL_SOCKET, learn_from_running
from reconciler.ray_serve.client import ServeClient, ServeUnreachableError
from reconciler.ray_serve.observed import applications
from reconciler.ray_serve.schema import prepare
from reconciler.sources.watch import watch_folder
from reconciler.weights.store import WeightStore

log = get_logger()

EDGE_CHECK_SECONDS = 1.0
PATIENCE_SECONDS = 20.0
"""How long one who looks only once waits for the hub, and for the disk."""


async def look_once(settings: Settings, options: Options, *, ask_hub: bool = True) -> Look:
    """Observe and plan, and change nothing: no file, no download, no PUT.

    Args:
        settings: The operator's.
        options: What bears on the plan.
        ask_hub: Find out where branches point and how large downloads would be; else what is known has to do.
    """
    async with assembled(settings, options, read_only=True, ask_hub=ask_hub) as parts:
        told = await learn_from_running(settings.state_dir, parts.weights)
        return await parts.loop.look(patience=PATIENCE_SECONDS, ask_hub=ask_hub, told=told)


async def converge_once(
    settings: Settings, options: Options, on_downloads: Callable[[Mapping[Copy, CopyState]], None]
) -> Look:
    """Make the cluster match the files, then return.

    Args:
        settings: The operator's.
        options: What bears on the plan.
        on_downloads: Called with the downloads that are under way, whenever they change.
    """
    async with assembled(settings, options) as parts, _shown(parts.weights, on_downloads):
        return await parts.loop.converge(parts.actor, parts.front_door, parts.reporter)


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


async def watch(settings: Settings, options: Options) -> None:
    """Stay until SIGTERM or SIGINT. Models go on serving when we leave."""
    stop = asyncio.Event()
    running = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        running.add_signal_handler(number, stop.set)
    async with _with_patience(settings, options) as parts:
        await parts.activator.start()
        ray_head = RayHead(settings.ray_start_command, parts.loop.wake)
        parts.loop.ray_missing, parts.loop.ray_answers = ray_head.missing, ray_head.answers
        scheduler = AsyncIOScheduler()
        scheduler.add_job(
            parts.front_door.ensure_running, "interval", seconds=EDGE_CHECK_SECONDS, max_instances=1, coalesce=True
        )
        # The loop looks at every model on each turn; the sweep has it look when nothing else does.
        scheduler.add_job(parts.loop.wake, "interval", seconds=settings.sweep_interval, coalesce=True)
        scheduler.start()
        by_hand = ByHand(parts.loop, parts.overrides, parts.suspensions, lambda: parts.activator.directory)
        parts.activator.command = by_hand.command
        front = parts.edge.asgi(parts.activator.asgi)
        socket = settings.state_dir / CONTROL_SOCKET
        tasks = [
            asyncio.create_task(
                serve(front, "127.0.0.1", settings.activator_port, on_stop=parts.activator.stop_holding)
            ),
            asyncio.create_task(serve_unix(control_app(parts.loop, parts.weights, by_hand), socket)),
            asyncio.create_task(parts.overrides.watch()),
            asyncio.create_task(_prepare()),
            asyncio.create_task(watch_folder(settings.models_dir, parts.loop.wake)),
            asyncio.create_task(
                parts.loop.watch(
                    parts.actor, parts.front_door, parts.reporter, resync_seconds=settings.resync_interval
                )
            ),
        ]
        log.info(
            "reconciler.started",
            models_dir=str(settings.models_dir),
            front_door=f"http://{settings.listen_host}:{settings.listen_port}/v1",
        )
        stopping = asyncio.create_task(stop.wait())
        done, _ = await asyncio.wait([stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
        scheduler.shutdown(wait=False)
        for task in (stopping, *tasks):
            task.cancel()
        await asyncio.gather(stopping, *tasks, return_exceptions=True)
        await parts.activator.close()
        await ray_head.close()
        log.info("reconciler.stopped", note="models go on serving")
        for task in done - {stopping}:
            task.result()


async def _prepare() -> None:
    """Get ready for the first load, then stay out of the way."""
    await asyncio.to_thread(prepare)
    await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def _with_patience(settings: Settings, options: Options) -> AsyncIterator[Parts]:
    """Assembled, however long Ray takes to answer: one who watches also waits."""
    async with contextlib.AsyncExitStack() as stack:
        complaint = ""
        ray_head = RayHead(settings.ray_start_command, lambda: None)
        while True:
            try:
                parts = await stack.enter_async_context(assembled(settings, options, with_activator=True))
                break
            except ServeUnreachableError as error:
                if str(error) != complaint:
                    log.warning("turn.failed", reason=str(error))
                complaint = str(error)
                ray_head.missing()
                await asyncio.sleep(2)
        yield parts


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
