"""What a plan says about memory: what a version takes, and what each GPU holds before and after. Pure."""

from collections.abc import Collection, Sequence

from reconciler.core.main_memory import PROCESSES
from reconciler.core.placement import Ledger
from reconciler.core.plan import GpuUse, Memory
from reconciler.core.sleep import Footprint
from reconciler.core.state import Demand
from reconciler.core.target import Target
from reconciler.core.turn import Turn
from reconciler.core.want import Wish


def memory_of(target: Target) -> Memory | None:
    """What a version takes; None where that is not known."""
    if target.fit is None:
        return None
    sized, basis = target.fit.sized, target.fit.basis
    found = sized.found
    tokens, context = max(0, found.kv_tokens.expected), found.engine.max_model_len
    if sized.where is None:
        weights, cache = found.weights, found.engine.kv_cache_memory_bytes
        return Memory(
            where="main memory",
            total=0,
            ranks=1,
            gpus=0.0,
            needed=weights.expected + cache + PROCESSES,
            needed_safe=weights.safe + cache + PROCESSES,
            weights=weights.expected,
            kv_cache=cache,
            kv_tokens=tokens,
            max_model_len=context,
            basis=basis,
            fits_safely=not target.fit.misfit,
        )
    return Memory(
        where=sized.where.gpu.name or sized.where.accelerator or "GPU",
        total=sized.where.gpu.total,
        ranks=found.engine.tensor_parallel * found.engine.pipeline_parallel,
        gpus=target.demand.gpus,
        needed=found.footprint.expected,
        needed_safe=found.footprint.safe,
        weights=found.weights.expected,
        kv_cache=max(0, found.available_kv.expected),
        kv_tokens=tokens,
        max_model_len=context,
        basis=basis,
        fits_safely=found.fits_safely,
    )


def footprint_of(target: Target) -> Footprint | None:
    """What a version's engines have on GPUs that a sleep moves or drops; None on CPUs, or where nobody knows."""
    memory = memory_of(target)
    if memory is None or not memory.gpus:
        return None
    ranks = memory.ranks * target.demand.replicas
    return Footprint(memory.weights * ranks, memory.kv_cache * ranks)


def gpus_of(turn: Turn, order: Sequence[Target], removed: Collection[str]) -> tuple[GpuUse, ...]:
    """Every GPU as it is, and as it will be once everything that has a place is up and what goes is gone.

    Args:
        turn: After everything was decided.
        order: Every declared model, in the order in which they start.
        removed: Models that go.
    """
    nodes = turn.observed.nodes
    if not nodes:
        return ()
    now = {app.name: app.demand for app in turn.observed.applications.values() if app.model is not None}
    coming = _afterwards(turn, order, removed)
    before = Ledger(nodes, now, turn.homes)
    # In most turns nothing comes and nothing goes.
    after = before if now.keys() == coming.keys() else Ledger(nodes, now, turn.homes)
    after.release(now.keys() - coming.keys())
    for name, demand in coming.items():
        if name not in now:
            after.take(demand, name)
    devices = {(node.id, device.index): device for node in nodes for device in node.devices}
    uses = []
    for bar in after.bars(before):
        device = devices.get((bar.node, bar.device))
        uses.append(
            GpuUse(
                node=bar.host or bar.node[:12],
                index=bar.device,
                name=device.name if device is not None else "",
                total=device.total if device is not None else 0,
                before=bar.before.share,
                after=bar.after.share,
                foreign=bar.foreign,
                failed=bar.failed,
                applications=bar.after.applications,
            )
        )
    return tuple(uses)


def _afterwards(turn: Turn, order: Sequence[Target], removed: Collection[str]) -> dict[str, Demand]:
    """What will have a place, by application, in the order of starts."""
    held = {each.model for each in turn.held}
    found: dict[str, Demand] = {}
    for model, apps in turn.live.items():
        target = turn.desired.targets.get(model)
        stays = target.waits if target is not None else model not in removed
        if model in held or stays:
            found |= {app.name: app.demand for app in apps}
    for target in order:
        if turn.wants[target.model].wish is Wish.REST or target.model in turn.sent_away:
            continue
        if turn.wants[target.model].wish is Wish.SLEEP:
            found |= {app.name: app.demand for app in turn.live[target.model]}
            continue
        if target.model not in held and not target.waits:
            found[target.application] = target.demand
    return found
