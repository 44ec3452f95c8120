"""What the git source keeps on disk: revisions taken over, contents that they share, and which one is current.

    current.json            the revision that is served
    revisions/NAME/         one revision: its model files and revision.json, made elsewhere and renamed here whole
    objects/ID/             one folder of the repository, by the id of its tree, so by its content
    blobs/ID                one file's content; the files above are hard links to it
    repo/                   the bare repository; it can be made again at any time
    work/                   half-made things; emptied whenever the lock is taken

Everything but `current.json` is written once and never changed, so a reader needs no lock, and a process that is
killed at any moment leaves the old revision or the new one.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from reconciler.core.git_names import GitError
from reconciler.core.parse import SUFFIXES, Problem
from reconciler.core.provenance import Commit
from reconciler.host.files import write_atomic

_LOOKED_AT_KEPT = 5
_MOST_REMOVED = 1000
_LOCK_LOOK_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Revision:
    """One exported revision, as it is on disk.

    Attributes:
        name: Of its folder.
        commit: The commit.
        folder: Name of the folder of model files.
        files: The id of each model file's content, by path.
        problems: Files that are left out.
        objects: The tree id of each folder that models may name, by relative path.
        changed: Which commit changed a file last.
        removed: Which commit removed a file that is gone, of the last ones.
        trust: What its signature was checked against; "" where it was not.
        signed_by: Whose signature it carries.
    """

    name: str
    commit: Commit
    folder: str
    files: Mapping[str, str]
    problems: tuple[Problem, ...]
    objects: Mapping[str, str]
    changed: Mapping[str, Commit] = field(default_factory=dict)
    trust: str = ""
    signed_by: str = ""
    removed: Mapping[str, Commit] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Current:
    """Which revision is served, and for what settings.

    Attributes:
        name: Of the revision.
        followed: What was followed: URL, ref and path. For other settings it is not the one to serve.
        ref: The full name of the ref, "" for a commit.
        ref_id: What the ref was: the commit, or the tag object.
    """

    name: str
    followed: tuple[str, str, str]
    ref: str
    ref_id: str


class Store:
    """The folder of one git source."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repo, self.work, self.home = folder / "repo", folder / "work", folder / "home"
        self._blobs, self._objects, self._revisions = (folder / each for each in ("blobs", "objects", "revisions"))
        self._current = folder / "current.json"

    @contextlib.asynccontextmanager
    async def locked(self, seconds: float) -> AsyncIterator[None]:
        """Be the one process that writes here; what an earlier one left half-made is removed.

        Raises:
            GitError: Another process writes for longer than so many seconds.
            OSError: The folder cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self.folder / "lock").open("a") as file:
            until = time.monotonic() + seconds
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > until:
                        raise GitError("another process is fetching from this repository") from None
                await asyncio.sleep(_LOCK_LOOK_SECONDS)
            await asyncio.to_thread(self._prepare)
            yield

    def current(self) -> Current | None:
        """Which revision is served; None where none is, or the file is broken."""
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            found = json.loads(self._current.read_text(encoding="utf-8"))
            return Current(found["name"], tuple(found["followed"]), found["ref"], found["ref_id"])
        return None

    def switch(self, current: Current) -> None:
        """Serve this revision from now on, in one rename."""
        write_atomic(self._current, json.dumps(asdict(current)))

    def looked(self) -> float:
        """Note that the repository was looked at with success; gives the time."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(self._current)
        return time.time()

    def looked_at(self) -> float:
        """When that was last, as far as is known, in seconds since the epoch; 0 for never."""
        with contextlib.suppress(OSError):
            return self._current.stat().st_mtime
        return 0.0

    def load(self, name: str) -> tuple[Revision, dict[str, bytes]] | None:
        """A revision with its files' contents; None where it is not there, or not as it was written."""
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            folder = self._revisions / name
            found = json.loads((folder / "revision.json").read_text(encoding="utf-8"))
            revision = Revision(
                name=name,
                commit=Commit(**found["commit"]),
                folder=found["folder"],
                files=found["files"],
                problems=tuple(Problem(**each) for each in found["problems"]),
                objects=found["objects"],
                changed={path: Commit(**each) for path, each in found["changed"].items()},
                trust=found["trust"],
                signed_by=found["signed_by"],
                removed={path: Commit(**each) for path, each in found.get("removed", {}).items()},
            )
            contents = {path: (folder / "tree" / path).read_bytes() for path in revision.files}
            whole = all(blob_id(contents[path]) == each for path, each in revision.files.items())
            if whole and all((self._objects / each).is_dir() for each in revision.objects.values()):
                return revision, contents
        return None

    def names(self) -> list[str]:
        """Revisions on disk, the one last used first."""
        with contextlib.suppress(FileNotFoundError):
            found = [each for each in self._revisions.iterdir() if (each / "revision.json").is_file()]
            return [each.name for each in sorted(found, key=_used, reverse=True)]
        return []

    def folder_of(self, revision: Revision) -> Path:
        """Where its model files are."""
        return self._revisions / revision.name / "tree" / revision.folder

    def object(self, tree_id: str) -> Path:
        """Where an exported folder is."""
        return self._objects / tree_id

    def lacking(self, ids: Iterable[str]) -> list[str]:
        """Of these contents, those that are not on disk, or not as they were written."""
        return sorted({each for each in ids if not self._has(each)})

    def keep_blob(self, object_id: str, content: bytes) -> None:
        """Write one content, whole and read-only."""
        handle, name = tempfile.mkstemp(dir=self.work)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o444)
        Path(name).rename(self._blobs / object_id)

    def blob(self, object_id: str) -> bytes:
        """A content that is on disk."""
        return (self._blobs / object_id).read_bytes()

    def keep_folder(self, tree_id: str, files: Mapping[str, str], folders: Mapping[str, str]) -> None:
        """Export one folder: its files by name, and its folders, which must be exported already.

        Raises:
            OSError: It cannot be written.
        """
        if (self._objects / tree_id).is_dir():
            return
        made = Path(tempfile.mkdtemp(dir=self.work))
        for file, object_id in files.items():
            _link(self._blobs / object_id, made / file)
        for name, inner in folders.items():
            shutil.copytree(self._objects / inner, made / name, copy_function=_link)
        made.chmod(0o755)
        made.rename(self._objects / tree_id)

    def keep_revision(self, revision: Revision) -> None:
        """Export a revision's model files, in one rename; one of this name that is there already is replaced."""
        made = Path(tempfile.mkdtemp(dir=self.work))
        (made / "tree" / revision.folder).mkdir(parents=True)
        for path, object_id in revision.files.items():
            _link(self._blobs / object_id, made / "tree" / path)
        write_atomic(made / "revision.json", json.dumps(asdict(revision)))
        place = self._revisions / revision.name
        if place.exists():
            place.rename(Path(tempfile.mkdtemp(dir=self.work)) / "old")
        made.rename(place)

    def annotate(self, revision: Revision) -> None:
        """Write anew what is known of a revision on disk: its signature, and who changed what."""
        write_atomic(self._revisions / revision.name / "revision.json", json.dumps(asdict(revision)))

    def prune(self, current: str, keep: int, in_use: Path | None = None) -> None:
        """Forget all but the revisions last used, and what only the forgotten ones used.

        Args:
            current: The revision that is served; it stays in any case.
            keep: How many others that were taken over stay; of those only looked at, a few do.
            in_use: A file that names folders which stay, whatever revision they are of.

        Raises:
            OSError: That file cannot be read, or something cannot be removed.
        """
        taken: list[str] = []
        looked: list[str] = []
        for name in self.names():
            found = self._about(name)
            (taken if found.get("taken") else looked).append(name)
        kept = {current, *taken[:keep], *looked[:_LOOKED_AT_KEPT]}
        used: set[str] = set()
        for each in list(self._revisions.iterdir()):
            if each.name in kept:
                used.update(self._about(each.name).get("objects", {}).values())
            else:
                self._drop(each)
        named = in_use.read_text(encoding="utf-8") if in_use is not None and in_use.exists() else ""
        for each in list(self._objects.iterdir()):
            if each.name not in used and each.name not in named:
                self._drop(each)
        for each in list(self._blobs.iterdir()):
            if each.stat().st_nlink == 1:
                each.unlink()
        shutil.rmtree(self.work, ignore_errors=True)

    def mark_taken(self, revision: Revision) -> None:
        """Tell a revision that is served from those that were only looked at, and count it as last used."""
        (self._revisions / revision.name / "taken").touch()
        os.utime(self._revisions / revision.name)

    def drop_repo(self) -> None:
        """Remove the bare repository; the next fetch makes it again."""
        if self.repo.exists():
            self._drop(self.repo)

    def _has(self, object_id: str) -> bool:
        with contextlib.suppress(OSError):
            return blob_id(self.blob(object_id)) == object_id
        return False

    def _about(self, name: str) -> dict[str, Any]:
        folder = self._revisions / name
        with contextlib.suppress(OSError, ValueError):
            found: dict[str, Any] = json.loads((folder / "revision.json").read_text(encoding="utf-8"))
            return {**found, "taken": (folder / "taken").exists()}
        return {}

    def _drop(self, folder: Path) -> None:
        # Out of sight at once: a half-removed one must not be taken for a whole one.
        self.work.mkdir(exist_ok=True, mode=0o700)
        folder.rename(Path(tempfile.mkdtemp(dir=self.work)) / "old")
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(exist_ok=True, mode=0o700)

    def _prepare(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        for each in (self.work, self.home, self._blobs, self._objects, self._revisions):
            each.mkdir(exist_ok=True, mode=0o700)


def blob_id(content: bytes) -> str:
    """The id that git gives a file's content (SHA-1 over `blob LENGTH NUL CONTENT`)."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def with_changes(revision: Revision, found: Mapping[str, Commit], known: Revision | None) -> Revision:
    """A revision with who changed or removed each file: as fetched, or as known from before."""
    before = {} if known is None else {path: known.changed[path] for path in known.changed if path in known.files}
    changed = {}
    for path, object_id in revision.files.items():
        if path in found:
            changed[path] = found[path]
        elif known is not None and path in before and known.files[path] == object_id:
            changed[path] = before[path]
    gone = {**found, **({} if known is None else {p: c for p, c in known.removed.items() if p not in found})}
    removed = [path for path in gone if path not in revision.files and path.lower().endswith(SUFFIXES)]
    return replace(revision, changed=changed, removed={path: gone[path] for path in removed[:_MOST_REMOVED]})


def _used(folder: Path) -> float:
    with contextlib.suppress(OSError):
        return folder.stat().st_mtime
    return 0.0


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # Too many links to one content, or a file system without.
        shutil.copyfile(source, target)
