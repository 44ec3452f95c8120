"""Our KV cache arithmetic against vLLM's own classes, on randomly drawn configurations: exactly equal."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from reconciler.core.fit.architecture import architecture_of
from reconciler.core.fit.caches import CacheSettings, caches_of, state_size
from reconciler.core.fit.kv import Cache, UnsupportedCacheError
from reconciler.core.fit.layers import Kind, State
from reconciler.core.fit.pool import Serving, pool_of

from . import configs

interface = pytest.importorskip("vllm.v1.kv_cache_interface", reason="no engine is installed here to compare with")

LAW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def theirs(cache: Cache) -> Any:
    """The same as vLLM's spec."""
    import torch

    if cache.kind is Kind.LINEAR:
        return interface.MambaSpec(
            block_size=cache.block,
            shapes=((cache.content,),),
            dtypes=(torch.uint8,),
            page_size_padded=cache.padded or None,
            mamba_cache_mode="align",
        )
    key, value, name = cache.shape
    dtype = {"auto": torch.bfloat16, "float32": torch.float32, "fp8": torch.uint8}[str(name)]
    common: dict[str, Any] = {
        "block_size": cache.block,
        "num_kv_heads": cache.heads,
        "head_size": key,
        "dtype": dtype,
        "kv_quant_mode": interface.get_kv_quant_mode(str(name)),
    }
    if cache.kind is Kind.MLA:
        return interface.MLAAttentionSpec(**common, cache_dtype_str=str(name))
    common["head_size_v"] = value
    if cache.kind is Kind.SLIDING:
        return interface.SlidingWindowSpec(**common, sliding_window=cache.window)
    if cache.kind is Kind.CHUNKED:
        return interface.ChunkedLocalAttentionSpec(**common, attention_chunk_size=cache.window)
    if cache.kind is Kind.CROSS:
        return interface.CrossAttentionSpec(**common)
    return interface.FullAttentionSpec(**common)


class Config(SimpleNamespace):
    """As much of a VllmConfig as the KV cache code looks at."""


def config(serving: Serving) -> Any:
    from vllm.v1.kv_cache_layout import KVCacheLayout

    return Config(
        model_config=SimpleNamespace(max_model_len=serving.max_model_len, original_max_model_len=None),
        parallel_config=SimpleNamespace(decode_context_parallel_size=1),
        cache_config=SimpleNamespace(
            num_gpu_blocks_override=None,
            mamba_cache_mode=serving.mamba_mode,
            prefix_cache_retention_interval=None,
            get_resolved_kv_cache_layout=lambda: KVCacheLayout.LBNHC,
        ),
        scheduler_config=SimpleNamespace(
            disable_hybrid_kv_cache_manager=not serving.hybrid, max_num_encoder_input_tokens=serving.encoder_tokens
        ),
        max_in_flight_tokens=serving.in_flight,
        speculative_config=None,
    )


@st.composite
def attention(draw: st.DrawFn, kinds: tuple[Kind, ...]) -> Cache:
    kind = draw(st.sampled_from(kinds))
    name = draw(st.sampled_from(["auto", "auto", "fp8", "float32"]))
    size = {"auto": 2, "fp8": 1, "float32": 4}[name]
    key = draw(st.sampled_from([64, 80, 96, 128, 256, 512]))
    if kind is Kind.MLA:
        key = draw(st.sampled_from([576, 320]))
        return Cache(kind, 16, 1, key * size, (key, 0, name))
    value = draw(st.sampled_from([key, key, key, 64]))
    window = draw(st.sampled_from([127, 128, 1000, 1024, 4097])) if kind in (Kind.SLIDING, Kind.CHUNKED) else 0
    heads = draw(st.sampled_from([1, 2, 3, 4, 8]))
    return Cache(kind, 16, heads, (key + value) * size, (key, value, name), window)


@st.composite
def models(draw: st.DrawFn, kinds: tuple[Kind, ...], most: int = 3) -> list[Cache]:
    """Layers in a repeating pattern of a few different ones, as models have them, now and then irregular."""
    block = draw(st.sampled_from([16, 16, 32, 64, 128]))
    different = draw(st.lists(attention(kinds), min_size=1, max_size=most))
    if draw(st.booleans()):  # Most models have one size of head.
        different = [
            replace(d, heads=different[0].heads, content=different[0].content, shape=different[0].shape)
            if Kind.MLA not in (d.kind, different[0].kind)
            else d
            for d in different
        ]
    different = [replace(d, block=16 if d.kind is Kind.SLIDING else block) for d in different]
    if draw(st.booleans()):
        pattern = draw(st.lists(st.sampled_from(different), min_size=1, max_size=8))
        return pattern * draw(st.integers(1, 12)) + draw(st.lists(st.sampled_from(different), max_size=3))
    return draw(st.lists(st.sampled_from(different), min_size=1, max_size=70))


@st.composite
def servings(draw: st.DrawFn, *, hybrid: bool = True) -> Serving:
    return Serving(
        max_model_len=draw(st.integers(1, 300_000)),
        in_flight=draw(st.sampled_from([512, 513, 2049, 4096, 4992, 16384, 32768])),
        mamba_mode=draw(st.sampled_from(["none", "align", "all"])),
        encoder_tokens=draw(st.sampled_from([448, 1500])),
        hybrid=hybrid,
    )


def compare(caches: list[Cache], serving: Serving, budget: int, stages: list[range] | None = None) -> None:
    """Groups, block sizes, blocks, tokens, concurrency, what is needed, and the longest context."""
    from vllm.v1.core import kv_cache_utils as utils

    names = [f"layer.{number}" for number in range(len(caches))]
    specs = {name: theirs(cache) for name, cache in zip(names, caches, strict=True)}
    stages = stages or [range(len(caches))]
    try:
        groups = utils.get_kv_cache_groups(config(serving), dict(specs))
    except (NotImplementedError, ValueError, AssertionError):
        with pytest.raises(UnsupportedCacheError):
            pool_of(caches, hybrid=serving.hybrid)
        return
    whole = pool_of(caches, hybrid=serving.hybrid)
    assert [[names[number] for number in group.layers] for group in whole.groups] == [
        g.layer_names for g in groups
    ]
    assert [group.kind.block for group in whole.groups] == [g.kv_cache_spec.block_size for g in groups]
    pools = [pool_of(caches, hybrid=serving.hybrid, layers=stage) for stage in stages]
    workers = [{names[number]: specs[names[number]] for number in stage} for stage in stages]
    fits = all(pool.needed(serving) <= budget for pool in pools)
    try:
        configs = utils.get_kv_cache_configs(config(serving), workers, [budget] * len(stages))
    except ValueError:
        assert not fits
    else:
        assert fits
        blocks = min(pool.blocks(budget) for pool in pools)
        assert [c.num_blocks for c in configs] == [blocks] * len(stages)
        tokens, concurrency = utils.get_kv_cache_capacity(
            config(serving), utils.generate_scheduler_kv_cache_config(configs)
        )
        assert pools[0].tokens(blocks, serving) == tokens
        assert pools[0].concurrency(blocks, serving) == concurrency
    for pool, worker in zip(pools, workers, strict=True):
        projected = utils._project_kv_cache_groups_to_worker(groups, worker)
        usable = budget - utils._pool_bytes_per_block(projected)
        longest = utils._estimate_max_model_len_from_groups(config(serving), projected, usable)
        assert pool.longest(budget, serving) == longest


BUDGETS = st.integers(2**20, 2**37)


@LAW
@given(models((Kind.FULL,), most=1), servings(), BUDGETS)
def test_full_attention_with_any_heads_dtype_and_block(caches: list[Cache], serving: Serving, budget: int) -> None:
    compare(caches, serving, budget)


@LAW
@given(models((Kind.MLA,), most=1), servings(), BUDGETS)
def test_mla(caches: list[Cache], serving: Serving, budget: int) -> None:
    compare(caches, serving, budget)


@LAW
@given(models((Kind.SLIDING,), most=2), servings(), BUDGETS)
def test_sliding_window(caches: list[Cache], serving: Serving, budget: int) -> None:
    compare(caches, serving, budget)


@LAW
@given(models((Kind.CHUNKED, Kind.FULL)), servings(), BUDGETS)
def test_chunked_attention(caches: list[Cache], serving: Serving, budget: int) -> None:
    compare(caches, serving, budget)


@settings(LAW, max_examples=200)
@given(models((Kind.FULL, Kind.SLIDING, Kind.CHUNKED, Kind.MLA), most=4), servings(), BUDGETS)
def test_mixed_layers(caches: list[Cache], serving: Serving, budget: int) -> None:
    compare(caches, serving, budget)


@LAW
@given(models((Kind.FULL, Kind.SLIDING, Kind.CHUNKED)), servings(hybrid=False), BUDGETS)
@example(
    [
        Cache(Kind.FULL, 16, 1, 256, (64, 64, "auto")),
        Cache(Kind.CHUNKED, 16, 1, 256, (64, 64, "auto"), 127),
        Cache(Kind.CHUNKED, 16, 2, 256, (64, 64, "auto"), 128),
    ],
    Serving(1, 512, "none", hybrid=False),
    2**20,
)
def test_without_the_hybrid_manager(caches: list[Cache], serving: Serving, budget: int) -> None:
    compare(caches, serving, budget)


@LAW
@given(models((Kind.FULL, Kind.CROSS), most=2), servings(), BUDGETS)
def test_cross_attention(caches: list[Cache], serving: Serving, budget: int) -> None:
    compare(caches, serving, budget)


@LAW
@given(models((Kind.FULL, Kind.SLIDING), most=2), st.integers(1_000, 5_000_000), st.data(), servings(), BUDGETS)
def test_hybrids_with_a_recurrent_state(
    layers: list[Cache], state: int, data: st.DataObject, serving: Serving, budget: int
) -> None:
    linear = Cache(Kind.LINEAR, layers[0].block, content=state)
    if data.draw(st.booleans()):
        linear = replace(linear, padded=max([state, *(layer.page for layer in layers)]))
    ratio = data.draw(st.integers(1, 7))
    caches = [cache for layer in layers for cache in [*[linear] * ratio, layer]]
    compare(caches, serving, budget)


@LAW
@given(models((Kind.FULL, Kind.SLIDING), most=3), servings(), BUDGETS, st.integers(2, 4), st.integers(1, 3))
def test_pipeline_stages(pattern: list[Cache], serving: Serving, budget: int, stages: int, repeats: int) -> None:
    """Each stage holds whole patterns, so that none lacks a kind of layer that the others have."""
    caches = pattern * repeats * stages
    size = len(pattern) * repeats
    compare(caches, serving, budget, [range(size * stage, size * (stage + 1)) for stage in range(stages)])


class Backend:
    """As much of an attention backend as `_align_hybrid_block_size` looks at."""

    @staticmethod
    def customize_spec(spec: Any) -> Any:
        return spec

    @staticmethod
    def get_supported_kernel_block_sizes() -> list[int]:
        return [16]


@LAW
@given(
    tp=st.sampled_from([1, 2, 4]),
    kv_dtype=st.sampled_from(["auto", "fp8"]),
    block=st.sampled_from([16, 32, 64]),
    mode=st.sampled_from(["align", "none"]),
    state=st.sampled_from([(16, 32, 128), (16, 48, 128), (32, 64, 64)]),
    kv_heads=st.sampled_from([2, 4, 8]),
)
def test_blocks_of_hybrids_grow_as_the_engine_grows_them(
    *, tp: int, kv_dtype: str, block: int, mode: str, state: tuple[int, int, int], kv_heads: int
) -> None:
    import contextlib
    from unittest.mock import patch

    import torch
    from vllm.model_executor.layers.mamba.mamba_utils import MambaStateShapeCalculator as Shapes
    from vllm.platforms.interface import Platform

    key_heads, value_heads, size = state
    config_json = {
        **configs.QWEN3_NEXT, "num_key_value_heads": kv_heads, "linear_num_key_heads": key_heads,
        "linear_num_value_heads": value_heads, "linear_key_head_dim": size, "linear_value_head_dim": size,
    }  # fmt: skip
    ours = caches_of(
        architecture_of(config_json),
        CacheSettings(tp, kv_dtype=kv_dtype, block=block, mamba_mode=mode, max_model_len=4096),
    )

    class Model:
        @staticmethod
        def get_mamba_state_shape_from_config(_: Any) -> Any:
            return Shapes.gated_delta_net_state_shape(tp, key_heads, value_heads, size, size, 4)

        @staticmethod
        def get_mamba_state_dtype_from_config(_: Any) -> Any:
            return (torch.bfloat16, torch.bfloat16)

    cache = SimpleNamespace(
        cache_dtype=kv_dtype, block_size=block, mamba_cache_mode=mode, mamba_block_size=None,
        user_specified_mamba_block_size=False, mamba_page_size_padded=None, kv_cache_dtype_skip_layers=None,
    )  # fmt: skip
    model = SimpleNamespace(
        dtype=torch.bfloat16, use_mla=False, architecture="", get_num_kv_heads=lambda _: max(1, kv_heads // tp),
        get_head_size=lambda: 256,
    )  # fmt: skip
    with (
        patch("vllm.config.vllm.set_current_vllm_config", lambda _: contextlib.nullcontext()),
        patch("vllm.model_executor.models.ModelRegistry.resolve_model_cls", lambda *_, **__: (Model, "")),
    ):
        Platform._align_hybrid_block_size(
            SimpleNamespace(cache_config=cache, model_config=model, parallel_config=None), Backend
        )
    full = next(each for each in ours if each.kind is Kind.FULL)
    linear = next(each for each in ours if each.kind is Kind.LINEAR)
    assert full.block == cache.block_size
    assert linear.padded == (cache.mamba_page_size_padded or 0)
    assert linear.page == full.page


@LAW
@given(
    st.sampled_from(["mamba1", "mamba2", "gdn", "kda", "conv", "linear"]), st.sampled_from([1, 2, 4, 8]), st.data()
)
def test_states_are_as_large_as_those_of_the_engine(flavour: str, tp: int, data: st.DataObject) -> None:
    import torch
    from vllm.model_executor.layers.mamba.mamba_utils import MambaStateShapeCalculator as Shapes

    def draw(*values: int) -> int:
        return data.draw(st.sampled_from(values))

    heads, groups, head_dim, size, conv = (
        draw(16, 32, 64),
        draw(1, 8, 16),
        draw(64, 128),
        draw(16, 128),
        draw(3, 4),
    )
    inner, extra = heads * head_dim, draw(0, 2)
    groups = 16 if flavour == "gdn" else groups
    state = State(flavour, inner, heads, groups, head_dim, size, conv, data.draw(st.sampled_from(["", "float32"])))
    shapes: dict[str, Any] = {
        "mamba1": lambda: Shapes.mamba1_state_shape(tp, inner, size, conv),
        "mamba2": lambda: Shapes.mamba2_state_shape(tp, inner, groups, heads, head_dim, size, conv, extra),
        "gdn": lambda: Shapes.gated_delta_net_state_shape(tp, groups, heads, size, head_dim, conv, extra),
        "kda": lambda: Shapes.kda_state_shape(tp, heads, head_dim, conv_kernel_size=conv, num_spec=extra),
        "conv": lambda: Shapes.short_conv_state_shape(tp, inner, conv, extra),
        "linear": lambda: Shapes.linear_attention_state_shape(heads, tp, head_dim),
    }
    recurrent = torch.float32 if state.dtype else torch.bfloat16
    dtypes = (recurrent,) if flavour == "linear" else (torch.bfloat16, recurrent)
    spec = interface.MambaSpec(block_size=-1, shapes=shapes[flavour](), dtypes=dtypes)
    assert state_size(state, CacheSettings(tp=tp, speculative_tokens=extra)) == spec.page_size_bytes
