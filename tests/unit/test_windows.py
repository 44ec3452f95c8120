"""Schedules: what a cron expression means, where its windows stand, and what a mistake in one is told as."""

import contextlib
import functools
import random
import subprocess
import sys
import time
import timeit
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core.cron import Times, closing, times_of
from reconciler.core.parse import InvalidFile, ParsedFile, parse_model
from reconciler.core.spec import Schedule
from reconciler.core.windows import Window, window_of

BERLIN = "Europe/Berlin"
OFFICE = Schedule(start="0 8 * * 1-5", end="0 18 * * *", timezone=BERLIN)


def at(text: str, zone: str = BERLIN, *, fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp()


def window(schedules: Sequence[Schedule], now: float) -> Window:
    """The window, found without what is known of the moments around."""
    window_of(schedules, now + 1000 * 86400)
    found = window_of(schedules, now)
    assert found is not None
    return found


# --- what an expression means -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "weekdays"),
    [
        ("1-5", {1, 2, 3, 4, 5}),
        ("mon-fri", {1, 2, 3, 4, 5}),
        ("Mon-FRI", {1, 2, 3, 4, 5}),
        ("0", {0}),
        ("7", {0}),
        ("sun", {0}),
        ("6,7", {6, 0}),
        ("5-7", {5, 6, 0}),
        ("fri-sun", {5, 6, 0}),
        ("sat,sun", {6, 0}),
        ("0-7", set(range(7))),
        ("*", set(range(7))),
        ("*/2", {0, 2, 4, 6}),
        ("1-5/2", {1, 3, 5}),
        ("mon-fri/2,sat", {1, 3, 5, 6}),
    ],
)
def test_weekdays_are_those_of_crontab(text: str, weekdays: set[int]) -> None:
    assert times_of(f"0 8 * * {text}").weekdays == weekdays


def test_a_weekday_is_that_day_of_the_calendar() -> None:
    # 2026-08-03 is a Monday.
    for number, name in enumerate("sun mon tue wed thu fri sat sun".split()):
        day = datetime(2026, 8, 2, 12, tzinfo=UTC) + timedelta(days=number)
        for text in (str(number), name):
            schedule = Schedule(start=f"0 8 * * {text}", end=f"0 18 * * {text}")
            opened = [
                shift for shift in range(7) if window([schedule], (day + timedelta(days=shift)).timestamp()).open
            ]
            assert opened == [0], text


def test_all_fields_are_read() -> None:
    assert times_of("*/20 8-10,22 1,15 jan-mar,12 *") == Times(
        frozenset({0, 20, 40}),
        frozenset({8, 9, 10, 22}),
        frozenset({1, 15}),
        frozenset({1, 2, 3, 12}),
        frozenset(range(7)),
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("99 * * * *", "minute '99' is not 0 to 59"),
        ("0 24 * * *", "hour '24' is not 0 to 23"),
        ("0 0 0 * *", "day of month '0' is not 1 to 31"),
        ("0 0 * 13 *", "month '13' is not 1 to 12 or jan to dec"),
        ("0 0 * * 8", "weekday '8' is not 0 to 7 or sun to sat"),
        ("a b c d e", "minute 'a' is not 0 to 59"),
        ("0 0 * mon *", "month 'mon' is not 1 to 12 or jan to dec"),
        ("0 8 * * monday", "weekday 'monday' is no number, range (1-5), * or step of one (1-5/2, */2)"),
        ("0 8 last * *", "day of month 'last' is no number*"),
        ("0 8 L * *", "day of month 'l' is not 1 to 31"),
        ("0 8 * * 1#2", "weekday '1#2' is no number*"),
        ("0 8 ? * 1", "day of month '?' is no number*"),
        ("0 8, * * *", "hour '' is no number*"),
        ("-1 8 * * *", "minute '-1' is no number*"),
        ("٣ 8 * * *", "minute '٣' is no number*"),
        ("*/0 8 * * *", "minute '*/0': a step is 1 to 59"),
        ("*/90 8 * * *", "minute '*/90': a step is 1 to 59"),
        ("5/15 8 * * *", "minute '5/15': a step needs a range, such as 5-59"),
        ("30-10 8 * * *", "minute '30-10' runs backwards; give two ranges with a comma between"),
        ("0 8 * * fri-mon", "weekday 'fri-mon' runs backwards*"),
        ("0 8 13 * 5", "give the day of the month or the weekday, not both; two windows can have one each"),
        ("0 8 31 2 *", "'0 8 31 2 *' never comes: no such month has such a day"),
        ("0 8 31 4,6,9 *", "'0 8 31 4,6,9 *' never comes*"),
        ("0 8 * *", "this needs five cron fields: minute hour day month weekday"),
        ("0 0 8 * * *", "this needs five cron fields*"),
        ("@daily", "this needs five cron fields*"),
    ],
)
def test_what_is_no_expression_or_could_be_read_in_two_ways_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError) as error:
        times_of(text)
    assert str(error.value) == reason or (reason[-1] == "*" and str(error.value).startswith(reason[:-1]))


@given(st.text(max_size=100) | st.text("0123456789*/-,monsu ", max_size=100))
def test_no_text_raises_anything_else(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert all(times_of(text))


# --- in a model file --------------------------------------------------------------------------------------


def problems(schedule: str) -> list[str]:
    text = f"source: {{repo: a/b}}\nlifecycle:\n  schedule:\n    - {schedule}\n"
    found = parse_model("m.yaml", text.encode())
    return [str(problem) for problem in found.problems] if isinstance(found, InvalidFile) else []


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (
            "{start: '99 * * * *', end: '0 9 * * *'}",
            ["15: lifecycle.schedule[0].start: minute '99' is not 0 to 59"],
        ),
        (
            "{start: '0 8 * * *', end: a b c d e}",
            ["33: lifecycle.schedule[0].end: minute 'a' is not 0 to 59"],
        ),
        (
            "{start: '0 8 31 2 *', end: '0 9 * *   ', timezone: Europe/Nowhere}",
            [
                "15: lifecycle.schedule[0].start: '0 8 31 2 *' never comes: no such month has such a day",
                "34: lifecycle.schedule[0].end: this needs five cron fields: minute hour day month weekday",
                "58: lifecycle.schedule[0].timezone: 'Europe/Nowhere' is no time zone that this machine knows",
            ],
        ),
        (
            "{start: '0 8 * * *', end: '0 8 * * *'}",
            ["28: lifecycle.schedule[0]: end never closes the window: whenever it comes, start comes too"],
        ),
        ("{start: '0 8 * * 1-5', end: '0 18 * * 1-5', timezone: Europe/Berlin}", []),
        ("{start: '0  8 * * 7', end: '0 8 1 * *'}", []),
    ],
)
def test_a_mistake_is_told_at_its_place(schedule: str, expected: list[str]) -> None:
    found = problems(schedule)
    assert len(found) == len(expected)
    for problem, start in zip(found, expected, strict=True):
        assert problem.startswith(f"m.yaml:4:{start}")


@pytest.mark.parametrize("zone", ["Europe", "/etc/passwd", "leapseconds", "-", "europe/berlin/", "A" * 64])
def test_a_time_zone_is_one_of_the_machine(zone: str) -> None:
    (found,) = problems(f"{{start: '0 8 * * *', end: '0 9 * * *', timezone: {zone}}}")
    assert "is no time zone that this machine knows" in found


@pytest.mark.parametrize(
    ("start", "end", "ever"),
    [
        ("0 8 * * *", "0 8 * * 1", False),
        ("0 8 * * 1-5", "0 8 * * mon-fri", False),
        ("* * * * *", "0 18 * * *", False),
        ("0 8 29 2 *", "0 8 29-31 2 *", False),
        ("0 8 * * 1", "0 8 * * *", True),
        ("0 8 * * 1", "0 8 1 * *", True),
        ("* * * 1-11 *", "* * * * *", True),
    ],
)
def test_an_end_that_never_closes_is_a_mistake(start: str, end: str, ever: bool) -> None:
    if ever:
        assert closing(times_of(start), times_of(end))
    else:
        with pytest.raises(ValueError, match="end never closes the window"):
            closing(times_of(start), times_of(end))


SETS = st.tuples(
    st.frozensets(st.integers(0, 2), min_size=1),
    st.frozensets(st.integers(0, 2), min_size=1),
    st.frozensets(st.integers(1, 3), min_size=1),
    st.frozensets(st.integers(1, 2), min_size=1),
    st.frozensets(st.integers(0, 2), min_size=1),
).map(lambda sets: Times(*sets))


def members(times: Times) -> Iterator[tuple[int, ...]]:
    rows: list[tuple[int, ...]] = [()]
    for values in times:
        rows = [(*row, value) for row in rows for value in values]
    yield from rows


@given(SETS, SETS)
def test_what_closes_is_each_end_that_is_no_start(start: Times, end: Times) -> None:
    wanted = set(members(end)) - set(members(start))
    if wanted:
        found = [row for part in closing(start, end) for row in members(part)]
        assert sorted(found) == sorted(wanted)
    else:
        with pytest.raises(ValueError):
            closing(start, end)


# --- where a window stands --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ("2026-08-03T07:59:59", Window(False, 1, None, "opens 08:00 Europe/Berlin")),
        ("2026-08-03T08:00:00", Window(True, None, 36000, "open until 18:00 Europe/Berlin")),
        ("2026-08-03T17:59:59", Window(True, None, 1, "open until 18:00 Europe/Berlin")),
        ("2026-08-03T18:00:00", Window(False, 50400, None, "opens Tue 08:00 Europe/Berlin")),
        # Ends of the weekend have no start before them: what came last was an end.
        ("2026-08-08T12:00:00", Window(False, 158400, None, "opens Mon 08:00 Europe/Berlin")),
        ("2026-08-10T00:00:00", Window(False, 28800, None, "opens 08:00 Europe/Berlin")),
    ],
)
def test_a_week_at_the_office(now: str, expected: Window) -> None:
    assert window_of([OFFICE], at(now)) == expected


@pytest.mark.parametrize(
    ("start", "end", "now", "expected"),
    [
        # Over midnight.
        ("0 22 * * *", "0 6 * * *", "2026-08-03T23:30", "open until Tue 06:00 Europe/Berlin"),
        ("0 22 * * *", "0 6 * * *", "2026-08-04T05:59", "open until 06:00 Europe/Berlin"),
        ("0 22 * * *", "0 6 * * *", "2026-08-04T06:00", "opens 22:00 Europe/Berlin"),
        # Several starts before one end, and several ends behind it.
        ("0 8,9 * * *", "0 18,19 * * *", "2026-08-03T08:30", "open until 18:00 Europe/Berlin"),
        ("0 8,9 * * *", "0 18,19 * * *", "2026-08-03T18:30", "opens Tue 08:00 Europe/Berlin"),
        # An end and a start at one moment: it goes on being open.
        ("0 8 * * *", "0 8,20 * * *", "2026-08-03T08:00", "open until 20:00 Europe/Berlin"),
        ("0 8 * * 1", "0 8 * * *", "2026-08-03T08:00", "open until Tue 08:00 Europe/Berlin"),
        ("* * * 1-11 *", "* * * * *", "2026-08-03T08:00", "open until 2026-12-01 00:00 Europe/Berlin"),
        # Rare, near and far.
        ("0 8 9 * *", "0 9 9 * *", "2026-08-03T09:00", "opens Sun 08:00 Europe/Berlin"),
        ("0 8 10 * *", "0 9 10 * *", "2026-08-03T08:00", "opens 2026-08-10 08:00 Europe/Berlin"),
        ("0 8 1 1 *", "0 8 31 12 *", "2026-08-03T08:00", "open until 2026-12-31 08:00 Europe/Berlin"),
        ("0 8 1 * *", "0 9 1 * *", "2026-08-03T08:00", "opens 2026-09-01 08:00 Europe/Berlin"),
        ("0 8 29 2 *", "0 9 1 3 *", "2026-08-03T08:00", "opens 2028-02-29 08:00 Europe/Berlin"),
        ("0 8 29 2 *", "0 8 29 2,3 *", "2026-03-01T08:00", "opens 2028-02-29 08:00 Europe/Berlin"),
        ("0 8 29 2 *", "0 8 29 2,3 *", "2096-03-01T08:00", "open until 2096-03-29 08:00 Europe/Berlin"),
        ("0 8 29 2 *", "0 8 29 2,3 *", "2096-04-01T08:00", "opens 2104-02-29 08:00 Europe/Berlin"),
        # The only ends that are no starts are Mondays on a 29 February: 2072, and 40 years later.
        ("* * * * 0,2-6", "0 8 29 2 *", "2072-02-29T09:00", "opens Tue 00:00 Europe/Berlin"),
        ("* * * * 0,2-6", "0 8 29 2 *", "2111-06-01T08:00", "open until 2112-02-29 08:00 Europe/Berlin"),
    ],
)
def test_words(start: str, end: str, now: str, expected: str) -> None:
    schedule = Schedule(start=start, end=end, timezone=BERLIN)
    assert window([schedule], at(now)).words == expected


def test_both_changes_of_the_clock() -> None:
    night = [Schedule(start="30 2 * * *", end="0 4 * * *", timezone=BERLIN)]
    # 2026-03-29: the clock jumps from 02:00 to 03:00, and what lies between comes at the jump.
    jump = at("2026-03-29T03:00")
    assert window(night, jump - 1).opens_in == 1
    assert window(night, jump) == Window(True, None, 3600, "open until 04:00 Europe/Berlin")
    late = [Schedule(start="0 22 * * *", end="30 2 * * *", timezone=BERLIN)]
    assert window(late, jump - 1).closes_in == 1
    assert not window(late, jump).open
    # A window that the jump leaves out opens on the next day.
    short = [Schedule(start="15 2 * * *", end="45 2 * * *", timezone=BERLIN)]
    assert window(short, jump - 1).words == "opens Mon 02:15 Europe/Berlin"
    assert not window(short, jump).open
    # 2026-10-25: 02:00 to 03:00 comes twice, and the first 02:30 counts.
    first, second = at("2026-10-25T02:30"), at("2026-10-25T02:30", fold=1)
    assert second - first == 3600
    assert window(night, first - 1).opens_in == 1
    assert window(night, first).closes_in == 2.5 * 3600
    assert window(late, first - 1).closes_in == 1
    assert [window(late, moment).open for moment in (first, second - 1, second)] == [False] * 3
    # Eight hours by the clock last seven, and nine.
    shift = [Schedule(start="0 22 * * *", end="0 6 * * *", timezone=BERLIN)]
    assert window(shift, at("2026-03-28T22:00")).closes_in == 7 * 3600
    assert window(shift, at("2026-10-24T22:00")).closes_in == 9 * 3600


def test_several_windows_are_open_while_one_is() -> None:
    both = [
        Schedule(start="0 12 * * *", end="0 18 * * *", timezone=BERLIN),
        Schedule(start="0 8 * * *", end="0 12 * * *", timezone=BERLIN),
        Schedule(start="0 20 * * 1", end="0 21 * * 1", timezone="UTC"),
    ]
    assert window(both, at("2026-08-03T09:00")).words == "open until 18:00 Europe/Berlin"
    assert window(both, at("2026-08-03T12:00")).closes_in == 6 * 3600
    assert window(both, at("2026-08-03T19:00")) == Window(False, 3 * 3600, None, "opens 20:00 UTC")
    assert window(both, at("2026-08-03T23:30")).words == "opens Tue 08:00 Europe/Berlin"


def test_ten_that_overlap_close_with_the_last() -> None:
    staggered = [Schedule(start=f"0 {hour} * * *", end=f"30 {hour + 1} * * *") for hour in range(8, 18)]
    assert window(staggered[::-1], at("2026-08-03T17:15", "UTC")).words == "open until 18:30 UTC"
    long = [Schedule(start="0 7 * * *", end=f"0 {hour} * * *") for hour in range(8, 18)]
    assert window(long, at("2026-08-03T07:15", "UTC")).words == "open until 17:00 UTC"


def test_windows_that_take_turns_without_end_are_open() -> None:
    day = Schedule(start="0 8 * * *", end="0 20 * * *")
    night = Schedule(start="0 20 * * *", end="0 8 * * *")
    assert window_of([day, night], at("2026-08-03T09:00")) == Window(True, None, None, "open")


def test_without_a_schedule_there_is_no_window() -> None:
    assert window_of([], 0.0) is None


def test_a_clock_that_starts_at_the_epoch_has_an_answer() -> None:
    assert window([OFFICE], 0.0) == Window(False, 7 * 3600, None, "opens 08:00 Europe/Berlin")
    assert window([Schedule(start="0 8 29 2 *", end="0 9 29 2 *", timezone="America/New_York")], 0.5).open is False


# --- laws -------------------------------------------------------------------------------------------------

ZONES = ("UTC", BERLIN, "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca", "Asia/Kathmandu")
# The Mondays of weeks with a change of the clock somewhere in these zones, and of one without.
WEEKS = tuple(
    datetime(*day, tzinfo=UTC)
    for day in (
        (2026, 3, 2),
        (2026, 3, 23),
        (2026, 10, 19),
        (2026, 10, 26),
        (2026, 3, 30),
        (2026, 2, 9),
        (2026, 7, 6),
    )
)


@st.composite
def crons(draw: st.DrawFn) -> str:
    minutes = draw(st.lists(st.sampled_from([0, 0, 15, 30, 59]), min_size=1, max_size=2))
    hours = draw(st.lists(st.integers(0, 23) | st.integers(0, 3), min_size=1, max_size=3))
    days = draw(st.just("*") | st.sampled_from(["1-5", "0", "6,7", "mon,wed", "sun", "*/3"]))
    return f"{','.join(map(str, minutes))} {','.join(map(str, hours))} * * {days}"


SCHEDULES = (
    st.tuples(crons(), crons(), st.sampled_from(ZONES))
    .filter(lambda row: _valid(row[0], row[1]))
    .map(lambda row: Schedule(start=row[0], end=row[1], timezone=row[2]))
)


def _valid(start: str, end: str) -> bool:
    try:
        closing(times_of(start), times_of(end))
    except ValueError:
        return False
    return True


@functools.cache
def walls(zone: str, monday: datetime) -> list[tuple[float, list[datetime]]]:
    """Each minute from a week before to the week's end, with what the clock shows in it that it did not before.

    After a jump forwards, that is all that was left out as well.
    """
    shown = (monday - timedelta(days=8)).astimezone(ZoneInfo(zone)).replace(tzinfo=None)
    found = []
    for number in range(15 * 1440):
        moment = monday - timedelta(days=8) + timedelta(minutes=number)
        local = moment.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
        new = []
        while shown <= local:
            new.append(shown)
            shown += timedelta(minutes=1)
        found.append((moment.timestamp(), new))
    return found


def stepped(schedule: Schedule, monday: datetime) -> dict[float, bool]:
    """Whether the window is open, by minute of the week, found by going from minute to minute."""
    start, end = times_of(schedule.start), times_of(schedule.end)
    is_open = False
    found: dict[float, bool] = {}
    for moment, new in walls(schedule.timezone, monday):
        for wall in new:
            # No date is restricted here.
            weekday = wall.isoweekday() % 7
            if wall.minute in start.minutes and wall.hour in start.hours and weekday in start.weekdays:
                is_open = True
            elif wall.minute in end.minutes and wall.hour in end.hours and weekday in end.weekdays:
                is_open = False
        found[moment] = is_open
    return {moment: state for moment, state in found.items() if moment >= monday.timestamp()}


@settings(max_examples=20, deadline=None)
@given(SCHEDULES, st.sampled_from(WEEKS), st.integers(0, 99))
def test_it_agrees_with_going_from_minute_to_minute(schedule: Schedule, monday: datetime, seed: int) -> None:
    truth = stepped(schedule, monday)
    for moment, state in truth.items():
        known = window_of([schedule], moment)
        assert known is not None
        assert known.open is state, datetime.fromtimestamp(moment, UTC)
    # A clock that jumps about, within the minutes too.
    for moment in random.Random(seed).sample(list(truth), 40):
        found = window([schedule], moment + 59.9)
        assert found.open is truth[moment]
        left = found.closes_in if found.open else found.opens_in
        assert left is not None
        turns = float(round(moment + 59.9 + left))
        if turns in truth:
            assert truth[turns] is not found.open
            assert all(truth[moment + step] is found.open for step in range(0, int(turns - moment), 60))


@settings(max_examples=40, deadline=None)
@given(st.lists(SCHEDULES, min_size=2, max_size=3), st.sampled_from(WEEKS), st.integers(0, 7 * 86400 - 1))
def test_several_agree_with_each_alone(schedules: list[Schedule], monday: datetime, second: int) -> None:
    now = monday.timestamp() + second
    found = window(schedules, now)
    alone = [window([each], now) for each in schedules]
    assert found.open is any(each.open for each in alone)
    if found.closes_in is not None:
        assert found.closes_in >= max(each.closes_in or 0 for each in alone)
        assert window(schedules, now + found.closes_in - 1).open
        assert not window(schedules, now + found.closes_in).open
    if not found.open:
        assert found.opens_in == min(each.opens_in for each in alone if each.opens_in is not None)


# --- what it costs ----------------------------------------------------------------------------------------


def test_a_turn_of_a_thousand_models_costs_milliseconds() -> None:
    schedules = [
        (Schedule(start=f"{minute} {hour} * * 1-5", end="30 23 * * *", timezone=BERLIN),)
        for minute in range(60)
        for hour in range(1, 18)
    ][:1000]
    now = at("2026-08-03T23:45")
    for each in schedules:
        window_of(each, now)
    turn = min(
        timeit.repeat(
            lambda: [window_of(each, now) for each in schedules], repeat=5, number=1, timer=time.process_time
        )
    )
    assert turn < 0.02, turn  # measured: 1.5 ms


def test_rare_times_are_found_in_bounded_time() -> None:
    rare = [Schedule(start="0 8 29 2 *", end="* * 29,30 2,4 *"), Schedule(start="0 8 31 12 *", end="* * * 1 *")]
    began = time.process_time()
    for year in range(1970, 2110, 7):
        window_of(rare, datetime(year, 3, 1, tzinfo=UTC).timestamp())
    assert time.process_time() - began < 2  # measured: 0.26 s


def test_reading_a_schedule_does_not_import_the_scheduler() -> None:
    code = (
        "import sys; from reconciler.core.spec import Schedule; import reconciler.core.windows;"
        "Schedule(start='0 8 * * *', end='0 9 * * *', timezone='Europe/Berlin');"
        "sys.exit('apscheduler' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_parsed_file_has_windows() -> None:
    text = "source: {repo: a/b}\nlifecycle: {schedule: [{start: 0 8 * * 7, end: 0 9 * * 7}]}\n"
    found = parse_model("m.yaml", text.encode())
    assert isinstance(found, ParsedFile)
    assert window(found.spec.lifecycle.schedule, at("2026-08-02T08:30", "UTC")).words == "open until 09:00 UTC"
