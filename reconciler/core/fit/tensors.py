"""What a checkpoint's tensors become once they are loaded: which are, in which type, and how they are split. Pure.

Every entry of a safetensors header that vLLM loads becomes a `Part`: its bytes as vLLM keeps them, how TP splits
it, and which pipeline stage holds it. `spread` deals the parts out; both are found here too.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from reconciler.core.fit.architecture import Architecture
from reconciler.core.fit.dtypes import BITS, dtype_bytes
from reconciler.core.fit.parts import (
    EVERY,
    FIRST,
    LAST,
    VOCAB_PADDING,
    Basis,
    Part,
    Split,
    buffers_of,
    bytes_per_weight,
    scaled,
)
from reconciler.core.fit.spread import Parallel, bytes_per_stage, stages_of

__all__ = [
    "EVERY",
    "FIRST",
    "LAST",
    "VOCAB_PADDING",
    "Loading",
    "Parallel",
    "Part",
    "Split",
    "Tensor",
    "buffers_of",
    "bytes_per_stage",
    "bytes_per_weight",
    "parts_of",
    "scaled",
    "stages_of",
]


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

    def part(size: float, split: Split, place: int, rows: int = 0) -> Part:
        return Part(size, split, place, rows, basis=Basis.TENSORS)

    size = tensor.count * BITS[tensor.dtype] / 8
    if tensor.dtype in _FLOATS and not _STAYS_FLOAT32.search(name):
        size = float(tensor.count * dtype_bytes(loading.dtype))
    tower = _TOWER.search(name) is not None
    if tower:
        copied = loading.data_parallel_encoder or len(tensor.shape) < 2  # noqa: PLR2004 -- vectors
        return part(size, Split.COPIED if copied else Split.EVENLY, FIRST)
    place = int(layer[1]) if layer else LAST
    if layer is not None and int(layer[1]) >= len(model.layers):
        place = LAST
    if _VOCAB.search(name) and len(tensor.shape) == 2:  # noqa: PLR2004 -- a matrix
        rows = tensor.shape[0]
        return part(size, Split.VOCAB, LAST if _HEAD.search(name) else _embedding_place(model), rows)
    if _EXPERT.search(name) and "shared_expert" not in name:
        return part(_in_flight(size, tensor, model), Split.EXPERTS, place)
    if _COPIED.search(name) and not name.endswith(("_proj.weight_scale", "weight_scale_inv")):
        return part(size, Split.COPIED, place)
    size = _in_flight(size, tensor, model) if len(tensor.shape) > 1 else size
    if _KV.search(name):
        return part(size, Split.KV, place)
    return part(size, Split.EVENLY, place)


def _in_flight(size: float, tensor: Tensor, model: Architecture) -> float:
    quantization = model.quantization
    if quantization is None or not quantization.in_flight or tensor.dtype not in _FLOATS:
        return size
    return tensor.count * bytes_per_weight(model)


def _embedding_place(model: Architecture) -> int:
    # Tied embeddings are the output head too, so with stages the last one has a copy.
    return EVERY if model.tied else FIRST
