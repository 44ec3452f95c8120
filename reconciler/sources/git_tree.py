"""What of a commit's tree the git source takes: which files are model files, and which folders models may name.

Nothing is ever checked out. These functions decide over a listing of the tree; `git_store` writes the contents.
"""

import os
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field

from reconciler.core.git_names import odd_name
from reconciler.core.parse import SUFFIXES, Problem
from reconciler.core.yaml_reader import MAX_BYTES

_FOLDER, _LINK, _SUBMODULE = "040000", "120000", "160000"
_REGULAR = ("100644", "100755", "100664")
_LONGEST_LINK = 4096
_MOST_LINKS = 32
"""How many links are followed on the way to one file, as Linux bounds it too."""
_LFS = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a tree's listing; `size` is 0 for what is no file or link."""

    mode: str
    id: str
    size: int


@dataclass(frozen=True, slots=True)
class Chosen:
    """The model files of a tree: the id of each one's content by path, and what is wrong with others."""

    files: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()


def parse_listing(raw: bytes) -> dict[str, Entry]:
    """`git ls-tree -r -t -z -l` by path within the repository; names that are no UTF-8 hold surrogates."""
    entries = {}
    for line in raw.split(b"\0"):
        about, tab, path = line.partition(b"\t")
        if tab:
            mode, _, object_id, size = about.decode("ascii").split()
            entries[os.fsdecode(path)] = Entry(mode, object_id, int(size) if size.isdigit() else 0)
    return entries


def links_of(entries: Mapping[str, Entry]) -> dict[str, str]:
    """The id of what each link holds, by the link's path; longer ones than a path can be are no links."""
    return {
        path: each.id for path, each in entries.items() if each.mode == _LINK and 0 < each.size <= _LONGEST_LINK
    }


def sizes_of(entries: Mapping[str, Entry]) -> dict[str, int]:
    """Bytes of each content by its id. A submodule may bear the id of a file here, but no size."""
    return {each.id: each.size for each in entries.values() if each.mode not in (_SUBMODULE, _FOLDER)}


def has_folder(entries: Mapping[str, Entry], path: str) -> bool:
    """Whether the commit has this folder; the root is always there."""
    return not path or (path in entries and entries[path].mode == _FOLDER)


def model_files(entries: Mapping[str, Entry], path: str, name: str, links: Mapping[str, str]) -> Chosen:
    """The model files directly in a folder of the repository.

    Args:
        entries: The listing of the whole tree.
        path: The folder.
        name: What it is called in the paths of the result.
        links: What each link holds, by its path.
    """
    files: dict[str, str] = {}
    problems: list[Problem] = []
    for place, found in sorted(entries.items()):
        entry = found
        folder, _, file = place.rpartition("/")
        if folder != path or entry.mode == _FOLDER or not _looks_like_model(file):
            continue
        why = odd_name(file)
        key = f"{name}/{ascii(file)[1:-1] if why else file}"
        if why:
            why = f"is left out: its name {why}"
        elif entry.mode == _LINK:
            target = _resolve(place, entries, links)
            if target is None:
                why = "is a link that leads to no file of this repository"
            else:
                entry = entries[target]
        elif entry.mode not in _REGULAR:
            why = "is a submodule, and these are not fetched" if entry.mode == _SUBMODULE else "is no regular file"
        if not why and entry.size > MAX_BYTES:
            why = f"is larger than {MAX_BYTES // 1024} KiB"
        if why:
            problems.append(Problem(key, 1, 1, why))
        else:
            files[key] = entry.id
    return Chosen(files, tuple(problems))


def without_pointers(chosen: Chosen, contents: Mapping[str, bytes]) -> Chosen:
    """The same, less the files that only point to the content at git's large file storage."""
    pointers = [path for path in chosen.files if contents[path].startswith(_LFS)]
    message = "is kept in git LFS, which is not fetched: commit the file itself"
    return Chosen(
        {path: each for path, each in chosen.files.items() if path not in pointers},
        (*chosen.problems, *(Problem(path, 1, 1, message) for path in pointers)),
    )


def named_folders(entries: Mapping[str, Entry], path: str) -> dict[str, str]:
    """Folders that model files may name: the path in the repository by the path from the folder of model files.

    That folder itself and those around it are left out: any model's change would be theirs, too.
    """
    parts = path.split("/") if path else []
    around = {"", *("/".join(parts[:count]) for count in range(1, len(parts) + 1))}
    return {
        # Both from the root: `relpath` would ask for the working directory otherwise.
        posixpath.relpath(f"/{place}", f"/{path}"): place
        for place, entry in entries.items()
        if entry.mode == _FOLDER and place not in around and not any(map(odd_name, place.split("/")))
    }


def plain_files(entries: Mapping[str, Entry]) -> dict[str, dict[str, str]]:
    """By folder: the id of each regular file directly in it, by name; links, submodules and odd names are not."""
    found: dict[str, dict[str, str]] = {}
    for place, entry in entries.items():
        folder, _, file = place.rpartition("/")
        if entry.mode in _REGULAR and not odd_name(file):
            found.setdefault(folder, {})[file] = entry.id
    return found


def _looks_like_model(file: str) -> bool:
    return not file.startswith(".") and os.path.splitext(file)[1].lower() in SUFFIXES  # noqa: PTH122 -- no path


def _resolve(place: str, entries: Mapping[str, Entry], links: Mapping[str, str]) -> str | None:
    """Where a link leads within the tree; None where that is no regular file of it."""
    left = place.split("/")[::-1]
    done: list[str] = []
    followed = 0
    while left:
        part = left.pop()
        if part in ("", "."):
            continue
        if part == "..":
            if not done:
                return None
            done.pop()
            continue
        here = "/".join([*done, part])
        entry = entries.get(here)
        if entry is not None and entry.mode == _LINK:
            followed += 1
            target = links.get(here, "/")
            if followed > _MOST_LINKS or target.startswith("/") or "\0" in target:
                return None
            left += target.split("/")[::-1]
            continue
        done.append(part)
    found = "/".join(done)
    return found if found in entries and entries[found].mode in _REGULAR else None
