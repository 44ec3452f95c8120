"""Speculative decoding: the draft's weights, and its layers in the one pool of the target."""

from dataclasses import replace
from typing import Any

import pytest

from reconciler.core.fit.architecture import architecture_of
from reconciler.core.fit.caches import CacheSettings, caches_of
from reconciler.core.fit.drafts import draft_caches, mtp_draft
from reconciler.core.fit.estimate import Draft, Engine, Estimate, Extras, estimate, pools_of
from reconciler.core.fit.gpus import GIB, gpu
from reconciler.core.fit.kv import UnsupportedCacheError
from reconciler.core.fit.layers import Kind
from reconciler.core.fit.pool import Serving, pool_of
from reconciler.core.fit.synthesis import parts_of_config
from reconciler.core.fit.tensors import Loading

from . import configs
from .test_kv_oracle import compare

H100 = gpu("h100-80g")
EAGLE: dict[str, Any] = {
    **configs.LLAMA_70B, "architectures": ["LlamaForCausalLMEagle3"], "num_hidden_layers": 1,
    "hidden_size": 6144, "intermediate_size": 16384, "num_attention_heads": 48, "head_dim": 128,
}  # fmt: skip


def draft_of(config: dict[str, Any]) -> Draft:
    model = architecture_of(config)
    return Draft(model, parts_of_config(model, Loading()))


def of(config: dict[str, Any], extras: Extras, **chosen: Any) -> Estimate:
    model = architecture_of(config)
    return estimate(model, parts_of_config(model, Loading()), Engine(**chosen), H100, extras=extras)


def test_a_draft_model_adds_its_weights_and_its_cache() -> None:
    draft = draft_of(EAGLE)
    plain = of(configs.LLAMA_70B, Extras(), tensor_parallel=4)
    with_it = of(configs.LLAMA_70B, Extras(draft=draft), tensor_parallel=4, speculative_tokens=3)
    alone = of(EAGLE, Extras(), tensor_parallel=4)
    assert with_it.draft == alone.weights.expected
    assert with_it.weights.expected == plain.weights.expected + with_it.draft
    assert with_it.kv_bytes_per_token == plain.kv_bytes_per_token + alone.kv_bytes_per_token
    assert with_it.needed_kv > plain.needed_kv
    # What the draft begins with: 8192 hidden states of 6144 numbers.
    assert with_it.activation.expected == plain.activation.expected + 8192 * 6144 * 2


def test_the_draft_is_on_the_last_stage() -> None:
    draft, chosen = draft_of(EAGLE), {"pipeline_parallel": 4, "tensor_parallel": 2}
    model = architecture_of(configs.LLAMA_70B)
    engine = Engine(dtype="bfloat16", max_model_len=4096, **chosen)  # type: ignore[arg-type]
    plain, with_it = pools_of(model, engine), pools_of(model, engine, draft)
    assert [pool.bytes_per_block for pool in with_it[:-1]] == [pool.bytes_per_block for pool in plain[:-1]]
    assert with_it[-1].bytes_per_block == plain[-1].bytes_per_block * 21 // 20  # One layer more than 20.
    found = of(configs.LLAMA_70B, Extras(draft=draft), **chosen)
    assert found.draft > 0, "the last stage is the one with the least left over"


@pytest.mark.parametrize(
    ("target", "draft"),
    [
        (configs.LLAMA_70B, EAGLE),
        (configs.QWEN3_30B, configs.QWEN3_06B),
        (configs.GPT_OSS, EAGLE),
        (configs.GEMMA3_TEXT, {**configs.GEMMA3_TEXT["text_config"], "model_type": "gemma3_text"}),
        (configs.QWEN3_NEXT, {**configs.QWEN3_NEXT, "layer_types": ["full_attention"], "num_hidden_layers": 1}),
        (configs.DEEPSEEK_V3, {**configs.DEEPSEEK_V3, "num_hidden_layers": 1}),
    ],
)
@pytest.mark.parametrize("tp", [1, 4])
def test_all_layers_are_grouped_as_by_the_engine(target: dict[str, Any], draft: dict[str, Any], tp: int) -> None:
    pytest.importorskip("vllm.v1.kv_cache_interface", reason="no engine is installed here to compare with")
    settings = CacheSettings(tp, max_model_len=4096)
    own = caches_of(architecture_of(target), settings)
    more = draft_caches(draft_of(draft), settings, own)
    assert more
    # One block size for all, but for sliding layers before their pages are made alike.
    assert len({cache.block for cache in (*own, *more) if cache.kind is not Kind.SLIDING}) == 1
    compare([*own, *more], Serving(4096), 8 * GIB)


def test_a_draft_that_cannot_be_laid_out_or_split_is_a_refusal() -> None:
    windows = {
        **configs.LLAMA_70B, "model_type": "mistral", "sliding_window": 1000, "num_hidden_layers": 1,
    }  # fmt: skip
    odd = draft_of(windows)
    found = of(configs.DEEPSEEK_V3, Extras(draft=odd), tensor_parallel=16, max_model_len=4096)
    model = architecture_of(configs.DEEPSEEK_V3)
    settings = CacheSettings(16, max_model_len=4096)
    own = caches_of(model, settings)
    try:
        pool_of([*own, *draft_caches(odd, settings, own)])
        assert "cannot lay out" not in found.reason
    except UnsupportedCacheError:
        assert "cannot lay out" in found.reason
    seven = draft_of({**EAGLE, "num_attention_heads": 7, "num_key_value_heads": 7, "hidden_size": 896})
    refused = of(configs.LLAMA_70B, Extras(draft=seven), tensor_parallel=4)
    assert refused.reason.startswith("the draft model: tensor parallel 4 is not possible: 7 attention heads")


def test_mtp_layers_of_the_model_itself_count_where_they_speculate() -> None:
    model = architecture_of(configs.DEEPSEEK_V3)
    draft = mtp_draft(model, Loading(), weighed=False)
    assert draft is not None
    assert [layer.kind for layer in draft.model.layers] == [Kind.MLA]
    # DeepSeek says 14 B parameters of which 11.5 B are the module's own: experts in FP8, and so on.
    found = of(configs.DEEPSEEK_V3, Extras(draft=draft), tensor_parallel=1, max_model_len=4096)
    assert 11.2 * 10**9 < found.draft < 12.2 * 10**9
    plain = of(configs.DEEPSEEK_V3, Extras(), max_model_len=4096)
    assert found.kv_bytes_per_token == plain.kv_bytes_per_token * 62 // 61
    weighed = mtp_draft(model, Loading(), weighed=True)
    assert weighed is not None
    assert of(configs.DEEPSEEK_V3, Extras(draft=weighed), max_model_len=4096).draft == 0
    assert mtp_draft(architecture_of(configs.LLAMA_70B), Loading(), weighed=False) is None


def test_mtp_of_a_hybrid_is_a_layer_with_attention() -> None:
    model = replace(architecture_of(configs.QWEN3_NEXT), mtp_layers=1)
    draft = mtp_draft(model, Loading(), weighed=False)
    assert draft is not None
    assert [(layer.kind, layer.state) for layer in draft.model.layers] == [(Kind.FULL, None)]
