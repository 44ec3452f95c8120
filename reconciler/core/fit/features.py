"""Parts of a model that not every one has: experts, latent attention, a vision tower. Pure."""

from dataclasses import dataclass

from reconciler.core.fit.config_json import a_dict, a_str, an_int, maybe_int, text_config
from reconciler.core.state import Json


@dataclass(frozen=True, slots=True)
class Moe:
    """Mixture of experts.

    Attributes:
        experts: Routed experts of a layer.
        top_k: Experts that a token is sent to.
        size: Intermediate size of one routed expert.
        shared: Intermediate size of the shared experts together; 0 where there are none.
    """

    experts: int
    top_k: int
    size: int
    shared: int = 0


@dataclass(frozen=True, slots=True)
class Mla:
    """Multi-head latent attention: the ranks and head sizes of its projections."""

    kv_lora_rank: int
    rope: int
    nope: int
    value: int
    q_lora_rank: int = 0
    indexer_heads: int = 0
    indexer_dim: int = 0


@dataclass(frozen=True, slots=True)
class Vision:
    """A vision tower of the usual form."""

    hidden: int
    layers: int
    intermediate: int
    patch: int
    out: int
    merge: int = 1
    gated: bool = False
    mergers: int = 1


def mla_of(text: Json, model_type: str) -> Mla | None:
    """Latent attention; None without it.

    Raises:
        ArchitectureError: A size is missing or makes no sense.
    """
    rank = maybe_int(text, "kv_lora_rank")
    if not rank or model_type == "minicpm3":
        return None
    return Mla(
        rank,
        an_int(text, "qk_rope_head_dim"),
        maybe_int(text, "qk_nope_head_dim") or 0,
        an_int(text, "v_head_dim"),
        maybe_int(text, "q_lora_rank") or 0,
        maybe_int(text, "index_n_heads") or 0,
        maybe_int(text, "index_head_dim") or 0,
    )


def moe_of(text: Json, intermediate: int) -> Moe | None:
    """The experts; None for a dense model.

    Raises:
        ArchitectureError: A size is missing or makes no sense.
    """
    experts = maybe_int(text, "num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")
    if not experts or experts == 1:
        return None
    size = maybe_int(text, "moe_intermediate_size", "expert_ffn_hidden_size") or intermediate
    top_k = (
        maybe_int(text, "num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k_experts", "moe_k") or 1
    )
    shared = maybe_int(text, "shared_expert_intermediate_size", "moe_shared_expert_intermediate_size") or 0
    if not shared:
        shared = (maybe_int(text, "n_shared_experts", "num_shared_experts") or 0) * size
    if a_str(text, "model_type").startswith("llama4"):
        shared = size
    return Moe(experts, top_k, size, shared)


def vision_of(config: Json) -> Vision | None:
    """The vision tower; None without one, or where its shape is not the usual one.

    Raises:
        ArchitectureError: A size makes no sense.
    """
    vision = a_dict(config, "vision_config") or a_dict(a_dict(config, "thinker_config"), "vision_config")
    if not vision:
        return None
    hidden = maybe_int(vision, "hidden_size", "embed_dim", "width")
    depth = maybe_int(vision, "num_hidden_layers", "depth", "layers")
    if not hidden or not depth:
        return None
    if maybe_int(vision, "embed_dim") and vision.get("mlp_ratio"):  # Qwen2-VL: hidden_size is the output's.
        hidden = an_int(vision, "embed_dim")
    text = text_config(config)
    return Vision(
        hidden,
        depth,
        maybe_int(vision, "intermediate_size", "mlp_dim") or 4 * hidden,
        maybe_int(vision, "patch_size") or 14,
        maybe_int(vision, "out_hidden_size") or an_int(text, "hidden_size", "n_embd", "d_model", "dim"),
        maybe_int(vision, "spatial_merge_size") or 1,
        gated=a_str(config, "model_type").startswith(("qwen2_5_vl", "gemma4", "mistral3", "pixtral")),
        # Qwen3-VL's deepstack merges the output of three more layers.
        mergers=4 if a_str(config, "model_type").startswith("qwen3_vl") else 1,
    )
