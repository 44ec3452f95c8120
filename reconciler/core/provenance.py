"""Where model files come from, where a source can tell: the commit, who changed each file, and how fresh it is."""

from collections.abc import Mapping
from dataclasses import dataclass, field


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
        checked_at: Seconds since the epoch of the last successful look at the repository.
        problem: Why nothing newer is taken over: the repository cannot be reached, or what it has is refused;
            empty while all is well.
    """

    url: str
    ref: str
    commit: Commit
    changed: Mapping[str, Commit] = field(default_factory=dict)
    signed_by: str = ""
    # A look that found nothing new makes no other snapshot.
    checked_at: float = field(default=0.0, compare=False)
    problem: str = field(default="", compare=False)
