"""Changes of model files in a git source: the last step of an edit, after it was checked.

A change becomes a commit on top of the revision that is served, made in the bare repository without a checkout. It
is pushed to a new branch, or given back as a mail for `git am`. The branch that is followed is never written: what
is served changes when somebody merges.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count

from reconciler.core.edit import Change, ConflictError, Edit, EditError
from reconciler.core.git_names import GitError, check_path, check_ref, folder_name, printable
from reconciler.sources.git_access import Access
from reconciler.sources.git_command import CommandError, run
from reconciler.sources.git_options import GitOptions
from reconciler.sources.git_remote import Found, Remote
from reconciler.sources.git_store import Store, blob_id
from reconciler.sources.git_tree import Entry

_HEADS = "refs/heads/"
_FOLDER, _SUBMODULE, _LINK, _FILE = "040000", "160000", "120000", "100644"
_ADDRESS = "noreply@reconcile.invalid"
_COMMITTER = "reconcile"
_LONGEST_AUTHOR, _LONGEST_MESSAGE = 100, 200
_AUTHOR = re.compile(r"(?P<name>[^<>]*)<(?P<address>[!-;=?-~]{1,200})>\s*")
_TRIES = 5
_TAKEN = ("stale info", "already exists", "fetch first")
_VERBS = {"added": "Add", "changed": "Change", "removed": "Remove"}


class GitEdits:
    """Makes commits for the repository of a git source.

    Attributes:
        writes: A change is carried out at once: it is pushed.

    Raises:
        GitError: `push_branch` is not the name of a branch.
    """

    def __init__(
        self, options: GitOptions, *, push_branch: str = "", push_token: Callable[[], str] | None = None
    ) -> None:
        """Say where changes go.

        Args:
            options: Of the source.
            push_branch: The branch that a change is pushed to; `{model}` in it is the file's name without its
                suffix. Empty: nothing is pushed, and a change is given back as a patch.
            push_token: Gives the token for pushing over https; without, it is the source's own.
        """
        if push_branch:
            check_ref(_HEADS + push_branch.replace("{model}", "model"))
        self._options = options
        self._push_options = options if push_token is None else replace(options, token=push_token)
        self._branch = push_branch
        self._path = check_path(options.path)
        self._store = Store(options.folder.absolute())
        self.name = folder_name(options.url, self._path)
        self.writes = bool(push_branch)

    async def check(self, name: str) -> None:
        """Nothing to say before the commit is made: that needs the repository."""

    async def apply(self, edit: Edit, change: Change) -> Edit:
        """Make the commit; gives the edit with where it was pushed, or as a patch.

        Raises:
            ConflictError: The repository has something else by that name.
            EditError: The commit cannot be made or pushed; the message says why. The branch that is followed is as
                it was in any case.
        """
        try:
            async with self._store.locked(self._options.timeout):
                commit = await self._commit(change)
                if not self._branch:
                    return replace(edit, patch=await self._patch(commit, change))
                branch = await self._push(commit, change)
                return replace(edit, written=True, commit=commit, branch=branch)
        except GitError as error:
            raise EditError(str(error)) from error
        except OSError as error:
            raise EditError(f"{self._options.folder}: {error.strerror or error}") from error

    async def _commit(self, change: Change) -> str:
        base = change.snapshot.revision
        remote = Remote(self._options.access(), self._store.repo, self._store.home, self._options.limits())
        if await remote.has(base) != base:
            # The copy was made anew since. The revision is known by its id, so this can be no other one.
            await remote.fetch(Found("", base))
        entries = await remote.listing(base)
        place = f"{self._path}/{change.name}" if self._path else change.name
        entry = entries.get(place)
        self._check_entry(place, entry, change)
        blob = ""
        if change.after is not None:
            blob = await self._line("hash-object", "-w", "--stdin", stdin=change.after)
        elif self._path and not any(each.startswith(f"{self._path}/") and each != place for each in entries):
            raise EditError(
                f"{place} is the last file in {self._path}, and a commit without that folder is never taken over: "
                "add another file first (.gitkeep)"
            )
        tree = await self._tree(entries, place, Entry(entry.mode if entry else _FILE, blob, 0))
        author, address = _identity(change.author)
        message = printable(" ".join(change.message.split()), _LONGEST_MESSAGE)
        return await self._line(
            *("commit-tree", tree, "-p", base),
            stdin=(message or f"{_VERBS[change.verb]} {place}").encode(),
            environment={
                "GIT_AUTHOR_NAME": author,
                "GIT_AUTHOR_EMAIL": address,
                "GIT_COMMITTER_NAME": _COMMITTER,
                "GIT_COMMITTER_EMAIL": _ADDRESS,
            },
        )

    def _check_entry(self, place: str, entry: Entry | None, change: Change) -> None:
        if entry is None or change.before is None:
            if (entry is None) != (change.before is None):
                raise ConflictError(f"{place}: the repository has something else by that name")
        elif entry.mode == _LINK:
            raise EditError(f"{place} is a link in the repository: change the file that it leads to")
        elif entry.id != blob_id(change.before):
            raise ConflictError(f"{place} is not what was read")

    async def _tree(self, entries: Mapping[str, Entry], place: str, new: Entry) -> str:
        """The whole tree with one file replaced, or without it where it has no id: one `mktree` a level."""
        while True:
            folder, _, name = place.rpartition("/")
            lines = {
                each.rpartition("/")[2]: found
                for each, found in entries.items()
                if each.rpartition("/")[0] == folder and each != place
            }
            if new.id:
                lines[name] = new
            listing = "".join(
                f"{each.mode} {_kind(each.mode)} {each.id}\t{name}\0" for name, each in sorted(lines.items())
            )
            tree = await self._line("mktree", "-z", stdin=listing.encode(errors="surrogateescape"))
            if not folder:
                return tree
            place, new = folder, Entry(_FOLDER, tree, 0)

    async def _patch(self, commit: str, change: Change) -> str:
        made = await run(
            [
                *("format-patch", "-1", "--stdout", "--no-stat", "--no-signature", "--no-renames", "--full-index"),
                *("--no-ext-diff", "--no-textconv", "--no-color", commit),
            ],
            home=self._store.home,
            repo=self._store.repo,
            seconds=self._options.timeout,
        )
        try:
            return made.stdout.decode()
        except UnicodeDecodeError:
            raise EditError(f"{change.name} is not UTF-8 as it is, which no patch can say") from None

    async def _push(self, commit: str, change: Change) -> str:
        wanted = self._branch.replace("{model}", _slug(change.name))
        access = self._push_options.access()
        taken = await self._heads(access, wanted)
        if change.snapshot.provenance is not None:
            # Also where somebody removed it: pushing it again would have it followed.
            taken |= {change.snapshot.provenance.ref.removeprefix(_HEADS)}
        for _ in range(_TRIES):
            branch = wanted if wanted not in taken else _numbered(wanted, taken)
            try:
                await run(
                    [
                        *("push", "--quiet", "--no-verify", "--no-follow-tags", "--no-signed"),
                        # This forces nothing: it says that there is no such branch, which the server then checks.
                        *("--recurse-submodules=no", f"--force-with-lease={_HEADS}{branch}:"),
                        *("--end-of-options", access.url, f"{commit}:{_HEADS}{branch}"),
                    ],
                    home=self._store.home,
                    repo=self._store.repo,
                    access=access,
                    seconds=self._options.timeout,
                )
            except CommandError as error:
                if not any(each in error.said for each in _TAKEN):
                    raise GitError(_why(error)) from None
                taken.add(branch)
            else:
                return branch
        raise GitError(f"others keep making branches named {wanted}: nothing was pushed")

    async def _heads(self, access: Access, branch: str) -> set[str]:
        """The branches of this name, with a number or without."""
        try:
            found = await run(
                ["ls-remote", "--end-of-options", access.url, _HEADS + branch, f"{_HEADS}{branch}-*"],
                home=self._store.home,
                access=access,
                seconds=self._options.timeout,
                most_output=1 << 20,
            )
        except CommandError as error:
            raise GitError(_why(error)) from None
        names = (line.partition("\t")[2] for line in found.stdout.decode(errors="replace").splitlines())
        return {name.removeprefix(_HEADS) for name in names}

    async def _line(self, *args: str, stdin: bytes, environment: Mapping[str, str] | None = None) -> str:
        made = await run(
            args,
            home=self._store.home,
            repo=self._store.repo,
            environment=environment,
            stdin=stdin,
            seconds=self._options.timeout,
        )
        return made.stdout.decode("ascii", errors="replace").strip()


def _identity(author: str) -> tuple[str, str]:
    """Name and address for a commit, of whatever somebody is called."""
    found = _AUTHOR.fullmatch(author[: 4 * _LONGEST_AUTHOR])
    name, address = (found["name"], found["address"]) if found else (author, _ADDRESS)
    name = printable(" ".join(re.sub(r"[<>]", " ", name[: 4 * _LONGEST_AUTHOR]).split()), _LONGEST_AUTHOR)
    # Git takes no name of marks alone.
    return name if any(character.isalnum() for character in name) else "unknown", address


def _slug(name: str) -> str:
    """A file's name without its suffix, as part of a branch's."""
    slug = re.sub(r"[^A-Za-z0-9_-]+", "-", name.rpartition(".")[0]).strip("-")
    return slug[:100] or "model"


def _numbered(branch: str, taken: set[str]) -> str:
    return next(each for number in count(2) if (each := f"{branch}-{number}") not in taken)


def _kind(mode: str) -> str:
    return {_FOLDER: "tree", _SUBMODULE: "commit"}.get(mode, "blob")


def _why(error: CommandError) -> str:
    """Why the server did not take a branch, in its own words where it has some."""
    if "error: 403" in error.said:
        return "the server forbids it: the token has no right to push to this repository"
    for line in error.said.splitlines():
        if line.startswith(" ! ["):
            return f"the server takes no such branch: {printable(line[3:].strip())}"
    return str(error)
