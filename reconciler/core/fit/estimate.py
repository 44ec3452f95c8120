"""The memory of one engine on each GPU, as vLLM 0.29 accounts for it, and whether it would start. Pure.

    requested    = ceil(total x gpu_memory_utilization), refused if less is free
    available KV = requested - weights - non-torch - activation - CUDA graphs

as in `v1/worker/utils.py` (`request_memory`) and `v1/worker/gpu_worker.py` (`determine_available_memory`). With
`kv_cache_memory_bytes` the cache is that large whatever the rest takes, and only the first check remains.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from reconciler.core.fit import parallel
from reconciler.core.fit.architecture import Architecture
from reconciler.core.fit.caches import KERNEL_BLOCK, CacheSettings, caches_of, pages_of_layers
from reconciler.core.fit.gpus import GIB, Gpu
from reconciler.core.fit.kv import UnsupportedCacheError
from reconciler.core.fit.pool import Pool, Serving, pool_of
from reconciler.core.fit.tensors import Parallel, Part, buffers_of, bytes_per_stage, stages_of
from reconciler.core.fit.terms import (
    SAMPLER_BYTES,
    Batch,
    Term,
    activation,
    context,
    cuda_graphs,
    non_torch,
)

DEFAULT_UTILIZATION = 0.92
"""vLLM 0.29's own default (`vllm/config/cache.py`)."""
_WEIGHTS_SAFE, _WEIGHTS_SAFE_QUANTISED = 1.025, 1.045
"""One and a half times the bounds that the benchmark holds weights to: kernels reformat and pad what they load."""


@dataclass(frozen=True, slots=True)
class Engine:
    """vLLM's settings, by its own names.

    Attributes:
        max_model_len: Tokens; 0 for the model's own context.
        max_num_seqs: 0 for vLLM's default on this GPU.
        max_num_batched_tokens: 0 for vLLM's default on this GPU.
        dtype: Empty for the checkpoint's, float32 made bfloat16.
        gpu_memory_utilization: Share of the GPU's memory.
        kv_cache_memory_bytes: Bytes on each rank, instead of what is left over; 0 for what is left over.
        mamba_cache_mode: `align` where prefix caching is on, vLLM's default; else `none`.
        hybrid_kv_cache: The hybrid KV cache manager is on.
        pooling: The model is an embedder, classifier or the like.
        sampler_bytes: Bytes of a logit while sampling; only for logs of old versions.
        item_tokens: Tokens of the largest multimodal input, where it is known.
    """

    max_model_len: int = 0
    max_num_seqs: int = 0
    max_num_batched_tokens: int = 0
    dtype: str = ""
    kv_cache_dtype: str = "auto"
    gpu_memory_utilization: float = DEFAULT_UTILIZATION
    kv_cache_memory_bytes: int = 0
    enforce_eager: bool = False
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    expert_parallel: bool = False
    block_size: int = KERNEL_BLOCK
    mamba_cache_mode: str = "align"
    speculative_tokens: int = 0
    hybrid_kv_cache: bool = True
    pooling: bool = False
    skip_mm_profiling: bool = False
    sampler_bytes: float = SAMPLER_BYTES
    item_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one rank takes, in bytes, and what follows. Of several stages, the one with the least left over.

    Attributes:
        engine: The settings, with every default filled in.
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


def with_defaults(model: Architecture, engine: Engine, gpu: Gpu) -> Engine:
    """The settings with what vLLM would choose on this GPU (`EngineArgs` in engine/arg_utils.py, API server)."""
    longest = engine.max_model_len or model.context or 2048
    seqs = engine.max_num_seqs or (1024 if gpu.large_batches else 256)
    tokens = engine.max_num_batched_tokens
    if not tokens:
        tokens = 16384 if gpu.total >= 160 * GIB else 8192 if gpu.large_batches else 2048
        tokens = min(tokens, seqs * longest)
    seqs = engine.max_num_seqs or min(seqs, tokens)
    dtype = engine.dtype if engine.dtype not in ("", "auto") else model.dtype or "bfloat16"
    if engine.dtype in ("", "auto") and dtype in ("float32", "float64", "float"):
        dtype = "bfloat16"  # vLLM's `_resolve_auto_dtype` on GPUs that have it.
    return replace(engine, max_model_len=longest, max_num_seqs=seqs, max_num_batched_tokens=tokens, dtype=dtype)


def estimate(model: Architecture, parts: Sequence[Part], engine: Engine, gpu: Gpu) -> Estimate:
    """Add everything up.

    Args:
        model: What the config says.
        parts: The weights, from `tensors.parts_of` or `synthesis.parts_of_config`.
        engine: The settings.
        gpu: What it runs on; every rank on one alike.

    Raises:
        ValueError: A dtype is not known.
    """
    engine = with_defaults(model, engine, gpu)
    refusal = parallel.refusal(model, engine.tensor_parallel, engine.pipeline_parallel, engine.expert_parallel)
    spread = Parallel(engine.tensor_parallel, engine.pipeline_parallel, engine.expert_parallel)
    buffers = buffers_of(model, engine.dtype, engine.max_num_batched_tokens)
    weights = bytes_per_stage((*parts, *buffers), model, spread)
    try:
        pools = pools_of(model, engine)
    except UnsupportedCacheError as error:
        refusal = refusal or f"vLLM cannot lay out its KV cache: {error}"
        pools = (Pool((), 0),) * engine.pipeline_parallel
    stages = [_stage(model, engine, gpu, size, pool) for size, pool in zip(weights, pools, strict=True)]
    worst = min(stages, key=lambda stage: (stage.fits, stage.kv_blocks.expected, -stage.weights.expected))
    if engine.pipeline_parallel > 1:
        # All ranks get as many blocks as the poorest (`get_kv_cache_configs`).
        worst = replace(worst, fits=all(s.fits for s in stages), fits_safely=all(s.fits_safely for s in stages))
    if model.context and engine.max_model_len > model.context:
        refusal = refusal or (
            f"max_model_len {engine.max_model_len} is more than the model's own {model.context} tokens"
        )
    if engine.max_num_batched_tokens < engine.max_num_seqs:
        # SchedulerConfig.verify_max_model_len in vllm/config/scheduler.py
        refusal = refusal or (
            f"max_num_batched_tokens {engine.max_num_batched_tokens} is less than "
            f"max_num_seqs {engine.max_num_seqs}"
        )
    if refusal:
        return replace(worst, fits=False, fits_safely=False, reason=refusal)
    return worst


def serving_of(model: Architecture, engine: Engine) -> Serving:
    """What of the settings the cache depends on; `engine` has its defaults."""
    # Batches in flight: a stage more than there are, with 0.29's asynchronous scheduling
    # (`max_concurrent_batches`).
    return Serving(
        engine.max_model_len,
        (engine.pipeline_parallel + 1) * engine.max_num_batched_tokens,
        engine.mamba_cache_mode,
        engine.speculative_tokens,
        model.encoder_tokens,
        engine.hybrid_kv_cache,
    )


def pools_of(model: Architecture, engine: Engine) -> tuple[Pool, ...]:
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
    caches, hybrid = caches_of(model, settings), engine.hybrid_kv_cache
    if engine.pipeline_parallel == 1:
        return (pool_of(caches, hybrid=hybrid),)
    layer_of = pages_of_layers(model)
    found = []
    for stage in stages_of(len(model.mlps), engine.pipeline_parallel):
        numbers = [number for number, layer in enumerate(layer_of) if layer in stage]
        span = range(numbers[0], numbers[-1] + 1) if numbers else range(0)
        found.append(pool_of(caches, hybrid=hybrid, layers=span))
    return tuple(found)


def _stage(model: Architecture, engine: Engine, gpu: Gpu, size: int, pool: Pool) -> Estimate:
    requested = math.ceil(gpu.total * engine.gpu_memory_utilization)
    tp, pp = engine.tensor_parallel, engine.pipeline_parallel
    batch = Batch(
        engine.max_num_batched_tokens,
        engine.max_num_seqs,
        engine.max_model_len,
        tp,
        engine.dtype,
        engine.sampler_bytes,
        engine.pooling or model.encoder_only,
        engine.enforce_eager,
        engine.skip_mm_profiling,
        engine.item_tokens,
        engine.expert_parallel,
    )
    safer = _WEIGHTS_SAFE if model.quantization is None else _WEIGHTS_SAFE_QUANTISED
    weights = Term(size, math.ceil(size * safer))
    terms = (weights, activation(model, batch), cuda_graphs(model, batch), non_torch(tp, pp))
    outside = context(tp, pp)
    used = Term(sum(term.expected for term in terms), sum(term.safe for term in terms))
    fixed = engine.kv_cache_memory_bytes
    available = Term(fixed, fixed) if fixed else Term(requested - used.expected, requested - used.safe)
    serving = serving_of(model, engine)
    reach = replace(serving, max_model_len=max(model.context, engine.max_model_len))
    blocks = Term(pool.blocks(available.expected), pool.blocks(available.safe))
    needed = pool.needed(serving)
    kept = Term(max(0, available.expected), max(0, available.safe)) if pool.bytes_per_block else Term(0, 0)
    footprint = Term(used.expected + kept.expected + outside.expected, used.safe + kept.safe + outside.safe)
    found = Estimate(
        engine=engine,
        gpu=gpu,
        weights=weights,
        activation=terms[1],
        cuda_graph=terms[2],
        non_torch=terms[3],
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
        fits=True,
        fits_safely=True,
        reason="",
    )
    expected = _refusal(found, outside.expected, available.expected, footprint.expected)
    safe = _refusal(found, outside.safe, available.safe, footprint.safe)
    reason = expected or (f"fits only by the expected values; by the safe ones {safe}" if safe else "")
    return replace(found, fits=not expected, fits_safely=not safe, reason=reason)


def _per_token(pool: Pool) -> int:
    return sum(
        cache.unpadded // cache.block
        for group in pool.groups
        for cache in group.caches
        if cache.kind not in ("linear", "cross")
    )


def _refusal(found: Estimate, outside: int, available: int, footprint: int) -> str:
    """Why vLLM would not start; empty where it would."""
    gpu, engine = found.gpu, found.engine
    free = gpu.total - gpu.used - outside
    if free < found.requested:
        others = f", {_gib(gpu.used)} used by others" if gpu.used else ""
        return (
            f"{_gib(free)} of {_gib(gpu.total)} are free at start (CUDA's context takes {_gib(outside)}{others}), "
            f"less than the {_gib(found.requested)} that gpu_memory_utilization "
            f"{engine.gpu_memory_utilization:g} asks for"
        )
    if engine.kv_cache_memory_bytes and footprint > gpu.total - gpu.used:
        return f"{_gib(footprint)} are needed in all, and {_gib(gpu.total - gpu.used)} are there"
    if available <= 0 and (found.needed_kv or available < 0):
        return (
            f"the weights ({_gib(found.weights.expected)}) and what the engine needs beside them leave nothing "
            f"of the {_gib(found.requested)} for the KV cache; {_gib(-available)} are missing"
        )
    if found.needed_kv > available:
        return (
            f"one request of {engine.max_model_len} tokens needs {_gib(found.needed_kv)} of KV cache, and "
            f"{_gib(available)} are left"
        )
    return ""


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"
