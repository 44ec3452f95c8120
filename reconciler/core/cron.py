"""The cron expressions of a schedule: text to the times it means, checked when a model file is read. Pure.

    lifecycle.schedule -> times_of, zone_of, closing (this) -> core.windows

The words are those of crontab(5): 0 and 7 are Sunday. What could be read in two ways is refused.
"""

import functools
import re
from dataclasses import dataclass
from datetime import UTC, tzinfo
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo


class Times(NamedTuple):
    """Every minute whose five parts are all in these sets.

    Attributes:
        minutes: 0 to 59.
        hours: 0 to 23.
        days: Of the month, from 1.
        months: 1 to 12.
        weekdays: 0 is Sunday, 6 Saturday.
    """

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()


WEEKDAYS: Final = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_MONTHS: Final = tuple("jan feb mar apr may jun jul aug sep oct nov dec".split())
_FIELDS: Final = (
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day of month", 1, 31),
    _Field("month", 1, 12, _MONTHS),
    _Field("weekday", 0, 7, WEEKDAYS),
)
_PART: Final = re.compile(
    r"(?:\*|(?P<first>[a-z0-9]{1,3})(?:-(?P<last>[a-z0-9]{1,3}))?)(?:/(?P<step>[0-9]{1,3}))?"
)
_LONGEST_MONTHS: Final = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


@functools.lru_cache(maxsize=4096)
def times_of(text: str) -> Times:
    """The times that a cron expression of five fields means.

    Raises:
        ValueError: It is none, it could be read in two ways, or its times never come.
    """
    fields = text.split()
    if len(fields) != len(_FIELDS):
        raise ValueError("this needs five cron fields: minute hour day month weekday")
    times = Times(*map(_values, _FIELDS, fields))
    if fields[2] != "*" and fields[4] != "*":
        # cron takes days on which either of the two holds.
        raise ValueError("give the day of the month or the weekday, not both; two windows can have one each")
    if not _comes(times):
        raise ValueError(f"{text!r} never comes: no such month has such a day")
    return times


def zone_of(name: str) -> tzinfo:
    """The time zone of an IANA name.

    Raises:
        ValueError: This machine knows no such zone.
    """
    if name == "UTC":
        # Which needs no files of zones.
        return UTC
    try:
        return ZoneInfo(name)
    except (LookupError, OSError, ValueError) as error:
        raise ValueError(f"{name!r} is no time zone that this machine knows, such as Europe/Berlin") from error


def closing(start: Times, end: Times) -> tuple[Times, ...]:
    """When a window closes: the times of `end` that are not `start`'s as well.

    Raises:
        ValueError: It never does.
    """
    # What the sets of one field leave over closes whatever the fields behind it say; those before it are common.
    found: list[Times] = []
    common = end
    for name, of_start, of_end in zip(Times._fields, start, end, strict=True):
        found.append(common._replace(**{name: of_end - of_start}))
        common = common._replace(**{name: of_end & of_start})
    found = [times for times in found if _comes(times)]
    if not found:
        raise ValueError("end never closes the window: whenever it comes, start comes too")
    return tuple(found)


def _comes(times: Times) -> bool:
    """Whether there is such a time: in the long run, each date falls on each weekday."""
    return all(times) and any(min(times.days) <= _LONGEST_MONTHS[month - 1] for month in times.months)


def _values(field: _Field, text: str) -> frozenset[int]:
    found: set[int] = set()
    for part in text.lower().split(","):
        match = _PART.fullmatch(part)
        if match is None:
            raise ValueError(f"{field.name} {part!r} is no number, range (1-5), * or step of one (1-5/2, */2)")
        first, last = field.low, field.high
        if match["first"] is not None:
            first = _number(field, match["first"])
            last = first if match["last"] is None else _number(field, match["last"])
            if field.names is WEEKDAYS and last == 0:
                # A range may end with Sunday, whether it is written 7, 0 or sun.
                last = 0 if first == 0 else 7
            if match["step"] is not None and match["last"] is None:
                raise ValueError(f"{field.name} {part!r}: a step needs a range, such as {first}-{field.high}")
        elif field.names is WEEKDAYS:
            last = 6
        step = int(match["step"] or 1)
        if not 1 <= step <= field.high:
            raise ValueError(f"{field.name} {part!r}: a step is 1 to {field.high}")
        if first > last:
            raise ValueError(f"{field.name} {part!r} runs backwards; give two ranges with a comma between")
        found.update(range(first, last + 1, step))
    return frozenset(each % 7 for each in found) if field.names is WEEKDAYS else frozenset(found)


def _number(field: _Field, text: str) -> int:
    if text in field.names:
        return field.low + field.names.index(text)
    number = int(text) if text.isdecimal() else -1
    if not field.low <= number <= field.high:
        names = f" or {field.names[0]} to {field.names[-1]}" if field.names else ""
        raise ValueError(f"{field.name} {text!r} is not {field.low} to {field.high}{names}")
    return number
