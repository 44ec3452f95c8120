"""Is there room for a download beside the others that are under way? Asked before the first byte."""

import threading
from collections.abc import Callable, Collection

from reconciler.core.choose_files import RepoFile
from reconciler.core.weights import Copy, in_words
from reconciler.weights.cache import HubCache
from reconciler.weights.errors import Trouble, WeightsError


class Room:
    """The room on the cache's disk, and what was promised of it.

    Args:
        cache: The cache.
        reserve: Bytes of the disk that stay free.
        limit: Bytes that the cache may have at most; None is no limit.
        make_room: Called with a number of bytes to remove unused copies of ours; gives the bytes it removed.
    """

    def __init__(
        self, cache: HubCache, *, reserve: int, limit: int | None, make_room: Callable[[int], int]
    ) -> None:
        self._cache, self._reserve, self._limit, self._make_room = cache, reserve, limit, make_room
        self._lock = threading.Lock()
        self._promised: dict[Copy, tuple[RepoFile, ...]] = {}

    def claim(self, copy: Copy, files: Collection[RepoFile]) -> None:
        """Promise the room that is missing for these files, after removing what is not needed if that helps.

        Raises:
            WeightsError: There is not enough.
        """
        with self._lock:
            problem, short = self._judge(copy, files)
            if short:
                self._make_room(short)
                problem, short = self._judge(copy, files)
            if short:
                raise WeightsError(Trouble.NO_SPACE, problem)
            self._promised[copy] = tuple(files)

    def release(self, copy: Copy) -> None:
        """The download ended, in one way or another."""
        with self._lock:
            self._promised.pop(copy, None)

    def problem(self, copy: Copy, files: Collection[RepoFile], *, removable: int) -> str:
        """Why there would not be enough, for one who only looks; empty where there is.

        Args:
            copy: The copy.
            files: What it consists of.
            removable: Bytes that could be freed.
        """
        problem, short = self._judge(copy, files)
        return problem if short > removable else ""

    def _judge(self, copy: Copy, files: Collection[RepoFile]) -> tuple[str, int]:
        """What is wrong, and by how many bytes."""
        needed = self._missing(copy, files)
        if needed <= 0:
            return "", 0
        others = sum(self._missing(other, theirs) for other, theirs in self._promised.items() if other != copy)
        if self._limit is not None and (over := self._cache.size() + needed + others - self._limit) > 0:
            return (
                f"{copy} needs {in_words(needed)} more, and the cache may have {in_words(self._limit)} "
                "(cache_limit_gib): remove model files that are not needed, or raise the limit"
            ), over
        free = self._cache.free() - others
        if (short := needed + self._reserve - free) > 0:
            return (
                f"{copy} needs {in_words(needed)} more, and of the {in_words(max(0, free))} free at "
                f"{self._cache.root} {in_words(self._reserve)} stay free (disk_reserve_gib): `reconcile gc` "
                "removes what is not needed"
            ), short
        return "", 0

    def _missing(self, copy: Copy, files: Collection[RepoFile]) -> int:
        unique = {file.etag: file for file in files}
        return sum(file.size - self._cache.bytes_there(copy.repo, file) for file in unique.values())
