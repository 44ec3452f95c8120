"""Markdown that quotes files nobody has looked at yet, for `core.plan_markdown`: escaped, and bounded in length.

GitHub and GitLab look for mentions, references and links in the text as it is shown, so an escape that is gone by
then does not keep them off. A space of no width between the sign and the word does.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeVar

T = TypeVar("T")

MAX_CHARACTERS: Final = 60_000
"""GitHub takes 65,536 in one comment."""

_LONGEST: Final = 300
_RESERVE: Final = 1_000
"""Kept free for the lines that say what was cut, and for the end of the page."""
_SPACE: Final = re.compile(r"\s+")
_HTML: Final = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"}
# Entities are no Markdown to GitHub's and GitLab's parsers, and in a table no end of a cell.
_MARKDOWN: Final = {sign: f"&#{ord(sign)};" for sign in r"\`*[]|~$"}
_GAP: Final = "\u200b"
_ENTITIES: Final = str.maketrans({**_HTML, **_MARKDOWN, _GAP: "&#8203;"})
_OUTER_UNDERSCORE: Final = re.compile(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_SPECIAL: Final = re.compile(r"[@#!%~$&](?=\w)|:(?=//)|GH-(?=\d)|www(?=\.)", re.IGNORECASE)
"""Signs of mentions and references on GitHub and GitLab, and what makes a link of an address."""


def text(value: str, longest: int = _LONGEST) -> str:
    """Any text as it stands, on one line and never more than that: no markup, mention, reference or link.

    Args:
        value: What nobody has looked at.
        longest: Characters of it that are shown.
    """
    # Cut before the spaces are: what is quoted may be a megabyte.
    line = _SPACE.sub(" ", value[: 4 * longest]).strip()
    if len(line) > longest or len(value) > 4 * longest:
        line = line[: longest - 1] + "…"
    line = "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)
    line = _SPECIAL.sub(lambda found: found[0] + _GAP, line)
    return _OUTER_UNDERSCORE.sub("&#95;", line.translate(_ENTITIES))


def code(value: str, longest: int = _LONGEST) -> str:
    """The same in the type of code."""
    return f"<code>{text(value, longest)}</code>"


def row(cells: Iterable[str]) -> str:
    """A row of a table, of cells that are escaped."""
    return f"| {' | '.join(cells)} |"


def table(headings: Sequence[str]) -> tuple[str, str]:
    """The first two lines of a table."""
    return row(headings), row("---" for _ in headings)


class Page:
    """Lines of Markdown of bounded length. What comes first has the room; what is cut is counted and said."""

    def __init__(self, longest: int = MAX_CHARACTERS) -> None:
        self._left = longest - _RESERVE
        self._lines: list[str] = []
        self._cut: dict[str, int] = {}

    def add(self, *lines: str) -> None:
        """Lines that are short and always there, with an empty one behind them."""
        self._put([*lines, ""])

    def section(
        self,
        what: str,
        head: Sequence[str],
        items: Sequence[T],
        line: Callable[[T], str],
        tail: Sequence[str] = (),
    ) -> None:
        """As many items as there is room for, between head and tail; nothing where there is none.

        Args:
            what: What the items are, to say how many of them were cut.
            head: Lines before them.
            items: What is shown.
            line: Makes one line of an item; not asked for what is cut.
            tail: Lines behind them.
        """
        left = self._left - _length([*head, *tail, ""])
        lines: list[str] = []
        for item in items if left > 0 else ():
            made = line(item)
            left -= len(made) + 1
            if left < 0:
                break
            lines.append(made)
        if lines:
            self._put([*head, *lines, *tail, ""])
        if len(lines) < len(items):
            self._cut[what] = self._cut.get(what, 0) + len(items) - len(lines)

    def end(self, *lines: str) -> str:
        """The page, with what was cut and these short lines at its end."""
        if self._cut:
            parts = ", ".join(f"{number:,} of {what}" for what, number in self._cut.items())
            self._lines += [f"**Cut, because this would be too long: {parts}.** `reconcile plan` prints all.", ""]
        return "\n".join([*self._lines, *lines]).rstrip() + "\n"

    def _put(self, lines: list[str]) -> None:
        self._left -= _length(lines)
        self._lines += lines


def _length(lines: Iterable[str]) -> int:
    return sum(len(line) + 1 for line in lines)
