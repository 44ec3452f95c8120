"""Where model files come from, where a source can tell: the commit, who changed each file, and how fresh it is."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from reconciler.core.words import in_time


@dataclass(frozen=True, slots=True)
class Commit:
    """One commit.

    Attributes:
        id: 40 hexadecimal digits.
        author: Name of the author, as the commit has it.
        at: Seconds since the epoch at which it was committed.
        subject: The first line of its message, shortened.
    """

    id: str
    author: str
    at: float
    subject: str = ""

    @property
    def short(self) -> str:
        """The first 12 digits, as people write it."""
        return self.id[:12]


@dataclass(frozen=True, slots=True)
class Provenance:
    """What a git source knows of the files that it gives.

    Attributes:
        url: The repository, without credentials.
        ref: Branch or tag that is followed.
        commit: The commit that the files are of.
        changed: By path of a model file: the commit that changed it last, as far back as was fetched.
        signed_by: Whose signature was verified; empty where none was asked for.
        removed: By path of a model file that is gone: the commit that removed it, where that is known.
        checked_at: Seconds since the epoch of the last successful look at the repository.
        problem: Why nothing newer is taken over: the repository cannot be reached, or what it has is refused;
            empty while all is well.
    """

    url: str
    ref: str
    commit: Commit
    changed: Mapping[str, Commit] = field(default_factory=dict)
    signed_by: str = ""
    removed: Mapping[str, Commit] = field(default_factory=dict)
    # A look that found nothing new makes no other snapshot.
    checked_at: float = field(default=0.0, compare=False)
    problem: str = field(default="", compare=False)


def in_words(provenance: Provenance, now: float) -> str:
    """What is served, how old the last look is, and what keeps newer things away: for the status.

    Args:
        provenance: Of the snapshot.
        now: Seconds since the epoch.
    """
    commit = provenance.commit
    what = f"{provenance.url} {provenance.ref} at {commit.short} by {commit.author}: {commit.subject}"
    age = f"looked at {in_time(max(0.0, now - provenance.checked_at))} ago" if provenance.checked_at else ""
    return "; ".join(filter(None, [what, age, provenance.problem]))
