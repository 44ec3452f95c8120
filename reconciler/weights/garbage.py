"""Remove copies that nobody needs: never what is needed, never what is being fetched, and only ours unless told.

Not by the hub's own `DeleteCacheStrategy`: that goes by commit alone, over all repositories, and removes a whole
repository with its last revision, whatever is being fetched into it.
"""

import contextlib
import fcntl
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from reconciler.core.weights import Copy, Keep, Role, is_commit
from reconciler.weights.cache import PARTIAL_SUFFIX, HubCache
from reconciler.weights.manifest import Manifests


@dataclass(frozen=True, slots=True)
class Unneeded:
    """A revision in the cache that no model needs.

    Attributes:
        size: Bytes that are free once it is gone, alone.
        ours: We fetched it.
        used: Seconds since the epoch of its last change.
    """

    repo: str
    commit: str
    size: int
    ours: bool
    used: float


class Garbage:
    """Finds and removes what is not needed."""

    def __init__(self, cache: HubCache, manifests: Manifests) -> None:
        self._cache = cache
        self._manifests = manifests

    def unneeded(self, keep: Keep, *, everything: bool = False) -> list[Unneeded]:
        """Revisions that are not needed, the longest untouched first.

        Args:
            keep: What is.
            everything: Also revisions that others fetched into the cache.
        """
        ours = {(m.copy.repo, m.copy.commit) for m in self._manifests.all() if m.fetched}
        found: list[Unneeded] = []
        for repo in self._cache.repos():
            for snapshot in self._snapshots(repo):
                commit = snapshot.name
                if keep.has(repo, commit) or not (everything or (repo, commit) in ours):
                    continue
                alone = self._blobs_of(snapshot) - self._blobs_that_stay(repo, keep, {commit})
                size = sum(path.stat().st_size for path in alone if path.exists())
                found.append(Unneeded(repo, commit, size, (repo, commit) in ours, snapshot.stat().st_mtime))
        return sorted(found, key=lambda each: (each.used, each.repo, each.commit))

    def partial(self, keep: Keep) -> list[Path]:
        """What is left of downloads that were given up."""
        found: list[Path] = []
        for repo in self._cache.repos():
            if repo in keep.repos:
                continue
            needed = self._noted_etags(repo, keep)
            for path in sorted((self._cache.folder(repo) / "blobs").glob(f"*{PARTIAL_SUFFIX}")):
                etag = path.name.removesuffix(PARTIAL_SUFFIX)
                if etag not in needed and not self._is_locked(repo, etag):
                    found.append(path)
        return found

    def remove(self, unneeded: Iterable[Unneeded], keep: Keep, partial: Iterable[Path] = ()) -> int:
        """Remove them; gives the bytes that are free now."""
        freed = sum(_unlink(path) for path in partial)
        by_repo: dict[str, set[str]] = {}
        for each in unneeded:
            by_repo.setdefault(each.repo, set()).add(each.commit)
        for repo, commits in by_repo.items():
            freed += self._remove_from(repo, commits, keep)
        return freed

    def make_room(self, keep: Keep, size: int) -> int:
        """Remove copies of ours, the longest untouched first, until so many bytes are free; nothing if that fails.

        Returns:
            The bytes that were removed.
        """
        chosen: list[Unneeded] = []
        for each in self.unneeded(keep):
            chosen.append(each)
            if sum(one.size for one in chosen) >= size:
                return self.remove(chosen, keep)
        return 0

    def _remove_from(self, repo: str, commits: set[str], keep: Keep) -> int:
        folder = self._cache.folder(repo)
        going = {commit: self._blobs_of(folder / "snapshots" / commit) for commit in commits}
        staying = self._blobs_that_stay(repo, keep, commits)
        for commit in commits:
            shutil.rmtree(folder / "snapshots" / commit, ignore_errors=True)
            for role in Role:
                self._manifests.forget(Copy(repo, commit, role))
        freed = sum(_unlink(blob) for blob in set().union(*going.values()) - staying)
        for ref in (folder / "refs").rglob("*"):
            if ref.is_file() and ref.read_text(encoding="utf-8", errors="replace").strip() in commits:
                ref.unlink(missing_ok=True)
        # Empty folders go; whatever is still in one keeps it.
        for name in ("refs", "snapshots", "blobs", ""):
            with contextlib.suppress(OSError):
                (folder / name).rmdir()
        return freed

    def _blobs_that_stay(self, repo: str, keep: Keep, going: set[str]) -> set[Path]:
        """Blobs that other snapshots link, or that a needed copy consists of, linked yet or not."""
        noted = {self._cache.blob(repo, etag) for etag in self._noted_etags(repo, keep)}
        others = (self._blobs_of(path) for path in self._snapshots(repo) if path.name not in going)
        return noted.union(*others)

    def _noted_etags(self, repo: str, keep: Keep) -> set[str]:
        manifests = (m for m in self._manifests.all() if m.copy.repo == repo and keep.has(repo, m.copy.commit))
        return {seen.file.etag for manifest in manifests for seen in manifest.files}

    def _snapshots(self, repo: str) -> list[Path]:
        folder = self._cache.folder(repo) / "snapshots"
        return sorted(path for path in folder.glob("*") if is_commit(path.name) and path.is_dir())

    def _blobs_of(self, snapshot: Path) -> set[Path]:
        blobs = snapshot.parent.parent / "blobs"
        linked = (path.resolve() for path in snapshot.rglob("*") if path.is_symlink())
        return {blobs / path.name for path in linked if path.parent == blobs.resolve()}

    def _is_locked(self, repo: str, etag: str) -> bool:
        try:
            with self._cache.lock_file(repo, etag).open("r") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return False


def _unlink(path: Path) -> int:
    try:
        size = path.stat().st_size
        path.unlink()
    except FileNotFoundError:
        return 0
    return size
