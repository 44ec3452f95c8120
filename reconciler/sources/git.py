"""Model files out of a git repository: one revision at a time, taken over whole or not at all.

A look asks the remote what the branch or tag is now. What is new is fetched into a bare repository, verified,
written beside what is served, and taken over by one rename. Whatever goes wrong on the way, the last good
revision stays, and the snapshot says since when and why.
"""

import asyncio
import contextlib
import hashlib
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from reconciler.core.desired import Snapshot
from reconciler.core.git_names import GitError, check_path, check_ref, folder_name, is_commit, is_short_commit
from reconciler.core.provenance import Commit, Provenance
from reconciler.host.log import get_logger
from reconciler.sources.git_command import SlowError, TooLargeError
from reconciler.sources.git_export import Target, export
from reconciler.sources.git_options import GitOptions
from reconciler.sources.git_remote import AbsentError, Found, How, RefusedError, Remote
from reconciler.sources.git_signatures import UncheckedError, UnverifiedError, signer_of
from reconciler.sources.git_store import Current, Revision, Store, with_changes

log = get_logger()
_REFUSALS = (RefusedError, UnverifiedError, TooLargeError)
_PASSING = (AbsentError, UncheckedError)
"""Refusals that the next look may not meet, though the repository has what it had."""
_Fetched = tuple[Found, Commit, str, Revision]


class GitSource:
    """The model files of one repository. One object, and one process at a time, fetches.

    Raises:
        GitError: An option cannot be meant so.
    """

    def __init__(self, options: GitOptions) -> None:
        options.check()
        self._options = options
        self._path = check_path(options.path)
        self._name = folder_name(options.url, self._path)
        self._followed = (options.url, options.ref, self._path)
        self._store = Store(options.folder.absolute())
        self._trust = options.trust()
        self._one_at_a_time = asyncio.Lock()
        self._loading = asyncio.Lock()
        self._loaded = False
        self._current: Current | None = None
        self._revision: Revision | None = None
        self._snapshot = Snapshot(revision="", files={}, folder=str(options.folder))
        self._nothing = "nothing has been fetched yet"
        self._checked_at = 0.0
        self._problem = ""
        self._said = ""
        self._refused: tuple[str, str, str] | None = None

    @property
    def place(self) -> str:
        """The repository, without credentials."""
        return self._options.url

    @property
    def unreachable(self) -> str:
        """Why the last look had no answer from the repository; empty where it had one, whatever that was."""
        return self._problem if self._said.startswith("unreachable ") else ""

    async def read(self) -> Snapshot:
        """The revision taken over last, from disk after a restart. Never raises; asks nobody."""
        if not self._loaded:
            await self._load()
        if self._snapshot.provenance is None:
            reason = f"{self._nothing}: {self._problem}" if self._problem else self._nothing
            return replace(self._snapshot, unreadable=reason)
        provenance = replace(self._snapshot.provenance, checked_at=self._checked_at, problem=self._problem)
        return replace(self._snapshot, provenance=provenance)

    async def fetch(self) -> bool:
        """Look at the repository now and take over what is new; True where a revision was taken over.

        Never raises for what the repository is or has: the last good revision stays, and the snapshot says why.
        """
        async with self._one_at_a_time:
            await self._load()
            try:
                async with self._store.locked(self._options.timeout):
                    taken = await self._look()
            except _REFUSALS as error:
                self._note("refused", str(error))
            except GitError as error:
                self._note("unreachable", str(error))
            except OSError as error:
                self._note("unreachable", f"{self._options.folder}: {error.strerror or error}")
            else:
                self._note("", "")
                return taken
            return False

    def forget_refusal(self) -> None:
        """Judge what was refused last anew at the next look: somebody asks who may have changed something."""
        self._refused = None

    async def look_at(self, rev: str, *, verified: bool = False) -> Snapshot:
        """Another revision of the repository, which is not taken over.

        Args:
            rev: A commit, the beginning of one that was fetched before, a branch or a tag.
            verified: Only where its signature is trusted, as if it were taken over.

        Raises:
            GitError: It cannot be fetched, or is not accepted.
        """
        check_ref(rev)
        async with self._one_at_a_time:
            await self._load()
            try:
                async with self._store.locked(self._options.timeout):
                    revision, files = await self._other(rev, verified=verified)
                    await self._prune()
            except OSError as error:
                raise GitError(f"{self._options.folder}: {error.strerror or error}") from None
        return self._snapshot_of(revision, files, rev)

    async def _load(self) -> None:
        """What is on disk, once; and again where another process took something over since."""
        # Not the lock of a fetch, which may last: whoever reads meanwhile wants what is on disk.
        async with self._loading:
            current = await asyncio.to_thread(self._store.current)
            if current is not None and current != self._current:
                await self._load_revision(current)
            self._loaded = True

    async def _load_revision(self, current: Current) -> None:
        self._nothing = "nothing of this repository, ref and path has been fetched yet"
        if current.followed != self._followed:
            return
        loaded = await asyncio.to_thread(self._store.load, current.name)
        if loaded is None:
            self._nothing = "what was fetched last is damaged"
            return
        revision, files = loaded
        try:
            revision = await self._trusted(revision, Found(current.ref, current.ref_id), keep=False)
        except (GitError, OSError) as error:
            self._nothing = str(error)
            return
        self._serve(current, revision, files)
        self._checked_at = await asyncio.to_thread(self._store.looked_at)

    async def _look(self) -> bool:
        trust = await asyncio.to_thread(self._trust.digest)
        remote = await self._remote()
        found = await remote.look(self._options.ref)
        self._checked_at = self._store.looked() if self._current else time.time()
        current, revision = self._current, self._revision
        if current and revision and revision.trust == trust and (current.ref, current.ref_id) == found:
            return False
        if self._refused is not None and self._refused[:2] == (found.id, trust):
            raise RefusedError(self._refused[2])
        try:
            return await self._take(remote, found, trust)
        except _PASSING:
            raise
        except _REFUSALS as error:
            self._refused = (found.id, trust, str(error))
            raise

    async def _take(self, remote: Remote, found: Found, trust: str) -> bool:
        found, commit, signed_by, revision = await self._with_fresh_repo(
            lambda: self._fetched(remote, found, verified=True), remote
        )
        old = self._revision
        revision = replace(revision, trust=trust, signed_by=signed_by)
        changed = await remote.last_changes(commit.id, self._path)
        revision = with_changes(revision, {f"{self._name}/{file}": each for file, each in changed.items()}, old)
        how: How = "first"
        if old is not None and old.commit.id != commit.id:
            moved = bool(found.tag) and self._current is not None and found.ref == self._current.ref
            how = "moved tag" if moved else await remote.how(old.commit.id, commit.id)
        await asyncio.to_thread(self._store.annotate, revision)
        loaded = await asyncio.to_thread(self._store.load, revision.name)
        if loaded is None:
            raise GitError("what was written is not there as it was written")
        current = Current(revision.name, self._followed, found.ref, found.id)
        await asyncio.to_thread(self._store.mark_taken, revision)
        await asyncio.to_thread(self._store.switch, current)
        self._serve(current, *loaded)
        if old is None or old.commit.id != commit.id:
            log.info(
                "source.taken_over",
                before=old.commit.short if old else "",
                commit=commit.short,
                how=how,
                ref=_short(found.ref) or commit.short,
                author=commit.author,
                signed_by=signed_by,
                models=len(revision.files),
            )
        await self._prune()
        return old is None or old.name != revision.name

    async def _other(self, rev: str, *, verified: bool) -> tuple[Revision, dict[str, bytes]]:
        remote = await self._remote()
        found = Found("", rev)
        revision: Revision | None = None
        if is_short_commit(rev):
            names = [name for name in await asyncio.to_thread(self._store.names) if name.startswith(rev)]
            known = [name for name in names if name.endswith(self._suffix())]
            commit = known[0].partition("-")[0] if len(known) == 1 else await remote.has(rev)
            found = Found("", commit)
            loaded = await asyncio.to_thread(self._store.load, commit + self._suffix())
            revision = loaded[0] if loaded else None
        if not is_commit(found.id):
            found = await remote.look(rev)
        if revision is None:
            _, _, _, revision = await self._with_fresh_repo(
                lambda: self._fetched(remote, found, verified=False), remote
            )
        if verified:
            revision = await self._trusted(revision, found)
        loaded = await asyncio.to_thread(self._store.load, revision.name)
        if loaded is None:
            raise GitError("what was written is not there as it was written")
        return loaded

    async def _with_fresh_repo(self, work: Callable[[], Awaitable[_Fetched]], remote: Remote) -> _Fetched:
        """Do something with the bare repository; where that fails, once more with a new one.

        After a kill in the middle, or damage, git often only says that something failed.
        """
        if await asyncio.to_thread(remote.is_worn):
            await asyncio.to_thread(self._store.drop_repo)
        try:
            return await work()
        except (RefusedError, UnverifiedError):
            raise  # It was fetched well, and judged.
        except (TooLargeError, SlowError):
            await asyncio.to_thread(self._store.drop_repo)  # With all that came already.
            raise
        except GitError:
            await asyncio.to_thread(self._store.drop_repo)
        return await work()

    async def _fetched(self, remote: Remote, found: Found, *, verified: bool) -> _Fetched:
        found, commit = await remote.fetch(found)
        signed_by = await self._verify(found, commit) if verified else ""
        return found, commit, signed_by, await export(remote, self._store, self._target(commit))

    async def _trusted(self, revision: Revision, found: Found, *, keep: bool = True) -> Revision:
        """The revision, its signature checked again where others are trusted now; noted on disk for `keep`."""
        trust = await asyncio.to_thread(self._trust.digest)
        if trust in ("no", revision.trust):
            return revision
        signed_by = await self._verify(found, revision.commit)
        revision = replace(revision, trust=trust, signed_by=signed_by)
        if keep:
            await asyncio.to_thread(self._store.annotate, revision)
        return revision

    async def _verify(self, found: Found, commit: Commit) -> str:
        if self._trust.verify == "no":
            return ""
        if self._trust.verify == "tag" and not found.tag:
            raise UnverifiedError("only a signed tag is accepted, and what is followed is none")
        tag = found.tag if self._trust.verify == "tag" else ""
        object_id = found.id if tag else commit.id
        return await signer_of(self._trust, object_id, tag=tag, repo=self._store.repo, home=self._store.home)

    async def _remote(self) -> Remote:
        access = await asyncio.to_thread(self._options.access)
        return Remote(access, self._store.repo, self._store.home, self._options.limits())

    def _serve(self, current: Current, revision: Revision, files: dict[str, bytes]) -> None:
        self._current, self._revision, self._refused = current, revision, None
        self._snapshot = self._snapshot_of(revision, files, self._options.ref or _short(current.ref))

    def _snapshot_of(self, revision: Revision, files: dict[str, bytes], ref: str) -> Snapshot:
        return Snapshot(
            revision=revision.commit.id,
            files=files,
            folder=str(self._store.folder_of(revision)),
            problems=revision.problems,
            objects={path: str(self._store.object(each)) for path, each in revision.objects.items()},
            provenance=Provenance(
                url=self._options.url,
                ref=ref,
                commit=revision.commit,
                changed=revision.changed,
                signed_by=revision.signed_by,
                removed=revision.removed,
                checked_at=self._checked_at,
            ),
        )

    def _note(self, kind: str, reason: str) -> None:
        """Remember why nothing newer comes, and log it once; numbers in it make no other reason."""
        self._problem = reason
        said = f"{kind} {re.sub(r'[0-9]+', '0', reason)}" if kind else ""
        if said == self._said:
            return
        before, self._said = self._said, said
        serving = self._revision.commit.short if self._revision else ""
        url, ref = self._options.url, self._options.ref
        if kind == "refused":
            log.error("source.refused", url=url, ref=ref, serving=serving, reason=reason)
        elif kind:
            age = max(0.0, time.time() - self._checked_at) if self._checked_at else None
            log.warning(
                "source.unreachable",
                url=url,
                ref=ref,
                serving=serving,
                reason=reason,
                age_seconds=None if age is None else round(age),
            )
        elif before:
            log.info("source.recovered", url=url, ref=ref, serving=serving)

    def _target(self, commit: Commit) -> Target:
        return Target(commit, commit.id + self._suffix(), self._path, self._name)

    async def _prune(self) -> None:
        with contextlib.suppress(OSError):  # What could not be removed is removed the next time.
            current = self._current.name if self._current else ""
            await asyncio.to_thread(self._store.prune, current, self._options.keep, self._options.in_use)

    def _suffix(self) -> str:
        """Tells exports of one commit for different folders of it apart."""
        return "-" + hashlib.sha256(f"{self._name}\0{self._path}".encode()).hexdigest()[:8]


def _short(ref: str) -> str:
    return ref.removeprefix("refs/heads/").removeprefix("refs/tags/")
