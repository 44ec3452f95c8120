"""The engine's settings, vLLM's defaults for them, and what the cache and the batches depend on. Pure.

Every field of `Engine` says which argument of vLLM 0.29 it is. Of the arguments that a model file may set, these
change nothing here: `enable_sleep_mode` (its pools hold the same bytes), `long_prefill_token_threshold`,
`mm_processor_cache_gb` (main memory) and everything of the front end. `hf_overrides` belong into the config before
`architecture_of` reads it.
"""

from dataclasses import dataclass, replace

from reconciler.core.fit.architecture import Architecture
from reconciler.core.fit.caches import KERNEL_BLOCK
from reconciler.core.fit.extras import Extras
from reconciler.core.fit.gpus import GIB, Gpu
from reconciler.core.fit.layers import Kind
from reconciler.core.fit.pool import Serving
from reconciler.core.fit.terms import SAMPLER_BYTES, Batch

DEFAULT_UTILIZATION = 0.92
"""vLLM 0.29's own default (`vllm/config/cache.py`)."""
_BLACKWELL = ("b100", "b200", "b300")
_ASYNC = ("", "eagle", "eagle3", "mtp", "dflash", "dspark", "draft_model", "ngram_gpu", "extract_hidden_states")
_V2 = ("", "eagle", "eagle3", "mtp", "dflash", "dspark", "extract_hidden_states")


@dataclass(frozen=True, slots=True)
class Engine:
    """vLLM's settings, by its own names where nothing else is said.

    Attributes:
        max_model_len: Tokens; 0 for the model's own context.
        max_num_seqs: 0 for vLLM's default on this GPU.
        max_num_batched_tokens: 0 for vLLM's default on this GPU.
        dtype: Empty for the checkpoint's, float32 made bfloat16.
        gpu_memory_utilization: Share of the GPU's memory.
        kv_cache_memory_bytes: Bytes on each rank, instead of what is left over; 0 for what is left over.
        tensor_parallel: `tensor_parallel_size`.
        pipeline_parallel: `pipeline_parallel_size`.
        expert_parallel: `enable_expert_parallel`.
        mamba_cache_mode: `align` where prefix caching is on, vLLM's default; `none` with
            `enable_prefix_caching: false`.
        speculative_tokens: `num_speculative_tokens` of `speculative_config`.
        speculative_method: `method` of it, every kind of MTP as `mtp`; empty without one.
        hybrid_kv_cache: Not `disable_hybrid_kv_cache_manager`. Off by itself where attention is chunked.
        sliding_window: Not `disable_sliding_window`, which keeps sliding layers in full, up to one window.
        pooling: The model is an embedder, classifier or the like (`runner: pooling`, or a `convert`).
        language_model_only: Or `limit_mm_per_prompt` with 0 for everything: no tower is run. That none is loaded
            is for `Loading`.
        data_parallel_encoder: `mm_encoder_tp_mode: data`: the tower is not split by TP.
        chunked_prefill: `enable_chunked_prefill`. Without it a batch has to hold the longest prompt.
        async_scheduling: None for vLLM's own choice.
        optimization_level: 0 captures no graphs, 1 piecewise ones only, 2 and 3 both kinds.
        performance_mode: `throughput` doubles the default batch, `interactivity` captures every size up to 32.
        max_cudagraph_capture_size: 0 for vLLM's default.
        cpu_offload_gb: GiB of weights that each rank keeps in main memory.
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
    speculative_method: str = ""
    sliding_window: bool = True
    language_model_only: bool = False
    data_parallel_encoder: bool = False
    chunked_prefill: bool = True
    async_scheduling: bool | None = None
    optimization_level: int = 2
    performance_mode: str = "balanced"
    max_cudagraph_capture_size: int = 0
    cpu_offload_gb: float = 0.0


def as_served(model: Architecture, engine: Engine) -> Architecture:
    """The model as these settings change it.

    Without sliding windows its sliding layers attend to everything, and its context is one window
    (`_get_and_verify_max_len` in config/model.py); as a language model alone it has no tower.
    """
    if engine.language_model_only and (model.vision is not None or model.multimodal):
        model = replace(model, vision=None, multimodal=False)
    windows = [layer.window for layer in model.layers if layer.kind is Kind.SLIDING]
    if engine.sliding_window or not windows:
        return model
    layers = tuple(
        replace(layer, kind=Kind.FULL, window=0) if layer.kind is Kind.SLIDING else layer for layer in model.layers
    )
    return replace(model, layers=layers, context=min(model.context or min(windows), *windows))


def with_defaults(model: Architecture, engine: Engine, gpu: Gpu) -> Engine:
    """The settings with what vLLM would choose on this GPU (`EngineArgs` in engine/arg_utils.py, API server)."""
    longest = engine.max_model_len or model.context or 2048
    more = 2 if engine.performance_mode == "throughput" else 1
    seqs = engine.max_num_seqs or more * (1024 if gpu.large_batches else 256)
    tokens = engine.max_num_batched_tokens
    if not tokens:
        tokens = more * (16384 if gpu.total >= 160 * GIB else 8192 if gpu.large_batches else 2048)
        if not chunks(model, engine):
            tokens = max(tokens, longest)
        tokens = min(tokens, seqs * longest)
    seqs = engine.max_num_seqs or min(seqs, tokens)
    dtype = engine.dtype if engine.dtype not in ("", "auto") else model.dtype or "bfloat16"
    if engine.dtype in ("", "auto") and dtype in ("float32", "float64", "float"):
        dtype = "bfloat16"  # vLLM's `_resolve_auto_dtype` on GPUs that have it.
    return replace(engine, max_model_len=longest, max_num_seqs=seqs, max_num_batched_tokens=tokens, dtype=dtype)


def chunks(model: Architecture, engine: Engine) -> bool:
    """Long prompts are computed in chunks; encoders cannot (`is_chunked_prefill_supported`)."""
    return engine.chunked_prefill and not model.encoder_only


def serving_of(model: Architecture, engine: Engine) -> Serving:
    """What of the settings the cache depends on; `engine` has its defaults."""
    return Serving(
        engine.max_model_len,
        batches_in_flight(engine) * engine.max_num_batched_tokens,
        engine.mamba_cache_mode,
        engine.speculative_tokens,
        model.encoder_tokens,
        keeps_hybrid(model, engine),
    )


def keeps_hybrid(model: Architecture, engine: Engine) -> bool:
    """The hybrid KV cache manager is on; vLLM turns it off for chunked attention (config/vllm.py)."""
    return engine.hybrid_kv_cache and all(layer.kind is not Kind.CHUNKED for layer in model.layers)


def batches_in_flight(engine: Engine) -> int:
    """`VllmConfig.max_concurrent_batches`: a stage more than there are, with asynchronous scheduling.

    It is on but for pooling models and for drafts that cannot keep up; the old model runner, which some drafts
    need, does not combine it with stages.
    """
    stages, method = engine.pipeline_parallel, engine.speculative_method
    asynchronous = engine.async_scheduling
    if asynchronous is None:
        asynchronous = not engine.pooling and method in _ASYNC
    new_runner = method in _V2 and not (method == "eagle3" and stages > 1)
    return stages + 1 if asynchronous and (new_runner or stages == 1) else stages


def batch_of(model: Architecture, engine: Engine, gpu: Gpu, extras: Extras) -> Batch:
    """What of the settings activations and graphs depend on; `engine` has its defaults."""
    return Batch(
        engine.max_num_batched_tokens,
        engine.max_num_seqs,
        engine.max_model_len,
        engine.tensor_parallel,
        engine.dtype,
        engine.sampler_bytes,
        engine.pooling or model.encoder_only,
        engine.enforce_eager,
        engine.skip_mm_profiling,
        engine.item_tokens,
        engine.expert_parallel,
        data_parallel_encoder=engine.data_parallel_encoder,
        optimization_level=engine.optimization_level,
        interactive=engine.performance_mode == "interactivity",
        capture=engine.max_cudagraph_capture_size,
        blackwell=any(name in gpu.name.lower() for name in _BLACKWELL),
        speculative_tokens=engine.speculative_tokens,
        draft_hidden=extras.draft.model.hidden if extras.draft is not None else 0,
        draft_layers=len(extras.draft.model.mlps) if extras.draft is not None else 0,
        lora_rank=extras.lora.max_lora_rank if extras.lora is not None else 0,
    )
