"""Stay until told to stop: the loop with everything beside it that keeps models where they belong."""

import asyncio
import contextlib
import functools
import signal
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from apscheduler.schedulers.asyncio import AsyncIOScheduler

from reconciler.activator.server import serve, serve_unix
from reconciler.core.turn import Options
from reconciler.daemon.measures import Measures
from reconciler.host.event_feed import EventFeed
from reconciler.host.log import get_logger
from reconciler.host.notify import Heartbeat, Notifier
from reconciler.host.open_files import raise_limit
from reconciler.host.settings import Settings
from reconciler.loop.assemble import Parts, assembled
from reconciler.loop.by_hand import ByHand
from reconciler.loop.control import control_of
from reconciler.loop.hooks import hook_app
from reconciler.loop.journal import Versions
from reconciler.loop.lease import Keeper
from reconciler.loop.loop import Loop
from reconciler.loop.operations import Operations
from reconciler.loop.polling import Polling, answer_sync
from reconciler.loop.ray_head import RayHead
from reconciler.loop.ray_pulse import SECONDS as PULSE_SECONDS
from reconciler.loop.ray_pulse import RayPulse
from reconciler.loop.rollbacks import RollbackHand
from reconciler.loop.running import CONTROL_SOCKET
from reconciler.loop.source import at, make_write_back
from reconciler.ray_serve.client import ServeUnreachableError
from reconciler.ray_serve.engine_calls import gcs_address
from reconciler.ray_serve.schema import prepare
from reconciler.sources.git import GitSource
from reconciler.sources.watch import watch_folder

log = get_logger()

EDGE_CHECK_SECONDS = 1.0


async def watch(settings: Settings, options: Options, feed: EventFeed) -> None:
    """Stay until SIGTERM or SIGINT. Models go on serving when we leave.

    Args:
        settings: The operator's.
        options: What bears on plans.
        feed: The events of the log, for who listens.
    """
    raise_limit()
    stop = asyncio.Event()
    running = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        running.add_signal_handler(number, stop.set)
    notifier, loops = Notifier(), list[Loop]()
    heart = Heartbeat(
        notifier,
        lambda: loops[0].laps if loops else 0,
        rest_seconds=min(settings.resync_interval, settings.sweep_interval),
    )
    beating = asyncio.create_task(heart.run())
    # At once: how long Ray takes, or another reconciler keeps the lease, is no fault of this process.
    notifier.ready("starting")
    try:
        async with contextlib.AsyncExitStack() as stack:
            with heart.waiting("waits for Ray"):
                parts = await stack.enter_async_context(_with_patience(settings, options, stop))
            if parts is None:
                return
            parts.lease.start()
            with heart.waiting("waits for the cluster's lease"):
                held = await _until_held(parts.lease, stop)
            if held:
                loops.append(parts.loop)
                notifier.status(f"keeps the models of {parts.source.place}")
                await _serve_until(stop, parts, settings, feed, notifier, heart)
    finally:
        notifier.stopping()
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)


async def _serve_until(  # noqa: PLR0917 -- it is `watch`, once everything is there
    stop: asyncio.Event,
    parts: Parts,
    settings: Settings,
    feed: EventFeed,
    notifier: Notifier,
    heart: Heartbeat,
) -> None:
    # Here, because FastAPI takes its time and no other command needs it.
    from reconciler.daemon.management import management_app, tls_of  # noqa: PLC0415

    await parts.activator.start()
    ray_head = RayHead(settings.ray_start_command, parts.loop.wake)
    parts.loop.ray_missing, parts.loop.ray_answers = ray_head.missing, ray_head.answers
    measures = Measures(parts, settings)
    scheduler = _schedule(parts, settings)
    measures.add_to(scheduler)
    polling = _poll(parts, settings, scheduler)
    write_back = make_write_back(settings)
    if write_back is not None:
        parts.loop.seen = write_back.see
    operations = _operations(parts, settings, polling)
    front = parts.edge.asgi(parts.activator.asgi)
    if polling is not None and settings.hook_secret_path is not None:
        front = hook_app(front, settings.hook_secret_path, settings.git_ref, polling.look_soon)
    management = management_app(parts, settings, operations, feed, measures)
    work: list[Coroutine[Any, Any, None]] = [
        serve(front, "127.0.0.1", settings.activator_port, on_stop=parts.activator.stop_holding),
        serve(
            management,
            settings.api_host,
            settings.api_port,
            grace_seconds=1,
            tls=tls_of(settings),
            # Half of the files that a process may usually have open; all else that we do needs some too.
            most_connections=500,
        ),
        serve_unix(control_of(operations), settings.state_dir / CONTROL_SOCKET),
        parts.overrides.watch(),
        measures.last_hour.watch(),
        _prepare(),
        _take_turns(parts, polling, settings.resync_interval, heart),
    ]
    if polling is None:
        work.append(watch_folder(settings.models_dir, parts.loop.wake))
    tasks = [asyncio.create_task(each) for each in work]
    scheme = "http" if settings.tls_cert_path is None else "https"
    log.info(
        "reconciler.started",
        models=parts.source.place,
        front_door=f"{scheme}://{settings.listen_host}:{settings.listen_port}/v1",
        page=f"{scheme}://{settings.api_host}:{settings.api_port}",
    )
    stopping = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait([stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
    notifier.stopping()
    if polling is not None:
        await polling.close()
    scheduler.shutdown(wait=False)
    for task in (stopping, *tasks):
        task.cancel()
    await asyncio.gather(stopping, *tasks, return_exceptions=True)
    await measures.close()
    await parts.activator.close()
    await ray_head.close()
    if write_back is not None:
        await write_back.close()
    log.info("reconciler.stopped", note="models go on serving")
    for task in done - {stopping}:
        task.result()


def _operations(parts: Parts, settings: Settings, polling: Polling | None) -> Operations:
    """What commands, the API and the page can ask for."""
    by_hand = ByHand(parts.loop, parts.overrides, parts.suspensions, lambda: parts.activator.directory)
    parts.activator.command = by_hand.command
    return Operations(
        parts.loop,
        parts.weights,
        by_hand,
        rollback=RollbackHand(parts.rollbacks, Versions(settings.state_dir), parts.source.read, at(parts.source)),
        sync=functools.partial(answer_sync, polling, parts.source.read),
        lease=parts.lease,
        journal=parts.journal,
    )


def _schedule(parts: Parts, settings: Settings) -> AsyncIOScheduler:
    """What happens again and again, beside the loop."""
    scheduler = AsyncIOScheduler(job_defaults={"max_instances": 1, "coalesce": True, "misfire_grace_time": None})
    scheduler.add_job(parts.front_door.ensure_running, "interval", seconds=EDGE_CHECK_SECONDS)

    async def sweep() -> None:  # A plain function would be called in a thread.
        parts.loop.wake()

    pulse = RayPulse(functools.partial(gcs_address, parts.client), parts.loop.wake)
    scheduler.add_job(pulse.feel, "interval", seconds=PULSE_SECONDS)
    # The loop looks at every model on each turn; the sweep has it look when nothing else does.
    scheduler.add_job(sweep, "interval", seconds=settings.sweep_interval)
    scheduler.start()
    return scheduler


def _poll(parts: Parts, settings: Settings, scheduler: AsyncIOScheduler) -> Polling | None:
    """Have a git source look at its repository; None where the source is none."""
    git = parts.source
    if not isinstance(git, GitSource):
        return None
    polling = Polling(
        git.fetch,
        parts.loop.wake,
        lambda: git.unreachable,
        interval=settings.git_interval,
        forgive=git.forget_refusal,
    )
    polling.add_to(scheduler)
    return polling


async def _until_held(lease: Keeper, stop: asyncio.Event) -> bool:
    """Wait for the cluster's lease; False where we are told to stop first."""
    waits = [asyncio.create_task(lease.wait()), asyncio.create_task(stop.wait())]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for each in waits:
        each.cancel()
    await asyncio.gather(*waits, return_exceptions=True)
    return lease.holds()


async def _take_turns(parts: Parts, polling: Polling | None, resync_seconds: float, heart: Heartbeat) -> None:
    """Have the loop take its turns; not before there is anything to look at, where that comes from elsewhere."""
    if polling is not None and (await parts.source.read()).unreadable:
        with heart.waiting("fetches the model files"):
            await polling.sync()
    await parts.loop.watch(parts.actor, parts.front_door, parts.reporter, resync_seconds=resync_seconds)


async def _prepare() -> None:
    """Get ready for the first load, then stay out of the way."""
    await asyncio.to_thread(prepare)
    await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def _with_patience(settings: Settings, options: Options, stop: asyncio.Event) -> AsyncIterator[Parts | None]:
    """Assembled, however long Ray takes to answer: one who watches also waits. None where we are told to stop."""
    async with contextlib.AsyncExitStack() as stack:
        complaint = ""
        ray_head = RayHead(settings.ray_start_command, lambda: None)
        parts: Parts | None = None
        while parts is None and not stop.is_set():
            try:
                parts = await stack.enter_async_context(assembled(settings, options, with_activator=True))
            except ServeUnreachableError as error:
                if str(error) != complaint:
                    log.warning("turn.failed", reason=str(error))
                complaint = str(error)
                ray_head.missing()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), 2)
        if parts is None:
            await ray_head.close()
        yield parts
