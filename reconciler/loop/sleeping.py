"""What happens around a sleep and a wake: the checks, who sleeps, and who never does again. Runs beside the loop.

    planner -> act -> `Sleeping` -> ray_serve.engine_calls -> engines
                          `- asks the fixed prompt, counts freed memory -> asleep.json, properties -> next turn

Who is in `failed` may not have traffic again: its engine may sleep, or be broken. The loop removes such versions.
"""

import asyncio
import contextlib
import dataclasses
import json
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from reconciler.core.backoff import delay
from reconciler.core.sleep import (
    Demotion,
    Footprint,
    not_freed,
    other_answer,
    still_meant,
)
from reconciler.host.files import write_atomic
from reconciler.host.log import get_logger
from reconciler.host.nobody import nobody
from reconciler.loop.fixed_prompt import NoAnswerError
from reconciler.ray_serve.engine_calls import EngineCalls, EngineRefusedError

log = get_logger()

FILE = "asleep.json"
_LARGEST = 16 * 2**20
_SETTLE_SECONDS = 5.0
"""How long freed memory may take to show in the driver's accounts of processes."""
_SETTLE_PAUSE_SECONDS = 0.25


class CheckFailedError(Exception):
    """A version did not stand a check; the text says which."""


@dataclass(frozen=True, slots=True)
class Slept:
    """A version that sleeps, or has slept.

    Attributes:
        model: Its model.
        application: The version.
        answer: What it answered to the fixed prompt before it first slept.
        main_memory: Bytes of main memory that its weights have taken and keep until it is gone.
        since: Seconds since the epoch when it was sent to sleep; None while it is awake.
    """

    model: str
    application: str
    answer: str
    main_memory: Annotated[int, Field(ge=0)]
    since: Annotated[float, Field(allow_inf_nan=False)] | None


@dataclass(frozen=True, slots=True)
class _Pause:
    """For how long a version stays awake that could not be asked: `until` is of the clock of ages."""

    reason: str
    attempts: int
    until: float


class Sleeping:
    """The sleepers of one state directory.

    Args:
        folder: The state directory. Read here; written before every sleep and after every change.
        calls: What engines are told through.
        ask: Asks an application (first argument) of a model (second) the fixed prompt and gives its answer.
        held: Bytes that an application's processes hold on GPUs now; None where nobody can tell.
        wall_clock: Seconds since the epoch.
        monotonic: Clock for pauses, in seconds.
        wake_loop: Called when something ended, so that the loop takes its next turn at once.
    """

    def __init__(
        self,
        folder: Path,
        calls: EngineCalls,
        ask: Callable[[str, str], Awaitable[str]],
        held: Callable[[str], Awaitable[int | None]],
        *,
        wall_clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        wake_loop: Callable[[], None] = nobody,
    ) -> None:
        self._file = folder / FILE
        self._calls = calls
        self._ask = ask
        self._held = held
        self._wall_clock = wall_clock
        self._monotonic = monotonic
        self.wake_loop = wake_loop
        self.woke: Callable[[str, float], None] = nobody
        """Called with a model that was woken, and the seconds that took."""
        self._slept, self._demotions = _read(self._file)
        self._pauses: dict[str, _Pause] = {}
        self._going: dict[str, asyncio.Task[None]] = {}
        self._waking: dict[str, asyncio.Task[None]] = {}
        # One that failed a check and is still there was about to be removed.
        self._failed = {name: each.reason for name, each in self._demotions.items() if name in self._slept}

    # --- what the loop sees -------------------------------------------------------------------------------

    @property
    def asleep(self) -> frozenset[str]:
        """Applications that sleep. After a restart, also those that were on the way: waking an engine that is
        awake does nothing, and its answer is checked in either case.
        """
        return frozenset(self.asleep_since) - self._going.keys() - self._waking.keys() - self._failed.keys()

    @property
    def asleep_since(self) -> dict[str, float]:
        """Seconds since the epoch when each application was sent to sleep that may be asleep."""
        return {name: each.since for name, each in self._slept.items() if each.since is not None}

    @property
    def going_to_sleep(self) -> frozenset[str]:
        """Applications that are being put to sleep."""
        return frozenset(self._going)

    @property
    def waking(self) -> frozenset[str]:
        """Applications that are being woken."""
        return frozenset(self._waking)

    @property
    def failed(self) -> dict[str, str]:
        """Why an application must be removed, and never have traffic again."""
        return dict(self._failed)

    @property
    def demoted(self) -> dict[str, str]:
        """Why an application is not put to sleep: it is unloaded instead, or could not be asked a moment ago."""
        now = self._monotonic()
        paused = {name: each.reason for name, each in self._pauses.items() if now < each.until}
        return paused | {name: each.reason for name, each in self._demotions.items()}

    @property
    def main_memory(self) -> dict[str, int]:
        """Bytes of main memory by application that sleeps or has slept: what `may_sleep` counts."""
        return {name: each.main_memory for name, each in self._slept.items()}

    # --- what the loop does -------------------------------------------------------------------------------

    def sleep(self, model: str, application: str, footprint: Footprint) -> None:
        """Begin to put a version to sleep that has no traffic and is drained; nothing where that was begun."""
        if self._idle(application) and application not in self.asleep_since:
            work = partial(self._put_to_sleep, model, application, footprint)
            self._going[application] = asyncio.create_task(self._see_through(model, application, work))

    def wake(self, application: str) -> None:
        """Begin to wake a version that sleeps; it is up once it is neither asleep, waking nor failed."""
        if self._idle(application) and application in self.asleep_since:
            row = self._slept[application]
            work = partial(self._wake_up, row)
            self._waking[application] = asyncio.create_task(self._see_through(row.model, application, work))

    def forget(self, there: Collection[str], wanted: Collection[str]) -> None:
        """Forget applications that are gone. For every turn: one may come back under the same name.

        Args:
            there: Those that Serve has.
            wanted: Versions that the model files want, there or not: their demotions stay.
        """
        slept = {name: each for name, each in self._slept.items() if name in there}
        demotions = still_meant(self._demotions, {*there, *wanted})
        self._failed = {name: why for name, why in self._failed.items() if name in there}
        self._pauses = {name: each for name, each in self._pauses.items() if name in there}
        if (slept, demotions) != (self._slept, self._demotions):
            self._slept, self._demotions = slept, demotions
            self._try_to_save()

    async def close(self) -> None:
        """Give up what is under way; the next start takes up who may be asleep."""
        tasks = [*self._going.values(), *self._waking.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- beside the loop ----------------------------------------------------------------------------------

    def _idle(self, application: str) -> bool:
        return application not in self._going.keys() | self._waking.keys() | self._failed.keys()

    async def _see_through(self, model: str, application: str, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except (CheckFailedError, EngineRefusedError) as error:
            self._failed[application] = str(error)
            self._demote(model, application, str(error))
        except Exception as error:  # noqa: BLE001 -- whatever it is: nobody knows what became of the engine
            self._failed[application] = str(error) or repr(error)
            log.warning(
                "model.sleep_failed", model=model, application=application, reason=str(error) or repr(error)
            )
        finally:
            self._going.pop(application, None)
            self._waking.pop(application, None)
            self.wake_loop()

    def _demote(self, model: str, application: str, reason: str) -> None:
        self._demotions[application] = Demotion(model, application, reason)
        self._try_to_save()
        log.warning("model.sleep_demoted", model=model, application=application, reason=reason)

    def _postpone(self, model: str, application: str, reason: str) -> None:
        before = self._pauses.get(application)
        attempts = before.attempts + 1 if before is not None else 1
        pause = delay(attempts)
        self._pauses[application] = _Pause(reason, attempts, self._monotonic() + pause)
        log.warning(
            "model.sleep_postponed",
            model=model,
            application=application,
            reason=reason,
            attempts=attempts,
            retry_in_seconds=round(pause),
        )

    async def _put_to_sleep(self, model: str, application: str, footprint: Footprint) -> None:
        began = time.monotonic()
        known = self._slept.get(application)
        try:
            answer = known.answer if known is not None else await self._ask(application, model)
            before = await self._held(application)
        except Exception as error:  # noqa: BLE001 -- whatever it is, the engine has not been told anything yet
            self._postpone(model, application, str(error) or repr(error))
            return
        self._pauses.pop(application, None)
        # First on disk: whoever starts after a crash must not take it for one that is awake.
        self._slept[application] = Slept(model, application, answer, footprint.main_memory, self._wall_clock())
        self._save()
        await self._calls.sleep(application)
        after = await self._held_asleep(application, before, footprint)
        if reason := not_freed(before, after, footprint):
            raise CheckFailedError(reason)
        freed = None if before is None or after is None else before - after
        seconds = round(time.monotonic() - began, 1)
        log.info("model.asleep", model=model, application=application, freed=freed, seconds=seconds)

    async def _held_asleep(self, application: str, before: int | None, footprint: Footprint) -> int | None:
        until = time.monotonic() + _SETTLE_SECONDS
        while True:
            after = await self._held(application)
            if not not_freed(before, after, footprint) or time.monotonic() > until:
                return after
            await asyncio.sleep(_SETTLE_PAUSE_SECONDS)

    async def _wake_up(self, row: Slept) -> None:
        began = time.monotonic()
        await self._calls.wake(row.application)
        try:
            answer = await self._ask(row.application, row.model)
        except NoAnswerError as error:
            raise CheckFailedError(f"awake again it does not answer the fixed prompt: {error}") from error
        if reason := other_answer(row.answer, answer):
            raise CheckFailedError(reason)
        self._slept[row.application] = dataclasses.replace(row, since=None)
        self._try_to_save()
        seconds = round(time.monotonic() - began, 1)
        self.woke(row.model, seconds)
        log.info("model.awake", model=row.model, application=row.application, seconds=seconds)

    def _try_to_save(self) -> None:
        try:
            self._save()
        except OSError as error:
            # After a restart, one that is awake is woken again, or one that was demoted is tried again.
            log.warning("sleep.unsaved", file=str(self._file), reason=str(error))

    def _save(self) -> None:
        rows = {
            "slept": [dataclasses.asdict(each) for each in self._slept.values()],
            "demoted": [dataclasses.asdict(each) for each in self._demotions.values()],
        }
        write_atomic(self._file, json.dumps(rows, indent=1, sort_keys=True) + "\n")


def _read(file: Path) -> tuple[dict[str, Slept], dict[str, Demotion]]:
    # Damaged, it costs a probe that is not answered, and a load.
    slept: dict[str, Slept] = {}
    demoted: dict[str, Demotion] = {}
    try:
        with file.open(encoding="utf-8") as opened:
            found = json.loads(opened.read(_LARGEST))
    except (OSError, ValueError, RecursionError):
        return slept, demoted
    lists = found if isinstance(found, dict) else {}
    for row in _list(lists.get("slept")):
        with contextlib.suppress(ValidationError):
            each = TypeAdapter(Slept).validate_python(row)
            slept[each.application] = each
    for row in _list(lists.get("demoted")):
        with contextlib.suppress(ValidationError):
            demotion = TypeAdapter(Demotion).validate_python(row)
            demoted[demotion.application] = demotion
    return slept, demoted


def _list(value: Any) -> list[Any]:  # noqa: ANN401 -- as JSON has it
    return value if isinstance(value, list) else []
