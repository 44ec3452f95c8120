"""What one declared model would take, for `reconcile fit NAME`: the same facts and decisions as a plan's.

Looks at the cluster if one answers, else at this machine's GPUs; changes nothing.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from reconciler.core.desired import Desired
from reconciler.core.fit.facts import Facts
from reconciler.core.fitting import Cluster, Fitter
from reconciler.core.parse import parse_all
from reconciler.core.placement import Ledger
from reconciler.core.render import Renderer
from reconciler.core.spec import ModelSpec
from reconciler.core.state import Application, Node, homes_of
from reconciler.core.target import Target
from reconciler.core.weights import wanted_of
from reconciler.host.main_memory import available_bytes
from reconciler.host.nvml import Gpus
from reconciler.host.settings import Settings
from reconciler.host.templates import read_template
from reconciler.loop.gpus import gpu_observer, here_alone
from reconciler.loop.measuring import Measuring
from reconciler.loop.memory import Memory
from reconciler.loop.rendering import platform_of
from reconciler.loop.rollbacks import RollbackStore
from reconciler.loop.source import make_source
from reconciler.loop.weights import make_facts, make_weights
from reconciler.ray_serve.client import ServeClient, ServeUnreachableError
from reconciler.ray_serve.observed import applications

_HUB_SECONDS = 30.0


class UnknownModelError(Exception):
    """Nothing can be said about the model; the text says why."""


@dataclass(frozen=True, slots=True)
class Explained:
    """One model, weighed.

    Attributes:
        target: With its sizes decided and `fit` filled in.
        facts: Of the model.
        draft: Of its draft model.
        nodes: The GPUs it was weighed for; empty for main memory.
        room: Where it would go now, or what is free, in words; empty where no cluster was looked at.
        main_memory: Bytes that are free on this machine; None where nobody can tell.
    """

    target: Target
    facts: Facts
    draft: Facts | None
    nodes: tuple[Node, ...]
    room: str = ""
    main_memory: int | None = None


async def explain(
    settings: Settings, name: str, change: Callable[[ModelSpec], ModelSpec], nodes: tuple[Node, ...] | None
) -> Explained:
    """Weigh a model.

    Args:
        settings: The operator's.
        name: A model of the model files.
        change: What to suppose instead of what its file says.
        nodes: The GPUs to suppose; None for those that are there.

    Raises:
        UnknownModelError: No valid file declares it, or its config or tensors cannot be had.
    """
    apps: Mapping[str, Application] = {}
    supposed = nodes is not None
    if nodes is None:
        nodes, apps = await _live(settings)
    platform = platform_of(settings)
    if supposed:
        platform = replace(platform, device="cuda")
    renderer = Renderer(read_template("application.json.j2", settings.templates_dir), platform)
    target = await _target(settings, name, change, renderer)
    store = make_facts(settings, read_only=True)
    try:
        facts = await store.look(list(target.reads), patience=_HUB_SECONDS)
    finally:
        await store.close()
    fitter = Fitter(renderer, platform, Measuring(settings.state_dir, read_only=True))
    fitted = fitter.fitted(Desired({name: target}), Cluster({}, nodes, {}), facts).targets[name]
    if fitted.fit is None:
        why = fitted.unknown or fitted.unsupported or fitted.waits
        raise UnknownModelError(f"{name}: {why or f'no GPU of type {target.demand.accelerator} is there'}")
    assert target.reads.model is not None
    model = facts[target.reads.model].facts
    assert model is not None
    draft = facts[target.reads.draft].facts if target.reads.draft is not None else None
    room = "" if supposed or not nodes else _room(fitted, nodes, apps)
    return Explained(fitted, model, draft, nodes, room, available_bytes())


async def _target(
    settings: Settings, name: str, change: Callable[[ModelSpec], ModelSpec], renderer: Renderer
) -> Target:
    snapshot = RollbackStore(settings.state_dir, read_only=True).apply(await make_source(settings).read())
    if snapshot.unreadable:
        raise UnknownModelError(snapshot.unreadable)
    parsed = parse_all(snapshot.files)
    if name not in parsed.valid:
        raise UnknownModelError(
            f"no valid model file declares {name!r}; `reconcile validate` says what is wrong with those there are"
        )
    file = parsed.valid[name]
    spec = change(file.spec)
    weights = make_weights(settings, read_only=True)
    try:
        resolutions = await weights.revisions.resolve(wanted_of(spec), patience=_HUB_SECONDS)
    finally:
        await weights.close()
    target = renderer.compile_target(
        spec, file=file.path, folder=snapshot.folder, resolutions=resolutions, objects=snapshot.objects
    )
    problem = next((each.problem for each in target.unresolved.values()), None)
    if problem is not None:
        raise UnknownModelError(f"{name}: {problem or 'the hub does not answer'}")
    return target


async def _live(settings: Settings) -> tuple[tuple[Node, ...], Mapping[str, Application]]:
    """The GPUs of the cluster, and what is on them; without a cluster, those of this machine."""
    try:
        async with ServeClient(settings.ray_dashboard, settings.ray_token_path, timeout=5) as client:
            observer = gpu_observer(settings, client, Memory(settings.state_dir))
            if observer is None:
                return (), {}
            found = applications(await client.instance())
            return await observer.nodes(found), found
    except ServeUnreachableError:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        return here_alone(Gpus(visible)) if settings.device == "cuda" else (), {}


def _room(target: Target, nodes: tuple[Node, ...], apps: Mapping[str, Application]) -> str:
    placed = {name: app.demand for name, app in apps.items() if app.model not in (None, target.model)}
    ledger = Ledger(nodes, placed, homes_of(apps))
    free = ledger.describe_free()
    return f"there is room for it now: {free}" if ledger.fits(target.demand) else f"no room for it now: {free}"
