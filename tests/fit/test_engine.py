"""The engine's settings: vLLM's own code decides what they mean, and ours has to say the same."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core.fit.architecture import architecture_of
from reconciler.core.fit.engine import batches_in_flight, keeps_hybrid
from reconciler.core.fit.estimate import Engine, Estimate, Extras, Known, estimate, with_defaults
from reconciler.core.fit.gpus import GIB, gpu
from reconciler.core.fit.graphs import cuda_graphs, graph_sizes
from reconciler.core.fit.layers import Kind
from reconciler.core.fit.parts import Basis
from reconciler.core.fit.synthesis import parts_of_config
from reconciler.core.fit.tensors import Loading
from reconciler.core.fit.terms import Batch

from . import configs

H100 = gpu("h100-80g")
LLAMA = architecture_of(configs.LLAMA_70B)


def of(config: dict[str, Any], **chosen: Any) -> Estimate:
    model = architecture_of(config)
    return estimate(model, parts_of_config(model, Loading()), Engine(**chosen), H100)


@settings(deadline=None, max_examples=300)
@given(
    st.builds(
        Batch,
        tokens=st.integers(1, 20000),
        seqs=st.integers(1, 1500),
        max_model_len=st.just(4096),
        speculative_tokens=st.integers(0, 17),
        capture=st.sampled_from([0, 0, 0, 1, 7, 64, 300, 2048]),
        interactive=st.booleans(),
        blackwell=st.booleans(),
    )
)
def test_capture_sizes_are_those_of_the_engine(batch: Batch) -> None:
    vllm = pytest.importorskip("vllm.config.vllm", reason="no engine is installed here to compare with")
    from vllm.config.compilation import CUDAGraphMode
    from vllm.platforms import current_platform

    theirs = SimpleNamespace(
        model_config=SimpleNamespace(enforce_eager=False),
        compilation_config=SimpleNamespace(
            cudagraph_mode=CUDAGraphMode.FULL_AND_PIECEWISE,
            max_cudagraph_capture_size=batch.capture or None,
            cudagraph_capture_sizes=None,
            pass_config=SimpleNamespace(enable_sp=False),
            post_init_cudagraph_sizes=lambda: None,
        ),
        scheduler_config=SimpleNamespace(max_num_seqs=batch.seqs, max_num_batched_tokens=batch.tokens),
        parallel_config=SimpleNamespace(tensor_parallel_size=1),
        performance_mode="interactivity" if batch.interactive else "balanced",
        speculative_config=None,
        uniform_decode_query_len=1 + batch.speculative_tokens,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(current_platform), "is_device_capability_family", lambda self, family: batch.blackwell)
        vllm.VllmConfig._set_cudagraph_sizes(theirs)
    assert list(graph_sizes(batch)) == theirs.compilation_config.cudagraph_capture_sizes


@pytest.mark.parametrize("method", ["", "eagle", "eagle3", "mtp", "draft_model", "ngram", "suffix", "medusa"])
@pytest.mark.parametrize("stages", [1, 2, 4])
@pytest.mark.parametrize("asynchronous", [True, False])
def test_batches_in_flight_are_those_of_the_engine(method: str, stages: int, asynchronous: bool) -> None:
    vllm = pytest.importorskip("vllm.config.vllm", reason="no engine is installed here to compare with")
    drafts = SimpleNamespace(method=method, parallel_drafting=False) if method else None
    theirs = SimpleNamespace(
        speculative_config=drafts,
        model_config=None,
        compilation_config=SimpleNamespace(mode=None, pass_config=SimpleNamespace(enable_sp=False)),
        parallel_config=SimpleNamespace(
            pipeline_parallel_size=stages, tensor_parallel_size=1, enable_dbo=False, enable_elastic_ep=False,
            distributed_executor_backend="ray",
        ),
        cache_config=SimpleNamespace(kv_sharing_fast_prefill=False),
        scheduler_config=SimpleNamespace(async_scheduling=asynchronous),
    )  # fmt: skip
    theirs.use_v2_model_runner = not vllm.VllmConfig._get_v2_model_runner_unsupported_features(theirs)
    mine = Engine(pipeline_parallel=stages, speculative_method=method, async_scheduling=asynchronous)
    assert batches_in_flight(mine) == vllm.VllmConfig.max_concurrent_batches.fget(theirs)


def test_asynchronous_scheduling_is_off_where_the_engine_turns_it_off() -> None:
    assert batches_in_flight(Engine()) == 2
    assert batches_in_flight(Engine(pooling=True)) == 1
    assert batches_in_flight(Engine(speculative_method="ngram")) == 1


def test_without_chunked_prefill_a_batch_holds_the_longest_prompt() -> None:
    apart = Engine(chunked_prefill=False, max_model_len=32768)
    assert with_defaults(LLAMA, apart, H100).max_num_batched_tokens == 32768
    assert with_defaults(LLAMA, Engine(max_model_len=32768), H100).max_num_batched_tokens == 8192
    found = of(configs.LLAMA_70B, tensor_parallel=4, chunked_prefill=False, max_num_batched_tokens=8192)
    assert "without chunked prefill has to fit into a batch" in found.reason


def test_throughput_doubles_the_default_batch_only() -> None:
    assert with_defaults(LLAMA, Engine(performance_mode="throughput"), H100).max_num_batched_tokens == 16384
    chosen = Engine(performance_mode="throughput", max_num_seqs=7, max_num_batched_tokens=99)
    assert with_defaults(LLAMA, chosen, H100).max_num_seqs == 7
    assert with_defaults(LLAMA, chosen, H100).max_num_batched_tokens == 99


def test_optimization_levels_decide_which_graphs_there_are() -> None:
    batch = Batch(tokens=2048, seqs=256, max_model_len=4096)
    levels = [cuda_graphs(LLAMA, replace(batch, optimization_level=level)).expected for level in range(4)]
    assert levels[0] == 0
    assert 0 < levels[1] < levels[2] == levels[3]
    assert cuda_graphs(LLAMA, replace(batch, lora_rank=16)).expected > levels[2]
    assert cuda_graphs(LLAMA, replace(batch, capture=8)).expected < levels[2]


def test_without_sliding_windows_the_cache_is_full_and_the_context_one_window() -> None:
    sliding = of(configs.GPT_OSS, max_model_len=128, kv_cache_memory_bytes=GIB)
    full = of(configs.GPT_OSS, max_model_len=128, kv_cache_memory_bytes=GIB, sliding_window=False)
    assert full.kv_bytes_per_token == sliding.kv_bytes_per_token
    assert full.kv_tokens.expected == GIB // (full.kv_bytes_per_token * 16) * 16
    longer = of(configs.GPT_OSS, max_model_len=4096, sliding_window=False)
    assert "more than the model's own 128 tokens" in longer.reason


def test_chunked_attention_is_kept_in_full() -> None:
    model = architecture_of(configs.LLAMA4)
    assert {layer.kind for layer in model.layers} == {Kind.CHUNKED, Kind.FULL}
    assert not keeps_hybrid(model, Engine())
    assert keeps_hybrid(architecture_of(configs.GPT_OSS), Engine())
    found = of(configs.LLAMA4, max_model_len=100_000, kv_cache_memory_bytes=30 * GIB)
    assert found.needed_kv == (100_000 // 16 + 1) * 16 * found.kv_bytes_per_token


def test_a_language_model_alone_runs_no_tower() -> None:
    seen = of(configs.GEMMA3_TEXT, max_model_len=8192, max_num_seqs=8, max_num_batched_tokens=512)
    alone = of(
        configs.GEMMA3_TEXT,
        max_model_len=8192,
        max_num_seqs=8,
        max_num_batched_tokens=512,
        language_model_only=True,
    )
    assert alone.activation.expected < seen.activation.expected
    split = {"tensor_parallel": 2, "max_model_len": 8192, "max_num_seqs": 8, "max_num_batched_tokens": 512}
    copied = of(configs.GEMMA3_TEXT, data_parallel_encoder=True, **split)
    assert copied.activation.expected > of(configs.GEMMA3_TEXT, **split).activation.expected


def test_weights_in_main_memory_are_not_on_the_gpu() -> None:
    here = of(configs.LLAMA_70B, tensor_parallel=2)
    away = of(configs.LLAMA_70B, tensor_parallel=2, cpu_offload_gb=10)
    assert here.weights.expected - away.weights.expected == away.offloaded == 10 * GIB
    assert away.available_kv.expected == here.available_kv.expected + 10 * GIB
    # Embedding and head stay: 2 x 128256 x 8192 numbers, and the rotary table.
    most = of(configs.LLAMA_70B, cpu_offload_gb=1000)
    assert most.weights.expected == 2 * 2 * 128256 * 8192 + 131072 * 128 * 2
    assert most.weights.safe >= most.weights.expected


def test_measured_numbers_stand_for_formulas_and_keep_a_margin() -> None:
    model = architecture_of(configs.LLAMA_70B)
    parts, engine = parts_of_config(model, Loading()), Engine(tensor_parallel=4, max_model_len=4096)
    known = Known(weights=33 * GIB, activation=2 * GIB, non_torch=GIB // 4)
    found = estimate(model, parts, engine, H100, known)
    plain = estimate(model, parts, engine, H100)
    assert (found.weights.expected, found.activation.expected) == (33 * GIB, 2 * GIB)
    assert 33.33 * GIB < found.weights.safe < 33.34 * GIB
    assert 2.1 * GIB < found.activation.safe < 2.11 * GIB
    assert found.non_torch.safe > found.non_torch.expected + 150 * 2**20
    assert found.cuda_graph == plain.cuda_graph
    assert found.basis == {
        "weights": Basis.MEASURED, "activation": Basis.MEASURED, "cuda_graph": Basis.CONFIG,
        "non_torch": Basis.MEASURED,
    }  # fmt: skip
    assert plain.basis["weights"] is Basis.CONFIG
    assert estimate(model, parts, engine, H100, Known()) == replace(plain, known=Known())
    assert found.extras == Extras()
