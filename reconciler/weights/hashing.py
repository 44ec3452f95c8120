"""The hash that a file's content is named by, computed beside the download of a large file, not in its way."""

import hashlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

_PIECE = 2**20
_LARGE = 32 * 2**20
_SHA256_DIGITS = 64


def content_matches(etag: str, content: bytes) -> bool:
    """The whole content has this name."""
    with ContentHash(etag, len(content)) as found:
        found.update(content)
        return found.matches()


class ContentHash:
    """The hash of content that comes in pieces; what it is depends on the etag that it is compared with.

    Large files are named by their SHA-256, small ones by git's SHA-1 of a blob. `hashlib` lets other threads run
    while it computes, so for a large file a thread of its own hashes one piece while the next one is received.

    Args:
        etag: The name that the content should have.
        size: The size that it should have, in bytes.
    """

    def __init__(self, etag: str, size: int) -> None:
        self._etag = etag
        # SHA-1 is what git, and so the hub, names small files by.
        self._hash = hashlib.sha256() if len(etag) == _SHA256_DIGITS else hashlib.sha1(b"blob %d\0" % size)  # noqa: S324
        self._pool = ThreadPoolExecutor(1, "hash") if size >= _LARGE else None
        self._pending: Future[None] | None = None
        self._piece = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def update(self, content: bytes | bytearray) -> None:
        """Take further content."""
        if self._pool is None:
            self._hash.update(content)
            return
        self._piece += content
        if len(self._piece) >= _PIECE:
            self._hand_over()

    def update_from(self, path: Path, step: Callable[[int], None]) -> int:
        """Take all that a file holds.

        Args:
            path: The file.
            step: Called with the number of bytes of each piece; may raise to stop.

        Returns:
            How many bytes it was.
        """
        total = 0
        with path.open("rb") as file:
            while chunk := file.read(_PIECE):
                self.update(chunk)
                total += len(chunk)
                step(len(chunk))
        return total

    def matches(self) -> bool:
        """The content so far has the name that it should have."""
        self._hand_over()
        if self._pending is not None:
            self._pending.result()
        return self._hash.hexdigest() == self._etag

    def _hand_over(self) -> None:
        if self._pool is None or not self._piece:
            return
        if self._pending is not None:
            self._pending.result()
        self._pending = self._pool.submit(self._hash.update, self._piece)
        self._piece = bytearray()
