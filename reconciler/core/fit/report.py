"""The estimate as JSON, for `reconcile fit --output json` and everything else that shows it. Pure."""

from reconciler.core.fit.advice import Advice
from reconciler.core.fit.architecture import Architecture
from reconciler.core.fit.estimate import Estimate
from reconciler.core.fit.gpus import GIB
from reconciler.core.fit.parallel import pipeline_sizes, tensor_sizes
from reconciler.core.state import Json

TERMS = (
    ("weights", "weights"), ("activation", "activations (peak)"), ("cuda_graph", "CUDA graphs"),
    ("non_torch", "outside torch"), ("available_kv", "KV cache"), ("context", "CUDA context (outside the budget)"),
)  # fmt: skip
"""The terms of an estimate, by attribute, with a title for a person."""


def report(title: str, model: Architecture, found: Estimate, advice: tuple[Advice, ...], gpus: int) -> Json:
    """Everything there is to say; each `_gib` is GiB (2**30 bytes) on one rank; `safe` has the safe values.

    `basis` says what a term rests on; LoRA slots and draft are part of the weights.
    """
    engine = found.engine
    safe = {f"{name}_gib": _rounded(getattr(found, name).safe) for name, _ in TERMS}
    return {
        "model": title,
        "model_type": model.model_type,
        **{f"{name}_gib": _rounded(getattr(found, name).expected) for name, _ in TERMS},
        "basis": {name: str(basis) for name, basis in found.basis.items()},
        "lora_gib": _rounded(found.lora),
        "draft_gib": _rounded(found.draft),
        "offloaded_gib": _rounded(found.offloaded),
        "requested_gib": _rounded(found.requested),
        "footprint_gib": _rounded(found.footprint.expected),
        "minimum_gib": _rounded(found.minimum.expected),
        "needed_kv_gib": _rounded(found.needed_kv),
        "kv_bytes_per_token": found.kv_bytes_per_token,
        "kv_tokens": found.kv_tokens.expected,
        "kv_blocks": found.kv_blocks.expected,
        "block_size": found.block_size,
        "max_concurrency": round(found.concurrency, 2) if found.needed_kv else None,
        "longest_context": found.longest.expected,
        "fits": found.fits,
        "fits_safely": found.fits_safely,
        "reason": found.reason,
        "safe": {
            **safe,
            "footprint_gib": _rounded(found.footprint.safe),
            "minimum_gib": _rounded(found.minimum.safe),
            "kv_tokens": found.kv_tokens.safe,
            "longest_context": found.longest.safe,
            "fits": found.fits_safely,
        },
        "gpu": {"name": found.gpu.name, "total_gib": _rounded(found.gpu.total), "count": gpus},
        "engine": {
            "tensor_parallel": engine.tensor_parallel,
            "pipeline_parallel": engine.pipeline_parallel,
            "max_model_len": engine.max_model_len,
            "max_num_seqs": engine.max_num_seqs,
            "max_num_batched_tokens": engine.max_num_batched_tokens,
            "gpu_memory_utilization": engine.gpu_memory_utilization,
            "dtype": engine.dtype,
            "kv_cache_dtype": engine.kv_cache_dtype,
            "enforce_eager": engine.enforce_eager,
        },
        "tensor_parallel": [
            {"size": size.size, "valid": not size.rule, "rule": size.rule}
            for size in tensor_sizes(model, max(gpus, 8), expert_parallel=engine.expert_parallel)
        ],
        "pipeline_parallel": [
            {"size": size.size, "valid": not size.rule, "rule": size.rule}
            for size in pipeline_sizes(model, max(gpus, 8))
        ],
        "advice": [
            {
                "change": each.change,
                "fits_safely": each.safe,
                "weights_gib": _rounded(each.found.weights.expected),
                "available_kv_gib": _rounded(each.found.available_kv.expected),
                "kv_tokens": each.found.kv_tokens.expected,
            }
            for each in advice
        ],
    }


def _rounded(size: int) -> float:
    return round(size / GIB, 4)
