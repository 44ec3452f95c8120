"""A repository that people push to, and what the reconciler has fetched of it: the last revision, however old."""

from collections.abc import Mapping
from hashlib import sha1

from reconciler.core.desired import Snapshot


class FakeGit:
    """One branch of a repository.

    Attributes:
        reachable: Somebody answers; otherwise the last revision that was fetched is served.
    """

    def __init__(self) -> None:
        self._commits: list[tuple[str, dict[str, str]]] = []
        self._head = -1
        self._fetched: tuple[str, dict[str, str]] | None = None
        self.reachable = True

    def push(self, files: Mapping[str, str]) -> str:
        """A commit with these files on top of the branch; gives its name."""
        parent = self._commits[self._head][0] if self._commits else ""
        commit = sha1(f"{parent}{len(self._commits)}{sorted(files.items())}".encode(), usedforsecurity=False)
        self._commits.append((commit.hexdigest(), dict(files)))
        self._head = len(self._commits) - 1
        return self._commits[-1][0]

    def force_push(self, back: int) -> dict[str, str]:
        """The branch goes back by so many commits, as far as there are any; gives the files of then."""
        self._head = max(0, self._head - back)
        return dict(self._commits[self._head][1])

    @property
    def head(self) -> tuple[str, dict[str, str]]:
        """What the branch is now."""
        return self._commits[self._head]

    def fetch(self) -> tuple[str, dict[str, str]] | None:
        """The revision that is served: the branch's, or while nobody answers the last one that was fetched."""
        if self.reachable and self._commits:
            self._fetched = self._commits[self._head]
        return self._fetched

    def snapshot(self, folder: str) -> Snapshot:
        """What a source gives the loop."""
        fetched = self.fetch()
        if fetched is None:
            return Snapshot("", {}, folder, unreadable="the repository was never reached")
        return Snapshot(fetched[0], {path: text.encode() for path, text in fetched[1].items()}, folder)
