"""What an engine takes beside weights and cache: activations, what is not torch's, the context. Pure.

Each term has an expected and a safe value, in bytes on one rank. The names are those of vLLM 0.29's own accounting
in `v1/worker/gpu_worker.py` (`determine_available_memory`). The constants come from the sources named beside them;
those called *fitted* come from one half of the start-up logs that `bench/fit.py` reads, and its table quotes the
other half.
"""

from dataclasses import dataclass
from math import ceil

from reconciler.core.fit.architecture import Architecture, Mlp
from reconciler.core.fit.dtypes import dtype_bytes
from reconciler.core.fit.gpus import GIB

SAMPLER_BYTES = 6.0
"""Bytes of a logit while sampling: vLLM 0.29's profile run makes 16-bit logits and one float32 copy, and skips
top-k and top-p (`_dummy_sampler_run` in v1/worker/gpu/model_runner.py says so)."""
SAMPLER_BYTES_SORTED = 38.5
"""The same through vLLM 0.12, whose profile run sorted all logits: logged peaks over sequences and vocabulary."""
_SAMPLER_SAFE = 12.0
_DEQUANTISES_FROM = 256
_ACTIVATION_SAFE = 1.35  # Covers all rows of the log whose peak the forward pass makes, with 10% to spare.

_NON_TORCH = int(0.20 * GIB)
"""Fitted. Kernels, cuBLAS workspaces and allocator slack: what `total_consumed` shows above the weights."""
_NON_TORCH_SAFE = int(0.75 * GIB)
_NON_TORCH_TP = int(0.40 * GIB)
"""Fitted: custom all-reduce, symmetric memory and NCCL channels that appear in the profile run."""
_NON_TORCH_TP_SAFE = int(0.9 * GIB)

_CONTEXT = int(0.45 * GIB)
"""CUDA's context and modules before the first snapshot: 0.4 to 0.6 GiB from Turing to Hopper."""
_CONTEXT_SAFE = int(0.65 * GIB)
_NCCL = int(0.25 * GIB)
_NCCL_SAFE = int(0.6 * GIB)

_ROUNDING = GIB // 200 + 1
"""Half of 0.01 GiB (`format_gib` in vllm/utils/mem_utils.py)."""

_MERGED_ITEM = 16384
"""Tokens of the largest image of models that merge patches (Qwen-VL's default maximum of pixels)."""
_OTHER_ITEM = 4096
_DEEPSTACK = 4


@dataclass(frozen=True, slots=True)
class Term:
    """One part of the memory, in bytes on one rank.

    Attributes:
        expected: What is to be expected.
        safe: What it should not exceed; of something that is left over, what is left at least.
    """

    expected: int
    safe: int


def measured_term(size: int, share: float, slack: int = 0) -> Term:
    """A measured term: the safe value is that share more, and half of what vLLM's log rounds to."""
    return Term(size, size + ceil(max(0, size) * share) + _ROUNDING + slack)


@dataclass(frozen=True, slots=True)
class Batch:
    """The settings that activations and graphs depend on.

    Attributes:
        tokens: `max_num_batched_tokens`.
        seqs: `max_num_seqs`.
        sampler: Bytes a logit, `SAMPLER_BYTES` for 0.29.
        pooling: The model is not sampled from.
        item_tokens: Tokens of the largest multimodal input; None for what is usual.
        data_parallel_encoder: The vision tower is not split by TP.
        interactive: Every size up to 32 is captured.
        capture: The largest size to capture; 0 for the default.
        blackwell: The GPU is of a kind for which the default goes up to 1024.
        draft_hidden: Hidden size of the draft model; 0 without one.
        draft_layers: Its layers.
        lora_rank: Rank of the LoRA slots; 0 without any.
    """

    tokens: int
    seqs: int
    max_model_len: int
    tp: int = 1
    dtype: str = "bfloat16"
    sampler: float = SAMPLER_BYTES
    pooling: bool = False
    enforce_eager: bool = False
    skip_mm_profiling: bool = False
    item_tokens: int | None = None
    expert_parallel: bool = False
    data_parallel_encoder: bool = False
    optimization_level: int = 2
    interactive: bool = False
    capture: int = 0
    blackwell: bool = False
    speculative_tokens: int = 0
    draft_hidden: int = 0
    draft_layers: int = 0
    lora_rank: int = 0


def activation(model: Architecture, batch: Batch) -> Term:
    """The peak of the profile run: the forward pass, the sampler, or the vision tower, whichever is largest."""
    size = dtype_bytes(batch.dtype)
    forward = size * batch.tokens * _forward_width(model, batch) + batch.tokens * _lora_width(model, batch)
    forward += _dequantised(model, batch)
    seqs = min(batch.seqs, batch.tokens)
    sampler = 0.0 if batch.pooling else batch.sampler * seqs * model.vocab
    vision = _vision(model, batch)
    # A draft keeps the hidden states that it begins with (`AutoRegressiveSpeculator`).
    kept = size * batch.tokens * batch.draft_hidden
    expected = max(forward, sampler, vision) + kept
    sorted_too = _SAMPLER_SAFE * seqs * model.vocab if not batch.pooling else 0.0
    safe = max(_ACTIVATION_SAFE * max(forward, vision), sampler * 1.05, sorted_too) + kept
    return Term(int(expected), int(max(safe, expected)))


def _forward_width(model: Architecture, batch: Batch) -> float:
    """Numbers held for each token at the peak of a layer: the MLP's gate, up and product, four of the stream."""
    stream = 4.0 * model.hidden
    dense = 3.0 * model.intermediate / batch.tp if Mlp.DENSE in model.mlps else 0.0
    # Attention's own peak: query, keys and values, output.
    heads = max((layer.head_dim for layer in model.layers), default=0)
    attention = (2.0 * model.heads * heads + 2.0 * model.kv_heads * heads) / batch.tp
    routed = 0.0
    if model.moe is not None and Mlp.MOE in model.mlps:
        # The fused kernel's three caches hold every token once for each of its experts (fused_moe.py).
        split = 1 if batch.expert_parallel else batch.tp
        routed = (
            model.moe.top_k * (3.0 * model.moe.size / split + model.hidden) + 3.0 * model.moe.shared / batch.tp
        )
    return stream + max(dense, routed, attention)


def _dequantised(model: Architecture, batch: Batch) -> float:
    """The largest layer in 16 bits (`AutoAWQLinearMethod.apply` in auto_awq.py, from 256 tokens on)."""
    if model.quantization is None or not model.quantization.dequantises or batch.tokens < _DEQUANTISES_FROM:
        return 0.0
    dense = 2 * model.intermediate if Mlp.DENSE in model.mlps else 0
    return 2.0 * model.hidden * max(dense, model.heads * model.head_dim) / batch.tp


def _lora_width(model: Architecture, batch: Batch) -> float:
    """Bytes for each token of the float32 product with LoRA's first matrix, for up to three slices at once."""
    return 4.0 * 3 * batch.lora_rank * (model.moe.top_k if model.moe is not None else 1)


def _vision(model: Architecture, batch: Batch) -> float:
    vision = model.vision
    if vision is None or batch.skip_mm_profiling:
        return 0.0
    size = dtype_bytes(batch.dtype)
    usual = _MERGED_ITEM if vision.merge > 1 else _OTHER_ITEM
    item = min(batch.item_tokens or usual, batch.max_model_len)
    patches = item * vision.merge**2
    # Attention and MLP of one layer at a time, split by TP; the outputs of all items stay in the encoder cache.
    tp = 1 if batch.data_parallel_encoder else batch.tp
    peak = patches * (vision.intermediate / tp + 2 * vision.hidden)
    kept = max(item, min(batch.tokens, batch.max_model_len)) * vision.out
    if model.model_type.startswith("qwen3_vl"):
        kept *= _DEEPSTACK
    return float(size * (peak + kept))


def non_torch(tp: int, pp: int) -> Term:
    """What is allocated outside torch between vLLM's first snapshot and the end of its profile run."""
    if tp * pp == 1:
        return Term(_NON_TORCH, _NON_TORCH_SAFE)
    return Term(_NON_TORCH + _NON_TORCH_TP, _NON_TORCH_SAFE + _NON_TORCH_TP_SAFE)


def context(tp: int, pp: int) -> Term:
    """CUDA's context, and NCCL's first buffers: outside what `gpu_memory_utilization` covers, but on the GPU."""
    if tp * pp == 1:
        return Term(_CONTEXT, _CONTEXT_SAFE)
    return Term(_CONTEXT + _NCCL, _CONTEXT_SAFE + _NCCL_SAFE)
