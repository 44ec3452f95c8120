"""The memory of one engine on each GPU, as vLLM 0.29 accounts for it, and whether it would start. Pure.

    requested    = ceil(total x gpu_memory_utilization), refused if less is free
    available KV = requested - weights - non-torch - activation - CUDA graphs

as in `v1/worker/utils.py` (`request_memory`) and `v1/worker/gpu_worker.py` (`determine_available_memory`). With
`kv_cache_memory_bytes` the cache is that large whatever the rest takes, and only the first check remains.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from reconciler.core.fit import refusals
from reconciler.core.fit.architecture import Architecture
from reconciler.core.fit.engine import (
    DEFAULT_UTILIZATION,
    Engine,
    as_served,
    batch_of,
    serving_of,
    with_defaults,
)
from reconciler.core.fit.extras import Draft, Extras, Known, Lora
from reconciler.core.fit.gpus import MIB, Gpu
from reconciler.core.fit.graphs import cuda_graphs
from reconciler.core.fit.layout import Layout, Stage, layout_of, pools_of
from reconciler.core.fit.parts import Basis, Part
from reconciler.core.fit.pool import Pool
from reconciler.core.fit.terms import Term, activation, context, measured_term, non_torch

__all__ = [
    "DEFAULT_UTILIZATION",
    "Beside",
    "Draft",
    "Engine",
    "Estimate",
    "Extras",
    "Known",
    "Lora",
    "beside_of",
    "estimate",
    "pools_of",
    "serving_of",
    "with_defaults",
]

_MEASURED_SAFE = 0.05
"""What a measured term may come to more at another start, when kernels are chosen anew."""
_SLACK = 150 * MIB
"""What vLLM itself keeps free where it derives a cache size from such numbers, because its profile may say a
little too little (`redundancy_buffer_memory` in v1/worker/gpu_worker.py)."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one rank takes, in bytes, and what follows. Of several stages, the one with the least left over.

    Attributes:
        engine: The settings, with every default filled in.
        extras: What is loaded beside the model.
        known: What was measured, and stands here for a formula.
        weights: With the LoRA slots and the draft, without what is kept in main memory.
        lora: Bytes of the LoRA slots among the weights; 0 too where the weights were measured as a whole.
        draft: Bytes of the draft among them, likewise.
        offloaded: Bytes of weights in main memory.
        basis: What each of the first four terms rests on, by its name.
        requested: What vLLM may use in all.
        context: Outside `requested`, but on the GPU.
        available_kv: What is left for the cache; the safe value is the smaller one.
        kv_tokens: Tokens of capacity, as vLLM logs it.
        kv_bytes_per_token: Of all attention layers, without padding.
        needed_kv: Bytes that one request of the greatest length takes, and the block that vLLM keeps back.
        block_size: Tokens of a block of the main attention layers, after vLLM's adjustments.
        longest: Tokens of the longest context that fits, up to the model's own.
        footprint: Everything on the GPU, the context and the cache included.
        minimum: The same with a cache for just one request of the greatest length.
        fits: It would start, by the expected values.
        fits_safely: It would start, by the safe values.
        reason: Why it does not fit; where it fits only by the expected values, what that hangs on.
    """

    engine: Engine
    gpu: Gpu
    weights: Term
    activation: Term
    cuda_graph: Term
    non_torch: Term
    context: Term
    requested: int
    available_kv: Term
    kv_blocks: Term
    kv_tokens: Term
    concurrency: float
    kv_bytes_per_token: int
    needed_kv: int
    block_size: int
    longest: Term
    footprint: Term
    minimum: Term
    fits: bool
    fits_safely: bool
    reason: str
    extras: Extras
    known: Known | None
    lora: int
    draft: int
    offloaded: int
    basis: dict[str, Basis]


@dataclass(frozen=True, slots=True)
class Beside:
    """What every rank takes beside weights and cache."""

    activation: Term
    cuda_graph: Term
    non_torch: Term

    @property
    def total(self) -> Term:
        """All of it."""
        terms = (self.activation, self.cuda_graph, self.non_torch)
        return Term(sum(term.expected for term in terms), sum(term.safe for term in terms))


def beside_of(model: Architecture, engine: Engine, gpu: Gpu, extras: Extras, known: Known | None) -> Beside:
    """Measured where it was, else by the formulas; `engine` has its defaults, and `model` is as it is served.

    Raises:
        ValueError: A dtype is not known.
    """
    known, batch = known or Known(), batch_of(model, engine, gpu, extras)
    return Beside(
        activation(model, batch) if known.activation is None else measured_term(known.activation, _MEASURED_SAFE),
        cuda_graphs(model, batch) if known.cuda_graph is None else measured_term(known.cuda_graph, _MEASURED_SAFE),
        non_torch(engine.tensor_parallel, engine.pipeline_parallel)
        if known.non_torch is None
        else measured_term(known.non_torch, _MEASURED_SAFE, _SLACK),
    )


def estimate(  # noqa: PLR0917 -- what there always is, then what there may be
    model: Architecture,
    parts: Sequence[Part],
    engine: Engine,
    gpu: Gpu,
    known: Known | None = None,
    extras: Extras = Extras(),  # noqa: B008 -- frozen
) -> Estimate:
    """Add everything up.

    Args:
        model: What the config says.
        parts: The weights, from `tensors.parts_of` or `synthesis.parts_of_config`.
        engine: The settings.
        gpu: What it runs on; every rank on one alike.
        known: What was measured of the same model with the same settings. The safe value of measured weights is 1%
            more, that of the rest 5% and for `non_torch` 150 MiB, and what the log rounds off.
        extras: What is loaded beside the model.

    Raises:
        ValueError: A dtype is not known.
    """
    model = as_served(model, engine)
    engine = with_defaults(model, engine, gpu)
    layout = layout_of(model, parts, engine, extras, known)
    beside = beside_of(model, engine, gpu, extras, known)
    common = _Common(model, engine, gpu, known, extras, beside, _bases(layout, known))
    stages = [_stage(common, stage) for stage in layout.stages]
    worst = min(stages, key=lambda stage: (stage.fits, stage.kv_blocks.expected, -stage.weights.expected))
    if engine.pipeline_parallel > 1:
        # All ranks get as many blocks as the poorest (`get_kv_cache_configs`).
        worst = replace(worst, fits=all(s.fits for s in stages), fits_safely=all(s.fits_safely for s in stages))
    refusal = layout.refusal or refusals.of_settings(model, engine)
    if refusal:
        return replace(worst, fits=False, fits_safely=False, reason=refusal)
    return worst


def _bases(layout: Layout, known: Known | None) -> dict[str, Basis]:
    found = {"weights": layout.basis}
    for name in ("activation", "cuda_graph", "non_torch"):
        found[name] = Basis.CONFIG if getattr(known, name, None) is None else Basis.MEASURED
    return found


@dataclass(frozen=True, slots=True)
class _Common:
    """What all stages share."""

    model: Architecture
    engine: Engine
    gpu: Gpu
    known: Known | None
    extras: Extras
    beside: Beside
    basis: dict[str, Basis]


def _stage(common: _Common, stage: Stage) -> Estimate:
    engine, gpu, pool, weights = common.engine, common.gpu, stage.pool, stage.weights
    requested = math.ceil(gpu.total * engine.gpu_memory_utilization)
    outside = context(engine.tensor_parallel, engine.pipeline_parallel)
    beside = common.beside.total
    used = Term(weights.expected + beside.expected, weights.safe + beside.safe)
    fixed = engine.kv_cache_memory_bytes
    available = Term(fixed, fixed) if fixed else Term(requested - used.expected, requested - used.safe)
    serving = serving_of(common.model, engine)
    reach = replace(serving, max_model_len=max(common.model.context, engine.max_model_len))
    blocks = Term(pool.blocks(available.expected), pool.blocks(available.safe))
    needed = pool.needed(serving)
    kept = Term(max(0, available.expected), max(0, available.safe)) if pool.bytes_per_block else Term(0, 0)
    footprint = Term(used.expected + kept.expected + outside.expected, used.safe + kept.safe + outside.safe)

    def refusal(outside: int, weights: int, available: int, footprint: int) -> str:
        return (
            refusals.of_start(gpu, engine, requested, outside)
            or (refusals.of_sum(gpu, footprint) if fixed else "")
            or refusals.of_cache(engine, requested, weights, available, needed)
        )

    expected = refusal(outside.expected, weights.expected, available.expected, footprint.expected)
    safe = refusal(outside.safe, weights.safe, available.safe, footprint.safe)
    return Estimate(
        engine=engine,
        gpu=gpu,
        weights=weights,
        activation=common.beside.activation,
        cuda_graph=common.beside.cuda_graph,
        non_torch=common.beside.non_torch,
        context=outside,
        requested=requested,
        available_kv=available,
        kv_blocks=blocks,
        kv_tokens=Term(pool.tokens(blocks.expected, serving), pool.tokens(blocks.safe, serving)),
        concurrency=pool.concurrency(blocks.expected, serving),
        kv_bytes_per_token=_per_token(pool),
        needed_kv=needed,
        block_size=max((group.kind.block for group in pool.groups), default=0),
        longest=Term(pool.longest(available.expected, reach), pool.longest(available.safe, reach)),
        footprint=footprint,
        minimum=Term(used.expected + needed + outside.expected, used.safe + needed + outside.safe),
        fits=not expected,
        fits_safely=not safe,
        reason=expected or (f"fits only by the expected values; by the safe ones {safe}" if safe else ""),
        extras=common.extras,
        known=common.known,
        lora=stage.lora,
        draft=stage.draft,
        offloaded=stage.offloaded,
        basis=common.basis,
    )


def _per_token(pool: Pool) -> int:
    return sum(
        cache.unpadded // cache.block
        for group in pool.groups
        for cache in group.caches
        if cache.kind not in ("linear", "cross")
    )
