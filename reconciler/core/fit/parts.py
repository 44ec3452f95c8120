"""What weights are made of, once loaded: parts that are split and placed alike, and bytes of quantised ones. Pure.

`tensors` makes parts of a checkpoint's headers, `synthesis` of a config alone; `spread` deals them out to ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from math import prod

from reconciler.core.fit.architecture import Architecture
from reconciler.core.fit.dtypes import dtype_bytes
from reconciler.core.fit.quantization import Method

VOCAB_PADDING = 64
"""Rows. `DEFAULT_VOCAB_PADDING_SIZE` in vLLM's vocab_parallel_embedding.py."""
FIRST, LAST, EVERY = -1, -2, -3
"""Where a part lies that belongs to no layer: the first stage, the last one, the first and the last."""


class Split(StrEnum):
    """How TP divides a part."""

    EVENLY = "evenly"
    KV = "kv"
    """By KV heads, each rank with at least one."""
    VOCAB = "vocab"
    EXPERTS = "experts"
    COPIED = "copied"


class Basis(StrEnum):
    """What a number of the estimate rests on."""

    MEASURED = "measured"
    TENSORS = "tensors"
    """The headers of the checkpoint."""
    GIVEN = "given"
    """A total that somebody gave."""
    CONFIG = "config"
    """Formulas over the config and the settings."""


@dataclass(frozen=True, slots=True)
class Part:
    """Weights that are split and placed alike.

    Attributes:
        bytes: Of all ranks together, had each rank only its share.
        rows: Of a VOCAB part, before padding.
        layer: Its layer, or FIRST, LAST or EVERY.
        as_loaded: The bytes are those in memory, with whatever the kernels pad.
        basis: TENSORS, GIVEN or CONFIG.
    """

    bytes: float
    split: Split
    layer: int
    rows: int = 0
    as_loaded: bool = False
    basis: Basis = Basis.CONFIG


def basis_of(parts: Sequence[Part]) -> Basis:
    """What the parts together rest on; the tensors, if some of them do."""
    found = {part.basis for part in parts}
    return next((basis for basis in (Basis.GIVEN, Basis.TENSORS) if basis in found), Basis.CONFIG)


def scaled(parts: Sequence[Part], total: float) -> tuple[Part, ...]:
    """The same parts with so many bytes together, in memory: where only the total is known."""
    have = sum(part.bytes for part in parts)
    factor = total / have if have else 0.0
    return tuple(replace(part, bytes=part.bytes * factor, as_loaded=True, basis=Basis.GIVEN) for part in parts)


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
    and Qwen3-VL's buffers for deepstack (`qwen3_vl.py`: three levels of `max_num_batched_tokens` embeddings). The
    table is as long as the model's own context, whatever `max_model_len` is.
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
