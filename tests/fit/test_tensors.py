"""Bytes of weights: what is loaded, in which type, and how it is spread over ranks."""

from dataclasses import replace
from typing import Any

import pytest

from reconciler.core.fit.architecture import architecture_of
from reconciler.core.fit.quantization import Method, Quantization
from reconciler.core.fit.synthesis import parts_of_config
from reconciler.core.fit.tensors import (
    Loading,
    Parallel,
    Tensor,
    bytes_per_stage,
    bytes_per_weight,
    parts_of,
    scaled,
    stages_of,
)

from . import configs

SMALL: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 100, "intermediate_size": 128,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
MODEL = architecture_of(SMALL)


def tensors(dtype: str = "BF16", *, layers: int = 2) -> list[Tensor]:
    found = [
        Tensor("model.embed_tokens.weight", dtype, (100, 64)),
        Tensor("lm_head.weight", dtype, (100, 64)),
        Tensor("model.norm.weight", dtype, (64,)),
    ]
    for layer in range(layers):
        at = f"model.layers.{layer}"
        found += [
            Tensor(f"{at}.self_attn.q_proj.weight", dtype, (64, 64)),
            Tensor(f"{at}.self_attn.k_proj.weight", dtype, (16, 64)),
            Tensor(f"{at}.self_attn.v_proj.weight", dtype, (16, 64)),
            Tensor(f"{at}.self_attn.o_proj.weight", dtype, (64, 64)),
            Tensor(f"{at}.mlp.gate_proj.weight", dtype, (128, 64)),
            Tensor(f"{at}.mlp.up_proj.weight", dtype, (128, 64)),
            Tensor(f"{at}.mlp.down_proj.weight", dtype, (64, 128)),
            Tensor(f"{at}.input_layernorm.weight", dtype, (64,)),
            Tensor(f"{at}.post_attention_layernorm.weight", dtype, (64,)),
        ]
    return found


LAYER = 2 * (64 * 64 * 2 + 3 * 64 * 128)
KV = 2 * (2 * 16 * 64)
NORMS = 2 * (2 * 64)
VOCAB = 2 * 128 * 64  # Padded to 128 rows.


def on_ranks(found: list[Tensor], *, loading: Loading | None = None, **spread: Any) -> tuple[int, ...]:
    return bytes_per_stage(parts_of(found, MODEL, loading or Loading()), MODEL, Parallel(**spread))


def test_every_tensor_counts_and_the_vocabulary_is_padded() -> None:
    assert on_ranks(tensors()) == (2 * (LAYER + KV + NORMS) + 2 * VOCAB + 128,)


def test_float32_on_disk_is_bfloat16_in_memory() -> None:
    assert on_ranks(tensors("F32")) == on_ranks(tensors())
    assert on_ranks(tensors(), loading=Loading(dtype="float32")) == (2 * on_ranks(tensors())[0],)


@pytest.mark.parametrize(("tp", "copies"), [(2, 1), (4, 2), (8, 4)])
def test_norms_are_copied_and_kv_heads_too_where_there_are_more_ranks(tp: int, copies: int) -> None:
    wanted = 2 * (LAYER / tp + KV * copies / tp + NORMS) + 2 * VOCAB / tp + 128
    assert on_ranks(tensors(), tp=tp) == (wanted,)


def test_stages_hold_their_layers_and_the_ends_the_vocabulary() -> None:
    layer = LAYER + KV + NORMS
    assert on_ranks(tensors(), pp=2) == (layer + VOCAB, layer + VOCAB + 128)


def test_tied_embeddings_are_loaded_once_and_with_stages_on_both_ends() -> None:
    tied = replace(MODEL, tied=True)
    parts = parts_of(tensors(), tied, Loading())
    assert bytes_per_stage(parts, tied, Parallel()) == (on_ranks(tensors())[0] - VOCAB,)
    layer = LAYER + KV + NORMS
    assert bytes_per_stage(parts, tied, Parallel(pp=2)) == (layer + VOCAB, layer + VOCAB + 128)


def test_what_is_never_loaded_does_not_count() -> None:
    extras = [
        Tensor("model.layers.0.self_attn.rotary_emb.inv_freq", "F32", (4,)),
        Tensor("mtp.layers.0.mlp.up_proj.weight", "BF16", (128, 64)),
        Tensor("model.layers.0.mlp.up_proj.g_idx", "I32", (64,)),
    ]
    assert on_ranks([*tensors(), *extras]) == on_ranks(tensors())


def test_the_mtp_layer_behind_the_last_is_loaded_only_to_speculate() -> None:
    model = replace(MODEL, mtp_layers=1)
    more = tensors(layers=3)
    without = bytes_per_stage(parts_of(more, model, Loading()), model, Parallel())
    assert without == on_ranks(tensors())
    assert bytes_per_stage(parts_of(more, model, Loading(speculative=True)), model, Parallel()) > without


def test_a_vision_tower_can_be_left_out_or_copied() -> None:
    tower = [*tensors(), Tensor("visual.blocks.0.mlp.fc1.weight", "BF16", (256, 64))]
    size = 2 * 256 * 64
    alone = on_ranks(tensors(), tp=2)[0]
    assert on_ranks(tower, tp=2) == (alone + size // 2,)
    assert on_ranks(tower, tp=2, loading=Loading(data_parallel_encoder=True)) == (alone + size,)
    assert on_ranks(tower, tp=2, loading=Loading(language_model_only=True)) == (alone,)


def test_an_embedder_has_no_output_head() -> None:
    assert on_ranks(tensors(), loading=Loading(pooling=True)) == (on_ranks(tensors())[0] - VOCAB,)


def test_quantised_numbers_keep_their_size() -> None:
    awq = [
        Tensor("model.layers.0.mlp.up_proj.qweight", "I32", (64, 16)),
        Tensor("model.layers.0.mlp.up_proj.scales", "F16", (1, 128)),
        Tensor("model.layers.0.mlp.down_proj.weight_scale_inv", "F32", (1, 1)),
    ]
    assert on_ranks(awq) == (4 * 64 * 16 + 2 * 128 + 4,)


def test_experts_are_split_by_size_or_dealt_out_whole() -> None:
    moe = architecture_of({**configs.QWEN3_30B, "num_experts": 6})
    experts = [
        Tensor(f"model.layers.0.mlp.experts.{number}.up_proj.weight", "BF16", (768, 2048)) for number in range(6)
    ]
    parts = parts_of(experts, moe, Loading())
    whole = 6 * 2 * 768 * 2048
    assert bytes_per_stage(parts, moe, Parallel(tp=4))[0] == whole // 4
    assert bytes_per_stage(parts, moe, Parallel(tp=4, expert_parallel=True))[0] == whole // 3


def test_experts_in_mxfp4_are_padded_for_the_kernels_unless_the_total_is_known() -> None:
    """Rows 142 and 45 of the logs: gpt-oss-120b took 65.97 GiB on one rank and 17.22 on each of four."""
    model = architecture_of(configs.GPT_OSS)
    parts = parts_of_config(model, Loading())
    assert bytes_per_stage(parts, model, Parallel())[0] / 2**30 == pytest.approx(65.97, rel=0.003)
    assert bytes_per_stage(parts, model, Parallel(tp=4))[0] / 2**30 == pytest.approx(17.22, rel=0.01)
    assert bytes_per_stage(scaled(parts, 100.0), model, Parallel())[0] == 100


def test_mla_down_projections_are_on_every_rank() -> None:
    model = architecture_of(configs.DEEPSEEK_V3)
    down = [Tensor("model.layers.0.self_attn.kv_a_proj_with_mqa.weight", "BF16", (576, 7168))]
    assert bytes_per_stage(parts_of(down, model, Loading()), model, Parallel(tp=8)) == (2 * 576 * 7168,)


def test_in_flight_quantisation_shrinks_linear_layers_alone() -> None:
    model = replace(MODEL, quantization=Quantization(Method.FP8, 8, in_flight=True))
    total = bytes_per_stage(parts_of(tensors(), model, Loading()), model, Parallel())[0]
    assert total == LAYER + KV + 2 * NORMS + 2 * VOCAB + 128


@pytest.mark.parametrize(
    ("quantization", "size"),
    [
        (Quantization(Method.AWQ, 4, 128, zeros=True), 0.5 + 2.5 / 128),
        (Quantization(Method.PACKED, 4, 128), 0.5 + 2 / 128),
        (Quantization(Method.FP8, 8), 1.0),
        (Quantization(Method.FP8, 8, block=(128, 128)), 1 + 4 / 128**2),
        (Quantization(Method.MXFP4, 4, 32), 0.53125),
        (Quantization(Method.NVFP4, 4, 16), 0.5625),
        (Quantization(Method.INT8, 8), 1.0),
    ],
)
def test_bytes_of_a_weight(quantization: Quantization, size: float) -> None:
    assert bytes_per_weight(replace(MODEL, quantization=quantization)) == size


def test_made_up_parts_are_as_large_as_the_tensors_they_stand_for() -> None:
    for spread in (Parallel(), Parallel(tp=2), Parallel(tp=8), Parallel(tp=2, pp=2)):
        real = bytes_per_stage(parts_of(tensors(), MODEL, Loading()), MODEL, spread)
        made = bytes_per_stage(parts_of_config(MODEL, Loading()), MODEL, spread)
        assert made == pytest.approx(real, abs=128)


def test_stages_are_dealt_out_as_the_engine_does() -> None:
    utils = pytest.importorskip("vllm.distributed.utils", reason="no engine is installed here to compare with")
    for layers in range(1, 40):
        for pp in range(1, min(layers, 9) + 1):
            theirs = [utils.get_pp_indices(layers, rank, pp) for rank in range(pp)]
            assert [(stage.start, stage.stop) for stage in stages_of(layers, pp)] == theirs


def test_an_unknown_dtype_is_an_error() -> None:
    with pytest.raises(ValueError, match="F3"):
        parts_of([Tensor("a", "F3", (1,))], MODEL, Loading())
