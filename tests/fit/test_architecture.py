"""What is read of a config.json, and what is refused."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core.fit.architecture import ArchitectureError, Kind, Mlp, architecture_of
from reconciler.core.fit.caches import CacheSettings, caches_of
from reconciler.core.fit.estimate import Engine, estimate
from reconciler.core.fit.gpus import gpu
from reconciler.core.fit.quantization import Method
from reconciler.core.fit.synthesis import parameters_of, parts_of_config
from reconciler.core.fit.tensors import Loading

from . import configs


@pytest.mark.parametrize(
    ("config", "kinds"),
    [
        (configs.LLAMA_70B, {Kind.FULL: 80}),
        (configs.QWEN3_06B, {Kind.FULL: 28}),
        (configs.DEEPSEEK_V3, {Kind.MLA: 61}),
        (configs.GEMMA3_TEXT, {Kind.SLIDING: 29, Kind.FULL: 5}),
        (configs.QWEN3_NEXT, {Kind.LINEAR: 36, Kind.FULL: 12}),
        (configs.GPT_OSS, {Kind.SLIDING: 18, Kind.FULL: 18}),
        (configs.LLAMA4, {Kind.CHUNKED: 36, Kind.FULL: 12}),
        (configs.WHISPER, {Kind.FULL: 32, Kind.CROSS: 32}),
        (configs.BERT, {Kind.ENCODER: 6}),
    ],
)
def test_the_kind_of_every_layer(config: dict[str, Any], kinds: dict[Kind, int]) -> None:
    assert Counter(layer.kind for layer in architecture_of(config).layers) == kinds


def test_mistral_of_old_slides_and_qwen_does_not() -> None:
    mistral = {**configs.LLAMA_70B, "model_type": "mistral", "sliding_window": 4096}
    assert {layer.kind for layer in architecture_of(mistral).layers} == {Kind.SLIDING}
    qwen = {**configs.LLAMA_70B, "model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": False}
    assert {layer.kind for layer in architecture_of(qwen).layers} == {Kind.FULL}


def test_gemma_4_has_other_heads_in_its_full_layers_and_shares_the_cache_of_its_last() -> None:
    text = {
        **configs.GEMMA3_TEXT["text_config"],
        "model_type": "gemma4_text",
        "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 5 + ["sliding_attention"] * 4,
        "global_head_dim": 512,
        "num_global_key_value_heads": 2,
        "num_kv_shared_layers": 10,
    }
    layers = architecture_of({**configs.GEMMA3_TEXT, "model_type": "gemma4", "text_config": text}).layers
    assert (layers[0].head_dim, layers[0].kv_heads) == (256, 4)
    assert (layers[5].head_dim, layers[5].kv_heads) == (512, 2)
    assert [layer.kind for layer in layers[-10:]] == [Kind.NONE] * 10


def test_nemotron_h_is_read_from_its_pattern() -> None:
    config = {
        "model_type": "nemotron_h", "hidden_size": 2688, "num_hidden_layers": 8, "num_attention_heads": 32,
        "num_key_value_heads": 2, "head_dim": 128, "vocab_size": 131072, "intermediate_size": 1856,
        "n_routed_experts": 128, "num_experts_per_tok": 6, "moe_intermediate_size": 1856, "mamba_num_heads": 64,
        "mamba_head_dim": 64, "ssm_state_size": 128, "n_groups": 8, "conv_kernel": 4,
        "hybrid_override_pattern": "MEMEM*E-",
    }  # fmt: skip
    model = architecture_of(config)
    kinds = [Kind.LINEAR, Kind.NONE, Kind.LINEAR, Kind.NONE, Kind.LINEAR, Kind.FULL, Kind.NONE, Kind.NONE]
    assert [layer.kind for layer in model.layers] == kinds
    assert model.mlps[1] is Mlp.MOE
    assert model.mlps[-1] is Mlp.DENSE
    assert model.layers[0].state is not None
    assert model.layers[0].state.dtype == "float32"


def test_dense_layers_before_the_experts() -> None:
    model = architecture_of(configs.DEEPSEEK_V3)
    assert model.mlps[:4] == (Mlp.DENSE, Mlp.DENSE, Mlp.DENSE, Mlp.MOE)
    assert model.mla is not None
    assert model.layers[0].head_dim == 576
    assert model.quantization is not None
    assert model.quantization.block == (128, 128)


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (configs.LLAMA_70B, 70_553_706_496),
        (configs.QWEN3_06B, 595_776_512),
        (configs.QWEN3_30B, 30_532_122_624),
        (configs.DEEPSEEK_V3, 671_026_419_200),
        (configs.GPT_OSS, 116_829_156_672),
    ],
)
def test_parameters_are_those_that_the_model_is_known_for(config: dict[str, Any], parameters: int) -> None:
    model = architecture_of(config)
    assert parameters_of(model) == pytest.approx(parameters, rel=0.004)


@pytest.mark.parametrize(
    ("scaling", "context"),
    [
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 131072),
        ({"type": "linear", "factor": 2}, 262144),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}, 131072),
        ({"type": "mrope", "mrope_section": [16, 24, 24]}, 131072),
        ({"rope_type": "yarn", "factor": "much"}, 131072),
    ],
)
def test_the_context_is_stretched_as_the_engine_stretches_it(scaling: dict[str, Any], context: int) -> None:
    assert architecture_of({**configs.LLAMA_70B, "rope_scaling": scaling}).context == context


def test_sparse_attention_keeps_the_keys_of_its_indexer() -> None:
    sparse = {**configs.DEEPSEEK_V3, "index_topk": 2048, "index_head_dim": 128, "index_n_heads": 64}
    caches = caches_of(architecture_of(sparse), CacheSettings())
    assert [cache.content for cache in caches[:2]] == [576 * 2, 132]
    assert caches_of(architecture_of(sparse), CacheSettings(kv_dtype="fp8"))[0].content == 656
    assert len(caches) == 2 * 61


@pytest.mark.parametrize(
    ("found", "method", "bits"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, Method.AWQ, 4),
        ({"quant_method": "gptq", "bits": 8, "group_size": 32}, Method.GPTQ, 8),
        ({"quant_method": "fp8"}, Method.FP8, 8),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, Method.BITSANDBYTES, 4),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, Method.BITSANDBYTES, 8),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, Method.NVFP4, 4),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, Method.FP8, 8),
        ({"quant_method": "mxfp4"}, Method.MXFP4, 4),
        (
            {"quant_method": "compressed-tensors", "format": "pack-quantized",
             "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int", "group_size": 128}}}},
            Method.PACKED, 4,
        ),
        (
            {"quant_method": "compressed-tensors", "format": "int-quantized",
             "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "int"}}}},
            Method.INT8, 8,
        ),
        (
            {"quant_method": "compressed-tensors", "format": "float-quantized",
             "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float"}}}},
            Method.FP8, 8,
        ),
    ],
)  # fmt: skip
def test_quantisation(found: dict[str, Any], method: Method, bits: int) -> None:
    quantization = architecture_of({**configs.LLAMA_70B, "quantization_config": found}).quantization
    assert quantization is not None
    assert (quantization.method, quantization.bits) == (method, bits)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_size": None}, "hidden_size"),
        ({"num_hidden_layers": "80"}, "num_hidden_layers"),
        ({"num_hidden_layers": 10**9}, "more than any model"),
        ({"num_attention_heads": -1}, "num_attention_heads"),
        ({"vocab_size": True}, "vocab_size"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"layer_types": ["new_attention"] * 80}, "new_attention"),
        ({"layer_types": ["sliding_attention"] * 80}, "no sliding_window"),
        ({"quantization_config": {"quant_method": "new"}}, "quantisation 'new'"),
        ({"model_type": "deepseek_v4"}, "DeepSeek V4"),
    ],
)
def test_what_is_not_understood_is_refused_in_words(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ArchitectureError, match=said):
        architecture_of({**configs.LLAMA_70B, **change})


KEYS = sorted({key for config in configs.EVERY.values() for key in config})


@settings(deadline=None)
@given(
    st.sampled_from(sorted(configs.EVERY)),
    st.dictionaries(
        st.sampled_from(KEYS),
        st.none() | st.booleans() | st.integers(-3, 10**6) | st.floats() | st.text(max_size=5)
        | st.lists(st.integers(0, 3), max_size=3)
        | st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
        max_size=4,
    ),
)  # fmt: skip
def test_a_hostile_config_is_estimated_or_refused_and_nothing_else(name: str, change: dict[str, Any]) -> None:
    try:
        model = architecture_of({**configs.EVERY[name], **change})
    except ArchitectureError:
        return
    try:
        found = estimate(model, parts_of_config(model, Loading()), Engine(), gpu("h100-80g"))
    except ValueError:
        return  # A dtype that is not known.
    assert found.weights.expected >= 0
