"""What was asked for by hand, as the loop keeps it: in `overrides.json` of the state directory, until it ends.

Only the reconciler that runs writes the file; a dry run and `reconcile status` read it.
"""

import asyncio
import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from reconciler.core import overrides as rules
from reconciler.core.overrides import Kind, Override
from reconciler.core.spec import Policy
from reconciler.host.files import write_atomic
from reconciler.host.log import get_logger
from reconciler.host.nobody import nobody

log = get_logger()

FILE = "overrides.json"
_LONGEST_SLEEP_SECONDS = 60.0
"""The wall clock may be set meanwhile, and a sleep goes by another."""


class OverrideStore:
    """The overrides of one state directory, at most one a model.

    Attributes:
        wake: Called after each change, for the loop to look anew.
    """

    def __init__(
        self, folder: Path, *, wall_clock: Callable[[], float] = time.time, wake: Callable[[], None] = nobody
    ) -> None:
        """Read what was kept.

        Args:
            folder: The state directory. Written only by what changes an override.
            wall_clock: Seconds since the epoch.
            wake: See above.
        """
        self._file = folder / FILE
        self._wall_clock = wall_clock
        self._kept = {override.model: override for override in _read(self._file)}
        self._changed = asyncio.Event()
        self.wake = wake

    def active(self) -> dict[str, Override]:
        """What holds now, by model."""
        return rules.active(self._kept, self._wall_clock())

    def give(self, kind: Kind, model: str, policy: Policy, for_seconds: float | None) -> Override | None:
        """Carry out a command; see `core.overrides.give`. What it answers is on disk by then.

        Raises:
            OverrideError: It makes no sense for this model as things are.
            OSError: It cannot be written, so it does not hold.
        """
        self._drop_past()
        current = self._kept.get(model)
        given = rules.give(kind, model, policy, current, now=self._wall_clock(), for_seconds=for_seconds)
        if given != current:
            kept = {name: override for name, override in self._kept.items() if name != model}
            if given is not None:
                kept[model] = given
            _write(self._file, kept.values())
            self._kept = kept
        if given is not None and given != current:
            log.info("override.given", model=model, kind=given.kind.value, until=_moment(given.until))
        elif given is None and current is not None:
            log.info("override.ended", model=model, kind=current.kind.value, why=f"{kind.value} by hand")
        self._changed.set()
        self.wake()
        return given

    def end(self, override: Override, why: str) -> None:
        """End what is done. One that took its place meanwhile stays."""
        if self._kept.get(override.model) == override:
            self._drop([override], why)

    def forget(self, models: Iterable[str]) -> None:
        """End what holds for models that are neither declared nor there any more."""
        gone = self._kept.keys() & set(models)
        self._drop([self._kept[model] for model in sorted(gone)], "the model is not declared any more")

    async def watch(self) -> None:
        """End overrides when their time comes, for ever."""
        while True:
            self._drop_past()
            now = self._wall_clock()
            ends = [override.until - now for override in self._kept.values() if override.until is not None]
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), min([*ends, _LONGEST_SLEEP_SECONDS]))

    def _drop_past(self) -> None:
        now = self._wall_clock()
        ended = [override for override in self._kept.values() if override.ended(now)]
        following = [each for override in ended if (each := rules.next_of(override, now)) is not None]
        self._drop(ended, "its time is over", following)

    def _drop(self, gone: list[Override], why: str, following: Iterable[Override] = ()) -> None:
        if not gone:
            return
        for override in gone:
            del self._kept[override.model]
            log.info("override.ended", model=override.model, kind=override.kind.value, why=why)
        self._kept |= {override.model: override for override in following}
        try:
            _write(self._file, self._kept.values())
        except OSError as error:
            # It has ended all the same. What it costs is that one without an end holds again after a restart.
            log.warning("overrides.unsaved", file=str(self._file), reason=str(error))
        self._changed.set()
        self.wake()


def _moment(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _read(file: Path) -> list[Override]:
    # A lost override costs a command; a crash loop would cost more.
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return []
    adapter = TypeAdapter(Override)
    found: list[Override] = []
    for row in rows if isinstance(rows, list) else ():
        with contextlib.suppress(ValidationError):
            found.append(adapter.validate_python(row))
    return [override for override in found if rules.is_sound(override)]


def _write(file: Path, rows: Iterable[Override]) -> None:
    write_atomic(file, json.dumps([dataclasses.asdict(row) for row in rows], indent=1, sort_keys=True))
