"""Settings from memory, the estimate turned round: the longest context, the least and the highest share. Pure.

All search on one layout of weights and cache, so that a call costs little more than an estimate.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from reconciler.core.fit import refusals
from reconciler.core.fit.architecture import Architecture
from reconciler.core.fit.engine import Engine, as_served, serving_of, with_defaults
from reconciler.core.fit.estimate import beside_of
from reconciler.core.fit.extras import Extras, Known
from reconciler.core.fit.gpus import Gpu
from reconciler.core.fit.layout import Layout, layout_of
from reconciler.core.fit.parts import Part
from reconciler.core.fit.terms import context

HIGHEST_SHARE = 0.92
"""vLLM 0.29's own default, which leaves room for what no profile run sees."""
_STEPS = 100
"""Shares are whole hundredths."""
_ROUND, _ROUND_SHORT, _SHORT = 1024, 256, 8192
"""Tokens. Contexts from `_SHORT` on are whole multiples of the first, shorter ones of the second."""


@dataclass(frozen=True, slots=True)
class _Case:
    model: Architecture
    engine: Engine
    gpu: Gpu
    known: Known | None
    extras: Extras
    layout: Layout


def longest_context(
    model: Architecture,
    parts: Sequence[Part],
    engine: Engine,
    gpu: Gpu,
    *,
    known: Known | None = None,
    extras: Extras = Extras(),  # noqa: B008 -- frozen
    safely: bool = True,
) -> int:
    """The largest `max_model_len` with which the engine starts, in tokens; 0 where it does with none.

    Up to the model's own context, whatever `engine` says; of a model that names none, up to what `engine` says.
    The whole context is returned as it is, and anything less rounded down to whole blocks and to a number that a
    person would write.

    Args:
        model: What the config says.
        parts: Its weights.
        engine: All other settings.
        gpu: What it runs on.
        known: What was measured of it.
        extras: What is loaded beside it.
        safely: By the safe values, else by the expected ones.

    Raises:
        ValueError: A dtype is not known.
    """
    model = as_served(model, engine)
    reach = model.context or with_defaults(model, engine, gpu).max_model_len
    filled = with_defaults(model, replace(engine, max_model_len=reach), gpu)
    layout = layout_of(model, parts, filled, extras, known)
    case = _Case(model, engine, gpu, known, extras, layout)
    if layout.refusal:
        return 0
    if _starts(case, reach, safely=safely):
        return reach
    left, right, found = 1, reach - 1, 0
    while left <= right:
        middle = (left + right) // 2
        if _starts(case, middle, safely=safely):
            found, left = middle, middle + 1
        else:
            right = middle - 1
    return _friendly(found, layout, engine.block_size)


def _starts(case: _Case, length: int, *, safely: bool) -> bool:
    """As `estimate` decides it, of all stages."""
    model, gpu = case.model, case.gpu
    engine = with_defaults(model, replace(case.engine, max_model_len=length), gpu)
    if refusals.of_settings(model, engine):
        return False
    requested = math.ceil(gpu.total * engine.gpu_memory_utilization)
    outside = context(engine.tensor_parallel, engine.pipeline_parallel)
    if refusals.of_start(gpu, engine, requested, outside.safe if safely else outside.expected):
        return False
    beside = beside_of(model, engine, gpu, case.extras, case.known).total
    serving = serving_of(model, engine)
    for stage in case.layout.stages:
        used = stage.weights.safe + beside.safe if safely else stage.weights.expected + beside.expected
        available = engine.kv_cache_memory_bytes or requested - used
        if engine.kv_cache_memory_bytes:
            footprint = used + available + (outside.safe if safely else outside.expected)
            if refusals.of_sum(gpu, footprint):
                return False
        if available < 0 or stage.pool.needed(serving) > available:
            return False
    return True


def _friendly(length: int, layout: Layout, block: int) -> int:
    block = max((group.kind.block for stage in layout.stages for group in stage.pool.groups), default=block)
    unit = _ROUND if length >= _SHORT else _ROUND_SHORT
    if length < unit or unit % block:
        unit = block
    return length // unit * unit or length


def least_share(
    model: Architecture,
    parts: Sequence[Part],
    engine: Engine,
    gpu: Gpu,
    *,
    requests: float = 1.0,
    kv_bytes: int | None = None,
    known: Known | None = None,
    extras: Extras = Extras(),  # noqa: B008 -- frozen
) -> float:
    """The smallest `gpu_memory_utilization` that holds the engine by its safe values, in whole hundredths.

    More than 1 where the GPU is too small. Whether so much is free is for `highest_share`.

    Args:
        model: What the config says.
        parts: Its weights.
        engine: All other settings.
        gpu: What it runs on.
        requests: For how many requests of `max_model_len` the cache has to have room; at least one.
        kv_bytes: Bytes of the cache on a rank, instead.
        known: What was measured of it.
        extras: What is loaded beside it.

    Raises:
        ValueError: A dtype is not known.
    """
    model = as_served(model, engine)
    engine = with_defaults(model, engine, gpu)
    layout = layout_of(model, parts, engine, extras, known)
    beside = beside_of(model, engine, gpu, extras, known).total.safe
    serving = serving_of(model, engine)
    most = 0
    for stage in layout.stages:
        pool = stage.pool
        blocks = math.ceil(max(1.0, requests) * pool.blocks_per_request(serving)) + 1
        cache = max(kv_bytes, pool.needed(serving)) if kv_bytes is not None else pool.bytes_per_block * blocks
        cache = engine.kv_cache_memory_bytes or cache
        most = max(most, stage.weights.safe + beside + cache)
    share = math.ceil(most / gpu.total * _STEPS)
    while math.ceil(gpu.total * (share / _STEPS)) < most:  # As vLLM computes it, in floating point.
        share += 1
    return share / _STEPS


def highest_share(
    gpu: Gpu, tensor_parallel: int = 1, pipeline_parallel: int = 1, cap: float = HIGHEST_SHARE
) -> float:
    """The highest `gpu_memory_utilization` up to `cap` that vLLM accepts at its start; 0 where it accepts none.

    It wants so much free (`request_memory` in v1/worker/utils.py), after its CUDA context, by the safe value, and
    beside what `gpu.used` says.
    """
    outside = context(tensor_parallel, pipeline_parallel).safe
    free = gpu.total - gpu.used - outside
    share = int(min(cap, max(0, free) / gpu.total) * _STEPS + 1e-9)
    while share > 0 and math.ceil(gpu.total * (share / _STEPS)) > free:
        share -= 1
    return share / _STEPS
