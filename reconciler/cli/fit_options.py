"""The options of `reconcile fit`, and what they mean for an estimate."""

from dataclasses import dataclass
from pathlib import Path

from reconciler.core.fit.dtypes import KV_DTYPES
from reconciler.core.fit.engine import DEFAULT_UTILIZATION, Engine
from reconciler.core.fit.gpus import GIB, Gpu, gpu, of_total

_MOST_GPUS = 1024


@dataclass(frozen=True, slots=True)
class FitOptions:
    """The options of `reconcile fit`; None where one is not given.

    Attributes:
        model_config: A config.json, for bare facts.
        weights_gib: GiB of all weights together, as loaded, over all ranks.
        parameters: Parameters of the whole model.
        quantization: Where config.json does not say it.
        tensor_parallel: None for the fewest ranks on which it fits.
        gpu_memory_gib: Of one GPU, as CUDA reports it.
        gpu: A name such as `h100-80g`, instead.
        gpus: How many alike there are.
        kv_cache_memory_gib: Of each rank, instead of what is left over.
    """

    model_config: Path | None = None
    weights_gib: float | None = None
    parameters: int | None = None
    quantization: str | None = None
    tensor_parallel: int | None = None
    pipeline_parallel: int | None = None
    expert_parallel: bool = False
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    dtype: str | None = None
    kv_cache_dtype: str | None = None
    enforce_eager: bool = False
    gpu_memory_gib: float | None = None
    gpu: str | None = None
    gpus: int | None = None
    gpu_memory_utilization: float | None = None
    kv_cache_memory_gib: float | None = None
    pooling: bool = False
    language_model_only: bool = False


def check(options: FitOptions, name: str | None) -> None:
    """Refuse what makes no sense.

    Args:
        options: What was asked.
        name: A model of the model files; None for bare facts.

    Raises:
        ValueError: It does not.
    """
    if (name is None) == (options.model_config is None):
        raise ValueError("give the name of a model, or --model-config with a config.json")
    if options.weights_gib is not None and options.parameters is not None:
        raise ValueError("--weights-gib and --parameters exclude each other")
    if name is not None and (options.weights_gib is not None or options.parameters is not None):
        raise ValueError(
            "--weights-gib and --parameters go with --model-config; of a model file the tensors count"
        )
    for field in (
        "weights_gib", "parameters", "tensor_parallel", "pipeline_parallel", "max_model_len", "max_num_seqs",
        "max_num_batched_tokens", "gpu_memory_gib", "gpus", "kv_cache_memory_gib", "gpu_memory_utilization",
    ):  # fmt: skip
        value = getattr(options, field)
        if value is not None and not 0 < value < 2**50:
            raise ValueError(f"--{field.replace('_', '-')} {value:g} makes no sense")
    if (options.gpu_memory_utilization or 0) > 1:
        raise ValueError("--gpu-memory-utilization is a share, more than 0 and at most 1")
    if max(options.gpus or 1, options.tensor_parallel or 1, options.pipeline_parallel or 1) > _MOST_GPUS:
        raise ValueError(f"more than {_MOST_GPUS} GPUs make no sense")
    if options.kv_cache_dtype is not None and options.kv_cache_dtype not in KV_DTYPES:
        raise ValueError(f"--kv-cache-dtype is one of {', '.join(KV_DTYPES)}")


def engine_of(options: FitOptions) -> Engine:
    """The engine's settings; 0, or vLLM's default, where an option is not given."""
    return Engine(
        max_model_len=options.max_model_len or 0,
        max_num_seqs=options.max_num_seqs or 0,
        max_num_batched_tokens=options.max_num_batched_tokens or 0,
        dtype=options.dtype or "",
        kv_cache_dtype=options.kv_cache_dtype or "auto",
        gpu_memory_utilization=options.gpu_memory_utilization or DEFAULT_UTILIZATION,
        kv_cache_memory_bytes=int((options.kv_cache_memory_gib or 0) * GIB),
        enforce_eager=options.enforce_eager,
        tensor_parallel=options.tensor_parallel or 1,
        pipeline_parallel=options.pipeline_parallel or 1,
        expert_parallel=options.expert_parallel,
        pooling=options.pooling,
    )


def gpu_of(options: FitOptions) -> Gpu | None:
    """The GPU to suppose; None where none is named.

    Raises:
        ValueError: It is not known.
    """
    if options.gpu_memory_gib is not None:
        return of_total(int(options.gpu_memory_gib * GIB), name=options.gpu or "")
    return gpu(options.gpu) if options.gpu is not None else None
