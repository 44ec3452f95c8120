"""The estimate turned round: what the solver finds is what the estimate accepts, and no more would be."""

import math
import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from reconciler.core.fit.architecture import architecture_of
from reconciler.core.fit.estimate import DEFAULT_UTILIZATION, Draft, Engine, Extras, Known, Lora, estimate
from reconciler.core.fit.gpus import GIB, gpu, of_total
from reconciler.core.fit.solve import highest_share, least_share, longest_context
from reconciler.core.fit.synthesis import parts_of_config
from reconciler.core.fit.tensors import Loading

from . import configs

GPUS = st.sampled_from(["h100-80g", "h200", "l4", "a100-40g", "rtx-4090", "b200"])
NAMES = st.sampled_from(sorted(configs.EVERY))
SETTINGS = st.fixed_dictionaries(
    {
        "max_num_seqs": st.sampled_from([0, 1, 64]),
        "max_num_batched_tokens": st.sampled_from([0, 2048]),
        "kv_cache_dtype": st.sampled_from(["auto", "fp8"]),
        "block_size": st.sampled_from([16, 16, 64, 16384]),
        "tensor_parallel": st.sampled_from([1, 2, 4]),
        "pipeline_parallel": st.sampled_from([1, 1, 2]),
        "gpu_memory_utilization": st.sampled_from([0.5, 0.9]),
        "kv_cache_memory_bytes": st.sampled_from([0, 0, GIB]),
        "chunked_prefill": st.sampled_from([True, True, False]),
        "mamba_cache_mode": st.sampled_from(["align", "none"]),
    }
)


@settings(deadline=None, max_examples=150)
@given(NAMES, GPUS, SETTINGS, st.booleans())
def test_the_longest_context_fits_and_a_longer_one_does_not(
    name: str, on: str, chosen: dict[str, Any], safely: bool
) -> None:
    model = architecture_of(configs.EVERY[name])
    parts, engine = parts_of_config(model, Loading()), Engine(**chosen)
    length = longest_context(model, parts, engine, gpu(on), safely=safely)

    def starts(tokens: int) -> bool:
        found = estimate(model, parts, replace(engine, max_model_len=tokens), gpu(on))
        return found.fits_safely if safely else found.fits

    assert 0 <= length <= model.context
    if length:
        assert starts(length)
        if length < model.context:
            step = 1024 if length >= 8192 else 256
            block = estimate(model, parts, replace(engine, max_model_len=length), gpu(on)).block_size
            assert not starts(min(model.context, length + max(step, block)))
            assert length < block or length % block == 0
    else:
        assert not starts(model.context)
        assert not starts(1)


def test_a_context_that_does_not_fit_whole_is_a_number_a_person_would_write() -> None:
    model = architecture_of(configs.LLAMA_70B)
    parts = parts_of_config(model, Loading())
    length = longest_context(
        model, parts, Engine(tensor_parallel=2, max_num_seqs=64), gpu("h100-80g"), safely=False
    )
    assert 8192 < length < 131072
    assert length % 1024 == 0


@settings(deadline=None, max_examples=100)
@given(NAMES, GPUS, SETTINGS, st.sampled_from([1.0, 1.5, 8.0]), st.sampled_from([512, 8192]))
def test_the_least_share_is_enough_and_a_hundredth_less_is_not(
    name: str, on: str, chosen: dict[str, Any], requests: float, length: int
) -> None:
    model = architecture_of(configs.EVERY[name])
    assume(not chosen["kv_cache_memory_bytes"])
    parts = parts_of_config(model, Loading())
    engine = Engine(**{**chosen, "max_model_len": min(length, model.context), "chunked_prefill": True})
    share = least_share(model, parts, engine, gpu(on), requests=requests)
    assert share == round(share, 2)
    found = estimate(model, parts, replace(engine, gpu_memory_utilization=share), gpu(on))
    less = estimate(model, parts, replace(engine, gpu_memory_utilization=share - 0.01), gpu(on))

    if engine.pipeline_parallel == 1:
        assert found.available_kv.safe >= found.needed_kv
        assert found.kv_tokens.safe >= int(requests * engine.max_model_len) or not found.needed_kv
        if requests == 1:
            assert less.available_kv.safe < max(1, less.needed_kv)
    if share <= highest_share(gpu(on), engine.tensor_parallel, engine.pipeline_parallel, cap=1.0):
        assert found.fits_safely or "not possible" in found.reason or "max_num_seqs" in found.reason


def test_more_requests_want_a_larger_share() -> None:
    model = architecture_of(configs.QWEN3_06B)
    parts, engine = parts_of_config(model, Loading()), Engine(max_model_len=32768, max_num_seqs=64)
    on = gpu("h100-80g")
    one, ten = (least_share(model, parts, engine, on, requests=requests) for requests in (1, 10))
    each = 32768 * 28 * 8 * 256 * 2
    assert ten - one == pytest.approx(9 * each / on.total, abs=0.01)
    assert least_share(model, parts, engine, on, kv_bytes=10 * each) == pytest.approx(ten, abs=0.01)
    assert least_share(model, parts, engine, on, kv_bytes=0) == one
    fixed = replace(engine, kv_cache_memory_bytes=10 * each)
    assert least_share(model, parts, fixed, on) == pytest.approx(ten, abs=0.01)
    assert least_share(model, parts, engine, of_total(GIB)) > 1


@given(
    st.integers(2 * GIB, 300 * GIB), st.floats(0, 1), st.sampled_from([1, 2]), st.sampled_from([0.92, 0.5, 0.98])
)
def test_the_highest_share_passes_the_check_at_the_start(total: int, taken: float, tp: int, cap: float) -> None:
    on = replace(of_total(total), used=int(total * taken))
    share = highest_share(on, tp, 1, cap)
    assert 0 <= share <= cap
    model = architecture_of(configs.QWEN3_06B)
    parts = parts_of_config(model, Loading())

    def refused(each: float) -> bool:
        engine = Engine(tensor_parallel=tp, max_model_len=512, gpu_memory_utilization=each)
        return "are free at start" in estimate(model, parts, engine, on).reason

    if share:
        assert not refused(share)
    if share < cap:
        assert math.ceil(total * (share + 0.01)) > total - on.used - estimate(
            model, parts, Engine(tensor_parallel=tp, max_model_len=512), on
        ).context.safe  # fmt: skip


def test_the_default_share_is_the_engines() -> None:
    assert highest_share(gpu("h100-80g")) == DEFAULT_UTILIZATION


def test_what_was_measured_and_what_is_loaded_beside_counts() -> None:
    model, on = architecture_of(configs.LLAMA_70B), gpu("h100-80g")
    parts, engine = parts_of_config(model, Loading()), Engine(tensor_parallel=4, max_model_len=8192)
    draft = architecture_of(configs.QWEN3_06B)
    extras = Extras(Lora(8, 64), Draft(draft, parts_of_config(draft, Loading())))
    plain = least_share(model, parts, engine, on)
    assert least_share(model, parts, engine, on, extras=extras) > plain
    assert least_share(model, parts, engine, on, known=Known(weights=20 * GIB)) < plain
    tight = Engine(tensor_parallel=2, max_num_seqs=64)
    lengths = [
        longest_context(model, parts, tight, on, safely=False, extras=each, known=known)
        for each, known in ((Extras(), Known(weights=60 * GIB)), (Extras(), None), (extras, None))
    ]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > lengths[1] > lengths[2]


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (8, 1), (1, 8)])
def test_a_call_is_a_matter_of_milliseconds(tp: int, pp: int) -> None:
    """The planner asks for a thousand models at a time; a hundred layers are more than most have."""
    model = architecture_of({**configs.LLAMA_70B, "num_hidden_layers": 100})
    parts, on = parts_of_config(model, Loading()), gpu("h100-80g")
    engine = Engine(tensor_parallel=tp, pipeline_parallel=pp)
    best = math.inf
    for _ in range(5):
        began = time.perf_counter()
        longest_context(model, parts, engine, on)
        least_share(model, parts, engine, on)
        best = min(best, time.perf_counter() - began)
    assert best < 2 * 0.02
