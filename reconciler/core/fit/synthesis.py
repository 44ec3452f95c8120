"""The weights of a model of which only the config is known: every part, as the usual implementation has it. Pure.

Used where there are no safetensors headers: bare facts on a laptop, and the benchmark, whose rows name models but
hold no files. With a known total (`--weights-gib`, `--parameters`) the parts only say how it is split.
"""

from reconciler.core.fit.architecture import Architecture, Mlp, Vision
from reconciler.core.fit.dtypes import dtype_bytes
from reconciler.core.fit.layers import Kind, Layer, State
from reconciler.core.fit.tensors import EVERY, FIRST, LAST, Loading, Part, Split, bytes_per_weight


def parameters_of(model: Architecture, *, language_model_only: bool = False) -> int:
    """Parameters of the model, by the same formulas, unquantised."""
    numbers = _Numbers(model, Loading(), quantised=False)
    return round(sum(part.bytes for part in numbers.parts(language_model_only=language_model_only)) / 2)


def parts_of_config(model: Architecture, loading: Loading) -> tuple[Part, ...]:
    """Every part, in bytes: what the config says, loaded in this type."""
    parts = _Numbers(model, loading).parts(language_model_only=loading.language_model_only)
    if loading.pooling and not model.tied:
        return tuple(part for part in parts if part.split is not Split.VOCAB or part.layer != LAST)
    return parts


class _Numbers:
    """Counts weights, in bytes."""

    def __init__(self, model: Architecture, loading: Loading, *, quantised: bool = True) -> None:
        self._model = model
        self._plain = dtype_bytes(loading.dtype)
        quantization = model.quantization if quantised else None
        self._linear = self._experts = float(self._plain)
        if quantization is not None:
            self._experts = bytes_per_weight(model)
            if not quantization.experts_only:
                self._linear = self._experts
        self._head = self._linear if quantization is not None and quantization.lm_head else float(self._plain)

    def parts(self, *, language_model_only: bool) -> tuple[Part, ...]:
        """All of them."""
        model, plain = self._model, self._plain
        embedding = float(model.vocab * model.hidden * plain)
        found = [Part(embedding, Split.VOCAB, EVERY if model.tied else FIRST, model.vocab)]
        if not model.tied:
            head = model.vocab * model.hidden * self._head
            found.append(Part(head, Split.VOCAB, LAST, model.vocab))
        if model.per_layer_input:
            width = model.per_layer_input * len(model.mlps)
            found.append(
                Part(float(model.vocab_per_layer * width * plain), Split.VOCAB, FIRST, model.vocab_per_layer)
            )
            found.append(Part(float(model.hidden * width * plain), Split.COPIED, FIRST))
        for number, layer in enumerate(model.layers):
            found += self._attention(layer, min(number, len(model.mlps) - 1))
        for number, mlp in enumerate(model.mlps):
            found += self._mlp(mlp, number)
        if model.vision is not None and not language_model_only:
            found.append(Part(float(_vision_parameters(model.vision) * plain), Split.EVENLY, FIRST))
        return tuple(part for part in found if part.bytes)

    def _attention(self, layer: Layer, number: int) -> list[Part]:
        model, plain, linear = self._model, self._plain, self._linear
        found = [Part(float(2 * model.hidden * plain), Split.COPIED, number)]  # Two norms.
        if layer.state is not None:
            found.append(Part(_state_weights(layer.state, model) * linear, Split.EVENLY, number))
        if layer.kind is Kind.MLA and model.mla is not None:
            return found + self._latent(number)
        if layer.kind is Kind.LINEAR or not layer.head_dim:
            return found
        heads = model.heads
        query = model.hidden * heads * layer.head_dim
        if model.model_type.startswith(("qwen3_next", "qwen3_5")):
            query *= 2  # The query is made with its own output gate.
        out = heads * layer.v_head_dim * model.hidden
        found.append(Part((query + out) * linear, Split.EVENLY, number))
        if layer.kind is not Kind.NONE:
            keys = model.hidden * layer.kv_heads * (layer.head_dim + layer.v_head_dim)
            found.append(Part(keys * linear, Split.KV, number))
        if model.attention_bias:
            bias = heads * layer.head_dim + 2 * layer.kv_heads * layer.head_dim
            found.append(Part(float(bias * plain), Split.EVENLY, number))
        return found

    def _latent(self, number: int) -> list[Part]:
        """MLA: the down projections are on every rank, the up projections are split by heads."""
        model, mla = self._model, self._model.mla
        assert mla is not None
        key = mla.nope + mla.rope
        down = model.hidden * (mla.q_lora_rank + mla.kv_lora_rank + mla.rope)
        # Sparse attention's indexer is on every rank too.
        down += (mla.q_lora_rank * mla.indexer_heads + model.hidden) * mla.indexer_dim
        up = (mla.q_lora_rank or model.hidden) * model.heads * key
        up += mla.kv_lora_rank * model.heads * (mla.nope + mla.value) + model.heads * mla.value * model.hidden
        return [
            Part(down * self._linear, Split.COPIED, number),
            Part(up * self._linear, Split.EVENLY, number),
        ]

    def _mlp(self, mlp: Mlp, number: int) -> list[Part]:
        model, matrices = self._model, 3 if self._model.gated else 2
        if mlp is Mlp.DENSE:
            size = matrices * model.hidden * model.intermediate * self._linear
            return [Part(size, Split.EVENLY, number)]
        if mlp is Mlp.NONE or model.moe is None:
            return []
        moe = model.moe
        routed = matrices * moe.experts * model.hidden * moe.size * self._experts
        router = float(model.hidden * moe.experts * self._plain)
        found = [Part(routed, Split.EXPERTS, number), Part(router, Split.COPIED, number)]
        if moe.shared:
            found.append(Part(matrices * model.hidden * moe.shared * self._linear, Split.EVENLY, number))
        if model.model_type == "gpt_oss":
            found.append(
                Part(float(moe.experts * (2 * moe.size + model.hidden) * self._plain), Split.EXPERTS, number)
            )
        if model.model_type.startswith("gemma4"):  # A dense MLP beside the experts.
            found.append(Part(matrices * model.hidden * model.intermediate * self._linear, Split.EVENLY, number))
        return found


def _state_weights(state: State, model: Architecture) -> float:
    """Weights of a linear layer's projections and convolution."""
    hidden = model.hidden
    if state.flavour == "gdn":
        key, value = state.groups * state.size, state.heads * state.head_dim
        return hidden * (2 * key + 2 * value + 2 * state.heads) + value * hidden + (2 * key + value) * state.conv
    if state.flavour == "mamba2":
        width = 2 * state.inner + 2 * state.groups * state.size + state.heads
        return hidden * width + state.inner * hidden + (state.inner + 2 * state.groups * state.size) * state.conv
    if state.flavour == "mamba1":
        rank = -(-hidden // 16)
        return 3 * hidden * state.inner + state.inner * (2 * state.size + 2 * rank + state.conv + state.size)
    if state.flavour == "kda":
        inner = state.heads * state.head_dim
        return 4 * hidden * inner + 4 * state.head_dim * inner + 3 * inner * state.conv
    if state.flavour == "conv":
        return 4 * hidden * state.inner + state.inner * state.conv
    return 5 * hidden * state.heads * state.head_dim


def _vision_parameters(vision: Vision) -> int:
    matrices = 3 if vision.gated else 2
    layer = 4 * vision.hidden * vision.hidden + matrices * vision.hidden * vision.intermediate
    merged = vision.hidden * vision.merge**2
    merger = merged * merged + merged * vision.out if vision.merge > 1 else vision.hidden * vision.out
    merger *= vision.mergers
    return vision.layers * layer + merger + 3 * 2 * vision.patch**2 * vision.hidden
