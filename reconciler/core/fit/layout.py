"""Weights and KV cache pool of every pipeline stage: all of an estimate that costs time. Pure.

It depends on the model and on how it is spread, not on the share of the GPU, nor on the context, so that `solve`
tries many of those on one layout.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from reconciler.core.fit import parallel
from reconciler.core.fit.architecture import Architecture
from reconciler.core.fit.caches import CacheSettings, caches_of, pages_of_layers
from reconciler.core.fit.drafts import draft_caches
from reconciler.core.fit.engine import Engine, keeps_hybrid
from reconciler.core.fit.extras import Draft, Extras, Known
from reconciler.core.fit.gpus import GIB
from reconciler.core.fit.kv import UnsupportedCacheError
from reconciler.core.fit.lora import lora_buffers, lora_parts, lora_refusal
from reconciler.core.fit.parts import Basis, Part, basis_of, buffers_of
from reconciler.core.fit.pool import Pool, pool_of
from reconciler.core.fit.spread import Parallel, bytes_per_stage, stages_of
from reconciler.core.fit.terms import Term, measured_term

_WEIGHTS_SAFE, _WEIGHTS_SAFE_QUANTISED = 1.025, 1.045
"""One and a half times the bounds that the benchmark holds weights to: kernels reformat and pad what they load."""
_MEASURED_SAFE = 0.01


@dataclass(frozen=True, slots=True)
class Stage:
    """A rank of one pipeline stage.

    Attributes:
        weights: Everything that counts as such: with LoRA slots and draft, without what is kept in main memory.
        lora: Bytes of the LoRA slots and their tables among them.
        draft: Bytes of the draft among them.
        offloaded: Bytes of weights in main memory.
    """

    weights: Term
    pool: Pool
    lora: int = 0
    draft: int = 0
    offloaded: int = 0


@dataclass(frozen=True, slots=True)
class Layout:
    """All stages.

    Attributes:
        refusal: Why vLLM would not lay it out like this; empty where it would.
        basis: What the weights rest on.
    """

    stages: tuple[Stage, ...]
    refusal: str
    basis: Basis


def layout_of(
    model: Architecture, parts: Sequence[Part], engine: Engine, extras: Extras, known: Known | None = None
) -> Layout:
    """Deal everything out; `engine` has its defaults, and `model` is as it is served.

    Raises:
        ValueError: A dtype is not known.
    """
    tp, pp, experts = engine.tensor_parallel, engine.pipeline_parallel, engine.expert_parallel
    refusal = parallel.refusal(model, tp, pp, experts)
    if extras.draft is not None and not refusal:
        rule = parallel.refusal(extras.draft.model, tp, 1, experts)
        refusal = f"the draft model: {rule}" if rule else ""
    if extras.lora is not None:
        refusal = refusal or lora_refusal(model, extras.lora)
    try:
        pools = pools_of(model, engine, extras.draft)
    except UnsupportedCacheError as error:
        refusal = refusal or f"vLLM cannot lay out its KV cache: {error}"
        pools = (Pool((), 0),) * pp
    measured = known.weights if known is not None else None
    if measured is None:
        weights = _weights(model, parts, engine, extras)
    else:
        weights = [_Weights(measured_term(measured, _MEASURED_SAFE))] * pp
    stages = tuple(
        Stage(each.all, pool, each.lora, each.draft, each.offloaded)
        for each, pool in zip(weights, pools, strict=True)
    )
    return Layout(stages, refusal, basis_of(parts) if measured is None else Basis.MEASURED)


@dataclass(frozen=True, slots=True)
class _Weights:
    all: Term
    lora: int = 0
    draft: int = 0
    offloaded: int = 0


def _weights(model: Architecture, parts: Sequence[Part], engine: Engine, extras: Extras) -> list[_Weights]:
    """Of each stage. The draft is on the last one."""
    tp, experts = engine.tensor_parallel, engine.expert_parallel
    spread = Parallel(tp, engine.pipeline_parallel, experts)
    own = bytes_per_stage((*parts, *buffers_of(model, engine.dtype, engine.max_num_batched_tokens)), model, spread)
    slots = [0] * len(own)
    if extras.lora is not None:
        found = lora_parts(model, extras.lora, engine.dtype, tp, expert_parallel=experts)
        tables = lora_buffers(extras.lora, engine.max_num_batched_tokens, engine.max_num_seqs)
        slots = [size + tables for size in bytes_per_stage(found, model, spread)]
    drafts = [0] * len(own)
    if extras.draft is not None:
        draft = extras.draft
        made = buffers_of(draft.model, engine.dtype, engine.max_num_batched_tokens) if draft.parts else ()
        (drafts[-1],) = bytes_per_stage((*draft.parts, *made), draft.model, Parallel(tp, 1, experts))
    away = [0] * len(own)
    if engine.cpu_offload_gb > 0:
        # Parameters of the layers, in their order, until it is enough (`UVAOffloader`).
        most = bytes_per_stage([part for part in parts if part.layer >= 0], model, spread)
        away = [min(int(engine.cpu_offload_gb * GIB), size) for size in most]
    safer = _WEIGHTS_SAFE if model.quantization is None else _WEIGHTS_SAFE_QUANTISED
    return [
        _Weights(Term(size + draft + lora - kept, ceil((size + draft - kept) * safer) + lora), lora, draft, kept)
        for size, lora, draft, kept in zip(own, slots, drafts, away, strict=True)
    ]


def pools_of(model: Architecture, engine: Engine, draft: Draft | None = None) -> tuple[Pool, ...]:
    """The KV cache pool of a rank of each pipeline stage; `engine` has its defaults.

    Raises:
        UnsupportedCacheError: vLLM would refuse these layers.
        ValueError: A dtype is not known.
    """
    settings = CacheSettings(
        engine.tensor_parallel,
        engine.dtype,
        engine.kv_cache_dtype,
        engine.block_size,
        engine.mamba_cache_mode,
        engine.speculative_tokens,
        engine.max_model_len,
    )
    caches = own = caches_of(model, settings)
    if draft is not None:
        caches = own + draft_caches(draft, settings, own)
    hybrid = keeps_hybrid(model, engine)
    if engine.pipeline_parallel == 1:
        return (pool_of(caches, hybrid=hybrid),)
    layer_of = (*pages_of_layers(model), *[len(model.mlps) - 1] * (len(caches) - len(own)))
    found = []
    for stage in stages_of(len(model.mlps), engine.pipeline_parallel):
        numbers = [number for number, layer in enumerate(layer_of) if layer in stage]
        span = range(numbers[0], numbers[-1] + 1) if numbers else range(0)
        found.append(pool_of(caches, hybrid=hybrid, layers=span))
    return tuple(found)
