"""LoRA slots: as many bytes as vLLM's own models make room for, exactly."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reconciler.core.fit.architecture import architecture_of
from reconciler.core.fit.estimate import Engine, Extras, Lora, estimate
from reconciler.core.fit.gpus import GIB, gpu
from reconciler.core.fit.lora import lora_buffers, lora_parts, lora_refusal
from reconciler.core.fit.spread import Parallel, bytes_per_stage
from reconciler.core.fit.synthesis import parts_of_config
from reconciler.core.fit.tensors import Loading

from . import configs

ROOT = Path(__file__).resolve().parents[2]
SMALL: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 330, "hidden_act": "silu",
    "intermediate_size": 128, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "rms_norm_eps": 1e-5,
    "max_position_embeddings": 256,
}  # fmt: skip
MOE: dict[str, Any] = {
    **SMALL, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True,
}  # fmt: skip
DEEPSEEK: dict[str, Any] = {
    **SMALL, "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "n_routed_experts": 4,
    "n_shared_experts": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "first_k_dense_replace": 1,
    "moe_layer_freq": 1, "kv_lora_rank": 16, "q_lora_rank": 24, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
    "v_head_dim": 8, "num_key_value_heads": 8, "topk_method": "greedy", "n_group": 1, "topk_group": 1,
    "routed_scaling_factor": 1.0, "scoring_func": "softmax", "norm_topk_prob": True,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 128, "rope_theta": 10000.0,
    "beta_fast": 32.0, "beta_slow": 1.0,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": SMALL,
    "llama, tied": {**SMALL, "tie_word_embeddings": True},
    "qwen2, no embeddings": {**SMALL, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"},
    "qwen3": {**SMALL, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "tie_word_embeddings": True},
    "mistral, no embeddings": {**SMALL, "architectures": ["MistralForCausalLM"], "model_type": "mistral"},
    "gemma3, no embeddings": {
        **SMALL, "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "sliding_window": 32,
        "sliding_window_pattern": 6, "query_pre_attn_scalar": 8, "hidden_activation": "gelu_pytorch_tanh",
    },
    "phi3, merged": {**SMALL, "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "pad_token_id": 0},
    "opt, no gate": {
        "architectures": ["OPTForCausalLM"], "model_type": "opt", "hidden_size": 64, "ffn_dim": 128,
        "num_hidden_layers": 2, "num_attention_heads": 8, "vocab_size": 330, "max_position_embeddings": 256,
        "word_embed_proj_dim": 64,
    },
    "qwen3 moe": {
        **MOE, "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "decoder_sparse_step": 1,
        "mlp_only_layers": [0],
    },
    "mixtral": {
        **SMALL, "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "deepseek": DEEPSEEK,
    "deepseek, queries in one": {**DEEPSEEK, "q_lora_rank": None},
    "glm4 moe, plain router": {
        **DEEPSEEK, "architectures": ["Glm4MoeForCausalLM"], "model_type": "glm4_moe", "kv_lora_rank": None,
        "num_key_value_heads": 2, "use_qk_norm": False, "partial_rotary_factor": 0.5, "v_head_dim": None,
    },
    "gpt-oss, stacked experts": {
        **SMALL, "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "num_local_experts": 4,
        "num_experts_per_tok": 2, "sliding_window": 128, "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": YARN,
    },
    "qwen3 next": {
        **MOE, "architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next", "linear_num_value_heads": 8,
        "linear_num_key_heads": 4, "linear_value_head_dim": 8, "linear_key_head_dim": 8,
        "linear_conv_kernel_dim": 4, "shared_expert_intermediate_size": 32,
        "layer_types": ["linear_attention", "full_attention"], "partial_rotary_factor": 0.5,
    },
    "falcon h1, both in a layer": {
        **SMALL, "architectures": ["FalconH1ForCausalLM"], "model_type": "falcon_h1", "mamba_d_ssm": 128,
        "mamba_n_heads": 16, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_d_conv": 4,
        "mamba_expand": 2, "mamba_chunk_size": 64,
    },
    "nemotron h": {
        **SMALL, "architectures": ["NemotronHForCausalLM"], "model_type": "nemotron_h",
        "hybrid_override_pattern": "M*-M", "num_hidden_layers": 4, "mamba_num_heads": 16, "mamba_head_dim": 8,
        "n_groups": 2, "ssm_state_size": 8, "conv_kernel": 4, "chunk_size": 64, "layer_norm_epsilon": 1e-5,
        "mlp_hidden_act": "relu2", "use_bias": False, "mlp_bias": False, "attention_bias": False,
        "use_conv_bias": True, "residual_in_fp32": False,
    },
    "jamba": {
        **SMALL, "architectures": ["JambaForCausalLM"], "model_type": "jamba", "attn_layer_period": 2,
        "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1, "num_experts": 1,
        "num_experts_per_tok": 1, "mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_dt_rank": 4,
        "mamba_conv_bias": True, "mamba_proj_bias": False, "use_mamba_kernels": False,
    },
    "lfm2": {
        **SMALL, "architectures": ["Lfm2ForCausalLM"], "model_type": "lfm2",
        "layer_types": ["conv", "full_attention"], "conv_dim": 64, "conv_L_cache": 3, "conv_bias": False,
        "block_dim": 64, "block_ff_dim": 128, "block_multiple_of": 8, "block_auto_adjust_ff_dim": False,
        "norm_eps": 1e-5,
    },
}  # fmt: skip
CASES: list[dict[str, Any]] = [
    {"name": name, "config": config, "tp": tp, "max_loras": 2, "rank": 16, "targets": [], "expert_parallel": False}
    for name, config in FAMILIES.items()
    for tp in (1, 2)
]
CASES += [
    {**CASES[0], "tp": 8, "max_loras": 3, "rank": 64},
    {**CASES[0], "targets": ["q_proj", "down_proj", "lm_head"]},
    {**CASES[0], "targets": ["o_proj", "gate_up_proj"]},
    *[{**case, "expert_parallel": True} for case in CASES if "moe" in case["name"] and case["tp"] == 2],
]
TABLES = [(1, 2048, 256), (3, 8192, 1024)]


@pytest.fixture(scope="module")
def theirs() -> dict[str, Any]:
    pytest.importorskip("vllm.lora.model_manager", reason="no engine is installed here to compare with")
    asked = json.dumps({"cases": CASES, "tables": TABLES})
    done = subprocess.run(
        [sys.executable, "-m", "tests.fit.lora_oracle"],
        input=asked, capture_output=True, text=True, cwd=ROOT, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def ours(case: dict[str, Any]) -> int:
    model = architecture_of(case["config"])
    lora = Lora(case["max_loras"], case["rank"], tuple(case["targets"]))
    spread = Parallel(case["tp"], 1, case["expert_parallel"])
    parts = lora_parts(model, lora, "bfloat16", case["tp"], expert_parallel=case["expert_parallel"])
    (total,) = bytes_per_stage(parts, model, spread)
    return total


def test_slots_are_those_of_the_engines_own_models(theirs: dict[str, Any]) -> None:
    mine = [(case["name"], case["tp"], case["expert_parallel"], ours(case)) for case in CASES]
    wanted = [
        (case["name"], case["tp"], case["expert_parallel"], total)
        for case, total in zip(CASES, theirs["cases"], strict=True)
    ]
    assert mine == wanted


def test_tables_are_those_of_the_engine(theirs: dict[str, Any]) -> None:
    assert [lora_buffers(Lora(count), tokens, seqs) for count, tokens, seqs in TABLES] == theirs["tables"]


def test_the_slots_are_part_of_the_weights_and_not_of_the_margin() -> None:
    model = architecture_of(configs.LLAMA_70B)
    parts, on = parts_of_config(model, Loading()), gpu("h100-80g")
    engine = Engine(tensor_parallel=4, max_model_len=4096)
    plain = estimate(model, parts, engine, on)
    found = estimate(model, parts, engine, on, extras=Extras(Lora(4, 64)))
    slots = bytes_per_stage(lora_parts(model, Lora(4, 64), "bfloat16", 4), model, Parallel(4))[0]
    assert found.lora == slots + lora_buffers(Lora(4, 64), 8192, 1024)
    assert found.weights.expected == plain.weights.expected + found.lora
    assert found.weights.safe == plain.weights.safe + found.lora
    assert found.cuda_graph.expected > plain.cuda_graph.expected


def test_slots_of_embedding_and_head_are_on_the_stages_that_have_them() -> None:
    whole = architecture_of(SMALL)
    ends = 2 * 16 * 2 * (330 + 64)
    for tied, first, last in ((False, 1, 1), (True, 1, 2)):
        model = replace(whole, tied=tied)
        stages = bytes_per_stage(lora_parts(model, Lora(2, 16), "bfloat16", 1), model, Parallel(1, 2))
        layers = bytes_per_stage(
            [part for part in lora_parts(model, Lora(2, 16), "bfloat16", 1) if part.layer >= 0],
            model,
            Parallel(1, 2),
        )
        assert [all_in - layer for all_in, layer in zip(stages, layers, strict=True)] == [
            first * ends,
            last * ends,
        ]


def test_a_vocabulary_too_large_for_a_head_with_slots_is_refused() -> None:
    large = replace(architecture_of(configs.LLAMA_70B), vocab=262144)
    assert "allows a vocabulary of 258048" in lora_refusal(large, Lora())
    assert not lora_refusal(large, Lora(target_modules=("q_proj",)))
    found = estimate(large, parts_of_config(large, Loading()), Engine(), gpu("b200"), extras=Extras(Lora()))
    assert not found.fits
    assert "allows a vocabulary" in found.reason
    assert not lora_refusal(architecture_of(configs.GEMMA3_TEXT), Lora())


def test_a_start_with_slots_that_was_logged() -> None:
    """Row 115 of the logs: its own output says `enable_lora`, one slot of rank 32. Without it, it is 4.1% off."""
    model = architecture_of(
        {
            **configs.LLAMA_70B, "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
            "head_dim": 64, "intermediate_size": 8192, "tie_word_embeddings": True,
            "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
        }
    )  # fmt: skip
    engine = Engine(max_model_len=2048, max_num_seqs=288, max_num_batched_tokens=2048)
    parts, on = parts_of_config(model, Loading()), gpu("l4")
    found = estimate(model, parts, engine, on, extras=Extras(Lora(1, 32)))
    assert found.weights.expected / GIB == pytest.approx(1.4721, rel=0.005)
    assert estimate(model, parts, engine, on).weights.expected / GIB < 0.97 * 1.4721
