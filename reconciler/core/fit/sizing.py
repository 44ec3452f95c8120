"""What a model file leaves open, decided: parallel sizes, context, batch, share of a GPU. Pure.

Everything follows from the model, its file and the kinds of GPU, never from what is free at the moment: the same
model gets the same settings whoever else is there. Where it fits, beside whom, is for `core.placement`.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from reconciler.core.fit.advice import advise
from reconciler.core.fit.classes import GpuClass
from reconciler.core.fit.declared import Declared
from reconciler.core.fit.engine import Engine, with_defaults
from reconciler.core.fit.estimate import Estimate, estimate
from reconciler.core.fit.extras import Known
from reconciler.core.fit.gpus import GIB, Gpu
from reconciler.core.fit.parallel import pipeline_sizes, tensor_sizes
from reconciler.core.fit.solve import highest_share, least_share, longest_context
from reconciler.core.spec import ModelSpec, Task

USEFUL_CONTEXT = 8192
"""Tokens. With `max_model_len: auto`, a parallel size that leaves less (of a model with more) is too small."""
_SMALL_BATCH = (64, 2048)
"""`max_num_seqs` and `max_num_batched_tokens` that are tried where vLLM's own defaults do not fit."""
_CPU_SEQS, _CPU_TOKENS = 16, 2048
_MORE_THAN_HALF = 0.5001
_NO_LIMIT = 2**60

Measured = Callable[[Engine, GpuClass | None], Known | None]
"""What was measured of the model with these settings on such GPUs, or on the CPU."""


@dataclass(frozen=True, slots=True)
class Sizing:
    """What is rendered where the file leaves it open; None where the engine chooses.

    Attributes:
        gpus: GPUs that Ray reserves for each rank; below 1 a share of one.
        accelerator: Type of GPU as Ray names it, where only that type will do.
    """

    tensor_parallel_size: int | None = None
    pipeline_parallel_size: int | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    gpu_memory_utilization: float | None = None
    kv_cache_memory_bytes: int | None = None
    gpus: float = 0.0
    accelerator: str | None = None


@dataclass(frozen=True, slots=True)
class Sized:
    """One way to run a model.

    Attributes:
        memory: Share of each GPU's memory that it takes, CUDA's context included.
        where: The kind of GPU; None on the CPU.
        measured: The numbers were measured when the model ran like this before.
    """

    sizing: Sizing
    found: Estimate
    memory: float = 0.0
    where: GpuClass | None = None
    measured: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """The ways to run a model, the best first, and why none is good, if none is.

    Attributes:
        misfit: Why it does not fit; the first choice is then what comes nearest.
        advice: What to change, each with its numbers.
    """

    choices: tuple[Sized, ...]
    misfit: str = ""
    advice: tuple[str, ...] = ()


def on_gpus(model: Declared, spec: ModelSpec, classes: tuple[GpuClass, ...], measured: Measured) -> Outcome:
    """The ways to run a model on these kinds of GPU, at least one of them.

    Raises:
        ValueError: A dtype is not known.
    """
    ways = [_best(model, spec, kind, measured) for kind in classes]
    good = [way for way in ways if way.found.fits]
    if good:
        # Safe ones first; then as few GPUs, and as small ones, as will do.
        good.sort(key=lambda way: (not way.found.fits_safely, _ranks(way.found), way.found.gpu.total))
        return Outcome(tuple(good))
    nearest = min(ways, key=lambda way: -way.found.gpu.total)
    kind = nearest.where
    assert kind is not None
    ranks = _ranks(nearest.found)
    where = f"{ranks} x {kind}" if ranks > 1 else str(kind)
    if kind.mixed:
        where += ", the smallest of GPUs that Ray cannot tell apart"
    advice = advise(model.model, model.weigh, nearest.found, kind.per_node)
    return Outcome((nearest,), f"on {where}: {nearest.found.reason}", tuple(map(str, advice)))


def cpu_batch(spec: ModelSpec) -> tuple[int, int | None]:
    """`max_num_seqs` and `max_num_batched_tokens` of an engine on the CPU; None where vLLM's own will do."""
    seqs, tokens = spec.engine.max_num_seqs, spec.engine.max_num_batched_tokens
    own = _CPU_TOKENS if spec.task is Task.GENERATE else None
    return (_CPU_SEQS if seqs == "auto" else seqs), (own if tokens == "auto" else tokens)


def on_cpu(model: Declared, spec: ModelSpec, kv_cache_bytes: int, measured: Measured) -> Outcome:
    """How to run a model on the CPU: the cache has a fixed size, and the longest context follows from it.

    Whether main memory holds it is for the plan, which knows what is free.

    Args:
        model: As declared.
        spec: Its file.
        kv_cache_bytes: Bytes of the KV cache where the file leaves it open.
        measured: What was measured before.

    Raises:
        ValueError: A dtype is not known.
    """
    gpu = Gpu(_NO_LIMIT)
    seqs, tokens = cpu_batch(spec)
    engine = replace(
        model.engine,
        max_num_seqs=seqs,
        max_num_batched_tokens=tokens or _CPU_TOKENS,
        kv_cache_memory_bytes=model.engine.kv_cache_memory_bytes or kv_cache_bytes,
    )
    known = measured(replace(engine, max_num_batched_tokens=tokens or 0), None)
    found = estimate(model.model, model.parts, engine, gpu, known, model.extras)
    if found.needed_kv <= engine.kv_cache_memory_bytes:
        return Outcome((Sized(Sizing(), found, measured=known is not None),))
    if spec.engine.max_model_len == "auto" and (length := found.longest.expected) > 0:
        engine = replace(engine, max_model_len=length)
        shorter = estimate(model.model, model.parts, engine, gpu, known, model.extras)
        return Outcome((Sized(Sizing(max_model_len=length), shorter, measured=known is not None),))
    needed = math.ceil(found.needed_kv / GIB * 10) / 10
    return Outcome((Sized(Sizing(), found),), found.reason, (f"kv_cache_memory_gib: {needed:g}",))


def _best(model: Declared, spec: ModelSpec, kind: GpuClass, measured: Measured) -> Sized:
    """The smallest parallel size that is sufficient; else what comes nearest."""
    best: Sized | None = None
    weights = sum(part.bytes for part in model.parts) - model.engine.cpu_offload_gb * GIB
    for tensor, pipeline in _sizes(model, spec, kind):
        if best is not None and pipeline > 1 and weights / (tensor * pipeline) > kind.gpu.total:
            continue  # There are many such sizes, and the weights alone are too large.
        engine = replace(model.engine, tensor_parallel=tensor, pipeline_parallel=pipeline)
        way = _batched(model, spec, engine, kind, measured)
        if way.found.fits_safely and _is_useful(model, spec, way.found):
            return way
        if best is None or _rank(way) > _rank(best):
            best = way
    assert best is not None, "there is always the size that the file names, or 1"
    return best


def _rank(way: Sized) -> tuple[bool, bool, int]:
    """The longer the context the better; of ways that do not fit, the one that lacks least."""
    found = way.found
    if found.fits:
        return True, found.fits_safely, found.engine.max_model_len
    return False, False, found.available_kv.expected - found.needed_kv


def _sizes(model: Declared, spec: ModelSpec, kind: GpuClass) -> Iterator[tuple[int, int]]:
    """Tensor- and pipeline-parallel sizes to try, the fewest GPUs first; stages where nothing else is left."""
    engine, resources = model.engine, spec.resources
    if resources.tensor_parallel != "auto" or resources.pipeline_parallel != "auto":
        if resources.tensor_parallel != "auto":
            yield engine.tensor_parallel, engine.pipeline_parallel
            return
        sizes = tensor_sizes(model.model, kind.per_node, expert_parallel=engine.expert_parallel)
        yield from ((size.size, engine.pipeline_parallel) for size in sizes if not size.rule)
        return
    most = kind.count if resources.across_nodes else kind.per_node
    tensors = tensor_sizes(model.model, kind.per_node, expert_parallel=engine.expert_parallel)
    valid = [size.size for size in tensors if not size.rule]
    yield from ((size, 1) for size in valid)
    stages = [size.size for size in pipeline_sizes(model.model, most) if not size.rule and size.size > 1]
    pairs = [(tensor, stage) for tensor in valid for stage in stages if tensor * stage <= most]
    yield from sorted(pairs, key=lambda pair: (pair[0] * pair[1], pair[1]))


def _batched(model: Declared, spec: ModelSpec, engine: Engine, kind: GpuClass, measured: Measured) -> Sized:
    """With vLLM's own batch, or, where that does not fit and the file leaves it open, with a smaller one."""
    way = _shared(model, spec, with_defaults(model.model, engine, kind.gpu), kind, measured)
    if way.found.fits_safely and _is_useful(model, spec, way.found):
        return way
    seqs, tokens = _SMALL_BATCH
    small = replace(
        engine,
        max_num_seqs=engine.max_num_seqs or seqs,
        max_num_batched_tokens=engine.max_num_batched_tokens or tokens,
    )
    other = _shared(model, spec, with_defaults(model.model, small, kind.gpu), kind, measured)
    return other if _rank(other) > _rank(way) else way


def _shared(model: Declared, spec: ModelSpec, engine: Engine, kind: GpuClass, measured: Measured) -> Sized:
    """With the share of the GPU and the context that the file asks for, or that suit the model."""
    architecture, parts, extras, gpu = model.model, model.parts, model.extras, kind.gpu
    known = measured(engine, kind)
    open_share = spec.engine.gpu_memory_utilization == "auto"
    open_context = spec.engine.max_model_len == "auto"
    most = highest_share(gpu, engine.tensor_parallel, engine.pipeline_parallel)
    # A model that generates makes use of whatever cache it gets; one that embeds needs room for its requests.
    whole = open_share and not engine.kv_cache_memory_bytes and not engine.pooling
    if whole:
        engine = replace(engine, gpu_memory_utilization=most)
    elif open_share:
        least = least_share(architecture, parts, engine, gpu, known=known, extras=extras)
        engine = replace(engine, gpu_memory_utilization=min(least, most))
    found = estimate(architecture, parts, engine, gpu, known, extras)
    if open_context and not found.fits_safely:
        engine = replace(engine, gpu_memory_utilization=most if open_share else engine.gpu_memory_utilization)
        length = longest_context(architecture, parts, engine, gpu, known=known, extras=extras, safely=True)
        if not length:
            length = longest_context(architecture, parts, engine, gpu, known=known, extras=extras, safely=False)
        engine = replace(engine, max_model_len=length or min(USEFUL_CONTEXT, engine.max_model_len))
        known = measured(engine, kind) or known
        found = estimate(architecture, parts, engine, gpu, known, extras)
    engine = found.engine
    budget = found.requested + found.context.safe
    if engine.kv_cache_memory_bytes:
        budget = max(budget, found.footprint.safe)
    taken = min(1.0, budget / gpu.total)
    sizing = Sizing(
        tensor_parallel_size=engine.tensor_parallel,
        pipeline_parallel_size=engine.pipeline_parallel,
        max_model_len=engine.max_model_len,
        max_num_seqs=engine.max_num_seqs,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        gpu_memory_utilization=engine.gpu_memory_utilization,
        kv_cache_memory_bytes=engine.kv_cache_memory_bytes or None,
        gpus=1.0 if whole else _ray_share(taken, _ranks(found)),
        accelerator=kind.accelerator,
    )
    return Sized(sizing, found, taken, kind, known is not None)


def _ray_share(taken: float, ranks: int) -> float:
    """The share that Ray reserves on each GPU: it counts in ten-thousandths, and a whole GPU is 1.

    Of several ranks each gets more than half a GPU, or Ray might put two on the same one, which NCCL refuses.
    """
    share = math.ceil(taken * 1e4) / 1e4
    return min(1.0, share if ranks == 1 else max(share, _MORE_THAN_HALF))


def _is_useful(model: Declared, spec: ModelSpec, found: Estimate) -> bool:
    if spec.engine.max_model_len != "auto":
        return True
    return found.engine.max_model_len >= min(USEFUL_CONTEXT, model.model.context or USEFUL_CONTEXT)


def _ranks(found: Estimate) -> int:
    return found.engine.tensor_parallel * found.engine.pipeline_parallel
