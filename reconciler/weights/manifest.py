"""Notes about copies that were fetched and verified, so that no start verifies an unchanged one again.

A note holds what every file looked like (size, time of change, inode) when its content had its hash. A file that
looks otherwise is verified again. The notes also say which copies are ours to remove.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

from pydantic import TypeAdapter, ValidationError

from reconciler.core.choose_files import RepoFile
from reconciler.core.weights import Copy
from reconciler.host.files import write_atomic
from reconciler.weights.cache import HubCache

Look: TypeAlias = tuple[int, int, int, int]
"""Size, time of the content's change and of any change (both in nanoseconds), inode."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One file, and what its blob looked like when it was verified; None before that."""

    file: RepoFile
    look: Look | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """What there is to know about one copy.

    Attributes:
        files: What it consists of.
        fetched: Nobody had anything of it before us, so that it is ours to remove.
        revision: The branch or tag by which it was asked for.
        rules: What was allowed when it was chosen: pickles, code.
        at: Seconds since the epoch of the last change.
    """

    copy: Copy
    files: tuple[Seen, ...]
    fetched: bool = False
    revision: str = ""
    rules: tuple[bool, bool] = (False, False)
    at: float = 0.0

    @property
    def total(self) -> int:
        """Bytes in all."""
        return sum(seen.file.size for seen in self.files)


_MANIFEST = TypeAdapter(Manifest)


class Manifests:
    """The notes of one state directory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, copy: Copy) -> Manifest | None:
        """The note about a copy, if there is a readable one."""
        return _read(self._path(copy))

    def save(self, manifest: Manifest) -> None:
        """Write a note.

        Raises:
            OSError: The state directory cannot be written.
        """
        write_atomic(self._path(manifest.copy), json.dumps(asdict(manifest), indent=1))

    def forget(self, copy: Copy) -> None:
        """The copy is gone."""
        self._path(copy).unlink(missing_ok=True)

    def all(self) -> Iterator[Manifest]:
        """Every readable note."""
        for path in sorted(self._folder.glob("*.json")):
            manifest = _read(path)
            if manifest is not None:
                yield manifest

    def _path(self, copy: Copy) -> Path:
        return self._folder / f"{copy.repo.replace('/', '--')}@{copy.commit}.{copy.role}.json"


def look_of(path: Path) -> Look | None:
    """What a file looks like, through links; None where there is none."""
    try:
        info = path.stat()
    except OSError:
        return None
    return info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino


def is_intact(manifest: Manifest, cache: HubCache) -> bool:
    """Everything was verified, and nothing looks otherwise since."""
    snapshot = cache.snapshot(manifest.copy.repo, manifest.copy.commit)
    return bool(manifest.files) and all(
        seen.look is not None and look_of(snapshot / seen.file.path) == tuple(seen.look) for seen in manifest.files
    )


def _read(path: Path) -> Manifest | None:
    try:
        return _MANIFEST.validate_python(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError):
        return None
