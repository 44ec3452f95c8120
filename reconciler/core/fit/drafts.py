"""Speculative decoding: the model's own MTP layers as a draft model, and what a draft keeps in the cache. Pure.

vLLM 0.29 loads a draft on the last pipeline stage, split by the target's TP, and registers its attention layers
with those of the target: one pool for all, grouped by the same rules (`get_kv_cache_spec` in
`v1/worker/gpu/attn_utils.py`, `get_kv_cache_groups`).

Approximations: an embedding or head that a draft's checkpoint brings along counts, though vLLM drops it where it
equals the target's (`load_eagle_model`); without one, the target's is shared. With stages vLLM does not share the
embedding, and its copy on the last stage does not count here. `draft_tensor_parallel_size` is the target's.
"""

from dataclasses import replace

from reconciler.core.fit.architecture import Architecture, Mlp
from reconciler.core.fit.caches import KERNEL_BLOCK, CacheSettings, caches_of
from reconciler.core.fit.dtypes import dtype_bytes
from reconciler.core.fit.extras import Draft
from reconciler.core.fit.kv import Cache
from reconciler.core.fit.layers import Kind
from reconciler.core.fit.parts import LAST, Part, Split
from reconciler.core.fit.synthesis import parts_of_config
from reconciler.core.fit.tensors import Loading

_ATTENTION = (Kind.FULL, Kind.MLA, Kind.SLIDING)


def mtp_draft(model: Architecture, loading: Loading, *, weighed: bool) -> Draft | None:
    """The layers for multi-token prediction that the model brings along; None without any.

    Each is taken to be like the model's last layer with attention, with a projection of two hidden states to one
    before it (`eh_proj` in deepseek_mtp.py, `fc` in qwen3_next_mtp.py), which no quantisation touches.

    Args:
        model: The target.
        loading: How its weights are loaded.
        weighed: The target's parts hold these layers already: those from headers do with `Loading.speculative`.
    """
    layer = next((layer for layer in reversed(model.layers) if layer.kind in _ATTENTION), None)
    if not model.mtp_layers or layer is None:
        return None
    mlp = next((mlp for mlp in reversed(model.mlps) if mlp is not Mlp.NONE), Mlp.NONE)
    count = model.mtp_layers
    layers = (replace(layer, state=None),) * count
    draft = replace(model, layers=layers, mlps=(mlp,) * count, vision=None, mtp_layers=0, per_layer_input=0)
    if weighed:
        return Draft(draft, ())
    parts = [part for part in parts_of_config(draft, loading) if part.split is not Split.VOCAB]
    projection = 2.0 * model.hidden**2 * dtype_bytes(loading.dtype)
    return Draft(draft, (*parts, *(Part(projection, Split.COPIED, LAST) for _ in range(count))))


def draft_caches(draft: Draft, settings: CacheSettings, target: tuple[Cache, ...]) -> tuple[Cache, ...]:
    """What the draft's layers keep, with the blocks that vLLM chose for the target.

    Raises:
        ValueError: A dtype is not known.
    """
    full = [cache.block for cache in target if cache.kind not in (Kind.SLIDING, Kind.LINEAR)]
    block = max(full, default=settings.block)
    return caches_of(draft.model, replace(settings, block=max(block, KERNEL_BLOCK)))
