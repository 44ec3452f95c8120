"""Which parallel sizes are possible, and the rule that forbids each other one."""

from dataclasses import replace
from typing import Any

import pytest

from reconciler.core.fit.architecture import architecture_of
from reconciler.core.fit.parallel import pipeline_sizes, refusal, tensor_sizes
from reconciler.core.fit.quantization import Method, Quantization

from . import configs


def valid(config: dict[str, Any], most: int = 16, **options: Any) -> list[int]:
    return [size.size for size in tensor_sizes(architecture_of(config), most, **options) if not size.rule]


def rule(config: dict[str, Any], tp: int, **options: Any) -> str:
    return tensor_sizes(architecture_of(config), tp, **options)[-1].rule


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        (configs.LLAMA_70B, [1, 2, 4, 8, 16]),
        (configs.QWEN3_30B, [1, 2, 4, 8, 16]),
        (configs.DEEPSEEK_V3, [1, 2, 4, 8, 16]),
        (configs.LLAMA4, [1, 2, 4, 8]),
        (configs.QWEN3_NEXT, [1, 2, 4, 8, 16]),
    ],
)
def test_valid_sizes(config: dict[str, Any], sizes: list[int]) -> None:
    assert valid(config) == sizes


@pytest.mark.parametrize(
    ("change", "tp", "said"),
    [
        ({}, 3, "64 attention heads are not divisible by 3"),
        ({"num_attention_heads": 60, "num_key_value_heads": 10}, 4, "10 KV heads are not divisible by 4"),
        ({"num_attention_heads": 60, "num_key_value_heads": 4}, 6, "6 is no multiple of 4 KV heads"),
        ({"intermediate_size": 28674}, 4, "intermediate size 28674"),
        ({"num_attention_heads": 66, "num_key_value_heads": 66, "head_dim": 64}, 11, "padded to 128256"),
        (
            {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
             "intermediate_size": 1536},
            8, "192 on each rank, which is not divisible by the FP8 block of 128",
        ),
        (
            {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128},
             "intermediate_size": 1536},
            8, "192 on each rank, which is not divisible by the group size 128",
        ),
    ],
)  # fmt: skip
def test_each_forbidden_size_names_its_rule(change: dict[str, Any], tp: int, said: str) -> None:
    assert said in rule({**configs.LLAMA_70B, **change}, tp)


def test_expert_parallel_lifts_the_rule_about_the_size_of_experts() -> None:
    config = {**configs.QWEN3_30B, "moe_intermediate_size": 100}
    assert "experts' intermediate size 100" in rule(config, 8)
    assert not rule(config, 8, expert_parallel=True)


def test_block_scaled_experts_forbid_large_sizes() -> None:
    model = replace(architecture_of(configs.QWEN3_30B), quantization=Quantization(Method.FP8, 8, block=(128, 128)))
    assert [size.size for size in tensor_sizes(model, 8) if not size.rule] == [1, 2]


def test_pipeline_sizes() -> None:
    assert [size.size for size in pipeline_sizes(architecture_of(configs.QWEN3_06B), 30) if not size.rule] == [
        *range(1, 29)
    ]
    assert "stages" in pipeline_sizes(architecture_of(configs.WHISPER), 2)[-1].rule


def test_a_refusal_names_the_setting() -> None:
    model = architecture_of(configs.LLAMA_70B)
    assert refusal(model, 3, 1, expert_parallel=False).startswith("tensor parallel 3 is not possible")
    assert refusal(model, 1, 81, expert_parallel=False) == (
        "pipeline parallel 81 is not possible: there are only 80 layers"
    )
    assert not refusal(model, 8, 2, expert_parallel=False)
