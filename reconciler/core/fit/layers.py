"""The kind of every layer of a model, which decides what cache it keeps. Pure.

Follows the models of vLLM 0.29: `layer_types` where the config has it, else each family's own rule.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

from reconciler.core.fit.config_json import ArchitectureError, a_dict, a_str, an_int, indexes, maybe_int, strings
from reconciler.core.state import Json


class Kind(StrEnum):
    """What a layer keeps for the tokens it has seen."""

    FULL = "full"
    SLIDING = "sliding"
    CHUNKED = "chunked"
    MLA = "mla"
    LINEAR = "linear"
    """A state of fixed size: Mamba, gated delta net, short convolution."""
    CROSS = "cross"
    ENCODER = "encoder"
    """Attention that keeps nothing."""
    NONE = "none"
    """No attention, or one that shares another layer's cache."""


@dataclass(frozen=True, slots=True)
class State:
    """The recurrent state of a linear layer, before it is split by TP.

    Attributes:
        flavour: `mamba1`, `mamba2`, `gdn`, `kda`, `conv` or `linear`, as in vLLM's `MambaStateShapeCalculator`.
        inner: Width of the convolution (mamba1, mamba2, conv).
        heads: Heads of the state; for gdn and kda those of the values.
        groups: B and C groups (mamba2) or key heads (gdn).
        head_dim: For gdn the value's.
        size: State size (mamba), or the key's head size (gdn).
        conv: Kernel of the convolution; its state holds one position less.
        dtype: Of the recurrent part; empty for the model's own.
    """

    flavour: str
    inner: int = 0
    heads: int = 0
    groups: int = 1
    head_dim: int = 0
    size: int = 0
    conv: int = 0
    dtype: str = ""


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer.

    Attributes:
        head_dim: Size of a key; for MLA of the latent vector with its rotary part.
        v_head_dim: Size of a value.
        window: Tokens of the sliding window or chunk; 0 for none.
        state: Of a linear layer, or of a layer that has both (`both`).
        both: Attention and a state side by side in one layer (Falcon-H1).
        indexer: Bytes a token leaves in the cache of sparse attention's indexer (DeepSeek V3.2); 0 without one.
    """

    kind: Kind
    kv_heads: int = 0
    head_dim: int = 0
    v_head_dim: int = 0
    window: int = 0
    state: State | None = None
    both: bool = False
    indexer: int = 0


_FULL_NAMES = ("full_attention", "attention", "global", "global_attention", "hybrid", "*")
_LINEAR_NAMES = ("linear_attention", "mamba", "conv", "kda", "recurrent", "short_conv", "M")
# transformers derives `layer_types` from these where a file has none: every n-th layer is full.
_PATTERNS = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "gemma3n": 5, "cohere2": 4, "gpt_oss": 2, "exaone4": 4}


def kinds_of(text: Json, model_type: str, count: int, *, attention: Layer, latent: int) -> tuple[Layer, ...]:  # noqa: PLR0911 -- one family after the other
    """The layers of a model.

    Args:
        text: The language model's config.
        model_type: Its type.
        count: Hidden layers.
        attention: What an ordinary attention layer of this model is.
        latent: Size of the MLA vector a token leaves; 0 without MLA.

    Raises:
        ArchitectureError: A layer's kind is not known here.
    """
    if attention.kind is Kind.ENCODER:
        return (attention,) * count
    if latent:
        indexed = maybe_int(text, "index_head_dim") or 0 if text.get("index_topk") else 0
        # FP8 keys with a float32 scale for 128 of them (DeepseekV32IndexerCache in deepseek_v2.py).
        attention = Layer(Kind.MLA, 1, latent, 0, indexer=indexed + indexed // 128 * 4)
    if model_type in ("mamba", "falcon_mamba", "mamba2"):
        return (Layer(Kind.LINEAR, state=_mamba_state(text, model_type)),) * count
    if model_type == "whisper":
        return (attention,) * count + (replace(attention, kind=Kind.CROSS),) * count
    if model_type == "falcon_h1":
        return (replace(attention, state=_mamba_state(text, model_type), both=True),) * count
    names = _layer_names(text, model_type, count)
    window = maybe_int(text, "sliding_window") or 0
    if names is None:
        if window and _slides(text, model_type):
            return (replace(attention, kind=Kind.SLIDING, window=window),) * count
        return (attention,) * count
    layers = tuple(_layer(name, text, model_type, attention, window) for name in names)
    return _without_shared(text, names, layers)


def _slides(text: Json, model_type: str) -> bool:
    # Models whose config carries a window that only a flag switches on (Qwen), or that never use it.
    # Without a type nothing is known of it; a cache for all tokens is the larger one.
    if not model_type:
        return False
    if "use_sliding_window" in text:
        return text["use_sliding_window"] is True
    return not model_type.startswith(("qwen", "nemotron_h", "minimax", "deepseek", "phi4", "glm"))


def _layer(name: str, text: Json, model_type: str, attention: Layer, window: int) -> Layer:
    if name in ("sliding_attention", "local_attention", "sliding"):
        if not window:
            raise ArchitectureError("config.json: there are sliding_attention layers but no sliding_window")
        return replace(attention, kind=Kind.SLIDING, window=window)
    if name == "chunked_attention":
        chunk = maybe_int(text, "attention_chunk_size") or 0
        return replace(attention, kind=Kind.CHUNKED, window=chunk) if chunk else attention
    if name in _FULL_NAMES:
        return _global(text, model_type, attention)
    if name in _LINEAR_NAMES:
        return Layer(Kind.LINEAR, state=_state(text, model_type))
    if name in ("-", "E", "mlp", "moe"):
        return Layer(Kind.NONE)
    raise ArchitectureError(f"config.json: layers of type {name[:40]!r} are not known here")


def _global(text: Json, model_type: str, attention: Layer) -> Layer:
    # Gemma 4: full-attention layers have larger and fewer heads (gemma4_layer_config in vLLM).
    if model_type.startswith("gemma4"):
        head_dim = maybe_int(text, "global_head_dim") or attention.head_dim
        heads = maybe_int(text, "num_global_key_value_heads") or attention.kv_heads
        return replace(attention, kv_heads=heads, head_dim=head_dim, v_head_dim=head_dim)
    return attention


def _without_shared(text: Json, names: list[str], layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    # Gemma 3n and 4: the last layers reuse the cache of an earlier layer of their kind.
    shared = maybe_int(text, "num_kv_shared_layers") or 0
    own = len(layers) - shared
    if not shared or own <= 0:
        return layers
    before = set(names[:own])
    return layers[:own] + tuple(
        replace(layer, kind=Kind.NONE) if name in before else layer
        for name, layer in zip(names[own:], layers[own:], strict=True)
    )


def _layer_names(text: Json, model_type: str, count: int) -> list[str] | None:  # noqa: C901, PLR0911, PLR0912 -- one family after the other
    if model_type == "nemotron_h" and (pattern := a_str(text, "hybrid_override_pattern")):
        if len(pattern) < count:
            raise ArchitectureError("config.json: hybrid_override_pattern is shorter than there are layers")
        return list(pattern[:count])
    if model_type.startswith("llama4"):
        rope = indexes(text, "no_rope_layers")
        step = maybe_int(text, "no_rope_layer_interval") or 4
        rotary = [bool(flag) for flag in rope[:count]] if rope else [(i + 1) % step != 0 for i in range(count)]
        if len(rotary) < count:
            raise ArchitectureError("config.json: no_rope_layers is shorter than there are layers")
        return ["chunked_attention" if flag else "full_attention" for flag in rotary]
    for name in ("layer_types", "layers_block_type"):
        if (found := strings(text, name, count)) is not None:
            return found
    if model_type == "jamba":
        period, offset = an_int(text, "attn_layer_period"), maybe_int(text, "attn_layer_offset") or 0
        return ["attention" if i % period == offset else "mamba" for i in range(count)]
    if model_type == "bamba":
        full = set(indexes(text, "attn_layer_indices") or ())
        return ["attention" if i in full else "mamba" for i in range(count)]
    if model_type == "lfm2":
        full = set(indexes(text, "full_attn_idxs") or ())
        return ["full_attention" if i in full else "conv" for i in range(count)]
    if model_type == "kimi_linear":
        kda = set(indexes(a_dict(text, "linear_attn_config"), "kda_layers") or ())
        return ["kda" if i + 1 in kda else "full_attention" for i in range(count)]
    if model_type in ("minimax_text_01", "minimax") and (kinds := indexes(text, "attn_type_list")):
        return ["full_attention" if kind == 1 else "linear_attention" for kind in kinds[:count]]
    if model_type.startswith(("qwen3_next", "qwen3_5")):
        every = maybe_int(text, "full_attention_interval") or 4
        return ["full_attention" if (i + 1) % every == 0 else "linear_attention" for i in range(count)]
    every = maybe_int(text, "sliding_window_pattern") or _PATTERNS.get(model_type, 0)
    if every and maybe_int(text, "sliding_window"):
        return ["full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in range(count)]
    return None


def _state(text: Json, model_type: str) -> State:
    """The state of a linear layer, as `get_mamba_state_shape_from_config` of the model's class has it."""
    if model_type.startswith(("qwen3_next", "qwen3_5", "olmo_hybrid")):
        return State(
            "gdn",
            heads=an_int(text, "linear_num_value_heads"),
            groups=an_int(text, "linear_num_key_heads"),
            head_dim=an_int(text, "linear_value_head_dim"),
            size=an_int(text, "linear_key_head_dim"),
            conv=an_int(text, "linear_conv_kernel_dim"),
            # Qwen3_5Config in vllm/model_executor/models/config.py takes it from the file; its default there is
            # the state's own, which Qwen 3.5 and 3.6 give as float32.
            dtype=a_str(text, "mamba_ssm_dtype") or ("float32" if model_type.startswith("qwen3_5") else ""),
        )
    if model_type.startswith("lfm2"):
        return State(
            "conv", inner=an_int(text, "conv_dim", "block_dim", "hidden_size"), conv=an_int(text, "conv_L_cache")
        )
    if model_type == "kimi_linear":
        linear = a_dict(text, "linear_attn_config")
        return State(
            "kda",
            heads=an_int(linear, "num_heads"),
            head_dim=an_int(linear, "head_dim"),
            conv=an_int(linear, "short_conv_kernel_size"),
            dtype="float32",
        )
    if model_type in ("minimax_text_01", "minimax"):
        heads = an_int(text, "num_attention_heads")
        size = maybe_int(text, "head_dim") or an_int(text, "hidden_size") // heads
        return State("linear", heads=heads, head_dim=size, dtype="float32")
    return _mamba_state(text, model_type)


def _mamba_state(text: Json, model_type: str) -> State:
    hidden = an_int(text, "hidden_size", "d_model")
    dtype = a_str(text, "mamba_ssm_cache_dtype")
    if model_type in ("mamba", "falcon_mamba", "jamba"):
        expand = maybe_int(text, "mamba_expand", "expand") or 2
        return State(
            "mamba1",
            inner=maybe_int(text, "intermediate_size") or expand * hidden
            if model_type != "jamba"
            else expand * hidden,
            size=an_int(text, "mamba_d_state", "state_size"),
            conv=an_int(text, "mamba_d_conv", "conv_kernel"),
        )
    heads = an_int(text, "mamba_num_heads", "mamba_n_heads", "n_mamba_heads", "num_heads")
    head_dim = maybe_int(text, "mamba_head_dim", "mamba_d_head", "mamba_headdim", "head_dim") or 0
    if model_type == "nemotron_h":
        inner, dtype = heads * head_dim, dtype or "float32"  # NemotronHForCausalLMConfig
    else:
        inner = maybe_int(text, "mamba_d_ssm") or (maybe_int(text, "mamba_expand", "expand") or 2) * hidden
    return State(
        "mamba2",
        inner=inner,
        heads=heads,
        groups=maybe_int(text, "mamba_n_groups", "n_groups", "mamba_ngroups") or 1,
        head_dim=head_dim or inner // heads,
        size=an_int(text, "mamba_d_state", "ssm_state_size", "state_size"),
        conv=an_int(text, "mamba_d_conv", "conv_kernel"),
        dtype=dtype,
    )
