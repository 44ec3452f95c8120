"""The KV cache: what a layer keeps, bytes a block, and groups of layers. Pure.

The arithmetic of vLLM 0.29's `v1/kv_cache_interface.py` and `v1/core/kv_cache_utils.py`, which the tests compare
it with, number for number. A *page* is what one block takes in one layer; layers are put into *groups* that share
a block table, and all groups draw blocks of one size from one pool.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod

from reconciler.core.fit.layers import Kind


@dataclass(frozen=True, slots=True)
class Cache:
    """What one layer keeps, on one rank: vLLM's `KVCacheSpec`.

    Attributes:
        kind: FULL, MLA, SLIDING, CHUNKED, LINEAR or CROSS.
        block: Tokens of one block.
        heads: KV heads on this rank (slots; NVFP4 has none more, see `content`).
        content: Bytes that a token leaves in one head; of a LINEAR layer the whole state.
        shape: What else makes two caches unlike: head sizes, types, state shapes.
        window: Tokens of the window or chunk. On a FULL cache: of a sliding layer that is kept in full.
        padded: Bytes of a page with its padding; 0 for none.
        chunked: `window` is a chunk, on a FULL cache.
    """

    kind: Kind
    block: int
    heads: int = 1
    content: int = 0
    shape: tuple[object, ...] = ()
    window: int = 0
    padded: int = 0
    chunked: bool = False

    @property
    def unpadded(self) -> int:
        """Bytes of one page without padding."""
        return self.content if self.kind is Kind.LINEAR else self.heads * self.block * self.content

    @property
    def page(self) -> int:
        """Bytes of one block in this layer."""
        return self.padded or self.unpadded


@dataclass(frozen=True, slots=True)
class Group:
    """Layers that share a block table: their numbers, and the cache of each."""

    layers: tuple[int, ...]
    caches: tuple[Cache, ...]
    kind: Cache
    """What stands for the group; of a group whose layers differ, one of them."""

    @property
    def bytes_per_block(self) -> int:
        """Bytes of one block in all layers of the group."""
        return sum(cache.page for cache in self.caches)


class UnsupportedCacheError(Exception):
    """Caches that vLLM cannot put into one pool; it would refuse to start."""


def groups_of(caches: Sequence[Cache], *, hybrid: bool = True) -> tuple[Group, ...]:
    """Put layers into groups (`get_kv_cache_groups`).

    Raises:
        UnsupportedCacheError: vLLM would refuse them.
    """
    caches = list(caches)
    if not caches:
        return ()
    if not hybrid:
        caches = _promoted(caches)
    everything = tuple(range(len(caches)))
    if (merged := _merged(caches)) is not None:
        return (Group(everything, (merged,) * len(caches), merged),)
    if _uniform_type(caches):
        return (Group(everything, tuple(caches), caches[0]),)
    try:
        return _uniform_page_groups(_unified(caches))
    except UnsupportedCacheError:
        kinds = {cache.kind for cache in caches}
        if not {Kind.MLA, Kind.SLIDING} <= kinds or Kind.CHUNKED in kinds:
            raise
        # vLLM's fallback (`_try_get_full_allocation_fallback_groups`): the sliding layers are kept in full.
        full = _promoted(caches)
        if not _uniform_type(full):
            raise
        return (Group(everything, tuple(full), full[0]),)


def _merged(caches: Sequence[Cache]) -> Cache | None:
    """One cache for all, where vLLM can merge them; `merge` of the specs."""
    first = caches[0]
    if any(cache.kind is not first.kind for cache in caches):
        return None
    if first.kind is not Kind.FULL:
        return first if all(cache == first for cache in caches) else None
    windows = {(cache.window, cache.chunked) for cache in caches if cache.window}
    kinds = {chunked for _, chunked in windows}
    # vLLM looks at the sizes of windows first, and gives up on them for good (`merge_window_sizes`).
    if len(windows) > len(kinds):
        raise UnsupportedCacheError("layers of one group have windows of different sizes")
    if len(kinds) > 1:
        return None
    if any(replace(cache, window=0, chunked=False) != replace(first, window=0, chunked=False) for cache in caches):
        return None
    window, chunked = windows.pop() if windows else (0, False)
    return replace(first, window=window, chunked=chunked)


def _uniform_type(caches: Sequence[Cache]) -> bool:
    """All need the same number of token slots (`UniformTypeKVCacheSpecs.is_uniform_type`)."""
    first = caches[0]
    if any(cache.block != first.block for cache in caches):
        return False
    # MLA is registered as a kind of full attention.
    full = (Kind.FULL, Kind.MLA)
    if first.kind in full:
        return all(cache.kind in full for cache in caches)
    if any(cache.kind is not first.kind for cache in caches):
        return False
    if first.kind in (Kind.SLIDING, Kind.CHUNKED):
        return all(cache.window == first.window for cache in caches)
    return first.kind is not Kind.LINEAR or all(cache.page == first.page for cache in caches)


def _promoted(caches: list[Cache]) -> list[Cache]:
    """Sliding and chunked layers kept in full (`unify_hybrid_kv_cache_specs`)."""
    if _merged(caches) is not None or _uniform_type(caches):
        return caches
    found = caches
    if any(cache.kind in (Kind.FULL, Kind.MLA) for cache in caches):
        blocks = {cache.block for cache in caches if cache.kind in (Kind.FULL, Kind.MLA)}
        block = blocks.pop() if len(blocks) == 1 else 0
        found = [
            replace(cache, kind=Kind.FULL, block=block or cache.block, chunked=cache.kind is Kind.CHUNKED)
            if cache.kind in (Kind.SLIDING, Kind.CHUNKED)
            else cache
            for cache in caches
        ]
    if _merged(found) is None and not _uniform_type(found):
        raise UnsupportedCacheError("without the hybrid KV cache manager these layers have no common kind")
    return found


def _unified(caches: list[Cache]) -> list[Cache]:
    """All pages made as large as the largest, by larger blocks or by padding (`unify_kv_cache_spec_page_size`)."""
    largest = max(cache.page for cache in caches)
    found = []
    for cache in caches:
        if cache.page == largest:
            found.append(cache)
        elif cache.kind is Kind.LINEAR:
            found.append(replace(cache, padded=largest))
        elif largest % cache.page == 0:
            grown = replace(cache, block=cache.block * (largest // cache.page))
            if grown.page != largest:
                raise UnsupportedCacheError("a padded page cannot grow with its block")
            found.append(grown)
        elif cache.kind is not Kind.MLA:
            found.append(replace(cache, padded=largest))
        else:
            raise UnsupportedCacheError("pages of MLA layers do not divide the largest page")
    return found


def _uniform_page_groups(caches: list[Cache]) -> tuple[Group, ...]:
    """Groups of equally many layers (`_get_kv_cache_groups_uniform_page_size`)."""
    same: dict[Cache, list[int]] = {}
    for number, cache in enumerate(caches):
        same.setdefault(cache, []).append(number)
    buckets: list[tuple[list[int], list[Cache]]] = []
    for cache, numbers in same.items():
        for bucket, kinds in buckets:
            try:
                fits = _merged([*kinds, cache]) is not None
            except UnsupportedCacheError:
                fits = False
            if fits:
                bucket.extend(numbers)
                kinds.append(cache)
                break
        else:
            buckets.append((list(numbers), [cache]))
    sizes = [len(bucket) for bucket, _ in buckets]
    size = max(sizes) if max(sizes) < min(sizes) * 1.5 else min(sizes)
    groups = []
    for bucket, _ in buckets:
        count = -(-len(bucket) // size)
        for first in range(count):
            numbers = bucket[first::count]
            merged = _merged([caches[number] for number in numbers])
            assert merged is not None
            groups.append(Group(tuple(numbers), (merged,) * len(numbers), merged))
    return tuple(groups)


def state_bytes(shapes: Iterable[tuple[int, ...]], sizes: Iterable[int]) -> int:
    """Bytes of a recurrent state from its shapes and the bytes of their numbers."""
    return sum(prod(shape) * size for shape, size in zip(shapes, sizes, strict=True))
