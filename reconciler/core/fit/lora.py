"""Bytes of the LoRA slots that vLLM makes room for when it starts, whatever adapters come. Pure.

Every linear layer gets two stacked matrices for `max_loras` adapters of rank `max_lora_rank`, A from the layer's
inputs to the rank and B from the rank to its outputs (`create_lora_weights` in vLLM 0.29's `lora/layers/`). TP
splits B of a column-parallel layer and A of a row-parallel one, and copies the other (without
`fully_sharded_loras`).
A layer that merges several has a pair for each of its slices. Towers have none (`enable_tower_connector_lora` is
off). Embedding and head have slots only in some families (`embedding_modules` of the model's class), and there for
the whole vocabulary on every rank.

All of it counts as the model's weights, as in `Model loading took`. The tests build vLLM's own models and compare.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from reconciler.core.fit.architecture import Architecture, Mlp
from reconciler.core.fit.dtypes import dtype_bytes
from reconciler.core.fit.extras import Lora
from reconciler.core.fit.features import Mla, Moe
from reconciler.core.fit.layers import Kind, Layer, State
from reconciler.core.fit.parts import EVERY, FIRST, LAST, VOCAB_PADDING, Part, Split

_LARGEST_VOCAB = 258048
"""Rows of a head with LoRA (`LogitsProcessorWithLoRA`)."""
_WITH_EMBEDDINGS = (
    "llama", "phi3", "phimoe", "qwen3", "mixtral", "granite", "falcon_h1", "nemotron", "jamba", "lfm2", "exaone",
    "minicpm", "solar", "apertus", "hyperclovax", "jais2", "ernie4_5", "cohere",
)  # fmt: skip
_WITHOUT_EMBEDDINGS = ("qwen3_next",)
_WITHOUT_HEAD = ("cohere",)
_FUSED = ("phi3", "phi3small", "phi4mm", "chatglm")
"""Families whose checkpoints merge query, key and value, and gate and up: one pair for the whole."""
_STACKED_EXPERTS = ("gpt_oss", "qwen3_vl_moe", "qwen3_5_moe", "qwen3_omni_moe")
"""Families whose checkpoints stack gate and up of all experts (`is_3d_moe_weight`)."""
_PLAIN_ROUTER = ("glm4_moe",)
"""Families whose router is no layer of vLLM's, and so has no slot."""
_SHARED_GATE = ("qwen2_moe", "qwen3_next", "qwen3_5")


@dataclass(frozen=True, slots=True)
class _Linear:
    """One linear layer.

    Attributes:
        names: vLLM's own name for it, and the names that adapters use for its slices.
        outputs: Of each slice, with how TP splits B.
        rows: Its inputs are what TP splits.
    """

    names: tuple[str, ...]
    inputs: int
    outputs: tuple[tuple[int, Split], ...]
    rows: bool = False


def lora_refusal(model: Architecture, lora: Lora) -> str:
    """Why vLLM would not start with these slots; empty where it would."""
    if _has_head(model, lora) and model.vocab > _LARGEST_VOCAB:
        return f"LoRA on the head of {model.model_type} allows a vocabulary of {_LARGEST_VOCAB}, not {model.vocab}"
    return ""


def lora_parts(
    model: Architecture, lora: Lora, dtype: str, tp: int, *, expert_parallel: bool = False
) -> tuple[Part, ...]:
    """The slots as parts, which `spread` deals out like weights.

    Raises:
        ValueError: The dtype is not known.
    """
    unit = lora.max_loras * lora.max_lora_rank * dtype_bytes(lora.dtype or dtype)
    pairs = [*_of_linears(model, lora, tp), *_of_experts(model, lora, expert_parallel=expert_parallel)]
    ends = model.vocab + model.hidden
    if _wants(model, lora, "embed_tokens"):
        pairs.append((ends, Split.COPIED, EVERY if model.tied else FIRST))
    if _has_head(model, lora):
        pairs.append((ends, Split.COPIED, LAST))
    found = [Part(float(numbers * unit), split, layer, as_loaded=True) for numbers, split, layer in pairs]
    if any(split is Split.EXPERTS for _, split, _ in pairs):
        # Which slots are in use, for each layer of experts.
        flags = 4.0 * (lora.max_loras + 1)
        found += [Part(flags, Split.COPIED, number) for number, mlp in enumerate(model.mlps) if mlp is Mlp.MOE]
    if tp > 1 and _has_head(model, lora):
        # Where in the gathered logits each token is, as 64-bit numbers.
        padded = -(-model.vocab // VOCAB_PADDING) * VOCAB_PADDING
        found.append(Part(8.0 * padded, Split.COPIED, LAST))
    return tuple(found)


def lora_buffers(lora: Lora, tokens: int, seqs: int) -> int:
    """Bytes of the tables that say which token belongs to which adapter (`PunicaWrapperGPU`), on every rank."""
    indices = 4 * 8 * tokens + 3 * 8 * seqs
    kernels = 2 * (2 * 4 * tokens + 2 * 4 * (lora.max_loras + 1) + 4 * (lora.max_loras + 2))
    return indices + kernels


def _has_head(model: Architecture, lora: Lora) -> bool:
    return _wants(model, lora, "lm_head") and not model.model_type.startswith(_WITHOUT_HEAD)


def _wants(model: Architecture, lora: Lora, module: str) -> bool:
    kind = model.model_type
    if not kind.startswith(_WITH_EMBEDDINGS) or kind.startswith(_WITHOUT_EMBEDDINGS):
        return False
    return not lora.target_modules or module in lora.target_modules


def _of_linears(model: Architecture, lora: Lora, tp: int) -> Iterator[tuple[int, Split, int]]:
    for layer, linear in _linears(model, tp):
        if not lora.target_modules or set(linear.names) & set(lora.target_modules):
            yield linear.inputs * len(linear.outputs), Split.EVENLY if linear.rows else Split.COPIED, layer
            yield from ((size, split, layer) for size, split in linear.outputs)


def _of_experts(model: Architecture, lora: Lora, *, expert_parallel: bool) -> Iterator[tuple[int, Split, int]]:
    if model.moe is None or (lora.target_modules and "experts" not in lora.target_modules):
        return
    read, written = _experts(model, model.moe)
    for number, mlp in enumerate(model.mlps):
        if mlp is Mlp.MOE:
            yield read, Split.EXPERTS if expert_parallel else Split.COPIED, number
            yield written, Split.EXPERTS, number


def _experts(model: Architecture, moe: Moe) -> tuple[int, int]:
    """Numbers for each rank of all experts' pairs: from and to the hidden size, and from and to their own."""
    if model.model_type.startswith(_STACKED_EXPERTS):
        return moe.experts * 2 * model.hidden, moe.experts * 3 * moe.size
    slices = 2 if model.gated else 1
    return moe.experts * (slices + 1) * model.hidden, moe.experts * (slices + 1) * moe.size


def _linears(model: Architecture, tp: int) -> Iterator[tuple[int, _Linear]]:
    """Every linear layer with the number of its decoder layer."""
    last = len(model.mlps) - 1
    for number, layer in enumerate(model.layers):
        if layer.state is not None:
            yield from ((min(number, last), linear) for linear in _of_state(model, layer.state, tp))
        if layer.kind is Kind.MLA and model.mla is not None:
            yield from ((min(number, last), linear) for linear in _latent(model, model.mla))
        elif layer.kind is not Kind.LINEAR and layer.head_dim:
            yield from ((min(number, last), linear) for linear in _attention(model, layer))
    for number, mlp in enumerate(model.mlps):
        yield from ((number, linear) for linear in _mlp(model, mlp))


def _attention(model: Architecture, layer: Layer) -> Iterator[_Linear]:
    query = model.heads * layer.head_dim
    if model.model_type.startswith(("qwen3_next", "qwen3_5")):
        query *= 2  # The query is made with its own output gate.
    slices = (
        (query, Split.EVENLY),
        (layer.kv_heads * layer.head_dim, Split.KV),
        (layer.kv_heads * layer.v_head_dim, Split.KV),
    )
    yield from _merged(model, ("qkv_proj", "q_proj", "k_proj", "v_proj"), slices)
    yield _Linear(
        ("o_proj", "out_proj"), model.heads * layer.v_head_dim, ((model.hidden, Split.COPIED),), rows=True
    )


def _merged(
    model: Architecture, names: tuple[str, ...], slices: tuple[tuple[int, Split], ...]
) -> Iterator[_Linear]:
    if model.model_type.startswith(_FUSED):
        # One A for all slices; B is the same.
        yield _Linear(names, model.hidden, slices[:1])
        yield from (_Linear(names, 0, (each,)) for each in slices[1:])
    else:
        yield _Linear(names, model.hidden, slices)


def _latent(model: Architecture, mla: Mla) -> Iterator[_Linear]:
    down = (mla.kv_lora_rank + mla.rope, Split.COPIED)
    query = ((model.heads * (mla.nope + mla.rope), Split.EVENLY),)
    if mla.q_lora_rank:
        both = ("fused_qkv_a_proj", "q_a_proj", "kv_a_proj_with_mqa")
        yield _Linear(both, model.hidden, ((mla.q_lora_rank, Split.COPIED), down))
        yield _Linear(("q_b_proj",), mla.q_lora_rank, query)
    else:
        yield _Linear(("kv_a_proj_with_mqa",), model.hidden, (down,))
        yield _Linear(("q_proj",), model.hidden, query)
    yield _Linear(("kv_b_proj",), mla.kv_lora_rank, ((model.heads * (mla.nope + mla.value), Split.EVENLY),))
    yield _Linear(("o_proj",), model.heads * mla.value, ((model.hidden, Split.COPIED),), rows=True)


def _mlp(model: Architecture, mlp: Mlp) -> Iterator[_Linear]:
    moe = model.moe
    if mlp is Mlp.DENSE or (mlp is Mlp.MOE and model.model_type.startswith("gemma4")):
        yield from _dense(model, model.intermediate)
    if mlp is not Mlp.MOE or moe is None:
        return
    if not model.model_type.startswith(_PLAIN_ROUTER):
        yield _Linear(("gate", "router"), model.hidden, ((moe.experts, Split.COPIED),))
    if moe.shared:
        yield from _dense(model, moe.shared)
        if model.model_type.startswith(_SHARED_GATE):
            yield _Linear(("shared_expert_gate",), model.hidden, ((1, Split.COPIED),))


def _dense(model: Architecture, size: int) -> Iterator[_Linear]:
    if model.gated:
        yield from _merged(model, ("gate_up_proj", "gate_proj", "up_proj"), ((size, Split.EVENLY),) * 2)
    else:
        yield _Linear(("up_proj", "fc1"), model.hidden, ((size, Split.EVENLY),))
    yield _Linear(("down_proj", "fc2"), size, ((model.hidden, Split.COPIED),), rows=True)


def _of_state(model: Architecture, state: State, tp: int) -> Iterator[_Linear]:
    """The projections of a linear layer, and its convolution, which vLLM makes of a linear layer too."""
    hidden = model.hidden
    if state.flavour == "gdn":
        keys, values = state.groups * state.size, state.heads * state.head_dim
        yield _column("conv1d", state.conv, (2 * keys + values,))
        apart = model.model_type.startswith("qwen3_5")
        yield _column("in_proj_qkvz", hidden, (keys, keys, values, values) if apart else (2 * keys + 2 * values,))
        yield _column("in_proj_ba", hidden, (state.heads,) * 2 if apart else (2 * state.heads,))
        yield _row("out_proj", values, hidden)
    elif state.flavour == "mamba2":
        whole = state.groups % tp == 0
        # Groups that do not divide by TP are copied, and the layer is no longer merged (mamba_mixer2.py).
        groups = (state.groups if whole else tp) * state.size
        conv, all_in = (state.inner, groups, groups), (state.inner, state.inner, groups, groups, state.heads)
        yield _column("conv1d", state.conv, conv if whole else (sum(conv),))
        yield _column("in_proj", hidden, all_in if whole else (sum(all_in),))
        yield _row("out_proj", state.inner, hidden)
    elif state.flavour == "mamba1":
        rank = -(-hidden // 16)
        yield _column("conv1d", state.conv, (state.inner,))
        yield _column("in_proj", hidden, (2 * state.inner,))
        yield _row("x_proj", state.inner, rank + 2 * state.size)
        yield _column("dt_proj", rank, (state.inner,))
        yield _row("out_proj", state.inner, hidden)
    elif state.flavour == "conv":
        yield _column("conv", state.conv, (state.inner,))
        yield _column("in_proj", hidden, (state.inner,) * 3)
        yield _row("out_proj", state.inner, hidden)


def _column(name: str, inputs: int, outputs: tuple[int, ...]) -> _Linear:
    return _Linear((name,), inputs, tuple((size, Split.EVENLY) for size in outputs))


def _row(name: str, inputs: int, outputs: int) -> _Linear:
    return _Linear((name,), inputs, ((outputs, Split.COPIED),), rows=True)
