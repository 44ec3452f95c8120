"""Which tensor- and pipeline-parallel sizes a model can be run with, and the rule that forbids each other one.
Pure.

The rules are vLLM 0.29's: `verify_with_parallel_config` in config/model.py, assertions of the attention layers,
`marlin_utils.py` and `fp8_utils.py` for quantised weights, `get_pp_indices` for stages.
"""

from dataclasses import dataclass

from reconciler.core.fit.architecture import Architecture, Mlp
from reconciler.core.fit.layers import Kind, State
from reconciler.core.fit.quantization import Method
from reconciler.core.fit.tensors import VOCAB_PADDING

_NO_PP = ("WhisperForConditionalGeneration", "BertModel", "MambaForCausalLM")


@dataclass(frozen=True, slots=True)
class Size:
    """A parallel size, and why it is not possible; empty where it is."""

    size: int
    rule: str = ""


def tensor_sizes(model: Architecture, most: int, *, expert_parallel: bool = False) -> tuple[Size, ...]:
    """Every TP size up to so many GPUs, valid or with the rule that forbids it."""
    return tuple(Size(tp, _tensor_rule(model, tp, expert_parallel=expert_parallel)) for tp in range(1, most + 1))


def pipeline_sizes(model: Architecture, most: int) -> tuple[Size, ...]:
    """Every PP size up to so many GPUs, valid or with the rule that forbids it."""
    return tuple(Size(pp, _pipeline_rule(model, pp)) for pp in range(1, most + 1))


def refusal(model: Architecture, tp: int, pp: int, expert_parallel: bool) -> str:
    """Why these sizes are not possible; empty where they are."""
    rule = _tensor_rule(model, tp, expert_parallel=expert_parallel)
    if rule:
        return f"tensor parallel {tp} is not possible: {rule}"
    rule = _pipeline_rule(model, pp)
    return f"pipeline parallel {pp} is not possible: {rule}" if rule else ""


def _tensor_rule(model: Architecture, tp: int, *, expert_parallel: bool) -> str:  # noqa: C901, PLR0911 -- one rule after the other
    if tp == 1:
        return ""
    if model.heads and model.heads % tp:
        return f"{model.heads} attention heads are not divisible by {tp}"
    for heads in sorted({layer.kv_heads for layer in model.layers if layer.kind in _WITH_KV_HEADS}):
        if heads >= tp and heads % tp:
            return f"{heads} KV heads are not divisible by {tp}"
        if heads < tp and tp % heads:
            return f"{tp} is no multiple of {heads} KV heads"
    padded = -(-model.vocab // VOCAB_PADDING) * VOCAB_PADDING
    if padded % tp:
        return f"the vocabulary, padded to {padded}, is not divisible by {tp}"
    for layer in model.layers:
        if layer.state is not None and (rule := _state_rule(layer.state, tp)):
            return rule
    if Mlp.DENSE in model.mlps and model.intermediate % tp:
        return f"the intermediate size {model.intermediate} is not divisible by {tp}"
    if model.moe is not None and not expert_parallel and model.moe.size % tp:
        return f"the experts' intermediate size {model.moe.size} is not divisible by {tp}"
    return _quantised_rule(model, tp, expert_parallel=expert_parallel)


_WITH_KV_HEADS = (Kind.FULL, Kind.SLIDING, Kind.CHUNKED, Kind.CROSS, Kind.ENCODER)


def _state_rule(state: State, tp: int) -> str:
    if state.heads % tp:
        return f"{state.heads} heads of the recurrent state are not divisible by {tp}"
    if state.flavour == "gdn" and state.groups % tp:
        return f"{state.groups} key heads of the linear attention are not divisible by {tp}"
    if state.flavour == "mamba2" and state.groups % tp and state.groups != 1:
        return f"{state.groups} Mamba groups are not divisible by {tp}"
    return f"the state's width {state.inner} is not divisible by {tp}" if state.inner % tp else ""


def _quantised_rule(model: Architecture, tp: int, *, expert_parallel: bool) -> str:  # noqa: C901 -- one rule after the other
    """Rules of quantised linear layers: a rank's rows must hold whole groups, its columns whole blocks."""
    quantization = model.quantization
    if quantization is None or quantization.in_flight:
        return ""
    inputs, outputs = _shapes(model, tp, expert_parallel=expert_parallel)
    if quantization.experts_only:
        return ""  # MXFP4's kernels pad what they need.
    if quantization.block is not None:
        # validate_fp8_block_shape in fp8_utils.py; experts: Fp8MoEMethod.create_weights.
        rows, columns = quantization.block
        for what, size in outputs:
            if size % rows:
                return f"{what} is {size} on each rank, which is not divisible by the FP8 block of {rows}"
        for what, size in inputs:
            if size % columns:
                return f"{what} is {size} on each rank, which is not divisible by the FP8 block of {columns}"
    grouped = quantization.method in (Method.AWQ, Method.GPTQ, Method.PACKED, Method.NVFP4)
    if grouped and quantization.group:
        # verify_group_size_divides_partition in vllm/distributed/utils.py, called from marlin_utils.py.
        for what, size in inputs:
            if size % quantization.group:
                return (
                    f"{what} is {size} on each rank, which is not divisible by the group size {quantization.group}"
                )
    return ""


def _shapes(
    model: Architecture, tp: int, *, expert_parallel: bool
) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Rows and columns of the split linear layers on one rank."""
    inputs, outputs = [], []
    if model.heads and model.mla is None:
        inputs.append(("attention's output", model.heads * model.head_dim // tp))
        outputs.append(("the query", model.heads * model.head_dim // tp))
        outputs.append(("the key", max(1, model.kv_heads // tp) * model.head_dim))
    elif model.mla is not None:
        inputs.append(("attention's output", model.heads * model.mla.value // tp))
        outputs.append(("the query", model.heads * (model.mla.nope + model.mla.rope) // tp))
    if Mlp.DENSE in model.mlps:
        inputs.append(("the intermediate size", model.intermediate // tp))
        outputs.append(("the intermediate size", model.intermediate // tp))
    if model.moe is not None and not expert_parallel:
        inputs.append(("the experts' intermediate size", model.moe.size // tp))
        outputs.append(("the experts' intermediate size", model.moe.size // tp))
    return inputs, outputs


def _pipeline_rule(model: Architecture, pp: int) -> str:
    if pp == 1:
        return ""
    layers = len(model.mlps)
    if pp > layers:
        return f"there are only {layers} layers"
    if model.encoder_tokens or model.encoder_only or model.name in _NO_PP:
        return "vLLM does not split this kind of model into stages"
    return ""
