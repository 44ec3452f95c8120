"""The edge's maps: the file, the socket's answer, and the commands that lead from one to another. Pure."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_MODEL = r"[A-Za-z0-9][A-Za-z0-9._/:+@-]{0,255}"
_APPLICATION = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_FINGERPRINT = r"[0-9a-f]{12}"
_FIELDS_OF_A_LINE = 2
_FIELDS_OF_AN_ENTRY = 3


@dataclass(frozen=True)
class Map:
    """One map, and what may stand in it: nothing that HAProxy could read as something else.

    Attributes:
        name: How the template names it: its file in the edge's folder, and its name on the socket.
        key: The form of what is looked up.
        value: The form of what is found.
        key_is: What `key` is, for a complaint.
        value_is: What `value` is.
    """

    name: str
    key: re.Pattern[str]
    value: re.Pattern[str]
    key_is: str
    value_is: str

    def check(self, entries: Mapping[str, str]) -> None:
        """Let nothing else into the map or a command.

        Raises:
            ValueError: A key or a value has characters, or a length, that it cannot have.
        """
        for key, value in entries.items():
            if not self.key.fullmatch(key):
                raise ValueError(f"{key!r} cannot be {self.key_is}")
            if not self.value.fullmatch(value):
                raise ValueError(f"{value!r} cannot be {self.value_is}")

    def format(self, entries: Mapping[str, str]) -> str:
        """The map file: a line for each entry, sorted, so that equal maps are equal files.

        Raises:
            ValueError: As `check`.
        """
        self.check(entries)
        return "".join(f"{key} {value}\n" for key, value in sorted(entries.items()))

    def parse(self, text: str) -> dict[str, str]:
        """Entries from a map file. Empty lines, comments and lines that are no entry are left out."""
        fields = (line.split() for line in text.splitlines() if not line.lstrip().startswith("#"))
        return {
            found[0]: found[1]
            for found in fields
            if len(found) == _FIELDS_OF_A_LINE and self.key.fullmatch(found[0]) and self.value.fullmatch(found[1])
        }

    def commands(self, live: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
        """What to tell HAProxy so that `live` becomes `wanted`.

        A key in both is changed by one `set`, which HAProxy does in place: there is no moment without an entry.

        Raises:
            ValueError: As `check`, for `wanted`.
        """
        self.check(wanted)
        changed = [f"set map {self.name} {key} {to}" for key, to in wanted.items() if live.get(key, to) != to]
        gone = [f"del map {self.name} {key}" for key in live if key not in wanted]
        new = [f"add map {self.name} {key} {to}" for key, to in wanted.items() if key not in live]
        return changed + gone + new


ROUTES = Map(
    "routes.map",
    re.compile(_MODEL),
    re.compile(_APPLICATION),
    "the name of a model in a route",
    "the name of an application in a route",
)
KEYS = Map(
    "keys.map",
    re.compile(r"[0-9A-F]{64}|mode"),
    re.compile(rf"{_FINGERPRINT}:\d{{1,12}}:\d{{1,10}}:\d{{1,10}}:(?:all|listed)|required"),
    "the digest of a key",
    "what is known about a key",
)
"""Digest, as HAProxy writes it, to what access.py says of the key; and `mode`, where one is required."""
KEY_MODELS = Map(
    "key_models.map",
    re.compile(rf"{_FINGERPRINT}/{_APPLICATION}"),
    re.compile("1"),
    "a key with an application",
    "a permission",
)
"""Fingerprint and application, of keys that may not use all models."""
REVISIONS = Map(
    "revisions.map",
    re.compile(_APPLICATION),
    re.compile(r"[0-9a-f]{12,40}"),
    "the name of an application with a revision",
    "a revision",
)
"""Application to the commit that it comes from."""
MAPS = (ROUTES, KEYS, KEY_MODELS, REVISIONS)


def check_applications(names: Iterable[str]) -> None:
    """Let no name into a command that HAProxy could read as something else.

    Raises:
        ValueError: One has characters, or a length, that cannot be an application's.
    """
    for name in names:
        if not ROUTES.value.fullmatch(name):
            raise ValueError(f"{name!r} cannot be {ROUTES.value_is}")


def parse_entries(answer: str) -> dict[str, str]:
    """Entries from the answer to `show map`: an address, the key and the value on each line.

    Of two entries with one key the first counts, as it does in HAProxy.
    """
    entries: dict[str, str] = {}
    for line in answer.splitlines():
        found = line.split()
        if len(found) == _FIELDS_OF_AN_ENTRY:
            entries.setdefault(found[1], found[2])
    return entries
