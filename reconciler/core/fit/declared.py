"""What a model file and the model's own facts ask of an engine, in the terms of the estimate. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from reconciler.core.fit.advice import Weigh
from reconciler.core.fit.architecture import Architecture, architecture_of
from reconciler.core.fit.caches import KERNEL_BLOCK
from reconciler.core.fit.drafts import mtp_draft
from reconciler.core.fit.engine import DEFAULT_UTILIZATION, Engine
from reconciler.core.fit.extras import Draft, Extras, Lora
from reconciler.core.fit.facts import Facts
from reconciler.core.fit.gpus import GIB
from reconciler.core.fit.parts import Part
from reconciler.core.fit.quantization import named
from reconciler.core.fit.weigh import loading_of, weigher
from reconciler.core.spec import ModelSpec, Task
from reconciler.core.state import Json

_CPU_BLOCK, _CPU_MLA_BLOCK = 128, 16
"""Tokens of a KV cache block on the CPU (`check_and_update_config` in vllm/platforms/cpu.py)."""
_DEEPEST_OVERRIDE = 8


@dataclass(frozen=True, slots=True)
class Declared:
    """A model as its file declares it.

    Attributes:
        parts: Its weights.
        weigh: Gives the weights of a sibling that is quantised otherwise, for advice.
        engine: What the file says; 0 or the default where it leaves something open.
        extras: What is loaded beside it: LoRA slots, a draft model.
    """

    model: Architecture
    parts: tuple[Part, ...]
    weigh: Weigh
    engine: Engine
    extras: Extras


def declared(spec: ModelSpec, facts: Facts, draft: Facts | None = None, *, on_cpu: bool) -> Declared:
    """What `spec` asks for.

    Args:
        spec: The model file.
        facts: The model's config and tensors.
        draft: The same of the draft model that it speculates with.
        on_cpu: The engine computes on the CPU.

    Raises:
        ArchitectureError: A config is not understood.
        ValueError: A dtype is not known.
    """
    args, engine = spec.engine.args, engine_of(spec)
    overrides = args.get("hf_overrides")
    model = architecture_of(_merged(facts.config, overrides) if isinstance(overrides, dict) else facts.config)
    if spec.engine.quantization is not None and model.quantization is None:
        model = replace(model, quantization=named(spec.engine.quantization))
    if on_cpu and not args.get("block_size"):
        engine = replace(engine, block_size=_CPU_MLA_BLOCK if model.mla is not None else _CPU_BLOCK)
    loading = loading_of(model, engine)
    weigh = weigher(model, loading, facts.tensors)
    drafts: Draft | None = None
    if draft is not None:
        other = architecture_of(draft.config)
        drafts = Draft(other, weigher(other, loading_of(other, engine), draft.tensors)(other))
    elif engine.speculative_method == "mtp":
        drafts = mtp_draft(model, loading, weighed=facts.tensors is not None)
    lora = Lora(len(spec.adapters), spec.engine.max_lora_rank) if spec.adapters else None
    return Declared(model, weigh(model), weigh, engine, Extras(lora, drafts))


def engine_of(spec: ModelSpec) -> Engine:
    """The engine's settings as the file has them; 0, or vLLM's default, where it leaves them open."""
    engine, args = spec.engine, spec.engine.args
    speculation = args.get("speculative_config")
    speculation = speculation if isinstance(speculation, dict) else {}
    method = str(speculation.get("method") or ("draft_model" if "model" in speculation else ""))
    async_scheduling = args.get("async_scheduling")
    return Engine(
        max_model_len=given(engine.max_model_len, 0),
        max_num_seqs=given(engine.max_num_seqs, 0),
        max_num_batched_tokens=given(engine.max_num_batched_tokens, 0),
        dtype="" if engine.dtype == "auto" else engine.dtype,
        kv_cache_dtype=engine.kv_cache_dtype,
        gpu_memory_utilization=given(engine.gpu_memory_utilization, DEFAULT_UTILIZATION),
        kv_cache_memory_bytes=int(given(engine.kv_cache_memory_gib, 0.0) * GIB),
        enforce_eager=args.get("enforce_eager") is True,
        tensor_parallel=given(spec.resources.tensor_parallel, 1),
        pipeline_parallel=given(spec.resources.pipeline_parallel, 1),
        expert_parallel=args.get("enable_expert_parallel") is True,
        block_size=_count(args, "block_size") or KERNEL_BLOCK,
        mamba_cache_mode="none" if args.get("enable_prefix_caching") is False else "align",
        speculative_tokens=_count(speculation, "num_speculative_tokens"),
        speculative_method="mtp" if "mtp" in method else method,
        hybrid_kv_cache=args.get("disable_hybrid_kv_cache_manager") is not True,
        sliding_window=args.get("disable_sliding_window") is not True,
        pooling=spec.task not in (Task.GENERATE, Task.TRANSCRIBE),
        language_model_only=args.get("language_model_only") is True or _no_media(args.get("limit_mm_per_prompt")),
        data_parallel_encoder=args.get("mm_encoder_tp_mode") == "data",
        skip_mm_profiling=args.get("skip_mm_profiling") is True,
        chunked_prefill=args.get("enable_chunked_prefill") is not False,
        async_scheduling=async_scheduling if isinstance(async_scheduling, bool) else None,
        optimization_level=_count(args, "optimization_level") if "optimization_level" in args else 2,
        performance_mode=str(args.get("performance_mode") or "balanced"),
        max_cudagraph_capture_size=_count(args, "max_cudagraph_capture_size"),
        cpu_offload_gb=_number(args.get("cpu_offload_gb")),
    )


def given(value: Any, default: Any) -> Any:  # noqa: ANN401 -- a number or the word `auto`
    """The value a file gives, or the default where it says `auto`."""
    return default if value == "auto" else value


def _count(settings: Mapping[str, Any], name: str) -> int:
    """A sensible whole number; 0 for anything else, which vLLM will complain about itself."""
    value = settings.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 2**20 else 0


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) and 0 <= value <= 2**20 else 0.0


def _no_media(limits: object) -> bool:
    """Every kind of input but text is forbidden, so that vLLM runs no tower."""
    if not isinstance(limits, Mapping) or not limits:
        return False
    counts: Sequence[object] = [each.get("count") if isinstance(each, dict) else each for each in limits.values()]
    return {"image", "video", "audio"} <= set(limits) and all(count == 0 for count in counts)


def _merged(config: Json, overrides: Json, depth: int = 0) -> Json:
    """The config as vLLM sees it: a nested section is changed key by key (`hf_overrides` in config/model.py)."""
    merged = dict(config)
    for key, value in overrides.items():
        inner = merged.get(key)
        if isinstance(value, dict) and isinstance(inner, dict) and depth < _DEEPEST_OVERRIDE:
            value = _merged(inner, value, depth + 1)  # noqa: PLW2901
        merged[key] = value
    return merged
