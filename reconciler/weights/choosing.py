"""What a copy consists of: asked of the hub, or read off the cache where the hub does not answer."""

import contextlib
from dataclasses import dataclass

from reconciler.core.choose_files import (
    Listing,
    RepoFile,
    Rules,
    WeightsRefusedError,
    allowed,
    choose_files,
    indexes_to_read,
    is_weights_at_the_root,
)
from reconciler.core.weights import Copy, Role, in_words
from reconciler.weights.cache import HubCache
from reconciler.weights.errors import Trouble, WeightsError
from reconciler.weights.hashing import content_matches
from reconciler.weights.hub import Hub
from reconciler.weights.manifest import Manifest, Manifests

MAX_READ = 64 * 2**20
"""Bytes of a file that is read to choose by; the largest known index has 10 MB."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The files of a copy, and what had to be allowed for it."""

    files: tuple[RepoFile, ...]
    rules: tuple[bool, bool]
    """Pickles were allowed, code was allowed."""


def read_to_choose(hub: Hub, listing: Listing, name: str) -> bytes:
    """A file that the choice goes by, of bounded size and verified, without writing it anywhere.

    Raises:
        WeightsError: The hub does not give it, or it is too large to be what it is called.
    """
    file = listing.find(name)
    assert file is not None
    if file.size > MAX_READ:
        raise WeightsError(
            Trouble.REFUSED, f"{listing.repo}: {name} has {in_words(file.size)}, so it is no {name}"
        )
    return hub.read(listing.repo, listing.commit, file)


class Chooser:
    """Chooses files.

    Args:
        hub: Where copies come from.
        cache: Where they are.
        manifests: What was noted about them.
        rules: What the operator allows.
    """

    def __init__(self, hub: Hub, cache: HubCache, manifests: Manifests, rules: Rules) -> None:
        self._hub, self._cache, self._manifests, self._rules = hub, cache, manifests, rules

    def verdict(self, copy: Copy) -> tuple[bool, bool]:
        """What the operator allows this repository now: pickles, code."""
        return allowed(copy.repo, self._rules.allow_pickle), allowed(copy.repo, self._rules.allow_code)

    def noted(self, copy: Copy) -> Manifest | None:
        """The note about a copy, as long as it was chosen by the rules of today and nothing was put beside it."""
        manifest = self._manifests.load(copy)
        if manifest is None or manifest.copy != copy or tuple(manifest.rules) != self.verdict(copy):
            return None
        known = {seen.file.path for seen in manifest.files}
        return manifest if known.issuperset(self._read_by_engine(copy)) else None

    def choose(self, copy: Copy) -> Chosen:
        """What the copy consists of. Writes nothing.

        Raises:
            WeightsError: The hub cannot be asked, or the repository is refused.
        """
        noted = self.noted(copy)
        if noted is not None:
            return Chosen(tuple(seen.file for seen in noted.files), self.verdict(copy))
        try:
            listing = self._hub.listing(copy.repo, copy.commit)
        except WeightsError as error:
            # What another tool fetched may be whole: its names are its hashes.
            listing = self._cache.listing(copy.repo, copy.commit)
            if not listing.files or not (error.passes or error.trouble is Trouble.OFFLINE):
                raise
        if listing.commit != copy.commit:
            raise WeightsError(
                Trouble.CORRUPT, f"{copy}: the hub answered for another commit ({listing.commit[:12]})"
            )
        contents = {name: self._content(copy, listing, name) for name in indexes_to_read(listing, copy.role)}
        try:
            files = choose_files(listing, copy.role, contents, self._rules)
            return Chosen((*files, *self._beside(copy, listing, files)), self.verdict(copy))
        except WeightsRefusedError as error:
            raise WeightsError(Trouble.REFUSED, str(error)) from error

    def _content(self, copy: Copy, listing: Listing, name: str) -> bytes:
        file = listing.find(name)
        assert file is not None
        with contextlib.suppress(OSError):
            if file.size <= MAX_READ:
                content = self._cache.blob(copy.repo, file.etag).read_bytes()
                if content_matches(file.etag, content):
                    return content
        return read_to_choose(self._hub, listing, name)

    def _read_by_engine(self, copy: Copy) -> list[str]:
        """The weights that stand in the snapshot: an engine reads every one of them, whoever put it there."""
        if copy.role is not Role.MODEL:
            return []
        return [path for path in self._cache.names(copy.repo, copy.commit) if is_weights_at_the_root(path)]

    def _beside(self, copy: Copy, listing: Listing, files: tuple[RepoFile, ...]) -> list[RepoFile]:
        """Weights that somebody else put into the snapshot: the engine reads them, so they are verified too."""
        chosen = {file.path for file in files}
        found: list[RepoFile] = []
        for path in self._read_by_engine(copy):
            if path in chosen:
                continue
            file = listing.find(path)
            if file is None:
                raise WeightsRefusedError(
                    f"{self._cache.snapshot(copy.repo, copy.commit) / path} is no file of {copy}, and the engine "
                    "would read it: remove it"
                )
            found.append(file)
        return found
