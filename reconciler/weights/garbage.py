"""Remove copies that nobody needs, through the hub's own cache tools: only ours, unless told otherwise.

Blobs that another revision shares stay; the hub's `DeleteCacheStrategy` sees to that.
"""

import contextlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from reconciler.core.weights import Copy, Role
from reconciler.weights.cache import HubCache
from reconciler.weights.manifest import Manifests


@dataclass(frozen=True, slots=True)
class Unneeded:
    """A revision in the cache that no model needs.

    Attributes:
        size: Bytes that are free once it is gone.
        ours: We fetched it.
    """

    repo: str
    commit: str
    size: int
    ours: bool
    last_used: float


class Garbage:
    """Finds and removes what is not needed."""

    def __init__(self, cache: HubCache, manifests: Manifests) -> None:
        self._cache = cache
        self._manifests = manifests

    def unneeded(self, needed: Collection[Copy], *, everything: bool = False) -> list[Unneeded]:
        """Revisions that are not needed, the longest unused first.

        Args:
            needed: What is.
            everything: Also revisions that others fetched into the cache.
        """
        from huggingface_hub import scan_cache_dir  # noqa: PLC0415 -- slow to import

        if not self._cache.root.is_dir():
            return []
        kept = {(copy.repo, copy.commit) for copy in needed}
        ours = {(m.copy.repo, m.copy.commit) for m in self._manifests.all() if m.fetched}
        info = scan_cache_dir(self._cache.root)
        found: list[Unneeded] = []
        for repo in info.repos:
            for revision in repo.revisions if repo.repo_type == "model" else ():
                key = (repo.repo_id, revision.commit_hash)
                if key in kept or not (everything or key in ours):
                    continue
                size = info.delete_revisions(revision.commit_hash).expected_freed_size
                found.append(Unneeded(*key, size, key in ours, repo.last_accessed))
        return sorted(found, key=lambda each: (each.last_used, each.repo, each.commit))

    def partial(self, needed: Collection[Copy]) -> list[Path]:
        """What is left of downloads that were given up: partial files of repositories that nobody needs."""
        kept = {self._cache.folder(copy.repo) for copy in needed}
        return [
            path
            for path in sorted(self._cache.root.glob("models--*/blobs/*.reconcile.incomplete"))
            if path.parent.parent not in kept
        ]

    def remove(self, unneeded: Iterable[Unneeded], partial: Iterable[Path] = ()) -> int:
        """Remove them; gives the bytes that are free now."""
        from huggingface_hub import scan_cache_dir  # noqa: PLC0415

        freed = 0
        for path in partial:
            with contextlib.suppress(FileNotFoundError):
                size = path.stat().st_size
                path.unlink()
                freed += size
        commits = [(each.repo, each.commit) for each in unneeded]
        if commits:
            strategy = scan_cache_dir(self._cache.root).delete_revisions(*(commit for _, commit in commits))
            strategy.execute()
            freed += strategy.expected_freed_size
        for repo, commit in commits:
            for role in Role:
                self._manifests.forget(Copy(repo, commit, role))
        return freed

    def make_room(self, needed: Collection[Copy], size: int) -> int:
        """Remove copies of ours, the longest unused first, until so many bytes are free; nothing where that fails.

        Returns:
            The bytes that were removed.
        """
        chosen: list[Unneeded] = []
        for each in self.unneeded(needed):
            chosen.append(each)
            if sum(one.size for one in chosen) >= size:
                return self.remove(chosen)
        return 0
