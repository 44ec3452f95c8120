"""What a model is made of, read from its config.json: layers with a kind each, heads, sizes, quantisation. Pure.

Names are those of Hugging Face's configs; where families differ, vLLM's reading of them counts (0.29,
`transformers_utils/model_arch_config_convertor.py` and the models).
"""

from dataclasses import dataclass
from enum import StrEnum

from reconciler.core.fit.config_json import (
    ArchitectureError,
    a_dict,
    a_str,
    an_int,
    indexes,
    maybe_int,
    text_config,
)
from reconciler.core.fit.features import Mla, Moe, Vision, mla_of, moe_of, vision_of
from reconciler.core.fit.layers import Kind, Layer, State, kinds_of
from reconciler.core.fit.quantization import Quantization, quantization_of
from reconciler.core.state import Json

__all__ = [
    "Architecture",
    "ArchitectureError",
    "Kind",
    "Layer",
    "Mlp",
    "Moe",
    "State",
    "Vision",
    "architecture_of",
]

_MAX_LAYERS = 2000
_MOST_STRETCH = 1024
_ENCODERS = frozenset(
    "bert roberta xlm-roberta distilbert modernbert nomic_bert new gte deberta deberta-v2 jina_bert".split()
)


class Mlp(StrEnum):
    """What follows a layer's attention."""

    DENSE = "dense"
    MOE = "moe"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model, as far as its memory depends on it.

    Attributes:
        model_type: As in config.json.
        name: The class that vLLM loads, such as `LlamaForCausalLM`; empty where it is not said.
        layers: Every decoder layer, in order.
        intermediate: Size of the dense MLP; 0 without one.
        gated: The MLP has a gate beside its up projection (SwiGLU and its kin).
        context: `max_position_embeddings`, in tokens; 0 where it is not said.
        dtype: Type of the checkpoint (`bfloat16`), empty where it is not said.
        mtp_layers: Layers for multi-token prediction, which are loaded only for speculative decoding.
        encoder_tokens: Longest input of the encoder of an encoder-decoder model.
        rotary: Numbers of a rotary embedding's cosines and sines at one position; 0 without one.
        mrope: Positions have three axes (Qwen-VL), for which vLLM keeps a table four times as long.
    """

    model_type: str
    name: str
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    layers: tuple[Layer, ...]
    mlps: tuple[Mlp, ...]
    intermediate: int = 0
    gated: bool = True
    moe: Moe | None = None
    mla: Mla | None = None
    tied: bool = False
    attention_bias: bool = False
    qk_norm: bool = False
    context: int = 0
    dtype: str = ""
    quantization: Quantization | None = None
    vision: Vision | None = None
    multimodal: bool = False
    encoder_only: bool = False
    encoder_tokens: int = 0
    mtp_layers: int = 0
    per_layer_input: int = 0
    vocab_per_layer: int = 0
    rotary: int = 0
    mrope: bool = False


def architecture_of(config: Json) -> Architecture:
    """Read a parsed config.json.

    Raises:
        ArchitectureError: A size is missing or makes no sense, or the kind of model is not known here.
    """
    text = text_config(config)
    model_type = a_str(text, "model_type") or a_str(config, "model_type")
    if model_type.startswith("deepseek_v4") or a_str(config, "model_type").startswith("deepseek_v4"):
        raise ArchitectureError("DeepSeek V4 keeps a compressed cache that is not estimated here")
    count = an_int(text, "num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers")
    if count > _MAX_LAYERS:
        raise ArchitectureError(f"config.json: {count} layers are more than any model has")
    hidden = an_int(text, "hidden_size", "n_embd", "d_model", "dim", "model_dim")
    heads = maybe_int(text, "num_attention_heads", "n_head", "n_heads", "decoder_attention_heads") or 0
    mla = mla_of(text, model_type)
    head_dim = _head_dim(text, hidden, heads)
    kv_heads = _kv_heads(text, model_type, heads)
    names = config.get("architectures")
    name = next((item for item in names if isinstance(item, str)), "") if isinstance(names, list) else ""
    encoder_only = model_type in _ENCODERS or name.startswith(("Bert", "Roberta", "XLMRoberta", "ModernBert"))
    layers = kinds_of(
        text,
        model_type,
        count,
        attention=Layer(
            Kind.ENCODER if encoder_only else Kind.FULL, kv_heads, head_dim, _v_head_dim(text, head_dim)
        ),
        latent=0 if mla is None else mla.kv_lora_rank + mla.rope,
    )
    if any(layer.kind in (Kind.FULL, Kind.SLIDING, Kind.CHUNKED, Kind.CROSS) for layer in layers):
        for size, what in (
            (heads, "num_attention_heads"),
            (kv_heads, "num_key_value_heads"),
            (head_dim, "head_dim"),
        ):
            if not size:
                raise ArchitectureError(f"config.json: {what} is missing or 0")
    moe = moe_of(text, _intermediate(text, hidden))
    vision = vision_of(config)
    return Architecture(
        model_type=model_type,
        name=name,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=an_int(text, "padded_vocab_size", "vocab_size"),
        layers=layers,
        mlps=_mlps(text, model_type, layers, moe),
        intermediate=_intermediate(text, hidden),
        gated=_gated(text, model_type),
        moe=moe,
        mla=mla,
        tied=_tied(config, text, model_type),
        attention_bias=text.get("attention_bias") is True or model_type in ("qwen2", "qwen2_moe", "qwen2_vl"),
        qk_norm=model_type.startswith(("qwen3", "gemma3", "gemma4")) or text.get("qk_norm") is True,
        context=_context(text, model_type),
        dtype=a_str(text, "dtype", "torch_dtype") or a_str(config, "dtype", "torch_dtype"),
        quantization=quantization_of(config, text),
        vision=vision,
        multimodal=vision is not None or any(key.endswith(("vision_config", "audio_config")) for key in config),
        encoder_only=encoder_only,
        encoder_tokens=_encoder_tokens(text, model_type),
        mtp_layers=maybe_int(text, "num_nextn_predict_layers", "mtp_num_hidden_layers") or 0,
        per_layer_input=maybe_int(text, "hidden_size_per_layer_input") or 0,
        vocab_per_layer=maybe_int(text, "vocab_size_per_layer_input") or 0,
        rotary=_rotary(text, mla, head_dim) if not encoder_only else 0,
        mrope=_mrope(text, model_type),
    )


def _kv_heads(text: Json, model_type: str, heads: int) -> int:
    # vLLM, get_total_num_kv_heads, and the convertors of Falcon and MPT.
    if model_type == "falcon" and text.get("new_decoder_architecture") is not True:
        return 1 if text.get("multi_query", True) is True else heads
    if model_type == "gpt_bigcode" and text.get("multi_query") is True:
        return 1
    attention = a_dict(text, "attn_config")
    nested = maybe_int(attention, "kv_n_heads", "n_kv_heads")
    found = maybe_int(
        text, "n_head_kv", "num_kv_heads", "num_key_value_heads", "multi_query_group_num", "num_attention_groups"
    )
    return found or nested or heads


def _head_dim(text: Json, hidden: int, heads: int) -> int:
    found = maybe_int(text, "head_dim", "hidden_size_per_head", "attention_head_dim")
    return found or (hidden // heads if heads else 0)


def _v_head_dim(text: Json, head_dim: int) -> int:
    # With MLA the value's size is part of the latent vector; elsewhere a few models have a smaller value (MiMo).
    if text.get("kv_lora_rank") is not None:
        return head_dim
    return maybe_int(text, "v_head_dim") or head_dim


def _intermediate(text: Json, hidden: int) -> int:
    size = text.get("intermediate_size")
    if isinstance(size, list):  # Gemma 3n gives one for each layer.
        sizes = indexes(text, "intermediate_size") or [0]
        return max(sizes)
    found = maybe_int(text, "intermediate_size", "ffn_dim", "decoder_ffn_dim", "n_inner", "ffn_hidden_size")
    return found if found is not None else 4 * hidden


def _gated(text: Json, model_type: str) -> bool:
    if model_type in ("nemotron_h", "nemotron", "arcee", "opt", "gpt2", "gpt_neox", "phi", "starcoder2", "falcon"):
        return False
    return model_type not in _ENCODERS and "decoder_ffn_dim" not in text


def _tied(config: Json, text: Json, model_type: str) -> bool:
    for source in (config, text):
        value = source.get("tie_word_embeddings")
        if isinstance(value, bool):
            return value
    # What transformers assumes where the file says nothing; Gemma and the GPT-2 family tie, Llama and Qwen do not.
    return model_type.startswith(("gemma", "gpt2", "cohere", "opt", "t5", "bloom", "falcon", "whisper"))


def _mlps(text: Json, model_type: str, layers: tuple[Layer, ...], moe: Moe | None) -> tuple[Mlp, ...]:
    pattern = a_str(text, "hybrid_override_pattern")
    if pattern and model_type == "nemotron_h":
        return tuple({"-": Mlp.DENSE, "E": Mlp.MOE}.get(letter, Mlp.NONE) for letter in pattern[: len(layers)])
    if model_type in ("mamba", "mamba2", "falcon_mamba"):
        return (Mlp.NONE,) * len(layers)
    if moe is None:
        return (Mlp.DENSE,) * len(layers)
    dense_first = maybe_int(text, "first_k_dense_replace", "num_dense_layers") or 0
    only = set(indexes(text, "mlp_only_layers") or ())
    step = maybe_int(text, "decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_freq") or 1
    period, offset = maybe_int(text, "expert_layer_period") or 1, maybe_int(text, "expert_layer_offset") or 0
    found = []
    for index in range(len(layers)):
        sparse = (
            index >= dense_first and index not in only and (index + 1) % step == 0 and index % period == offset
        )
        found.append(Mlp.MOE if sparse else Mlp.DENSE)
    return tuple(found)


def _context(text: Json, model_type: str) -> int:
    """Tokens that the positions reach, stretched as in vLLM (`_get_and_verify_max_len` in config/model.py)."""
    names = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "max_seq_len")
    context = maybe_int(text, *names) or 0
    scaling = a_dict(text, "rope_scaling") or a_dict(text, "rope_parameters")
    kind, factor = a_str(scaling, "rope_type", "type"), scaling.get("factor")
    if kind in ("", "default", "su", "longrope", "llama3", "mrope") or "gemma3" in model_type:
        return context
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 1 <= factor <= _MOST_STRETCH:
        return context
    if kind == "yarn":
        context = maybe_int(scaling, "original_max_position_embeddings") or context
    return int(context * factor)


def _rotary(text: Json, mla: Mla | None, head_dim: int) -> int:
    if mla is not None:
        return mla.rope
    parameters = a_dict(text, "rope_parameters")
    share = text.get("partial_rotary_factor", parameters.get("partial_rotary_factor"))
    if isinstance(share, int | float) and not isinstance(share, bool) and 0 < share <= 1:
        return int(head_dim * share)
    return head_dim


def _mrope(text: Json, model_type: str) -> bool:
    scaling = a_dict(text, "rope_scaling") or a_dict(text, "rope_parameters")
    return "mrope_section" in scaling or model_type.startswith(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"))


def _encoder_tokens(text: Json, model_type: str) -> int:
    if model_type == "whisper":
        return maybe_int(text, "max_source_positions") or 1500
    return 0
