"""The windows of a model's schedule: open or closed at a given time, and until when. Pure.

    lifecycle.schedule -> core.cron -> APScheduler's triggers -> `Window` (this) -> core.residency

A window is open when what came last was its start. A start and an end at one moment mean that it goes on being
open.

Crontabs speak of what the clock on the wall shows. It jumps twice a year: a time that is left out comes at the
jump, and of a time that comes twice the first one counts. So the triggers search in wall time, where nothing
jumps, and only what they find is put on the scale of seconds. Asked in a time zone of its own, APScheduler finds a
time that is left out, or does not, by where its search begins.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import TypeAlias

from reconciler.core.cron import WEEKDAYS, Times, closing, times_of, zone_of
from reconciler.core.spec import Schedule

_SECOND = timedelta(seconds=1)
_MINUTE = timedelta(minutes=1)
_LOOK_BACK = tuple(timedelta(days=days) for days in (1, 8, 32, 367, 41 * 366))
"""How far the last end is searched. The rarest is a 29 February on a given weekday: 40 years, around 2100."""
_MOST_ADJOINING = 8
"""Windows that open as the last one closes, and are followed. Behind that, nobody knows when all are closed."""
_WEEK = 6 * 86400
"""Seconds for which a weekday says which day is meant."""

_Search: TypeAlias = Callable[[datetime], datetime | None]
"""The first time at or after a wall time, which is written as if it were UTC."""


@dataclass(frozen=True, slots=True)
class Window:
    """Where a model's windows stand at a moment.

    Attributes:
        open: At least one is open.
        opens_in: Seconds until one opens; None while one is open, or where none comes.
        closes_in: Seconds until all are closed; None while they are, or where that is too far to be known.
        words: The same in words.
    """

    open: bool
    opens_in: float | None
    closes_in: float | None
    words: str


def window_of(schedules: Sequence[Schedule], now: float) -> Window | None:
    """Where the windows stand; None where there are none. Between two boundaries, a call costs microseconds.

    Args:
        schedules: Of one model.
        now: Seconds since the epoch.

    Raises:
        ValueError: A schedule is not one that a model file may have.
    """
    if not schedules:
        return None
    known = _known(tuple(schedules))
    answer = known.answer
    if answer is None or not answer.since <= now < answer.until:
        answer = known.answer = _answer(known.windows, math.floor(now))
    return answer.at(now)


@dataclass(frozen=True, slots=True)
class _Compiled:
    opens: _Search
    closes: _Search
    zone: tzinfo
    zone_name: str


@dataclass(frozen=True, slots=True)
class _Span:
    """From when to before when one window is as it is, in seconds since the epoch."""

    window: _Compiled
    open: bool
    since: float
    until: float


@dataclass(frozen=True, slots=True)
class _Answer:
    """What holds from `since` to before `until`: all is closed, or not, until `turns`."""

    since: float
    until: float
    open: bool
    turns: float
    today: float
    """When the day of `turns` begins."""
    clock: str
    weekday: str
    date: str

    def at(self, now: float) -> Window:
        left = self.turns - now
        if math.isinf(left):
            return Window(self.open, None, None, "open" if self.open else "never opens again")
        day = "" if now >= self.today else f"{self.weekday if left < _WEEK else self.date} "
        if self.open:
            return Window(True, None, left, f"open until {day}{self.clock}")
        return Window(False, left, None, f"opens {day}{self.clock}")


@dataclass(slots=True)
class _Known:
    """The windows of one model, and the answer that was given last, which is replaced whole."""

    windows: tuple[_Compiled, ...]
    answer: _Answer | None = None


@functools.lru_cache(maxsize=4096)
def _known(schedules: tuple[Schedule, ...]) -> _Known:
    return _Known(tuple(_compiled(each.start, each.end, each.timezone) for each in schedules))


def _compiled(start: str, end: str, timezone_name: str) -> _Compiled:
    opens = times_of(start)
    closes = closing(opens, times_of(end))
    return _Compiled(_search((opens,)), _search(closes), zone_of(timezone_name), timezone_name)


def _search(parts: Iterable[Times]) -> _Search:
    # Not above: it takes 0.1 s, and only a model with a schedule needs it.
    from apscheduler.triggers.cron import CronTrigger  # noqa: PLC0415

    triggers = [
        CronTrigger(
            minute=_listed(times.minutes),
            hour=_listed(times.hours),
            day=_listed(times.days),
            month=_listed(times.months),
            # By name, because APScheduler counts them from Monday.
            day_of_week=",".join(WEEKDAYS[day] for day in sorted(times.weekdays)),
            timezone=UTC,
        )
        for times in parts
    ]

    def first(wall: datetime) -> datetime | None:
        found = [trigger.get_next_fire_time(None, wall) for trigger in triggers]
        return min((each for each in found if each is not None), default=None)

    return first


def _listed(values: frozenset[int]) -> str:
    low, high = min(values), max(values)
    return f"{low}-{high}" if len(values) == high - low + 1 else ",".join(map(str, sorted(values)))


def _answer(windows: Sequence[_Compiled], now: int) -> _Answer:
    spans = [_span(window, now) for window in windows]
    since, until = max(span.since for span in spans), min(span.until for span in spans)
    is_open = any(span.open for span in spans)
    turn = _turn(windows, spans, is_open=is_open)
    if turn is None:
        return _Answer(since, until, is_open, math.inf, math.inf, "", "", "")
    zone = turn.window.zone
    local = datetime.fromtimestamp(turn.until, zone)
    return _Answer(
        since,
        until,
        is_open,
        turn.until,
        _moment(zone, local.replace(tzinfo=UTC, hour=0, minute=0, second=0, fold=0)),
        f"{local:%H:%M} {turn.window.zone_name}",
        WEEKDAYS[local.isoweekday() % 7].capitalize(),
        f"{local:%Y-%m-%d}",
    )


def _turn(windows: Sequence[_Compiled], spans: Sequence[_Span], *, is_open: bool) -> _Span | None:
    """The span with whose end all are closed, or one is open; None where that is too far or never."""
    for _ in range(_MOST_ADJOINING):
        if is_open:
            turn = max((span for span in spans if span.open), key=lambda span: span.until)
        else:
            turn = min(spans, key=lambda span: span.until)
        if math.isinf(turn.until):
            return None
        # Another window may adjoin; and one that the clock's jump leaves out opens and closes at one moment.
        spans = [_span(window, int(turn.until)) for window in windows]
        if any(span.open for span in spans) is not is_open:
            return turn
    return None


def _span(window: _Compiled, now: int) -> _Span:
    wall = _wall(window.zone, now)
    closed = _last(window.closes, wall)
    opened = window.opens(closed if closed is not None else wall - _LOOK_BACK[-1])
    is_open = opened is not None and opened <= wall
    came = opened if is_open else closed
    comes = (window.closes if is_open else window.opens)(wall)
    return _Span(
        window,
        is_open,
        _moment(window.zone, came) if came is not None else now,
        _moment(window.zone, comes) if comes is not None else math.inf,
    )


def _last(search: _Search, wall: datetime) -> datetime | None:
    """The last time at or before a wall time: triggers only look ahead."""
    for reach in _LOOK_BACK:
        found = search(wall - reach)
        if found is not None and found <= wall:
            break
    else:
        return None
    later = search(found + _SECOND)
    if later is None or later > wall:
        return found
    none_from = wall + _SECOND
    while none_from - found > _MINUTE:
        middle = found + (none_from - found) / 2
        later = search(middle)
        if later is not None and later <= wall:
            found = later
        else:
            none_from = middle
    return found


def _wall(zone: tzinfo, moment: int) -> datetime:
    """The latest wall time that has come at a moment; what the clock shows, unless it does for the second time."""
    local = datetime.fromtimestamp(moment, zone)
    if not local.fold:
        return local.replace(tzinfo=UTC)
    jump = _jump(zone, int(local.replace(fold=0).timestamp()), moment)
    return datetime.fromtimestamp(jump - 1, zone).replace(tzinfo=UTC)


def _moment(zone: tzinfo, wall: datetime) -> float:
    """When a wall time comes, in seconds since the epoch: `_moment(w) <= m` just where `w <= _wall(m)`."""
    local = wall.replace(tzinfo=zone)
    moment = local.timestamp()
    if datetime.fromtimestamp(moment, zone).replace(tzinfo=UTC) == wall:
        return moment
    return _jump(zone, int(local.replace(fold=1).timestamp()), int(moment))


def _jump(zone: tzinfo, before: int, after: int) -> int:
    """The second of the one jump of a zone's clock that lies behind `before` and not behind `after`."""
    offset = datetime.fromtimestamp(before, zone).utcoffset()
    while after - before > 1:
        middle = (before + after) // 2
        if datetime.fromtimestamp(middle, zone).utcoffset() == offset:
            before = middle
        else:
            after = middle
    return after
