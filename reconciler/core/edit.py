"""What a change of a model file is: behind the API, the page and `reconcile remove`, before a source writes it.

A change is checked as `reconcile validate` would check all files with it, shown as a diff, and tied to the text
that its author saw. `loop.edits` has it carried out by the source that the file belongs to. Pure.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from pathlib import PurePosixPath
from typing import Final

from reconciler.core.desired import Snapshot, compile_desired
from reconciler.core.git_names import odd_name
from reconciler.core.parse import SUFFIXES, Problem, parse_all
from reconciler.core.render import Renderer
from reconciler.core.yaml_reader import MAX_BYTES

LONGEST_NAME: Final = 200
"""Bytes of a file's name: what is written beside it, and its backups, have longer ones."""

_CONTEXT: Final = 3
_MOST_COMPARED: Final = 250_000
"""Lines before times lines after that are matched with each other: some 0.3 s at worst."""
_NO_NEWLINE: Final = "\n\\ No newline at end of file\n"


class EditError(Exception):
    """A file cannot be changed as things are; the message is for people."""


class FileNameError(EditError):
    """This is no name of a model file."""


class NoFileError(EditError):
    """There is no such file."""


class ConflictError(EditError):
    """The file is not what the author of the change saw."""


@dataclass(frozen=True, slots=True)
class File:
    """A model file as it is.

    Attributes:
        path: As the source names it: the folder's name and the file's.
        text: Its content; what is no UTF-8 is replaced.
        digest: SHA-256 of its bytes, in hex.
    """

    path: str
    text: str
    digest: str


@dataclass(frozen=True, slots=True)
class Change:
    """What is to become of one file.

    Attributes:
        name: The file's name within the folder of model files.
        before: Its content as the change was checked against; None: there is no such file.
        after: Its new content; None: it is removed.
        snapshot: All files, as the change was checked against.
        message: Why, in a line; may be empty.
        author: Who wants it: `Name <mail address>`, or a name.
    """

    name: str
    before: bytes | None
    after: bytes | None
    snapshot: Snapshot
    message: str
    author: str

    @property
    def verb(self) -> str:
        """`added`, `changed` or `removed`."""
        if self.after is None:
            return "removed"
        return "added" if self.before is None else "changed"


@dataclass(frozen=True, slots=True)
class Edit:
    """What a change of a file is, or would be.

    Attributes:
        path: The file, as the source names it.
        diff: Unified; empty where nothing changes.
        problems: Why it is refused, as `file:line:column: message`; empty: it is valid.
        written: It was carried out: the file is changed, or the branch was pushed.
        backup: Where the file as it was is kept, relative to the state directory.
        commit: In a git source: the commit that was pushed.
        branch: And the branch.
        patch: In a git source without a branch to push to: the commit as a mail, for `git am`.
    """

    path: str
    diff: str
    problems: tuple[str, ...] = ()
    written: bool = False
    backup: str | None = None
    commit: str | None = None
    branch: str | None = None
    patch: str | None = None


def digest_of(content: bytes) -> str:
    """SHA-256, in hex."""
    return hashlib.sha256(content).hexdigest()


def file_of(path: str, content: bytes) -> File:
    """A file as it is shown."""
    return File(path, content.decode(errors="replace"), digest_of(content))


def bytes_of(text: str) -> bytes:
    """The content that a text stands for. What UTF-8 cannot hold makes bytes that the check finds to be none."""
    return text.encode(errors="surrogatepass")


def file_name(path: str, folder: str) -> str:
    """The name of a model file that lies directly in its folder, as the sources read it.

    Args:
        path: As the source names it (`models.d/a.yaml`), or the name alone.
        folder: What the source calls the folder.

    Raises:
        FileNameError: It is no such name, or leads elsewhere.
    """
    name = path.removeprefix(f"{folder}/")
    if "/" in name:
        raise FileNameError(f"model files lie directly in {folder}: give a name without a slash")
    if any("\ud800" <= character <= "\udfff" for character in name):
        raise FileNameError("this is no file's name: it is not UTF-8")
    if why := odd_name(name):
        raise FileNameError(f"this is no file's name: it {why}")
    if name.startswith(".") or PurePosixPath(name).suffix.lower() not in SUFFIXES:
        raise FileNameError("the name of a model file ends in .yaml or .yml, and does not start with a dot")
    if len(name.encode()) > LONGEST_NAME:
        raise FileNameError(f"the name is longer than {LONGEST_NAME} bytes")
    return name


def check_seen(path: str, content: bytes | None, seen: str | None) -> None:
    """Hold what a file is against what the author of a change saw.

    Args:
        path: The file.
        content: What it is; None: it is not there.
        seen: The digest of what was seen; None: there was no such file.

    Raises:
        ConflictError: They differ.
    """
    if content is None and seen is not None:
        raise ConflictError(f"{path} is gone: somebody removed it since it was read")
    if content is not None and seen is None:
        raise ConflictError(f"{path} is there already: read it first")
    if content is not None and seen != digest_of(content):
        raise ConflictError(f"{path} was changed by somebody else since it was read")


def problems_of(snapshot: Snapshot, path: str, content: bytes | None, renderer: Renderer) -> tuple[str, ...]:
    """Why a change is refused: every mistake of the file, and of those that are without one only before it.

    Files that had a mistake before do not stand in the way: whoever mends one of two could not, else.

    Args:
        snapshot: All files as they are.
        path: The file that is changed.
        content: Its new content; None: it is removed.
        renderer: Makes the application of it.
    """
    if content is not None and len(content) > MAX_BYTES:
        return (str(Problem(path, 1, 1, f"the file is larger than {MAX_BYTES // 1024} KiB")),)
    files = {each: found for each, found in snapshot.files.items() if each != path}
    if content is not None:
        files[path] = content
    found = parse_all(files).problems
    if any(each.path != path for each in found):
        before = {each.path for each in parse_all(snapshot.files).problems}
        found = tuple(each for each in found if each.path == path or each.path not in before)
    if content is not None and not found:
        # What is rendered of a file depends on no other.
        found = compile_desired(replace(snapshot, files={path: content}, problems=()), renderer).problems
    return tuple(str(each) for each in found)


def unified(path: str, before: bytes | None, after: bytes | None) -> str:
    """The difference as a unified diff; empty where there is none.

    Files of very many lines are not matched line by line between their first and last difference: that part is
    then shown as replaced.

    Args:
        path: The file.
        before: Its content; None: there was none.
        after: Its content from now on; None: it is removed.
    """
    if before == after:
        return ""
    old, new = _lines(before), _lines(after)
    parts = [
        "--- /dev/null\n" if before is None else f"--- a/{path}\n",
        "+++ /dev/null\n" if after is None else f"+++ b/{path}\n",
    ]
    for hunk in _hunks(_differences(old, new)):
        first, last = hunk[0], hunk[-1]
        start = max(0, first[0] - _CONTEXT), max(0, first[2] - _CONTEXT)
        end = min(len(old), last[1] + _CONTEXT), min(len(new), last[3] + _CONTEXT)
        parts.append(f"@@ -{_range(start[0], end[0])} +{_range(start[1], end[1])} @@\n")
        at = start[0]
        for old_start, old_end, new_start, new_end in hunk:
            parts += (" " + line for line in old[at:old_start])
            parts += ("-" + line for line in old[old_start:old_end])
            parts += ("+" + line for line in new[new_start:new_end])
            at = old_end
        parts += (" " + line for line in old[at : end[0]])
    return "".join(part if part.endswith("\n") else part + _NO_NEWLINE for part in parts)


_Difference = tuple[int, int, int, int]


def _lines(content: bytes | None) -> list[str]:
    # Not splitlines: to a diff, only a line feed ends a line.
    lines = (content or b"").decode(errors="replace").split("\n")
    return [f"{line}\n" for line in lines[:-1]] + lines[-1:] * bool(lines[-1])


def _differences(old: Sequence[str], new: Sequence[str]) -> list[_Difference]:
    """Which lines are replaced by which: start and end before, start and end after."""
    shorter = min(len(old), len(new))
    head = next((at for at in range(shorter) if old[at] != new[at]), shorter)
    tail = next((at for at in range(shorter - head) if old[-1 - at] != new[-1 - at]), shorter - head)
    left, right = old[head : len(old) - tail], new[head : len(new) - tail]
    if len(left) * len(right) > _MOST_COMPARED:
        return [(head, head + len(left), head, head + len(right))]
    return [
        (head + old_start, head + old_end, head + new_start, head + new_end)
        for kind, old_start, old_end, new_start, new_end in SequenceMatcher(None, left, right).get_opcodes()
        if kind != "equal"
    ]


def _hunks(differences: Sequence[_Difference]) -> Iterator[list[_Difference]]:
    """Those whose context would touch, together."""
    hunk: list[_Difference] = []
    for each in differences:
        if hunk and each[0] - hunk[-1][1] > 2 * _CONTEXT:
            yield hunk
            hunk = []
        hunk.append(each)
    if hunk:
        yield hunk


def _range(start: int, end: int) -> str:
    """Lines as a hunk's head names them: from 1, and of none the one before."""
    count = end - start
    first = start + 1 if count else start
    return str(first) if count == 1 else f"{first},{count}"
