"""What an engine takes beside weights and cache: activations, CUDA graphs, what is not torch's, the context. Pure.

Each term has an expected and a safe value, in bytes on one rank. The names are those of vLLM 0.29's own accounting
in `v1/worker/gpu_worker.py` (`determine_available_memory`). The constants come from the sources named beside them;
those called *fitted* come from one half of the start-up logs that `bench/fit.py` reads, and its table quotes the
other half.
"""

from dataclasses import dataclass

from reconciler.core.fit.architecture import Architecture, Mlp
from reconciler.core.fit.dtypes import dtype_bytes
from reconciler.core.fit.gpus import GIB, MIB

SAMPLER_BYTES = 6.0
"""Bytes of a logit while sampling: vLLM 0.29's profile run makes 16-bit logits and one float32 copy, and skips
top-k and top-p (`_dummy_sampler_run` in v1/worker/gpu/model_runner.py says so)."""
SAMPLER_BYTES_SORTED = 38.5
"""The same through vLLM 0.12, whose profile run sorted all logits: logged peaks over sequences and vocabulary."""
_SAMPLER_SAFE = 12.0
_ACTIVATION_SAFE = 1.35  # Covers all rows of the log whose peak the forward pass makes, with 10% to spare.

_GRAPHS_FIRST, _GRAPH, _GRAPH_TOKEN = 24 * MIB, 85 * 1024, 1800
"""Fitted: once, and for each layer a graph and a token of all sizes captured. vLLM itself counts at least 1 MiB a
graph."""
_GRAPHS_RECURRENT = 2.5
_GRAPHS_SAFE, _GRAPHS_MORE = 2.0, 200 * MIB

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

_MERGED_ITEM = 16384
"""Tokens of the largest image of models that merge patches (Qwen-VL's default maximum of pixels)."""
_OTHER_ITEM = 4096
_DEEPSTACK = 4
_GRAPHS_MOST = 512


@dataclass(frozen=True, slots=True)
class Term:
    """One part of the memory, in bytes on one rank.

    Attributes:
        expected: What is to be expected.
        safe: What it should not exceed; of something that is left over, what is left at least.
    """

    expected: int
    safe: int


@dataclass(frozen=True, slots=True)
class Batch:
    """The settings that activations and graphs depend on.

    Attributes:
        tokens: `max_num_batched_tokens`.
        seqs: `max_num_seqs`.
        sampler: Bytes a logit, `SAMPLER_BYTES` for 0.29.
        pooling: The model is not sampled from.
        item_tokens: Tokens of the largest multimodal input; None for what is usual.
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


def activation(model: Architecture, batch: Batch) -> Term:
    """The peak of the profile run: the forward pass, the sampler, or the vision tower, whichever is largest."""
    size = dtype_bytes(batch.dtype)
    forward = size * batch.tokens * _forward_width(model, batch)
    seqs = min(batch.seqs, batch.tokens)
    sampler = 0.0 if batch.pooling else batch.sampler * seqs * model.vocab
    vision = _vision(model, batch)
    expected = max(forward, sampler, vision)
    sorted_too = _SAMPLER_SAFE * seqs * model.vocab if not batch.pooling else 0.0
    safe = max(_ACTIVATION_SAFE * max(forward, vision), sampler * 1.05, sorted_too)
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


def _vision(model: Architecture, batch: Batch) -> float:
    vision = model.vision
    if vision is None or batch.skip_mm_profiling:
        return 0.0
    size = dtype_bytes(batch.dtype)
    usual = _MERGED_ITEM if vision.merge > 1 else _OTHER_ITEM
    item = min(batch.item_tokens or usual, batch.max_model_len)
    patches = item * vision.merge**2
    # Attention and MLP of one layer at a time, split by TP; the outputs of all items stay in the encoder cache.
    peak = patches * (vision.intermediate / batch.tp + 2 * vision.hidden)
    kept = max(item, min(batch.tokens, batch.max_model_len)) * vision.out
    if model.model_type.startswith("qwen3_vl"):
        kept *= _DEEPSTACK
    return float(size * (peak + kept))


def graph_sizes(batch: Batch) -> tuple[int, ...]:
    """Batch sizes that graphs are captured for (`_set_cudagraph_sizes` in vllm/config/vllm.py)."""
    most = min(batch.seqs * 2, _GRAPHS_MOST, batch.tokens)
    sizes = [size for size in (1, 2, 4) if size <= most]
    sizes += [*range(8, min(most + 1, 256), 8), *range(256, most + 1, 16)]
    if batch.tokens <= most and batch.tokens not in sizes:
        sizes.append(batch.tokens)
    return tuple(sorted(sizes))


def cuda_graphs(model: Architecture, batch: Batch) -> Term:
    """What capturing takes, and vLLM sets aside: one piecewise graph a size, one full one a size that decodes."""
    if batch.enforce_eager:
        return Term(0, 0)
    sizes = graph_sizes(batch)
    count = len(sizes) + sum(size <= batch.seqs for size in sizes)
    expected = _GRAPHS_FIRST + len(model.mlps) * (count * _GRAPH + sum(sizes) * _GRAPH_TOKEN)
    if any(layer.state is not None for layer in model.layers):
        expected = int(expected * _GRAPHS_RECURRENT)
    return Term(expected, int(expected * _GRAPHS_SAFE) + _GRAPHS_MORE)


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
