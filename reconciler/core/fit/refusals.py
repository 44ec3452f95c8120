"""Why vLLM would not start with an estimate's numbers, in words. Pure."""

from reconciler.core.fit.architecture import Architecture
from reconciler.core.fit.engine import Engine, chunks
from reconciler.core.fit.gpus import GIB, Gpu


def of_settings(model: Architecture, engine: Engine) -> str:
    """Why vLLM refuses the settings, whatever the memory; empty where it does not. `engine` has its defaults."""
    if model.context and engine.max_model_len > model.context:
        return f"max_model_len {engine.max_model_len} is more than the model's own {model.context} tokens"
    # SchedulerConfig.verify_max_model_len in vllm/config/scheduler.py
    if engine.max_num_batched_tokens < engine.max_model_len and not chunks(model, engine):
        return (
            f"max_num_batched_tokens {engine.max_num_batched_tokens} is less than max_model_len "
            f"{engine.max_model_len}, which without chunked prefill has to fit into a batch"
        )
    if engine.max_num_batched_tokens < engine.max_num_seqs:
        return (
            f"max_num_batched_tokens {engine.max_num_batched_tokens} is less than "
            f"max_num_seqs {engine.max_num_seqs}"
        )
    return ""


def of_start(gpu: Gpu, engine: Engine, requested: int, outside: int) -> str:
    """Why `request_memory` in v1/worker/utils.py refuses; empty where it does not.

    Args:
        gpu: What there is.
        engine: The settings.
        requested: Bytes that vLLM asks for in all.
        outside: Bytes of CUDA's context.
    """
    free = gpu.total - gpu.used - outside
    if free >= requested:
        return ""
    others = f", {_gib(gpu.used)} used by others" if gpu.used else ""
    return (
        f"{_gib(free)} of {_gib(gpu.total)} are free at start (CUDA's context takes {_gib(outside)}{others}), "
        f"less than the {_gib(requested)} that gpu_memory_utilization {engine.gpu_memory_utilization:g} asks for"
    )


def of_cache(engine: Engine, requested: int, weights: int, available: int, needed: int) -> str:
    """Why the cache is too small; empty where it is not. All in bytes on one rank.

    Args:
        engine: The settings.
        requested: What vLLM may use in all.
        weights: What the weights take of it.
        available: What is left for the cache.
        needed: What one request of the greatest length needs of it.
    """
    if available <= 0 and (needed or available < 0):
        return (
            f"the weights ({_gib(weights)}) and what the engine needs beside them leave nothing "
            f"of the {_gib(requested)} for the KV cache; {_gib(-available)} are missing"
        )
    if needed > available:
        return (
            f"one request of {engine.max_model_len} tokens needs {_gib(needed)} of KV cache, and "
            f"{_gib(available)} are left"
        )
    return ""


def of_sum(gpu: Gpu, footprint: int) -> str:
    """Why everything together is more than there is; empty where it is not."""
    if footprint > gpu.total - gpu.used:
        return f"{_gib(footprint)} are needed in all, and {_gib(gpu.total - gpu.used)} are there"
    return ""


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"
