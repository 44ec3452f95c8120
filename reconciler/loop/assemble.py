"""Put the parts of a reconciler together from the settings."""

import contextlib
import functools
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from reconciler.activator.app import Activator
from reconciler.core.fitting import Fitter
from reconciler.core.keys import Key, Scope, digest_of, secret_from
from reconciler.core.render import Renderer
from reconciler.core.sleep import sleep_budget
from reconciler.core.spec import Task
from reconciler.core.turn import Options
from reconciler.edge.edge import Edge, EdgeStartError
from reconciler.edge.options import EdgeOptions
from reconciler.host.key_file import KeyFile
from reconciler.host.main_memory import available_bytes, total_bytes
from reconciler.host.settings import Settings
from reconciler.host.templates import read_template
from reconciler.loop.act import Actor
from reconciler.loop.after_start import AfterStart
from reconciler.loop.after_stop import AfterStop
from reconciler.loop.edges import Edges
from reconciler.loop.engine_memory import EngineMemory
from reconciler.loop.exposed import keys_of
from reconciler.loop.fixed_prompt import ask_fixed
from reconciler.loop.front_door import FrontDoor
from reconciler.loop.gpus import GpuObserver, gpu_observer
from reconciler.loop.journal import Journal
from reconciler.loop.lease import Keeper, make_keeper
from reconciler.loop.load_times import LoadTimes
from reconciler.loop.loop import Loop
from reconciler.loop.measuring import Measuring
from reconciler.loop.memory import Memory
from reconciler.loop.observe import Observer
from reconciler.loop.overrides import OverrideStore
from reconciler.loop.rendering import make_renderer, platform_of
from reconciler.loop.report import Reporter
from reconciler.loop.rollbacks import RollbackStore
from reconciler.loop.sleeping import Sleeping
from reconciler.loop.source import make_source
from reconciler.loop.suspensions import SuspensionStore
from reconciler.loop.weights import make_facts, make_weights
from reconciler.ray_serve.client import ServeClient, ServeUnreachableError
from reconciler.ray_serve.engine_calls import EngineCalls, gcs_address
from reconciler.ray_serve.warm_build import WarmBuild
from reconciler.sources import Source
from reconciler.weights.facts import FactsStore
from reconciler.weights.store import WeightStore

_FIRST_LOOK_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Parts:
    """A wired reconciler."""

    source: Source
    loop: Loop
    actor: Actor
    front_door: FrontDoor
    reporter: Reporter
    edge: Edges
    activator: Activator
    weights: WeightStore
    overrides: OverrideStore
    suspensions: SuspensionStore
    rollbacks: RollbackStore
    lease: Keeper
    client: ServeClient
    journal: Journal
    renderer: Renderer
    gpus: GpuObserver | None
    sleeping: Sleeping | None
    keys: KeyFile
    chat_key: str = field(repr=False)
    """Opens the activator of this process, and no edge."""


@contextlib.asynccontextmanager
async def assembled(
    settings: Settings,
    options: Options,
    *,
    with_activator: bool = False,
    read_only: bool = False,
    ask_hub: bool = True,
    source: Source | None = None,
) -> AsyncIterator[Parts]:
    """A reconciler that is ready to look, and where wanted to act.

    Args:
        settings: The operator's.
        options: What bears on plans.
        with_activator: Requests may wait in this process.
        read_only: Nothing is to be written, on disk either.
        ask_hub: The hub may be asked.
        source: Instead of the one that the settings name.
    """
    memory = Memory(settings.state_dir)
    suspensions = SuspensionStore(settings.state_dir)
    rollbacks = RollbackStore(settings.state_dir, read_only=read_only)
    overrides, load_times = OverrideStore(settings.state_dir), LoadTimes(settings.state_dir)
    async with ServeClient(settings.ray_dashboard, settings.ray_token_path) as client:
        port = await _serve_port(client, settings)
        reason = "reconcile --watch" if with_activator else "reconcile"
        # Who only looks needs no lease, and writes no file for one.
        lease = Keeper(None, "", "", reason) if read_only else make_keeper(settings, client, reason)
        serve_url = f"http://{settings.serve_host}:{port}"
        edge = Edges(make_edge(settings, port), settings.state_dir)
        keys = keys_of(settings)
        chat_key = secret_from(secrets.token_urlsafe(32))
        ours = Key("chat", digest_of(chat_key), frozenset({Scope.INFERENCE}), time.time())
        activator = Activator(serve_url, keys=lambda: keys.ring().beside(ours))
        weights = make_weights(settings, read_only=read_only, ask_hub=ask_hub)
        facts = make_facts(settings, read_only=read_only, ask_hub=ask_hub)
        sleeping = _sleeping(settings, client, memory, serve_url)
        gpus = gpu_observer(settings, client, memory)
        observer = Observer(
            client,
            edge,
            memory,
            weights,
            overrides=overrides,
            suspensions=suspensions,
            load_times=load_times,
            sleeping=sleeping,
            sleep_budget=sleep_budget(settings.sleep_memory_gib, total_bytes()),
            activator=activator if with_activator else None,
            gpus=gpus,
            main_memory=available_bytes if _is_here(settings.ray_dashboard) else None,
        )
        source = source or make_source(settings)
        renderer = make_renderer(settings)
        measuring = Measuring(settings.state_dir, read_only=read_only)
        fitter = Fitter(renderer, platform_of(settings), measuring)
        journal = Journal(settings.state_dir)
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
            rollbacks=rollbacks,
            journal=journal,
            options=options,
        )
        weights.revisions.wake = facts.wake = activator.wake = loop.wake
        overrides.wake = suspensions.wake = rollbacks.wake = loop.wake
        weights.wake = functools.partial(_after_a_download, facts, loop)
        lease.wake_loop = loop.wake
        if sleeping is not None:
            sleeping.wake_loop = loop.wake
        actor = Actor(
            client,
            edge,
            memory,
            serve_url=serve_url,
            first_put={
                "proxy_location": "HeadOnly",
                # Where the edge and the probes look for it, also after Serve was lost with its head.
                "http_options": {"host": settings.serve_host, "port": port},
            },
            probe_timeout=settings.probe_timeout,
            weights=weights,
            after_start=AfterStart(client, measuring, fitter, facts),
            after_stop=AfterStop(here=_is_here(settings.ray_dashboard)),
            overrides=overrides,
            sleeping=sleeping,
            keep_versions=settings.keep_versions,
            warm_build=_warm_build(settings, client)
            if with_activator and _is_here(settings.ray_dashboard)
            else None,
            may_write=lease.holds,
            wake=loop.wake,
        )
        try:
            front_door = FrontDoor(edge, activator if with_activator else None, keys)
            yield Parts(
                source=source,
                loop=loop,
                actor=actor,
                front_door=front_door,
                reporter=Reporter(),
                edge=edge,
                activator=activator,
                weights=weights,
                overrides=overrides,
                suspensions=suspensions,
                rollbacks=rollbacks,
                lease=lease,
                client=client,
                journal=journal,
                renderer=renderer,
                gpus=gpus,
                sleeping=sleeping,
                keys=keys,
                chat_key=chat_key,
            )
        finally:
            await actor.close()
            if sleeping is not None:
                await sleeping.close()
            await facts.close()
            await weights.close()
            await lease.close()


def _sleeping(settings: Settings, client: ServeClient, memory: Memory, serve_url: str) -> Sleeping | None:
    """Sleep and wake; None where engines compute on the CPU, which cannot sleep."""
    if settings.device != "cuda":
        return None

    async def ask(application: str, model: str) -> str:
        record = memory.records.get(model)
        task = record.spec.get("task", Task.GENERATE) if record is not None else Task.GENERATE
        return await ask_fixed(f"{serve_url}/{application}", model, task)

    calls = EngineCalls(lambda: gcs_address(client), settings.ray_token_path)
    return Sleeping(settings.state_dir, calls, ask, EngineMemory(client.actors).held)


def _after_a_download(facts: FactsStore, loop: Loop) -> None:
    # What the hub would not say is on disk now.
    facts.forgive()
    loop.wake()


def _warm_build(settings: Settings, client: ServeClient) -> WarmBuild:
    run_file = settings.state_dir / "ray" / "run-id"
    return WarmBuild(client, settings.ray_token_path, run_file, wanted=settings.fast_start)


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
            tls_cert=settings.tls_cert_path,
            tls_key=settings.tls_key_path,
            revision_header=settings.revision_header,
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


async def _serve_port(client: ServeClient, settings: Settings) -> int:
    """Where Serve's HTTP proxy listens; a Serve that runs already keeps its own port."""
    # A dashboard that has just come up takes its time for the first answer.
    options = (await client.instance(patience=_FIRST_LOOK_SECONDS)).get("http_options") or {}
    return int(options.get("port") or settings.serve_port)
