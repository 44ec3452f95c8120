"""What `reconcile doctor` finds: each with what it means and what to do, the worst first. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    NOTE = "note"
    """Worth knowing; nothing has to be done."""
    WARNING = "warning"
    """It works, and may not for long, or not as safely or fast as it could."""
    ERROR = "error"
    """Something does not work, or is open that should not be."""


_WORST_FIRST = (Level.ERROR, Level.WARNING, Level.NOTE, Level.OK)
_CODES = {Level.ERROR: 1, Level.WARNING: 3}
_LONGEST = 500


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: What was looked at, in a word or two.
        what: What was found.
        why: Why it matters; empty where all is well.
        do: What to do, with commands where there are any; empty where nothing is to be done.
    """

    check: str
    level: Level
    what: str
    why: str = ""
    do: str = ""

    def to_json(self) -> dict[str, str]:
        """As `--output json` has it."""
        return {
            "check": self.check,
            "level": self.level.value,
            "what": self.what,
            "why": self.why,
            "do": self.do,
        }


def ordered(findings: Iterable[Finding]) -> list[Finding]:
    """The worst first; those of one level as they came. What comes from elsewhere is on one line, and short."""
    tidy = [Finding(each.check, each.level, _line(each.what), each.why, each.do) for each in findings]
    return sorted(tidy, key=lambda each: _WORST_FIRST.index(each.level))


def exit_code(findings: Iterable[Finding]) -> int:
    """1 with an error, 3 with a warning, else 0."""
    levels = {each.level for each in findings}
    return next((_CODES[level] for level in _WORST_FIRST if level in levels and level in _CODES), 0)


def _line(text: str) -> str:
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
