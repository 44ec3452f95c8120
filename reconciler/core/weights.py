"""Weights as the core sees them: what a model file asks for, which commit that is, and how much of it is on disk.

`reconciler.weights` fills these in from the hub and the cache; rendering and planning read them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from reconciler.core.spec import LOCAL_PREFIXES, REPO_PATTERN, ModelSpec

DEFAULT_REVISION = "main"


class Role(StrEnum):
    """What a repository is to a model; decides which of its files are read."""

    MODEL = "model"
    TOKENIZER = "tokenizer"
    ADAPTER = "adapter"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A repository that a model file asks for.

    Attributes:
        revision: Branch, tag or commit, as written.
        track: The branch is followed when it moves.
    """

    model: str
    repo: str
    revision: str
    role: Role
    track: bool = False


@dataclass(frozen=True, slots=True)
class Copy:
    """One commit of a repository on disk. Models that ask for the same one share it."""

    repo: str
    commit: str
    role: Role = Role.MODEL

    def __str__(self) -> str:
        return f"{self.repo}@{self.commit[:8]}"


@dataclass(frozen=True, slots=True)
class Resolution:
    """Which commit a wanted revision is.

    Attributes:
        commit: 40 hexadecimal digits; empty while it is not known.
        problem: Why it is not known, and what to do about it; empty while that is still being found out.
        moved_to: The commit that the branch points to by now, where the file does not follow it.
        retry_at: Seconds since the epoch of the next try, where there was a problem.
        note: What an operator should know though the commit is known: that the hub did not answer, say.
    """

    commit: str = ""
    problem: str = ""
    moved_to: str = ""
    retry_at: float | None = None
    note: str = ""


Resolutions: TypeAlias = Mapping[Wanted, Resolution]


class Phase(StrEnum):
    """How far a copy is."""

    ABSENT = "absent"
    """Not all there, and nobody is fetching it."""
    QUEUED = "queued"
    """Waits for other downloads."""
    LISTING = "listing"
    """The hub is asked what there is to fetch."""
    FETCHING = "downloading"
    VERIFYING = "verifying"
    """What is on disk is compared with its hash."""
    WAITING = "waiting"
    """The hub is not answering or wants us to slow down; it goes on by itself."""
    READY = "ready"
    """All there, and every byte verified."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class FileState:
    """One file of a copy: bytes there, bytes in all, and bytes a second over the last seconds."""

    path: str
    phase: Phase
    done: int
    size: int
    rate: float = 0.0

    @property
    def seconds_left(self) -> float | None:
        """Seconds until it is there at the present rate, or None where nothing moves."""
        return max(0, self.size - self.done) / self.rate if self.rate > 0 else None


@dataclass(frozen=True, slots=True)
class CopyState:
    """How far a copy is.

    Attributes:
        total: Bytes of all files that are wanted; None while that is not known.
        done: Bytes of them on disk, verified or not.
        free: Bytes free on the cache's disk; None where nobody looked.
        rate: Bytes a second over the last seconds.
        reason: Why it failed or waits, and what to do about it.
        retry_at: Seconds since the epoch of the next try after a failure.
    """

    phase: Phase = Phase.ABSENT
    total: int | None = None
    done: int = 0
    free: int | None = None
    rate: float = 0.0
    files: tuple[FileState, ...] = ()
    reason: str = ""
    retry_at: float | None = None

    @property
    def missing(self) -> int | None:
        """Bytes still to be fetched, or None while that is not known."""
        return None if self.total is None else max(0, self.total - self.done)

    @property
    def seconds_left(self) -> float | None:
        """Seconds until everything is there at the present rate, or None where nothing moves."""
        return self.missing / self.rate if self.missing is not None and self.rate > 0 else None


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """What a plan says about weights that are not there yet.

    Attributes:
        total: Bytes in all; None where it could not be found out.
        done: Bytes on disk already.
        free: Bytes free on that disk.
    """

    repo: str
    revision: str
    commit: str
    total: int | None = None
    done: int = 0
    free: int | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Keep:
    """What must stay.

    Attributes:
        copies: These, in whatever role.
        repos: Everything of these repositories, because it is not known which commit is needed.
    """

    copies: frozenset[Copy] = frozenset()
    repos: frozenset[str] = frozenset()

    def has(self, repo: str, commit: str) -> bool:
        """This commit stays."""
        return repo in self.repos or any((copy.repo, copy.commit) == (repo, commit) for copy in self.copies)


def wanted_of(spec: ModelSpec) -> tuple[Wanted, ...]:
    """The repositories a model file asks for; empty where everything is a local folder."""
    source = spec.source
    found: list[Wanted] = []
    if source.repo is not None:
        found.append(Wanted(spec.name, source.repo, source.revision or DEFAULT_REVISION, Role.MODEL, source.track))
    if source.tokenizer is not None and not source.tokenizer.startswith(LOCAL_PREFIXES):
        revision = source.tokenizer_revision or DEFAULT_REVISION
        found.append(Wanted(spec.name, source.tokenizer, revision, Role.TOKENIZER, source.track))
    draft = draft_model(spec)
    if draft is not None:
        found.append(Wanted(spec.name, draft[0], draft[1], Role.MODEL, source.track))
    for adapter in spec.adapters:
        if adapter.repo is not None:
            revision = adapter.revision or DEFAULT_REVISION
            found.append(Wanted(spec.name, adapter.repo, revision, Role.ADAPTER, source.track))
    return tuple(found)


def draft_model(spec: ModelSpec) -> tuple[str, str] | None:
    """Repository and revision of the draft model of speculative decoding; None where there is none on the hub."""
    settings = spec.engine.args.get("speculative_config")
    if not isinstance(settings, dict):
        return None
    model, revision = settings.get("model"), settings.get("revision")
    if not isinstance(model, str) or not re.fullmatch(REPO_PATTERN, model):
        return None
    return model, revision if isinstance(revision, str) else DEFAULT_REVISION


def snapshot_folder(cache: str, repo: str, commit: str) -> str:
    """Where the hub's standard cache keeps a commit of a model repository."""
    return f"{cache}/models--{repo.replace('/', '--')}/snapshots/{commit}"


def is_commit(text: str) -> bool:
    """The text is a commit's full name."""
    return len(text) == 40 and all(letter in "0123456789abcdef" for letter in text)  # noqa: PLR2004


def in_words(size: float) -> str:
    """A number of bytes for a person: `512 B`, `3.1 MiB`, `14.2 GiB`."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:  # noqa: PLR2004 -- the unit's own size
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"
