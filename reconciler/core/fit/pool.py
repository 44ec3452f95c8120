"""The pool of KV cache blocks: blocks and tokens from a budget, concurrency, the longest context. Pure.

The arithmetic of vLLM 0.29's `v1/core/kv_cache_utils.py`, which the tests compare it with, number for number.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from reconciler.core.fit.kv import Cache, Group, groups_of
from reconciler.core.fit.layers import Kind


@dataclass(frozen=True, slots=True)
class Serving:
    """What of the engine's settings the cache depends on.

    Attributes:
        max_model_len: Tokens of one request at most.
        in_flight: Tokens scheduled and not yet settled: batches in flight times `max_num_batched_tokens`
            (`VllmConfig.max_in_flight_tokens`).
        mamba_mode: `none`, `align` or `all`. vLLM takes `align` where prefix caching is on, its default.
        speculative_tokens: Draft tokens of a step.
        encoder_tokens: Longest encoder input.
        hybrid: The hybrid KV cache manager is on; off, sliding layers are kept in full.
    """

    max_model_len: int
    in_flight: int = 4096
    mamba_mode: str = "align"
    speculative_tokens: int = 0
    encoder_tokens: int = 0
    hybrid: bool = True

    def pages(self, cache: Cache) -> int:
        """Blocks of a layer that the longest request takes (`max_memory_usage_bytes` over the page)."""
        block, longest = cache.block, self.max_model_len
        if cache.kind in (Kind.FULL, Kind.MLA):
            return -(-longest // block)
        if cache.kind is Kind.SLIDING:
            # One more, because the window need not begin where a block does.
            return -(-min(cache.window - 1 + self.in_flight, longest) // block) + 1
        if cache.kind is Kind.CHUNKED:
            return -(-min(cache.window + self.in_flight, longest) // block)
        if cache.kind is Kind.CROSS:
            return -(-self.encoder_tokens // block)
        if self.mamba_mode == "all":
            return -(-longest // block) + self.speculative_tokens
        return (2 if self.mamba_mode == "align" else 1) + self.speculative_tokens


def _on_rank(groups: Iterable[Group], layers: range) -> tuple[Group, ...]:
    """The part of the groups whose layers a pipeline stage holds (`_project_kv_cache_groups_to_worker`)."""
    found = []
    for group in groups:
        kept = [place for place, number in enumerate(group.layers) if number in layers]
        found.append(
            Group(
                tuple(group.layers[place] for place in kept),
                tuple(group.caches[place] for place in kept),
                group.kind,
            )
        )
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Pool:
    """The blocks of one rank.

    Attributes:
        groups: Of all layers; `_on_rank` groups where the model is split into stages.
        bytes_per_block: Of one block in the widest group; 0 for a model without a cache.
    """

    groups: tuple[Group, ...]
    bytes_per_block: int

    def blocks(self, budget: int) -> int:
        """Blocks that fit into so many bytes; a model without a cache has one."""
        return max(0, budget) // self.bytes_per_block if self.bytes_per_block else 1

    def blocks_per_request(self, serving: Serving) -> int:
        """Blocks that a request of the greatest length takes in all groups together."""
        total = 0
        for group in self.groups:
            # A group of unlike layers counts the neediest; a stage may hold none of a group, which still counts.
            total += max(serving.pages(cache) for cache in group.caches or (group.kind,))
        return total

    def needed(self, serving: Serving) -> int:
        """Bytes that vLLM wants to start: a request of the greatest length, and the block it keeps back."""
        return self.bytes_per_block * (self.blocks_per_request(serving) + 1) if self.bytes_per_block else 0

    def concurrency(self, blocks: int, serving: Serving) -> float:
        """Requests of the greatest length that fit at once (`get_max_concurrency_for_kv_cache_config`)."""
        each = self.blocks_per_request(serving)
        return blocks / each if each else float("inf")

    def tokens(self, blocks: int, serving: Serving) -> int:
        """Tokens of capacity, as vLLM logs it (`get_kv_cache_capacity`)."""
        each = self.blocks_per_request(serving)
        return int(blocks / each * serving.max_model_len) if each else 0

    def longest(self, budget: int, serving: Serving) -> int:
        """The longest context up to `max_model_len` of which one request fits; 0 where not even one token does.

        vLLM's own `_estimate_max_model_len_from_groups`, with the block it keeps back taken off.
        """
        if not self.bytes_per_block:
            return serving.max_model_len
        left, right, found = 1, serving.max_model_len, 0
        while left <= right:
            middle = (left + right) // 2
            if self.needed(replace(serving, max_model_len=middle)) <= budget:
                found, left = middle, middle + 1
            else:
                right = middle - 1
        return found


def pool_of(caches: Sequence[Cache], *, hybrid: bool = True, layers: range | None = None) -> Pool:
    """The pool of a model's layers, or of those that one pipeline stage holds.

    Raises:
        UnsupportedCacheError: vLLM would refuse these layers.
    """
    groups = groups_of(caches, hybrid=hybrid)
    if layers is not None:
        groups = _on_rank(groups, layers)
    return Pool(groups, max((group.bytes_per_block for group in groups), default=0))
