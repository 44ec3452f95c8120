"""Put the parts together from the settings, and run them: once, or until told to stop."""

import asyncio
import contextlib
import functools
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from apscheduler.schedulers.asyncio import AsyncIOScheduler

from reconciler.activator.app import Activator
from reconciler.activator.server import serve, serve_unix
from reconciler.core.desired import Desired
from reconciler.core.fitting import Fitter
from reconciler.core.keep import what_to_keep
from reconciler.core.state import Application, Observed
from reconciler.core.turn import Options
from reconciler.core.weights import Copy, CopyState, Keep
from reconciler.edge.edge import Edge, EdgeStartError
from reconciler.edge.options import EdgeOptions
from reconciler.host.log import get_logger
from reconciler.host.main_memory import available_bytes
from reconciler.host.settings import Settings
from reconciler.host.templates import read_template
from reconciler.loop.act import Actor
from reconciler.loop.after_start import AfterStart
from reconciler.loop.after_stop import AfterStop
from reconciler.loop.control import ByHand, control_app
from reconciler.loop.edges import Edges
from reconciler.loop.front_door import FrontDoor
from reconciler.loop.gpus import gpu_observer
from reconciler.loop.load_times import LoadTimes
from reconciler.loop.loop import Look, Loop
from reconciler.loop.measuring import Measuring
from reconciler.loop.memory import Memory
from reconciler.loop.observe import Observer
from reconciler.loop.overrides import OverrideStore
from reconciler.loop.rendering import make_renderer, platform_of
from reconciler.loop.report import Reporter
from reconciler.loop.running import CONTROL_SOCKET, learn_from_running
from reconciler.loop.weights import make_facts, make_weights
from reconciler.ray_serve.client import ServeClient, ServeUnreachableError
from reconciler.ray_serve.observed import applications
from reconciler.sources.folder import FolderSource
from reconciler.sources.watch import watch_folder
from reconciler.weights.facts import FactsStore
from reconciler.weights.store import WeightStore

log = get_logger()

EDGE_CHECK_SECONDS = 1.0
PATIENCE_SECONDS = 20.0
"""How long one who looks only once waits for the hub, and for the disk."""


@dataclass(frozen=True, slots=True)
class Parts:
    """A wired reconciler."""

    loop: Loop
    actor: Actor
    front_door: FrontDoor
    reporter: Reporter
    edge: Edges
    activator: Activator
    weights: WeightStore
    overrides: OverrideStore


@contextlib.asynccontextmanager
async def assembled(
    settings: Settings,
    options: Options,
    *,
    with_activator: bool = False,
    read_only: bool = False,
    ask_hub: bool = True,
) -> AsyncIterator[Parts]:
    """A reconciler that is ready to look, and where wanted to act."""
    memory = Memory(settings.state_dir)
    overrides, load_times = OverrideStore(settings.state_dir), LoadTimes(settings.state_dir)
    async with ServeClient(settings.ray_dashboard, settings.ray_token_path) as client:
        port = await _serve_port(client, settings)
        serve_url = f"http://{settings.serve_host}:{port}"
        edge = Edges(make_edge(settings, port), settings.state_dir)
        activator = Activator(serve_url)
        weights = make_weights(settings, read_only=read_only, ask_hub=ask_hub)
        facts = make_facts(settings, read_only=read_only, ask_hub=ask_hub)
        observer = Observer(
            client,
            edge,
            memory,
            weights,
            overrides=overrides,
            load_times=load_times,
            activator=activator if with_activator else None,
            gpus=gpu_observer(settings, client, memory),
            main_memory=available_bytes if _is_here(settings.ray_dashboard) else None,
        )
        source = FolderSource(settings.models_dir)
        renderer = make_renderer(settings)
        measuring = Measuring(settings.state_dir, read_only=read_only)
        fitter = Fitter(renderer, platform_of(settings), measuring)
        loop = Loop(
            source,
            renderer,
            observer,
            memory=memory,
            weights=weights,
            facts=facts,
            fitter=fitter,
            load_times=load_times,
            overrides=overrides,
            options=options,
        )
        weights.revisions.wake = facts.wake = overrides.wake = activator.wake = loop.wake
        weights.wake = functools.partial(_after_a_download, facts, loop)
        actor = Actor(
            client,
            edge,
            memory,
            serve_url=serve_url,
            first_put={
                "proxy_location": "HeadOnly",
                "http_options": {"host": settings.serve_host, "port": settings.serve_port},
            },
            probe_timeout=settings.probe_timeout,
            weights=weights,
            after_start=AfterStart(client, measuring, fitter, facts),
            after_stop=AfterStop(here=_is_here(settings.ray_dashboard)),
            overrides=overrides,
            keep_versions=settings.keep_versions,
            wake=loop.wake,
        )
        try:
            front_door = FrontDoor(edge, activator if with_activator else None)
            yield Parts(loop, actor, front_door, Reporter(), edge, activator, weights, overrides)
        finally:
            await actor.close()
            await facts.close()
            await weights.close()


def _after_a_download(facts: FactsStore, loop: Loop) -> None:
    # What the hub would not say is on disk now.
    facts.forgive()
    loop.wake()


def _is_here(url: str) -> bool:
    """Ray runs on this machine, so its engines take this machine's memory."""
    return urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")


def make_edge(settings: Settings, serve_port: int, *, activator: tuple[str, int] | None = None) -> Edge:
    """The edge for these settings.

    Args:
        settings: The operator's.
        serve_port: Where Serve listens.
        activator: Host and port of the activator, where it is not on this node.

    Raises:
        EdgeStartError: The settings or the template make no configuration.
    """
    try:
        options = EdgeOptions(
            folder=settings.state_dir.absolute() / "edge",
            listen_host=settings.listen_host,
            listen_port=settings.listen_port,
            activator_host=activator[0] if activator is not None else "127.0.0.1",
            activator_port=activator[1] if activator is not None else settings.activator_port,
            serve_host=settings.serve_host,
            serve_port=serve_port,
        )
        return Edge(options, read_template("edge.cfg.j2", settings.templates_dir))
    except ValueError as error:
        raise EdgeStartError(f"the edge cannot be configured: {error}") from error


async def find_edge(settings: Settings) -> Edge:
    """The edge as the reconciler would run it; where Serve cannot be asked for its port, by the settings."""
    try:
        async with ServeClient(settings.ray_dashboard, settings.ray_token_path, timeout=5) as client:
            return make_edge(settings, await _serve_port(client, settings))
    except ServeUnreachableError:
        return make_edge(settings, settings.serve_port)


async def look_once(settings: Settings, options: Options, *, ask_hub: bool = True) -> Look:
    """Observe and plan, and change nothing: no file, no download, no PUT.

    Args:
        settings: The operator's.
        options: What bears on the plan.
        ask_hub: Find out where branches point and how large downloads would be; else what is known has to do.
    """
    async with assembled(settings, options, read_only=True, ask_hub=ask_hub) as parts:
        await learn_from_running(settings.state_dir, parts.weights)
        return await parts.loop.look(patience=PATIENCE_SECONDS, ask_hub=ask_hub)


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
        scheduler = AsyncIOScheduler()
        scheduler.add_job(
            parts.front_door.ensure_running, "interval", seconds=EDGE_CHECK_SECONDS, max_instances=1, coalesce=True
        )
        # The loop looks at every model on each turn; the sweep has it look when nothing else does.
        scheduler.add_job(parts.loop.wake, "interval", seconds=settings.sweep_interval, coalesce=True)
        scheduler.start()
        by_hand = ByHand(parts.loop, parts.overrides, lambda: parts.activator.directory)
        parts.activator.command = by_hand.command
        front = parts.edge.asgi(parts.activator.asgi)
        socket = settings.state_dir / CONTROL_SOCKET
        tasks = [
            asyncio.create_task(
                serve(front, "127.0.0.1", settings.activator_port, on_stop=parts.activator.stop_holding)
            ),
            asyncio.create_task(serve_unix(control_app(parts.loop, parts.weights, by_hand), socket)),
            asyncio.create_task(parts.overrides.watch()),
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
        log.info("reconciler.stopped", note="models go on serving")
        for task in done - {stopping}:
            task.result()


@contextlib.asynccontextmanager
async def _with_patience(settings: Settings, options: Options) -> AsyncIterator[Parts]:
    """Assembled, however long Ray takes to answer: one who watches also waits."""
    async with contextlib.AsyncExitStack() as stack:
        complaint = ""
        while True:
            try:
                parts = await stack.enter_async_context(assembled(settings, options, with_activator=True))
                break
            except ServeUnreachableError as error:
                if str(error) != complaint:
                    log.warning("turn.failed", reason=str(error))
                complaint = str(error)
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


async def _serve_port(client: ServeClient, settings: Settings) -> int:
    """Where Serve's HTTP proxy listens; a Serve that runs already keeps its own port."""
    options = (await client.instance()).get("http_options") or {}
    return int(options.get("port") or settings.serve_port)
