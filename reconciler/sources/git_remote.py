"""What the git source asks of the remote, and of the bare repository that it fetches into."""

import asyncio
import os
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from reconciler.core.git_names import GitError, is_commit, printable
from reconciler.core.provenance import Commit
from reconciler.sources.git_access import Access
from reconciler.sources.git_command import CommandError, Output, TooLargeError, run, size_of
from reconciler.sources.git_store import blob_id
from reconciler.sources.git_tree import Entry, parse_listing

How = Literal["first", "forward", "forced", "unrelated", "moved tag", "unknown"]
_HEADS, _TAGS = "refs/heads/", "refs/tags/"
_INCOMING = "refs/reconciler/incoming"
_ENTRY_BYTES = 512
_CHUNK_BYTES = 8 << 20
_MOST_PACKS = 50
_MOST_OUTPUT = 16 << 20
_MOST_DIGITS = 12
_COMMIT_FORMAT = "--format=%H%x00%ct%x00%an%x00%s"
_COMMIT_FIELDS = 4


class UnreachableError(GitError):
    """The remote does not answer as it should; it may do so later."""


class RefusedError(GitError):
    """What the remote has is not accepted, and will not be until it has something else."""


class AbsentError(RefusedError):
    """The remote does not have it now. A server that lags behind, or somebody who pushes, may bring it."""


class Found(NamedTuple):
    """What a ref is at the remote: its full name ("" for a commit by its id), and the commit's or tag's id."""

    ref: str
    id: str

    @property
    def tag(self) -> str:
        """Name of the tag; "" for all else."""
        return self.ref.removeprefix(_TAGS) if self.ref.startswith(_TAGS) else ""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a repository may cost: seconds a command, bytes, files and folders, and commits of history."""

    seconds: float
    most_bytes: int
    most_files: int
    depth: int


class Remote:
    """One repository: where it is, and its copy here."""

    def __init__(self, access: Access, repo: Path, home: Path, limits: Limits) -> None:
        self._access, self._repo, self._home, self._limits = access, repo, home, limits

    async def look(self, ref: str) -> Found:
        """What a ref is now. Cheap: one exchange with the server.

        Raises:
            UnreachableError: The server does not answer.
            RefusedError: It has no such branch or tag, or both.
        """
        if is_commit(ref):
            return Found("", ref)
        names = _candidates(ref)
        try:
            result = await run(
                ["ls-remote", "--symref", "--end-of-options", self._access.url, *names],
                home=self._home,
                access=self._access,
                seconds=self._limits.seconds,
                most_output=1 << 20,
            )
        except GitError as error:
            raise UnreachableError(str(error)) from None
        found: dict[str, str] = {}
        branch = ""
        for line in result.stdout.decode(errors="replace").splitlines():
            value, _, name = line.partition("\t")
            if value.startswith("ref: ") and name == "HEAD":
                branch = value.removeprefix("ref: ")
            elif name in names and is_commit(value):
                found[name] = value
        if not found:
            raise RefusedError(
                f"the repository has no branch or tag {ref!r}"
                if ref
                else "the repository is empty: it has no commit"
            )
        if len(found) > 1:
            raise RefusedError(f"{ref!r} is a branch and a tag: write refs/heads/{ref} or refs/tags/{ref}")
        name, object_id = next(iter(found.items()))
        return Found(branch if name == "HEAD" and branch else name, object_id)

    async def fetch(self, found: Found) -> tuple[Found, Commit]:
        """Fetch a ref with some history; gives what it is by now, and the commit that it leads to.

        Raises:
            RefusedError: It leads to no commit.
            AbsentError: The remote does not have it.
            TooLargeError: It would take more than is allowed.
            GitError: It cannot be fetched.
        """
        if not (self._repo / "HEAD").exists():
            await run(["init", "--quiet", "--bare", "--template=", "--", str(self._repo)], home=self._home)
        source = found.ref or found.id
        try:
            await run(
                [
                    *("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", f"--depth={self._limits.depth}"),
                    *("--end-of-options", self._access.url, f"+{source}:{_INCOMING}"),
                ],
                home=self._home,
                repo=self._repo,
                access=self._access,
                seconds=self._limits.seconds,
                most_written=self._limits.most_bytes,
            )
        except CommandError as error:
            if "fsck error" in error.said:
                raise RefusedError(f"the repository's objects are not sound: {error}") from None
            if "not our ref" in error.said or "find remote ref" in error.said:
                raise AbsentError(f"the repository has no {source}") from None
            raise
        object_id = await self._line("rev-parse", "--verify", _INCOMING)
        try:
            commit = await self._line("rev-parse", "--verify", "--quiet", f"{_INCOMING}^{{commit}}")
        except CommandError:
            raise RefusedError(f"{source} leads to no commit") from None
        return Found(found.ref, object_id), await self._commit(commit)

    async def has(self, short: str) -> str:
        """The whole id of a commit that begins so and is here; "" where none is, or several are."""
        if not (self._repo / "HEAD").exists():
            return ""
        try:
            return await self._line("rev-parse", "--verify", "--quiet", f"{short}^{{commit}}")
        except GitError:
            return ""

    async def listing(self, commit: str) -> dict[str, Entry]:
        """The whole tree of a commit.

        Raises:
            RefusedError: It has too many files, or too large ones.
        """
        most = self._limits.most_files
        try:
            result = await self._run(
                *("ls-tree", "-r", "-t", "-z", "-l", "--full-tree", commit), most_output=(most + 1) * _ENTRY_BYTES
            )
        except TooLargeError:
            raise RefusedError(f"the commit has more than {most} files and folders") from None
        entries = parse_listing(result.stdout)
        if len(entries) > most:
            raise RefusedError(f"the commit has more than {most} files and folders")
        total = sum(each.size for each in entries.values())
        if total > self._limits.most_bytes:
            raise RefusedError(f"the commit's files are larger than {self._limits.most_bytes >> 20} MiB together")
        return entries

    async def contents(self, sizes: Mapping[str, int]) -> AsyncIterator[tuple[str, bytes]]:
        """The content of each id, checked against it; a few MiB of them in memory at a time.

        Raises:
            GitError: One is not there, or is not what its id says.
        """
        for chunk in _chunks(sizes):
            total = sum(sizes[each] for each in chunk)
            result = await self._run(
                *("cat-file", "--batch"),
                stdin="".join(f"{each}\n" for each in chunk).encode(),
                most_output=total + 256 * len(chunk),
            )
            place = 0
            for object_id in chunk:
                end = result.stdout.find(b"\n", place)
                head = result.stdout[place:end].split()
                if end < 0 or head != [object_id.encode(), b"blob", b"%d" % sizes[object_id]]:
                    raise GitError("an object of the fetched commit is missing")
                content = result.stdout[end + 1 : end + 1 + sizes[object_id]]
                if blob_id(content) != object_id:
                    raise GitError("an object of the fetched commit is damaged")
                yield object_id, content
                place = end + 2 + sizes[object_id]

    async def last_changes(self, commit: str, path: str) -> dict[str, Commit]:
        """Which commit changed each file directly in a folder last, or removed it, as far as the fetched history
        tells; the newest change first.

        At the end of a shallow history every file looks new: what is said there says nothing. Where the history
        itself is hostile, or too large, nothing is known.
        """
        folder = f"{path}/" if path else ""
        try:
            result = await self._run(
                *("log", "--topo-order", "-c", "--no-renames", "--name-only", "-z", "--format=%x00%H"),
                *(commit, "--", f":(top,glob){_escaped(folder)}*"),
            )
            ends = await asyncio.to_thread(self._ends)
            changed: dict[str, str] = {}
            # Each commit: nothing, its id, then paths, the first of them after a line break.
            made = ""
            tokens = iter(result.stdout.split(b"\0"))
            for token in tokens:
                if not token:
                    made = next(tokens, b"").decode("ascii", errors="replace")
                else:
                    file = os.fsdecode(token.removeprefix(b"\n")).removeprefix(folder)
                    changed.setdefault(file, "" if made in ends else made)
            commits = await self._commits({made for made in changed.values() if made})
        except GitError:
            return {}
        return {file: commits[made] for file, made in changed.items() if made in commits}

    async def how(self, old: str, new: str) -> How:
        """How a branch came from one commit to another."""
        try:
            listed = await self._run("rev-list", new)
            if old.encode() in listed.stdout.split():
                return "forward"
            known = await self._run("merge-base", old, new, accept=(0, 1, 128))
        except GitError:
            return "unknown"
        if known.code == 0:
            return "forced"
        if await asyncio.to_thread(self._ends):
            return "unknown"  # The history goes on behind what was fetched.
        return "unrelated" if known.code == 1 else "forced"

    def is_worn(self) -> bool:
        """Whether so much was fetched one after the other that the repository is better made again."""
        packs = sum(1 for _ in (self._repo / "objects" / "pack").glob("*.pack"))
        return packs > _MOST_PACKS or size_of(self._repo) > 2 * self._limits.most_bytes

    def _ends(self) -> frozenset[str]:
        """Commits at which the fetched history ends, though the real one goes on."""
        try:
            return frozenset((self._repo / "shallow").read_text(encoding="ascii").split())
        except (OSError, ValueError):
            return frozenset()

    async def _commit(self, commit: str) -> Commit:
        found = await self._commits({commit})
        if commit not in found:
            raise GitError("the fetched commit cannot be read")
        return found[commit]

    async def _commits(self, ids: Collection[str]) -> dict[str, Commit]:
        if not ids:
            return {}
        result = await self._run(
            "log",
            "--no-walk",
            "-z",
            _COMMIT_FORMAT,
            "--stdin",
            stdin="".join(f"{each}\n" for each in ids).encode(),
        )
        fields = result.stdout.decode(errors="replace").split("\0")
        rows = zip(*(fields[place::_COMMIT_FIELDS] for place in range(_COMMIT_FIELDS)), strict=False)
        return {
            object_id: Commit(
                id=object_id,
                author=printable(author),
                at=float(at) if at.isdigit() and len(at) <= _MOST_DIGITS else 0.0,
                subject=printable(subject, 120),
            )
            for object_id, at, author, subject in rows
        }

    async def _line(self, *args: str) -> str:
        return (await self._run(*args)).stdout.decode("ascii", errors="replace").strip()

    async def _run(
        self, *args: str, stdin: bytes = b"", most_output: int = _MOST_OUTPUT, accept: Collection[int] = (0,)
    ) -> Output:
        return await run(
            args,
            home=self._home,
            repo=self._repo,
            stdin=stdin,
            seconds=self._limits.seconds,
            most_output=most_output,
            accept=accept,
        )


def _candidates(ref: str) -> tuple[str, ...]:
    if not ref:
        return ("HEAD",)
    return (ref,) if ref.startswith("refs/") else (_HEADS + ref, _TAGS + ref)


def _escaped(path: str) -> str:
    """As it is within a pattern of git's."""
    return "".join(f"\\{character}" if character in "*?[]\\" else character for character in path)


def _chunks(sizes: Mapping[str, int]) -> Iterable[list[str]]:
    chunk: list[str] = []
    total = 0
    for object_id, size in sizes.items():
        if chunk and total + size > _CHUNK_BYTES:
            yield chunk
            chunk, total = [], 0
        chunk.append(object_id)
        total += size
    if chunk:
        yield chunk
