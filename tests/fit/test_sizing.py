"""What a file leaves open, decided: from the model and the kinds of GPU alone, and so that it fits."""

import json
from typing import Any

import pytest

from reconciler.core.fit.classes import GpuClass, classes_of
from reconciler.core.fit.declared import Declared, declared, engine_of
from reconciler.core.fit.engine import Engine
from reconciler.core.fit.extras import Known
from reconciler.core.fit.facts import Facts
from reconciler.core.fit.gpus import GIB, gpu
from reconciler.core.fit.sizing import USEFUL_CONTEXT, Outcome, on_cpu, on_gpus
from reconciler.core.spec import ModelSpec
from reconciler.core.state import Device, Node

from . import configs

LLAMA_8B = {
    **configs.LLAMA_70B, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8,
}  # fmt: skip


def spec(**sections: Any) -> ModelSpec:
    return ModelSpec.model_validate_json(json.dumps({"name": "m", "source": {"path": "/m"}, **sections}))


def kind(name: str, count: int, accelerator: str | None = None) -> GpuClass:
    return GpuClass(gpu(name), accelerator, count, count)


def nothing(engine: Engine, where: GpuClass | None) -> Known | None:
    return None


def outcome(config: dict[str, Any], *kinds: GpuClass, **sections: Any) -> Outcome:
    wanted = spec(**sections)
    return on_gpus(declared(wanted, Facts(config, None), on_cpu=False), wanted, kinds, nothing)


def model(config: dict[str, Any], **sections: Any) -> Declared:
    return declared(spec(**sections), Facts(config, None), on_cpu=False)


# --- kinds of GPU ------------------------------------------------------------------------------------------


def node(name: str, totals: list[int], accelerator: str | None = None, failed: int | None = None) -> Node:
    devices = tuple(
        Device(index, f"{name}{index}", "NVIDIA X", total, failed="lost" if index == failed else "")
        for index, total in enumerate(totals)
    )
    return Node(name, len(totals), accelerator=accelerator, devices=devices)


def test_of_gpus_that_cannot_be_told_apart_the_smallest_counts() -> None:
    (found,) = classes_of([node("a", [80 * GIB, 80 * GIB]), node("b", [24 * GIB])])
    assert (found.gpu.total, found.accelerator, found.per_node, found.count) == (24 * GIB, None, 2, 3)


def test_kinds_that_ray_can_be_asked_for_are_kept_apart_the_smallest_first() -> None:
    nodes = [node("a", [80 * GIB] * 4, "H100"), node("b", [22 * GIB] * 2, "L4"), node("c", [79 * GIB], "H100")]
    small, large = classes_of(nodes)
    assert (small.accelerator, small.per_node, small.count) == ("L4", 2, 2)
    assert (large.accelerator, large.gpu.total, large.per_node, large.count) == ("H100", 79 * GIB, 4, 5)
    assert classes_of(nodes, "H100") == (large,)
    assert classes_of(nodes, "T4") == ()


def test_a_failed_gpu_is_no_part_of_any_kind() -> None:
    (found,) = classes_of([node("a", [80 * GIB, 24 * GIB], failed=1)])
    assert (found.gpu.total, found.per_node) == (80 * GIB, 1)
    assert classes_of([node("a", [80 * GIB], failed=0)]) == ()


def test_a_node_that_nobody_could_look_at_is_known_by_its_type() -> None:
    (found,) = classes_of([Node("a", 2, accelerator="H100")])
    assert found.gpu.total == gpu("h100").total
    assert classes_of([Node("a", 2)]) == classes_of([Node("a", 2, accelerator="XYZ")]) == ()


# --- sizes -------------------------------------------------------------------------------------------------


def test_a_model_that_generates_gets_a_whole_gpu_and_the_context_of_its_own() -> None:
    found = outcome(LLAMA_8B, kind("h100-80g", 8)).choices[0]
    sizing = found.sizing
    assert (sizing.tensor_parallel_size, sizing.pipeline_parallel_size, sizing.gpus) == (1, 1, 1.0)
    assert sizing.max_model_len == LLAMA_8B["max_position_embeddings"]
    assert sizing.gpu_memory_utilization == 0.92
    # Set, because vLLM's own depend on the GPU that it sees.
    assert sizing.max_num_seqs
    assert sizing.max_num_batched_tokens
    assert found.found.fits_safely


def test_where_the_context_does_not_fit_it_is_the_longest_that_does() -> None:
    found = outcome(LLAMA_8B, kind("l4", 1)).choices[0]
    length = found.sizing.max_model_len
    assert length is not None
    assert USEFUL_CONTEXT <= length < LLAMA_8B["max_position_embeddings"]
    assert found.found.fits_safely
    longer = outcome(LLAMA_8B, kind("l4", 1), engine={"max_model_len": 2 * length})
    assert longer.misfit or not longer.choices[0].found.fits_safely


def test_tensor_parallel_is_the_smallest_that_is_sufficient() -> None:
    found = outcome(configs.LLAMA_70B, kind("h100-80g", 8)).choices[0].sizing
    assert found.tensor_parallel_size == 2
    wide = outcome(configs.LLAMA_70B, kind("h100-80g", 8), engine={"max_model_len": 131072}).choices[0].sizing
    assert wide.tensor_parallel_size == 4
    assert wide.max_model_len == 131072


def test_a_model_too_large_says_why_and_what_would_do() -> None:
    found = outcome(configs.LLAMA_70B, kind("rtx-4090", 2))
    assert "2 x rtx-4090" in found.misfit
    assert "GiB" in found.misfit
    assert any("4-bit" in advice for advice in found.advice)
    assert len(found.choices) == 1
    assert not found.choices[0].found.fits


def test_what_the_file_says_is_never_changed() -> None:
    found = outcome(
        LLAMA_8B,
        kind("h100-80g", 8),
        engine={
            "max_model_len": 4096,
            "gpu_memory_utilization": 0.5,
            "max_num_seqs": 17,
            "max_num_batched_tokens": 4097,
        },
        resources={"tensor_parallel": 4},
    ).choices[0]
    assert (found.sizing.max_model_len, found.sizing.gpu_memory_utilization) == (4096, 0.5)
    assert (found.sizing.max_num_seqs, found.sizing.max_num_batched_tokens) == (17, 4097)
    assert found.sizing.tensor_parallel_size == 4
    # Ray reserves room for CUDA's context and NCCL too: two halves would not both start.
    assert 0.5 < found.sizing.gpus < 0.53


def test_with_a_cache_of_fixed_size_the_share_follows() -> None:
    found = outcome(
        LLAMA_8B, kind("h100-80g", 1), engine={"kv_cache_memory_gib": 4.0, "max_model_len": 16384}
    ).choices[0]
    assert found.sizing.kv_cache_memory_bytes == 4 * GIB
    assert found.sizing.gpus * gpu("h100-80g").total >= found.found.footprint.safe
    assert found.sizing.gpus < 0.4


def test_a_cache_that_is_too_large_is_advised_to_be_smaller() -> None:
    asked = {"kv_cache_memory_gib": 100.0, "max_model_len": 16384}
    found = outcome(LLAMA_8B, kind("h100-80g", 1), engine=asked)
    assert "are needed in all" in found.misfit
    size = next(
        advice.split(":")[0].split()[1] for advice in found.advice if advice.startswith("kv_cache_memory_gib")
    )
    assert 40 < float(size) < 65
    smaller = outcome(LLAMA_8B, kind("h100-80g", 1), engine={**asked, "kv_cache_memory_gib": float(size)})
    assert not smaller.misfit


def test_an_embedding_model_takes_what_it_needs_and_not_a_whole_gpu() -> None:
    found = outcome(LLAMA_8B, kind("h100-80g", 1), task="embed", engine={"max_model_len": 4096}).choices[0]
    assert 0.2 < found.sizing.gpus < 0.5
    assert found.found.fits_safely


def test_ranks_never_share_a_gpu_with_each_other() -> None:
    share = {"gpu_memory_utilization": 0.3, "max_model_len": 4096}
    found = outcome(LLAMA_8B, kind("h100-80g", 2), engine=share, resources={"tensor_parallel": 2}).choices[0]
    assert found.memory < 0.4
    assert found.sizing.gpus > 0.5


def test_of_several_kinds_the_smallest_that_will_do_comes_first() -> None:
    kinds = (kind("l4", 4, "L4"), kind("h100-80g", 4, "H100"))
    assert [way.sizing.accelerator for way in outcome(LLAMA_8B, *kinds).choices] == ["L4", "H100"]
    large = outcome(configs.LLAMA_70B, *kinds).choices
    assert [way.sizing.accelerator for way in large] == ["H100"]


def test_stages_are_a_last_resort_and_several_nodes_have_to_be_allowed() -> None:
    three = GpuClass(gpu("l4"), None, 3, 6)
    found = outcome(configs.LLAMA_70B, three)
    assert found.misfit
    allowed = outcome(configs.LLAMA_70B, GpuClass(gpu("a100-40g"), None, 3, 9), resources={"across_nodes": True})
    assert not allowed.misfit
    sizing = allowed.choices[0].sizing
    # 132 GiB on GPUs of 40 do not fit on the three of one node.
    assert (sizing.tensor_parallel_size or 0) * (sizing.pipeline_parallel_size or 0) > 3


def test_measured_numbers_count() -> None:
    asked: list[tuple[Engine, GpuClass | None]] = []

    def known(engine: Engine, where: GpuClass | None) -> Known:
        asked.append((engine, where))
        return Known(weights=20 * GIB)

    wanted = spec()
    found = on_gpus(declared(wanted, Facts(LLAMA_8B, None), on_cpu=False), wanted, (kind("h100-80g", 1),), known)
    assert found.choices[0].found.weights.expected == 20 * GIB
    assert found.choices[0].measured
    assert asked[0][0].max_num_batched_tokens  # with every default filled in


@pytest.mark.parametrize("share", [0.995, 1.0])
def test_a_share_that_leaves_no_room_for_the_context_is_refused(share: float) -> None:
    found = outcome(LLAMA_8B, kind("h100-80g", 1), engine={"gpu_memory_utilization": share})
    assert "CUDA's context" in found.misfit


# --- main memory -------------------------------------------------------------------------------------------


def test_on_the_cpu_the_context_follows_from_the_cache() -> None:
    wanted = spec()
    facts = Facts(LLAMA_8B, None)
    found = on_cpu(declared(wanted, facts, on_cpu=True), wanted, GIB, nothing)
    length = found.choices[0].sizing.max_model_len
    assert not found.misfit
    assert length is not None
    # 128 KiB a token, in blocks of 128 tokens, one of which is kept back.
    assert 8192 - 2 * 128 <= length < 8192
    explicit = spec(engine={"max_model_len": 16384})
    refused = on_cpu(declared(explicit, facts, on_cpu=True), explicit, GIB, nothing)
    assert "16384 tokens" in refused.misfit
    (advice,) = refused.advice
    enough = spec(engine={"max_model_len": 16384, "kv_cache_memory_gib": float(advice.split()[-1])})
    assert not on_cpu(declared(enough, facts, on_cpu=True), enough, GIB, nothing).misfit


# --- from the file -----------------------------------------------------------------------------------------


def test_vllms_arguments_reach_the_estimate() -> None:
    engine = engine_of(
        spec(
            engine={
                "args": {
                    "enforce_eager": True,
                    "enable_prefix_caching": False,
                    "enable_expert_parallel": True,
                    "cpu_offload_gb": 2,
                    "speculative_config": {"method": "deepseek_mtp", "num_speculative_tokens": 3},
                    "limit_mm_per_prompt": {"image": 0, "video": 0, "audio": 0},
                    "block_size": 32,
                }
            }
        )
    )
    assert engine.enforce_eager
    assert engine.mamba_cache_mode == "none"
    assert engine.expert_parallel
    assert engine.cpu_offload_gb == 2.0
    assert (engine.speculative_method, engine.speculative_tokens) == ("mtp", 3)
    assert engine.language_model_only
    assert engine.block_size == 32


def test_overrides_of_the_config_count() -> None:
    assert model(LLAMA_8B, engine={"args": {"hf_overrides": {"num_hidden_layers": 2}}}).model.layers.__len__() == 2


def test_adapters_take_slots() -> None:
    plain = outcome(LLAMA_8B, kind("h100-80g", 1)).choices[0].found
    adapters = [{"name": "a", "path": "/a"}, {"name": "b", "path": "/b"}]
    with_slots = outcome(LLAMA_8B, kind("h100-80g", 1), adapters=adapters).choices[0].found
    assert with_slots.weights.expected > plain.weights.expected
    assert with_slots.lora > 0
