"""A line of the journal: what it says, and how it is made fit to be kept and shown. Pure."""

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from reconciler.core.diff import Effect, FieldChange
from reconciler.core.plan import Action
from reconciler.core.secrets import without_secrets

HOLD, REFUSAL = "hold", "refusal"
MAX_FIELDS, MAX_VALUE, MAX_TEXT, MAX_MODELS = 50, 200, 600, 200
"""What an entry carries at most: fields, characters of a value and of a text, names of models."""
ACTIONS = frozenset(action.value for action in Action)
"""What happens to models, beside which there are holds, refusals and commands."""
_SECRET_PATH = re.compile(
    r"env_vars|(?i:token(?!iz|s\b|_?threshold)|secret|passw|credential|api_?key|authorization)"
)


class Outcome(StrEnum):
    """What became of it."""

    STARTED = "started"
    DONE = "done"
    FAILED = "failed"
    SUPERSEDED = "superseded"
    HELD = "held"
    REFUSED = "refused"
    INTERRUPTED = "interrupted"
    """It ended while no reconciler ran, and not as it was meant to."""
    OVER = "over"
    """The hold or the refusal."""
    GIVEN = "given"
    """A command by hand."""
    ENDED = "ended"
    """What was asked for by hand."""


class By(StrEnum):
    """Who or what wanted it."""

    FILE = "file"
    TRAFFIC = "traffic"
    HAND = "hand"
    SCHEDULE = "schedule"
    ROLLBACK = "rollback"
    DRIFT = "drift"
    """Somebody changed or deleted it behind our back."""
    HUB = "hub"
    """A branch moved that is followed."""
    SETTINGS = "settings"
    """The template or the settings of the reconciler."""
    CLUSTER = "cluster"
    """It was up, and is not any more."""
    FALLBACK = "fallback"
    """The version that came does not come up."""
    SAFETY = "safety"


@dataclass(frozen=True, slots=True)
class Field:
    """One field, before and after: numbers and the like as they are, everything else as short text."""

    path: str
    old: Any
    new: Any
    effect: Effect


@dataclass(frozen=True, slots=True)
class Entry:
    """One line. Times are UTC; fields are only added from release to release.

    Attributes:
        model: The model; `*` for all, empty where `models` says which.
        what: An action of the plan, `hold`, `refusal`, or a command.
        cause: Why it was to happen.
        revision: The source's revision that the plan was made from, or that was gone back to.
        commit: The commit that changed the model's file last, 12 digits; empty where the source cannot tell.
        author: Who wrote that commit.
        since: `at` of the entry that this one ends.
        seconds: From there to here.
        reason: How it ended.
        kind: Of a hold its kind; of a refusal the flag that allows it.
        until: When a command's effect ends by itself.
        digest: Of what the model's file declares, defaults filled in.
    """

    at: str
    model: str
    what: str
    outcome: Outcome
    cause: str = ""
    by: str = ""
    file: str = ""
    old: str | None = None
    new: str | None = None
    revision: str = ""
    commit: str = ""
    author: str = ""
    subject: str = ""
    fields: tuple[Field, ...] = ()
    since: str = ""
    seconds: float | None = None
    reason: str = ""
    kind: str = ""
    until: str = ""
    models: tuple[str, ...] = ()
    digest: str = ""


def is_sound(entry: Entry) -> bool:
    """Its times are times: for one that was read from a file."""
    try:
        for iso in (entry.at, entry.since or entry.at, entry.until or entry.at):
            moment(iso)
    except (ValueError, OverflowError, OSError):
        return False
    return True


def cleaned(text: str, limit: int = MAX_TEXT) -> str:
    """Text from elsewhere, fit for a terminal and a file: printable, without what looks like a secret, short."""
    text = without_secrets(text[: 4 * limit])
    if not text.isprintable():
        # Invisible marks can turn a line around; blanks of all kinds are just that.
        spaced = " ".join(text.split())
        text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in spaced)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def looks_secret(text: str) -> bool:
    """Something in it looks like a token or a password."""
    return without_secrets(text) != text


def field_of(change: FieldChange) -> Field:
    """A changed field, without what may be secret: a template of the operator's may set variables."""
    if _SECRET_PATH.search(change.path):
        old, new = (None if value is None else "***" for value in (change.old, change.new))
    else:
        old, new = _short(change.old), _short(change.new)
    return Field(cleaned(change.path, MAX_VALUE), old, new, change.effect)


def _short(value: Any) -> Any:  # noqa: ANN401 -- any JSON value
    if value is None or isinstance(value, bool | int | float):
        return value if not isinstance(value, int) or abs(value) < 10**18 else cleaned(repr(value), MAX_VALUE)
    return cleaned(value if isinstance(value, str) else json.dumps(value, default=str), MAX_VALUE)


def iso_of(seconds: float) -> str:
    """An entry's time, from seconds since the epoch."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def moment(iso: str) -> float:
    """Seconds since the epoch of an entry's time.

    Raises:
        ValueError: It is none.
    """
    return datetime.fromisoformat(iso).astimezone(UTC).timestamp()
