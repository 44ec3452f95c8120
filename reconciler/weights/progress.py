"""How far a download is: written by its threads, read by everybody else."""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace

from reconciler.core.weights import CopyState, FileState, Phase

_WINDOW_SECONDS = 10.0
_SAMPLE_SECONDS = 0.5


class _Rate:
    """Bytes a second over the last seconds."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self.total = 0
        self._samples: deque[tuple[float, int]] = deque()

    def add(self, size: int) -> None:
        """So many bytes came."""
        self.total += size
        now = self._monotonic()
        if not self._samples or now - self._samples[-1][0] >= _SAMPLE_SECONDS:
            self._samples.append((now, self.total))
            while self._samples[0][0] < now - _WINDOW_SECONDS:
                self._samples.popleft()

    def now(self) -> float:
        """The rate."""
        if not self._samples:
            return 0.0
        then, total = self._samples[0]
        passed = self._monotonic() - then
        return (self.total - total) / passed if passed > 0 else 0.0


class Progress:
    """The progress of one copy.

    Args:
        monotonic: Clock for rates, in seconds.
    """

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._lock = threading.Lock()
        self._monotonic = monotonic
        self._phase = Phase.QUEUED
        self._reason = ""
        self._files: dict[str, FileState] = {}
        self._rate = _Rate(monotonic)
        self._rates: dict[str, _Rate] = {}
        self.corrupted: list[str] = []
        """Files whose content did not have its hash and was thrown away."""

    def phase(self, phase: Phase) -> None:
        """The whole copy is in this phase now."""
        with self._lock:
            self._phase, self._reason = phase, ""

    def wait(self, reason: str) -> None:
        """The hub makes us wait."""
        with self._lock:
            self._phase, self._reason = Phase.WAITING, reason

    def start(self, files: Mapping[str, tuple[int, int]]) -> None:
        """These are the files: bytes there, and bytes in all, by path."""
        with self._lock:
            self._phase = Phase.FETCHING
            self._files = {path: FileState(path, Phase.QUEUED, done, size) for path, (done, size) in files.items()}

    def file(self, path: str, phase: Phase, done: int) -> None:
        """One file is in this phase, and has so many bytes."""
        with self._lock:
            self._files[path] = FileState(path, phase, done, self._files[path].size)

    def advance(self, path: str, size: int) -> None:
        """So many further bytes of a file were received, or verified."""
        with self._lock:
            file = self._files[path]
            self._files[path] = FileState(path, file.phase, file.done + size, file.size)
            if file.phase is Phase.FETCHING:
                self._rate.add(size)
                self._rates.setdefault(path, _Rate(self._monotonic)).add(size)

    @property
    def received(self) -> int:
        """Bytes that came over the network."""
        with self._lock:
            return self._rate.total

    def corrupt(self, path: str) -> None:
        """A file's content did not have its hash."""
        with self._lock:
            self.corrupted.append(path)

    def state(self) -> CopyState:
        """Everything as it is now."""
        with self._lock:
            files = tuple(self._with_rate(file) for file in self._files.values())
            phase = self._phase
            if phase is Phase.FETCHING and files and not any(f.phase is Phase.FETCHING for f in files):
                phase = Phase.VERIFYING if any(f.phase is Phase.VERIFYING for f in files) else phase
            return CopyState(
                phase,
                sum(file.size for file in files) if files else None,
                sum(file.done for file in files),
                rate=self._rate.now(),
                files=files,
                reason=self._reason,
            )

    def _with_rate(self, file: FileState) -> FileState:
        rate = self._rates.get(file.path)
        return replace(file, rate=rate.now()) if rate is not None and file.phase is Phase.FETCHING else file
