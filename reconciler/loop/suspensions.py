"""What is suspended, as the loop keeps it: in `suspensions.json` of the state directory, until it ends.

The reconciler that runs writes the file, or a command where none runs; a dry run and `reconcile status` read it.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from reconciler.core.suspension import LONGEST_REASON, LONGEST_SECONDS, Suspension
from reconciler.core.words import in_time
from reconciler.host.errors import UserError
from reconciler.host.files import write_atomic
from reconciler.host.log import get_logger
from reconciler.host.nobody import nobody

log = get_logger()

FILE = "suspensions.json"
_ROWS = TypeAdapter(list[Suspension])


class SuspensionsUnreadableError(UserError):
    """It cannot be told what is suspended, so nothing may be touched; the message says what to do."""


class SuspensionError(ValueError):
    """The suspension makes no sense; the message says why."""


class SuspensionStore:
    """The suspensions of one state directory, at most one a model and one of all.

    Attributes:
        wake: Called after each change, for the loop to look anew.
    """

    def __init__(self, folder: Path, *, wall_clock: Callable[[], float] = time.time) -> None:
        """Read what was kept.

        Args:
            folder: The state directory.
            wall_clock: Seconds since the epoch.

        Raises:
            SuspensionsUnreadableError: It cannot be read.
        """
        self._file = folder / FILE
        self._wall_clock = wall_clock
        self._kept = {each.model: each for each in _read(self._file)}
        self.wake: Callable[[], None] = nobody

    def active(self) -> tuple[Suspension, ...]:
        """What holds now."""
        now = self._wall_clock()
        return tuple(each for each in self._kept.values() if not each.ended(now))

    def suspend(self, model: str, *, seconds: float | None, reason: str) -> Suspension:
        """Leave a model, or all of them, as they are; takes the place of an earlier suspension of the same.

        Args:
            model: Its name, or `ALL`.
            seconds: For how long; None until `resume`.
            reason: Why.

        Raises:
            SuspensionError: The time or the reason is out of bounds.
            OSError: It cannot be written, so it does not hold.
        """
        if seconds is not None and not 1.0 <= seconds <= LONGEST_SECONDS:
            raise SuspensionError(f"a suspension holds from {in_time(1.0)} to {in_time(LONGEST_SECONDS)}")
        if len(reason) > LONGEST_REASON or not reason.isprintable():
            raise SuspensionError(f"a reason is one line of at most {LONGEST_REASON} characters")
        now = self._wall_clock()
        given = Suspension(model, now, None if seconds is None else now + seconds, reason)
        self._keep(self._kept | {model: given})
        log.info("model.suspended", model=model, seconds=seconds, reason=reason)
        return given

    def resume(self, model: str) -> Suspension | None:
        """End the suspension of a model, or the one of all; gives what ended.

        Raises:
            OSError: It cannot be written, so it still holds.
        """
        ended = self._kept.get(model)
        if ended is None or ended.ended(self._wall_clock()):
            return None
        self._keep({name: each for name, each in self._kept.items() if name != model})
        log.info("model.resumed", model=model)
        return ended

    def resume_everything(self) -> tuple[Suspension, ...]:
        """End every suspension; gives those that ended.

        Raises:
            OSError: It cannot be written, so they still hold.
        """
        return tuple(each for model in sorted(self._kept) if (each := self.resume(model)) is not None)

    def _keep(self, kept: dict[str, Suspension]) -> None:
        now = self._wall_clock()
        kept = {name: each for name, each in kept.items() if not each.ended(now)}
        write_atomic(self._file, json.dumps([dataclasses.asdict(each) for each in kept.values()], indent=1))
        self._kept = kept
        self.wake()


def _read(file: Path) -> list[Suspension]:
    # Unlike an override, a suspension that is lost lets happen what somebody forbade.
    try:
        return _ROWS.validate_json(file.read_bytes())
    except FileNotFoundError:
        return []
    except (OSError, ValidationError) as error:
        what = error.strerror if isinstance(error, OSError) else f"{error.error_count()} mistakes in it"
        raise SuspensionsUnreadableError(
            f"{file} does not say what is suspended ({what}); mend it, or remove it, which resumes everything"
        ) from error
