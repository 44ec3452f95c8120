"""A tree of model files that somebody proposes: another folder, or a revision of the git work tree that has the
models folder. It is read once, and never checked out.

Git is the command-line program, asked for names and contents only. A repository's own configuration could name
programs that git runs; none of the commands used here does so with the settings given.
"""

import asyncio
import os
import subprocess
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path, PurePosixPath

from reconciler.core.desired import Snapshot
from reconciler.core.provenance import Commit, Provenance
from reconciler.core.yaml_reader import MAX_BYTES
from reconciler.sources.folder import MAX_FILES, FolderSource
from reconciler.sources.git_tree import (
    has_folder,
    links_of,
    model_files,
    named_folders,
    parse_listing,
    without_pointers,
)

_GIT_SECONDS = 30.0
_MAX_LISTING = 64 * 1024 * 1024
_LONGEST_REVISION = 200
_LONGEST_SUBJECT = 120
_SAFELY = (
    "--no-pager",
    "--literal-pathspecs",
    "-c",
    "core.hooksPath=/dev/null",
    "-c",
    "core.fsmonitor=false",
    # A partial clone would fetch what it lacks, by whatever command its configuration names.
    "-c",
    "protocol.allow=never",
)


class ProposedError(RuntimeError):
    """The proposed tree cannot be read; the message says why."""


class FixedSource:
    """A source that always gives the same files."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    @property
    def place(self) -> str:
        """Where the files are from: their repository, or their folder."""
        provenance = self._snapshot.provenance
        return provenance.url if provenance is not None else self._snapshot.folder

    async def read(self) -> Snapshot:
        """The files."""
        return self._snapshot


async def proposed(against: str, models_dir: Path) -> Snapshot:
    """The model files of a proposed tree, under the names that they would have in the models folder.

    The `objects` of a revision say what its folders hold, not where that is: they do to compare two trees.

    Args:
        against: A folder of model files; or, where no folder has that name, a revision of the git work tree that
            has the models folder.
        models_dir: The models folder.

    Raises:
        ProposedError: There is no such tree, or it cannot be read.
    """
    if await asyncio.to_thread(is_folder, against):
        return _renamed(await FolderSource(Path(against)).read(), models_dir.name)
    return await asyncio.to_thread(_read_revision, against, models_dir)


def is_folder(name: str) -> bool:
    """Whether a proposed tree is a folder, and not a revision."""
    return os.path.isdir(name)  # noqa: PTH112 -- unlike Path's, it never raises, whatever the name is


def _renamed(snapshot: Snapshot, name: str) -> Snapshot:
    if snapshot.unreadable:
        raise ProposedError(snapshot.unreadable)
    return replace(
        snapshot,
        files={f"{name}/{PurePosixPath(path).name}": content for path, content in snapshot.files.items()},
        problems=tuple(
            replace(each, path=f"{name}/{PurePosixPath(each.path).name}" if "/" in each.path else name)
            for each in snapshot.problems
        ),
    )


def _read_revision(revision: str, models_dir: Path) -> Snapshot:
    name, folder = models_dir.name, Path(os.path.realpath(models_dir))
    if not revision or len(revision) > _LONGEST_REVISION or not revision.isprintable():
        raise ProposedError("a revision is a line of at most 200 characters")
    if not folder.is_dir():
        raise ProposedError(
            f"{revision} is no folder, and {models_dir}, whose repository it could be of, is not there"
        )
    try:
        top = os.fsdecode(_git(folder, "rev-parse", "--show-toplevel").removesuffix(b"\n"))
    except ProposedError as error:
        raise ProposedError(f"{revision} is no folder, and {models_dir} has no revisions: {error}") from error
    inside = os.fsdecode(_git(folder, "rev-parse", "--show-prefix").removesuffix(b"\n")).rstrip("/")
    try:
        found = _git(folder, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    except ProposedError as error:
        raise ProposedError(
            f"{revision} is neither a folder nor a commit that {top} has; a shallow clone lacks older ones"
        ) from error
    commit = _commit(folder, found.decode().strip())
    entries = parse_listing(_git(folder, "ls-tree", "-r", "-t", "-z", "-l", "--full-tree", commit.id))
    # A folder that is not there is an empty one, of which git keeps none.
    if inside in entries and not has_folder(entries, inside):
        raise ProposedError(f"{inside} is no folder in this revision")
    links = links_of(entries)
    texts = _contents(folder, links.values(), _MAX_LISTING)
    chosen = model_files(entries, inside, name, {path: os.fsdecode(texts[each]) for path, each in links.items()})
    if len(chosen.files) > MAX_FILES:
        raise ProposedError(f"{inside} has more than {MAX_FILES} model files in this revision")
    contents = _contents(folder, chosen.files.values(), len(chosen.files) * (MAX_BYTES + 100))
    chosen = without_pointers(chosen, {path: contents[each] for path, each in chosen.files.items()})
    return Snapshot(
        revision=commit.id,
        files={path: contents[each] for path, each in chosen.files.items()},
        folder=str(folder),
        problems=chosen.problems,
        # They lie nowhere: a place that is only their content will do to compare them.
        objects={path: entries[place].id for path, place in named_folders(entries, inside).items()},
        provenance=Provenance(url=top, ref=revision, commit=commit),
    )


def _commit(folder: Path, commit: str) -> Commit:
    # A name may hold anything but a NUL, so each is a field of its own.
    fields = _git(folder, "log", "-1", "--no-show-signature", "--format=%an%x00%ct%x00%s", commit)
    author, at, subject = fields.decode(errors="replace").rstrip("\n").split("\0", 2)
    return Commit(commit, author[:_LONGEST_SUBJECT], float(at), subject[:_LONGEST_SUBJECT])


def _contents(folder: Path, blobs: Collection[str], most: int) -> dict[str, bytes]:
    """The content of each blob; their sizes were looked at before, and are `most` bytes together."""
    wanted = sorted(set(blobs))
    asked = "".join(f"{blob}\n" for blob in wanted).encode()
    answer = _git(folder, "cat-file", "--batch", given=asked, most=most)
    contents: dict[str, bytes] = {}
    at = 0
    for blob in wanted:
        end = answer.index(b"\n", at)
        words = answer[at:end].split()
        if len(words) != 3 or words[1] != b"blob":  # noqa: PLR2004 -- id, type, size
            raise ProposedError(f"the repository lacks the content of {blob}")
        size = int(words[2])
        contents[blob] = answer[end + 1 : end + 1 + size]
        at = end + 2 + size
    return contents


def _git(folder: Path, *arguments: str, given: bytes = b"", most: int = _MAX_LISTING) -> bytes:
    """What git prints.

    Raises:
        ProposedError: It fails, is not there, or prints more than `most` bytes.
    """
    # No variable of git's own: they could lead to another repository, or name programs.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    environment |= {
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
        "LC_ALL": "C",
    }
    command = ["git", *_SAFELY, "-C", str(folder), *arguments]
    try:
        done = subprocess.run(  # noqa: S603 -- no shell, and no argument that git could take for an option
            command, input=given, capture_output=True, check=False, env=environment, timeout=_GIT_SECONDS
        )
    except FileNotFoundError as error:
        raise ProposedError("git is not installed, and a revision is read with it") from error
    except subprocess.TimeoutExpired as error:
        raise ProposedError(f"git did not answer within {_GIT_SECONDS:.0f} s") from error
    if done.returncode != 0:
        reason = done.stderr.decode(errors="replace").strip().partition("\n")[0][:300]
        raise ProposedError(f"git {arguments[0]} failed: {reason or f'exit code {done.returncode}'}")
    if len(done.stdout) > most:
        raise ProposedError(f"git {arguments[0]} printed more than {most} bytes")
    return done.stdout
