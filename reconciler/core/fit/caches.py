"""From a model's layers and the engine's settings to what each layer keeps on one rank. Pure.

As the layers' `get_kv_cache_spec` of vLLM 0.29 (`model_executor/layers/attention`, `layers/mamba/abstract.py`)
and `Platform._align_hybrid_block_size`, which makes the blocks of a hybrid model so large that a state fits into
one.
"""

from dataclasses import dataclass
from math import lcm

from reconciler.core.fit.architecture import Architecture
from reconciler.core.fit.dtypes import dtype_bytes, kv_content_bytes
from reconciler.core.fit.kv import Cache, state_bytes
from reconciler.core.fit.layers import Kind, Layer, State

KERNEL_BLOCK = 16
"""Tokens. The smallest block of the attention kernels on NVIDIA GPUs; sliding layers begin with it."""
_MLA_ALIGNMENT = 128
_ATTENTION = (Kind.FULL, Kind.SLIDING, Kind.CHUNKED, Kind.CROSS)


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """The engine's settings that decide the size of a token's cache.

    Attributes:
        dtype: The model's, `bfloat16` say.
        kv_dtype: vLLM's `kv_cache_dtype`.
        block: vLLM's `block_size`, tokens.
        mamba_mode: `none`, `align` or `all`.
    """

    tp: int = 1
    dtype: str = "bfloat16"
    kv_dtype: str = "auto"
    block: int = KERNEL_BLOCK
    mamba_mode: str = "align"
    speculative_tokens: int = 0
    max_model_len: int = 0


def caches_of(model: Architecture, settings: CacheSettings) -> tuple[Cache, ...]:
    """What every layer that keeps anything keeps on each rank, in the order of the layers.

    Raises:
        ValueError: A dtype is not known.
    """
    kv_dtype = settings.kv_dtype
    if kv_dtype == "auto" and model.quantization is not None and model.quantization.kv_dtype:
        kv_dtype = model.quantization.kv_dtype
    block, padded = _hybrid_block(model, settings, kv_dtype)
    found: list[Cache] = []
    for layer in model.layers:
        if layer.kind in _ATTENTION or layer.kind is Kind.MLA:
            found.append(_attention(layer, settings, kv_dtype, block))
        if layer.indexer:
            found.append(Cache(Kind.MLA, block, content=layer.indexer, shape=("indexer",)))
        if layer.state is not None:
            content = state_size(layer.state, settings)
            span = block if settings.mamba_mode in ("align", "all") else settings.max_model_len
            found.append(Cache(Kind.LINEAR, span, content=content, shape=(layer.state,), padded=padded))
    return tuple(found)


def pages_of_layers(model: Architecture) -> tuple[int, ...]:
    """For each cache of `caches_of`, the number of its layer; which pipeline stage holds it follows from that."""
    found: list[int] = []
    for number, layer in enumerate(model.layers):
        own = layer.kind in _ATTENTION or layer.kind is Kind.MLA
        found += [number] * (own + (layer.indexer > 0) + (layer.state is not None))
    return tuple(found)


def _attention(layer: Layer, settings: CacheSettings, kv_dtype: str, block: int) -> Cache:
    # Fewer KV heads than ranks: each rank keeps a copy of one.
    heads = 1 if layer.kind is Kind.MLA else max(1, layer.kv_heads // settings.tp)
    if layer.kind is Kind.MLA and kv_dtype in ("fp8", "fp8_e4m3", "fp8_e5m2"):
        # Sparse attention's own format of 656 bytes, `fp8_ds_mla` (flashmla_sparse.py).
        content = 656 if layer.indexer else layer.head_dim
    else:
        content = kv_content_bytes(kv_dtype, layer.head_dim, layer.v_head_dim, dtype_bytes(settings.dtype))
    return Cache(
        layer.kind,
        KERNEL_BLOCK if layer.kind is Kind.SLIDING else block,
        heads,
        content,
        (layer.head_dim, layer.v_head_dim, kv_dtype),
        layer.window,
    )


def _hybrid_block(model: Architecture, settings: CacheSettings, kv_dtype: str) -> tuple[int, int]:
    """Tokens of a block, and bytes that a state is padded to (0 for none), in a model with both."""
    states = [layer.state for layer in model.layers if layer.state is not None]
    attention = [layer for layer in model.layers if layer.kind in _ATTENTION or layer.kind is Kind.MLA]
    if not states or not attention:
        return settings.block, 0
    largest = max(state_size(state, settings) for state in states)
    one = _attention(attention[0], settings, kv_dtype, 1)
    token = one.heads * one.content
    align = max(KERNEL_BLOCK, settings.block)
    if attention[0].kind is Kind.MLA:
        align = max(align, _MLA_ALIGNMENT)
    if settings.mamba_mode == "all":
        chunk = lcm(256, align)
        spanned = -(-largest // token)
        block = chunk * -(-spanned // chunk)
    else:
        block = align * -(-largest // (align * token))
    block = max(block, settings.block)
    return block, block * token if block * token != largest else 0


def state_size(state: State, settings: CacheSettings) -> int:
    """Bytes of one recurrent state on one rank (`MambaStateShapeCalculator`, `MambaStateDtypeCalculator`)."""
    tp, more = settings.tp, settings.speculative_tokens
    model = dtype_bytes(settings.dtype)
    recurrent = dtype_bytes(state.dtype) if state.dtype else model
    positions = state.conv - 1 + more
    if state.flavour == "mamba1":
        return state_bytes(
            ((state.inner // tp, state.conv - 1), (state.inner // tp, state.size)), (model, recurrent)
        )
    if state.flavour == "mamba2":
        # Groups that do not divide by TP are copied to every rank that needs them.
        groups = state.groups if state.groups % tp == 0 else tp
        width = (state.inner + 2 * groups * state.size) // tp
        return state_bytes(
            ((width, positions), (state.heads // tp, state.head_dim, state.size)), (model, recurrent)
        )
    if state.flavour == "gdn":
        width = (state.size * state.groups * 2 + state.head_dim * state.heads) // tp
        return state_bytes(
            ((width, positions), (state.heads // tp, state.head_dim, state.size)), (model, recurrent)
        )
    if state.flavour == "kda":
        width = 3 * state.heads * state.head_dim // tp
        return state_bytes(
            ((width, positions), (state.heads // tp, state.head_dim, state.head_dim)), (model, recurrent)
        )
    if state.flavour == "conv":
        return state_bytes(((state.inner // tp, positions),), (model,))
    return state_bytes(((state.heads // tp, state.head_dim, state.head_dim),), (recurrent,))
