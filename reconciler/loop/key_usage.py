"""How much each key is used, as the loop keeps it: in `key-usage.json` of the state directory.

    counters of the edge, each look -> `KeyUsage.note` -> key-usage.json -> `read`: the list of keys

The file is only worth statistics: whoever deletes it loses counts, and nothing else.
"""

import json
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from reconciler.core.key_usage import KeyUse, add_up, kept
from reconciler.host.files import write_atomic

FILE = "key-usage.json"
_LARGEST = 2**20
"""Bytes of the file that are read: some 8,000 keys. What is cut off is damaged."""
_SAVE_SECONDS = 10.0
_Fingerprint = Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
_ROWS = TypeAdapter(dict[_Fingerprint, KeyUse])


class KeyUsage:
    """The use of the keys of one state directory. One writer: the reconciler that stays."""

    def __init__(
        self,
        state_dir: Path,
        *,
        wall_clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read what was kept.

        Args:
            state_dir: The state directory.
            wall_clock: Seconds since the epoch.
            monotonic: Clock for how long ago it was written, in seconds.
        """
        self._file = state_dir / FILE
        self._wall_clock = wall_clock
        self._monotonic = monotonic
        self._usage = read(state_dir)
        self._written = self._usage
        self._written_at = -_SAVE_SECONDS

    def note(self, counters: Mapping[str, int]) -> None:
        """Take in what the counters say, requests by fingerprint; written at most every 10 s.

        What a crash loses of it the counters still know, as long as they do not begin anew.

        Raises:
            OSError: It cannot be written; it counts until the process ends, and is tried again.
        """
        self._usage = add_up(self._usage, counters, self._wall_clock())
        if self._monotonic() - self._written_at >= _SAVE_SECONDS:
            self.save()

    def keep(self, fingerprints: Collection[str]) -> None:
        """Forget the use of all keys but these; written with the next `note`."""
        self._usage = kept(self._usage, fingerprints)

    def usage(self) -> Mapping[str, KeyUse]:
        """By fingerprint, as of the last `note`."""
        return self._usage

    def save(self) -> None:
        """Write it now, where it is not written as it is: for the end.

        Raises:
            OSError: It cannot be written.
        """
        if self._usage == self._written:
            return
        self._written_at = self._monotonic()
        rows = {fingerprint: asdict(use) for fingerprint, use in self._usage.items()}
        write_atomic(self._file, json.dumps(rows, indent=1, sort_keys=True) + "\n")
        self._written = self._usage


def read(state_dir: Path) -> dict[str, KeyUse]:
    """What is kept, by fingerprint; nothing where the file is absent or damaged."""
    try:
        with (state_dir / FILE).open("rb") as file:
            return _ROWS.validate_json(file.read(_LARGEST))
    except (OSError, ValidationError):
        return {}
