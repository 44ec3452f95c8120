"""Bytes of weights on each rank: from safetensors headers, or made up from a config where there are none. Pure.

Every tensor becomes a `Part`: its bytes as vLLM keeps them after loading, how TP splits it, and which pipeline
stage holds it. The split follows the parallel layers of vLLM 0.29 (`model_executor/layers/linear.py`,
`vocab_parallel_embedding.py`, `fused_moe`): columns and rows are divided, norms, routers and MLA's down
projections are copied to every rank, and so are KV heads where there are fewer than ranks.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from math import prod

from reconciler.core.fit.architecture import Architecture
from reconciler.core.fit.dtypes import BITS, dtype_bytes
from reconciler.core.fit.quantization import Method

VOCAB_PADDING = 64
"""Rows. `DEFAULT_VOCAB_PADDING_SIZE` in vLLM's vocab_parallel_embedding.py."""
FIRST, LAST, EVERY = -1, -2, -3
"""Where a part lies that belongs to no layer: the first stage, the last one, each."""


class Split(StrEnum):
    """How TP divides a part."""

    EVENLY = "evenly"
    KV = "kv"
    """By KV heads, each rank with at least one."""
    VOCAB = "vocab"
    EXPERTS = "experts"
    COPIED = "copied"


@dataclass(frozen=True, slots=True)
class Tensor:
    """One entry of a safetensors header."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Numbers in it."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Part:
    """Weights that are split and placed alike.

    Attributes:
        bytes: Of all ranks together, had each rank only its share.
        rows: Of a VOCAB part, before padding.
        layer: Its layer, or FIRST, LAST or EVERY.
        as_loaded: The bytes are those in memory, with whatever the kernels pad.
    """

    bytes: float
    split: Split
    layer: int
    rows: int = 0
    as_loaded: bool = False


@dataclass(frozen=True, slots=True)
class Parallel:
    """How a model is spread over ranks."""

    tp: int = 1
    pp: int = 1
    expert_parallel: bool = False


@dataclass(frozen=True, slots=True)
class Loading:
    """What of a checkpoint is loaded.

    Attributes:
        dtype: The engine's dtype, which unquantised numbers are converted to.
        language_model_only: The vision and audio towers are left out.
        speculative: Layers for multi-token prediction are loaded too.
        data_parallel_encoder: The vision tower is copied to each rank (`mm_encoder_tp_mode: data`).
        pooling: An embedder or the like, whose output head vLLM leaves out (`as_embedding_model`).
    """

    dtype: str = "bfloat16"
    language_model_only: bool = False
    speculative: bool = False
    data_parallel_encoder: bool = False
    pooling: bool = False


_NEVER_LOADED = re.compile(
    r"rotary_emb\.(inv_freq|cos_cached|sin_cached)|rotary_pos_emb\.inv_freq|\.attn\.(masked_)?bias$"
    r"|\.attention\.(masked_)?bias$|position_ids$|\.g_idx$|\.num_batches_tracked$"
)
_MTP = re.compile(r"(^|\.)(mtp|mtp_layers|mtp_block|eagle)\.|^model\.mtp")
_TOWER = re.compile(
    r"(^|\.)(visual|vision_tower|vision_model|vision_encoder|multi_modal_projector|mm_projector|image_newline"
    r"|audio_tower|audio_model|embed_vision|embed_audio|vision_embed|patch_merger)(\.|$)"
)
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.")
_COPIED = re.compile(
    r"norm|\.gate\.(weight|bias|e_score_correction_bias)$|router|q_a_proj|kv_a_proj|shared_expert_gate|layernorm"
    r"|\.A_log$|\.D$|patch_embed|pos_embed|position_embedding|indexer|_scale$|input_scale|layer_scalar"
)
_EXPERT = re.compile(r"\.experts\.|\.block_sparse_moe\.experts|\.experts_")
_KV = re.compile(
    r"\.(k_proj|v_proj|key|value|k|v)\.(weight|bias|qweight|qzeros|scales|weight_packed|weight_scale)"
)
_VOCAB = re.compile(
    r"(embed_tokens|word_embeddings|\.wte|tok_embeddings|lm_head|embed_out|^output)\.(weight|qweight)"
)
_HEAD = re.compile(r"(lm_head|embed_out|^output)\.")
_FLOATS = ("F64", "F32", "F16", "BF16")
# Kept in float32 whatever the dtype: small, but many in hybrid models; and FP8 block scales.
_STAYS_FLOAT32 = re.compile(r"\.A_log$|\.dt_bias$|e_score_correction_bias$|weight_scale_inv$|\.absmax$")


def parts_of(tensors: Iterable[Tensor], model: Architecture, loading: Loading) -> tuple[Part, ...]:
    """What is loaded of these tensors, and how it is split.

    In-flight quantisation (bitsandbytes or FP8 of an unquantised checkpoint) shrinks the linear layers as it
    loads.

    Raises:
        ValueError: A dtype is not known.
    """
    tensors = list(tensors)
    names = {tensor.name for tensor in tensors}
    found = []
    for tensor in tensors:
        if tensor.dtype not in BITS:
            raise ValueError(f"{tensor.name[:80]}: dtype {tensor.dtype[:20]!r} is not known")
        if not _is_loaded(tensor, model, loading, names):
            continue
        found.append(_part(tensor, model, loading))
    return tuple(found)


def _is_loaded(  # noqa: PLR0911 -- one reason after the other
    tensor: Tensor, model: Architecture, loading: Loading, names: set[str]
) -> bool:
    name = tensor.name
    if _NEVER_LOADED.search(name):
        return False
    if loading.pooling and _HEAD.search(name):
        return False
    if model.tied and _HEAD.search(name) and any(_VOCAB.search(n) and not _HEAD.search(n) for n in names):
        return False
    if loading.language_model_only and _TOWER.search(name):
        return False
    if loading.speculative or _TOWER.search(name):
        return True
    if _MTP.search(name):
        return False
    layer = _LAYER.search(name)
    # DeepSeek and GLM keep their MTP layer as one more layer behind the last.
    return layer is None or not model.mtp_layers or int(layer[1]) < len(model.layers)


def _part(tensor: Tensor, model: Architecture, loading: Loading) -> Part:
    name, layer = tensor.name, _LAYER.search(tensor.name)
    size = tensor.count * BITS[tensor.dtype] / 8
    if tensor.dtype in _FLOATS and not _STAYS_FLOAT32.search(name):
        size = float(tensor.count * dtype_bytes(loading.dtype))
    tower = _TOWER.search(name) is not None
    if tower:
        copied = loading.data_parallel_encoder or len(tensor.shape) < 2  # noqa: PLR2004 -- vectors
        return Part(size, Split.COPIED if copied else Split.EVENLY, FIRST)
    place = int(layer[1]) if layer else LAST
    if layer is not None and int(layer[1]) >= len(model.layers):
        place = LAST
    if _VOCAB.search(name) and len(tensor.shape) == 2:  # noqa: PLR2004 -- a matrix
        rows = tensor.shape[0]
        return Part(size, Split.VOCAB, LAST if _HEAD.search(name) else _embedding_place(model), rows)
    if _EXPERT.search(name) and "shared_expert" not in name:
        return Part(_in_flight(size, tensor, model), Split.EXPERTS, place)
    if _COPIED.search(name) and not name.endswith(("_proj.weight_scale", "weight_scale_inv")):
        return Part(size, Split.COPIED, place)
    size = _in_flight(size, tensor, model) if len(tensor.shape) > 1 else size
    if _KV.search(name):
        return Part(size, Split.KV, place)
    return Part(size, Split.EVENLY, place)


def _in_flight(size: float, tensor: Tensor, model: Architecture) -> float:
    quantization = model.quantization
    if quantization is None or not quantization.in_flight or tensor.dtype not in _FLOATS:
        return size
    return tensor.count * bytes_per_weight(model)


def _embedding_place(model: Architecture) -> int:
    # Tied embeddings are the output head too, so with stages the last one has a copy.
    return EVERY if model.tied else FIRST


def bytes_per_weight(model: Architecture) -> float:
    """Bytes that one weight of a quantised linear layer takes, its share of scales and zero points included."""
    quantization = model.quantization
    assert quantization is not None
    bits, group = quantization.bits / 8, quantization.group
    if quantization.method in (Method.AWQ, Method.GPTQ, Method.PACKED):
        # Scales in the model's 16-bit type; zero points of AWQ and GPTQ packed as the weights are.
        return bits + ((2 + (bits if quantization.zeros else 0)) / group if group else 0)
    if quantization.method is Method.BITSANDBYTES:
        # NF4 with an absmax for 64 weights: 1 byte where it is quantised itself, 4 where not; the logged rows
        # lie between, at 3.
        return bits + (3 / group if group else 0)
    if quantization.method is Method.MXFP4:
        return bits + 1 / 32
    if quantization.method is Method.NVFP4:
        return bits + 1 / 16
    if quantization.block is not None:
        return 1 + 4 / prod(quantization.block)
    return 1.0


def buffers_of(model: Architecture, dtype: str, batched_tokens: int) -> tuple[Part, ...]:
    """What vLLM makes itself while it loads, and counts as the model's: in no checkpoint, on every rank.

    The table of rotary cosines and sines (`rotary_embedding/base.py`; four times as long for M-RoPE, `mrope.py`),
    and Qwen3-VL's buffers for deepstack (`qwen3_vl.py`: three levels of `max_num_batched_tokens` embeddings).
    """
    size = dtype_bytes(dtype)
    table = model.context * model.rotary * size * (4 if model.mrope else 1)
    found = [Part(float(table), Split.COPIED, EVERY)] if table else []
    if model.mla is not None:
        # W_UK and W_UV, taken out of kv_b_proj for decoding while it stays for prefill (`mla_attention.py`).
        absorbed = model.mla.kv_lora_rank * model.heads * (model.mla.nope + model.mla.value) * size
        found += [Part(float(absorbed), Split.EVENLY, layer) for layer in range(len(model.mlps))]
    if model.model_type.startswith("qwen3_vl") and model.vision is not None:
        found.append(Part(float(3 * batched_tokens * model.hidden * size), Split.COPIED, FIRST))
    return tuple(found)


def stages_of(layers: int, pp: int) -> tuple[range, ...]:
    """Which layers each pipeline stage holds (`get_pp_indices` in vLLM's distributed/utils.py)."""
    sizes = [layers // pp] * pp
    for place in range(2, layers % pp + 2):
        sizes[-place] += 1
    found, start = [], 0
    for size in sizes:
        found.append(range(start, start + size))
        start += size
    return tuple(found)


def bytes_per_stage(parts: Iterable[Part], model: Architecture, parallel: Parallel) -> tuple[int, ...]:
    """Bytes of weights on a rank of each pipeline stage; the fullest rank where they differ."""
    stages = stages_of(len(model.mlps), parallel.pp)
    totals = [0.0] * parallel.pp
    for part in parts:
        size = _on_one_rank(part, model, parallel)
        if part.layer == EVERY:
            for stage in {0, parallel.pp - 1}:
                totals[stage] += size
        elif part.layer in (FIRST, LAST):
            totals[0 if part.layer == FIRST else -1] += size
        else:
            stage = next((n for n, layers in enumerate(stages) if part.layer in layers), parallel.pp - 1)
            totals[stage] += size
    return tuple(round(total) for total in totals)


def _on_one_rank(part: Part, model: Architecture, parallel: Parallel) -> float:
    tp = parallel.tp
    if part.split is Split.COPIED:
        return part.bytes
    if part.split is Split.KV:
        return part.bytes * max(1, model.kv_heads // tp) / model.kv_heads if model.kv_heads else part.bytes / tp
    if part.split is Split.VOCAB:
        padded = -(-part.rows // VOCAB_PADDING) * VOCAB_PADDING
        return part.bytes * (padded / part.rows) / tp if part.rows else part.bytes / tp
    if part.split is Split.EXPERTS and model.moe is not None:
        size = part.bytes if part.as_loaded else part.bytes * _mxfp4_padding(model, parallel)
        experts = model.moe.experts
        return size * -(-experts // tp) / experts if parallel.expert_parallel else size / tp
    return part.bytes / tp


def _mxfp4_padding(model: Architecture, parallel: Parallel) -> float:
    """How much larger experts in MXFP4 are in memory: their shapes are rounded up for the kernels.

    `mxfp4_round_up_hidden_size_and_intermediate_size` in vLLM's fused_moe/oracle/mxfp4.py: 128 and 256 for Marlin
    and TensorRT-LLM, which take the most of NVIDIA's backends.
    """
    quantization, moe = model.quantization, model.moe
    if moe is None or quantization is None or quantization.method is not Method.MXFP4:
        return 1.0
    ranks = 1 if parallel.expert_parallel else parallel.tp
    rows, columns = -(-model.hidden // 256) * 256, -(-moe.size // (128 * ranks)) * 128 * ranks
    return rows * columns / (model.hidden * moe.size)


def scaled(parts: Sequence[Part], total: float) -> tuple[Part, ...]:
    """The same parts with so many bytes together, in memory: where only the total is known."""
    have = sum(part.bytes for part in parts)
    factor = total / have if have else 0.0
    return tuple(replace(part, bytes=part.bytes * factor, as_loaded=True) for part in parts)
