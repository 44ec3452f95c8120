"""The estimate as a whole: against start-ups that were logged, and against laws that hold for any settings."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.fit import main
from bench.fit_compare import Measured, Verdict, measure
from bench.fit_rows import read
from reconciler.core.fit.advice import advise, smallest_tensor_parallel
from reconciler.core.fit.architecture import Architecture, architecture_of
from reconciler.core.fit.estimate import Engine, Estimate, estimate, with_defaults
from reconciler.core.fit.gpus import GIB, gpu, names, of_total
from reconciler.core.fit.graphs import graph_sizes
from reconciler.core.fit.synthesis import parts_of_config
from reconciler.core.fit.tensors import Loading, Part
from reconciler.core.fit.terms import Batch

from . import configs

HERE = Path(__file__).parent
LOGS, FACTS = HERE / "startup_logs.csv", HERE / "model_facts.json"
H100 = gpu("h100-80g")


def weigh(model: Architecture) -> tuple[Part, ...]:
    return parts_of_config(model, Loading())


def of(config: dict[str, Any], *, on: str = "h100-80g", **settings: Any) -> Estimate:
    model, engine = architecture_of(config), Engine(**settings)
    return estimate(model, weigh(model), engine, gpu(on))


@pytest.fixture(scope="module")
def compared() -> tuple[list[Measured], list[Verdict]]:
    return measure(read(LOGS), json.loads(FACTS.read_text(encoding="utf-8")))


def test_kv_tokens_are_those_that_were_logged(compared: tuple[list[Measured], list[Verdict]]) -> None:
    tokens = [m for m in compared[0] if m.term == "KV tokens"]
    assert len(tokens) >= 25
    assert not [m for m in tokens if m.beyond]


def test_every_row_beyond_its_bound_is_one_whose_reason_is_known(
    compared: tuple[list[Measured], list[Verdict]],
) -> None:
    assert {(m.row, m.term) for m in compared[0] if m.beyond} == {
        ("18", "weights"), ("96", "weights"), ("160", "weights"), ("127", "footprint"), ("133", "footprint"),
    }  # fmt: skip
    assert all(m.why for m in compared[0] if m.beyond)


def test_no_row_that_failed_is_said_to_fit(compared: tuple[list[Measured], list[Verdict]]) -> None:
    assert len(compared[1]) >= 6
    assert not [verdict for verdict in compared[1] if verdict.fits]


def test_the_benchmark_prints_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(LOGS), "--facts", str(FACTS)]) == 0
    text = capsys.readouterr().out
    assert "KV tokens" in text
    assert "does not fit" in text


def test_a_hybrid_is_exact_down_to_the_token() -> None:
    """Row 93 of the logs: Qwen3.6-27B on 0.27, whose blocks are made large enough for its recurrent state."""
    text = {
        "model_type": "qwen3_5_text", "hidden_size": 5120, "num_hidden_layers": 64, "num_attention_heads": 24,
        "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 248320, "intermediate_size": 17408,
        "linear_num_value_heads": 48, "linear_num_key_heads": 16, "linear_value_head_dim": 128,
        "linear_key_head_dim": 128, "linear_conv_kernel_dim": 4, "max_position_embeddings": 262144,
    }  # fmt: skip
    found = of(
        {"model_type": "qwen3_5", "text_config": text}, max_model_len=4096, kv_cache_memory_bytes=44055627694
    )
    assert found.block_size == 784
    assert found.kv_tokens.expected == 292522
    assert round(found.concurrency, 2) == 71.42


def test_defaults_are_those_of_the_engine_on_this_gpu() -> None:
    model = architecture_of(configs.LLAMA_70B)
    assert with_defaults(model, Engine(), H100).max_num_batched_tokens == 8192
    assert with_defaults(model, Engine(), H100).max_num_seqs == 1024
    assert with_defaults(model, Engine(), gpu("a100-80g")).max_num_seqs == 256
    assert with_defaults(model, Engine(), gpu("b200")).max_num_batched_tokens == 16384
    small = with_defaults(model, Engine(max_model_len=1024, max_num_seqs=1), gpu("l4"))
    assert small.max_num_batched_tokens == 1024


def test_the_terms_add_up_to_what_was_requested() -> None:
    found = of(configs.QWEN3_06B, max_model_len=4096, max_num_seqs=64)
    inside = (
        found.weights.expected + found.activation.expected + found.cuda_graph.expected + found.non_torch.expected
    )
    assert inside + found.available_kv.expected == found.requested
    assert found.footprint.expected == found.requested + found.context.expected
    assert found.fits_safely
    assert not found.reason


def test_a_fixed_cache_is_as_large_as_it_was_asked_for() -> None:
    found = of(configs.QWEN3_06B, max_model_len=4096, kv_cache_memory_bytes=GIB)
    assert found.available_kv.expected == GIB
    assert found.kv_blocks.expected == GIB // (28 * 8 * 256 * 2 * 16)
    assert found.kv_bytes_per_token == 28 * 8 * 256 * 2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tensor_parallel": 1}, "leave nothing"),
        ({"tensor_parallel": 2}, "one request of 131072 tokens needs 20.00 GiB"),
        ({"tensor_parallel": 3}, "64 attention heads are not divisible by 3"),
        ({"tensor_parallel": 4, "gpu_memory_utilization": 1.0}, "less than the 79.18 GiB"),
        ({"tensor_parallel": 4, "max_num_seqs": 64, "max_num_batched_tokens": 32}, "less than max_num_seqs 64"),
        ({"tensor_parallel": 4, "max_model_len": 200_000}, "more than the model's own 131072"),
        ({"tensor_parallel": 4, "kv_cache_memory_bytes": 60 * GIB}, "are needed in all"),
    ],
)
def test_the_reason_is_said_in_words(settings: dict[str, Any], said: str) -> None:
    found = of(configs.LLAMA_70B, **settings)
    assert not found.fits
    assert not found.fits_safely
    assert said in found.reason


def test_what_others_use_is_not_there() -> None:
    model = architecture_of(configs.QWEN3_06B)
    taken = replace(H100, used=20 * GIB)
    found = estimate(model, weigh(model), Engine(max_model_len=4096), taken)
    assert "20.00 GiB used by others" in found.reason


def test_an_encoder_has_no_cache_and_fits() -> None:
    found = of(configs.BERT, pooling=True)
    assert found.needed_kv == 0
    assert found.kv_tokens.expected == 0
    assert found.fits_safely


SETTINGS = st.fixed_dictionaries(
    {
        "max_model_len": st.sampled_from([512, 4096, 32768]),
        "max_num_seqs": st.sampled_from([1, 8, 256, 1024]),
        "max_num_batched_tokens": st.sampled_from([512, 2048, 8192]),
        "kv_cache_dtype": st.sampled_from(["auto", "fp8"]),
        "enforce_eager": st.booleans(),
        "tensor_parallel": st.sampled_from([1, 2, 4]),
        "pipeline_parallel": st.sampled_from([1, 2]),
        "gpu_memory_utilization": st.sampled_from([0.3, 0.9, 0.95]),
    }
)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(sorted(set(configs.EVERY) - {"whisper", "bert"})), SETTINGS)
def test_laws(name: str, chosen: dict[str, Any]) -> None:
    """Safe is never better than expected; a shorter context and a larger GPU never hurt."""
    found = of(configs.EVERY[name], **chosen)
    for term in (
        found.weights,
        found.activation,
        found.cuda_graph,
        found.non_torch,
        found.context,
        found.footprint,
    ):
        assert term.expected >= 0
        assert term is found.footprint or term.expected <= term.safe
    assert found.available_kv.safe <= found.available_kv.expected
    assert found.longest.safe <= found.longest.expected
    assert found.fits or not found.fits_safely
    assert bool(found.reason) != found.fits_safely
    if found.fits:
        shorter = of(configs.EVERY[name], **{**chosen, "max_model_len": 512})
        assert shorter.fits
        assert of(configs.EVERY[name], on="h200", **chosen).kv_blocks.expected >= found.kv_blocks.expected
    if chosen["max_model_len"] <= found.longest.expected and found.engine.pipeline_parallel == 1:
        assert found.needed_kv <= max(0, found.available_kv.expected)


def test_advice_fits_and_the_mildest_comes_first() -> None:
    model = architecture_of(configs.LLAMA_70B)
    found = of(configs.LLAMA_70B, tensor_parallel=2, max_num_seqs=256)
    advice = advise(model, weigh, found, 8)
    assert all(each.found.fits for each in advice)
    changes = [each.change for each in advice]
    assert changes[0].startswith("max_model_len ")
    assert "tensor_parallel 4" in changes
    assert any("8-bit" in change for change in changes)
    assert "GiB for" in str(advice[0])
    assert advise(model, weigh, of(configs.LLAMA_70B, tensor_parallel=8), 8) == ()


def test_the_smallest_tensor_parallel_size_that_suffices() -> None:
    model = architecture_of(configs.LLAMA_70B)
    found = smallest_tensor_parallel(model, weigh, Engine(max_model_len=32768), H100, 8)
    assert found is not None
    assert found.engine.tensor_parallel == 4
    assert smallest_tensor_parallel(model, weigh, Engine(max_model_len=32768), gpu("l4"), 4) is None


def test_every_gpu_of_the_table_is_found_by_its_name() -> None:
    for name in names():
        assert 3 * GIB < gpu(name).total < 300 * GIB
    assert gpu("NVIDIA H100 80GB").name == "h100-80g"
    assert gpu("L4").total < 23034 * 2**20
    with pytest.raises(ValueError, match="did you mean"):
        gpu("h100-8g")


def test_capture_sizes_are_those_of_the_engine() -> None:
    sizes = graph_sizes(Batch(tokens=2048, seqs=256, max_model_len=4096))
    assert sizes[:5] == (1, 2, 4, 8, 16)
    assert sizes[-1] == 512
    assert len(sizes) == 51
    assert graph_sizes(Batch(tokens=2048, seqs=1, max_model_len=4096)) == (1, 2)


def test_memory_given_in_bytes_is_taken_as_it_is() -> None:
    assert of_total(80 * GIB).total == 80 * GIB
    assert of_total(80 * GIB).large_batches
    assert not of_total(24 * GIB).large_batches
