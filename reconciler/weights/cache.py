"""The hub's standard cache on disk: blobs by hash, snapshots of links to them, refs. The layout is the hub's own.

    models--org--name/blobs/<etag>            content, named by its hash
    models--org--name/snapshots/<commit>/...  links to blobs
    models--org--name/refs/<revision>         a commit

Only files that were verified get their final name here, so whatever has one is whole, until somebody changes it.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from reconciler.core.choose_files import Listing, RepoFile, is_etag
from reconciler.core.weights import is_commit

PARTIAL_SUFFIX = ".reconcile.incomplete"
_LOCK_POLL_SECONDS = 1.0


class HubCache:
    """A cache folder, which other tools use too.

    Args:
        root: What `HF_HUB_CACHE` names. Made when something is written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, repo: str) -> Path:
        """Everything of one repository."""
        return self.root / f"models--{repo.replace('/', '--')}"

    def blob(self, repo: str, etag: str) -> Path:
        """Verified content."""
        return self.folder(repo) / "blobs" / etag

    def partial(self, repo: str, etag: str) -> Path:
        """Content as far as it came. Not a name that the hub's own tools use, because they never continue one."""
        return self.folder(repo) / "blobs" / f"{etag}{PARTIAL_SUFFIX}"

    def snapshot(self, repo: str, commit: str) -> Path:
        """The folder that engines read."""
        return self.folder(repo) / "snapshots" / commit

    def repos(self) -> list[str]:
        """The model repositories of which something is there."""
        names = (path.name.removeprefix("models--") for path in self.root.glob("models--*") if path.is_dir())
        return sorted(name.replace("--", "/", 1) for name in names)

    def names(self, repo: str, commit: str) -> list[str]:
        """The files that stand in a snapshot, whoever put them there."""
        folder = self.snapshot(repo, commit)
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())

    def listing(self, repo: str, commit: str) -> Listing:
        """What a snapshot holds, by its blobs' names, which are hashes: as good as the hub's where it is whole."""
        folder = self.snapshot(repo, commit)
        files: list[RepoFile] = []
        for name in self.names(repo, commit):
            blob = (folder / name).resolve()
            if is_etag(blob.name) and blob.is_file():
                files.append(RepoFile(name, blob.stat().st_size, blob.name))
        return Listing(repo, commit, tuple(files))

    def commit_of(self, repo: str, revision: str) -> str:
        """The commit that a revision was when anybody fetched it last; empty where nobody did."""
        try:
            text = (self.folder(repo) / "refs" / revision).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            return ""
        return text if is_commit(text) else ""

    def write_ref(self, repo: str, revision: str, commit: str) -> None:
        """Note which commit a branch or tag is."""
        if is_commit(revision):
            return
        path = self.folder(repo) / "refs" / revision
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.commit_of(repo, revision) != commit:
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            temporary.write_text(commit, encoding="ascii")
            temporary.replace(path)

    def bytes_there(self, repo: str, file: RepoFile) -> int:
        """How many bytes of a file are on disk, verified or not."""
        for path in (self.blob(repo, file.etag), self.partial(repo, file.etag)):
            with contextlib.suppress(OSError):
                return min(path.stat().st_size, file.size)
        return 0

    def link(self, repo: str, commit: str, file: RepoFile) -> None:
        """Let the snapshot's file be the verified blob."""
        pointer = self.snapshot(repo, commit) / file.path
        target = os.path.relpath(self.blob(repo, file.etag), pointer.parent)
        if pointer.is_symlink() and str(pointer.readlink()) == target:
            return
        pointer.parent.mkdir(parents=True, exist_ok=True)
        temporary = pointer.with_name(f".{pointer.name}.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        try:
            temporary.symlink_to(target)
        except OSError:
            # A file system without links: a second copy, as the hub's own tools make.
            shutil.copyfile(self.blob(repo, file.etag), temporary)
        temporary.replace(pointer)

    def free(self) -> int:
        """Bytes free on the cache's disk."""
        folder = self.root
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        return shutil.disk_usage(folder).free

    def size(self) -> int:
        """Bytes of all blobs of models, partial ones included."""
        total = 0
        for blob in self.root.glob("models--*/blobs/*"):
            with contextlib.suppress(OSError):
                total += blob.lstat().st_size
        return total

    def lock_file(self, repo: str, etag: str) -> Path:
        """What whoever writes a blob holds a lock on, the hub's own tools too."""
        return self.root / ".locks" / f"models--{repo.replace('/', '--')}" / f"{etag}.lock"

    @contextlib.contextmanager
    def lock(self, repo: str, etag: str, give_up: Callable[[], None]) -> Iterator[None]:
        """Be the only one who writes this blob, also against the hub's own tools. The lock goes with the process.

        Args:
            repo: The repository.
            etag: The blob.
            give_up: Called while waiting; raises to stop it.
        """
        from filelock import FileLock, Timeout  # noqa: PLC0415 -- comes with huggingface_hub, and only fetching needs it

        path = self.lock_file(repo, etag)
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, mode=0o664)
        while True:
            try:
                lock.acquire(timeout=_LOCK_POLL_SECONDS)
                break
            except Timeout:
                give_up()
        try:
            yield
        finally:
            lock.release()
