"""What the page computes: pictures, words, paths, and the merging of streams."""

import asyncio
import itertools
from collections.abc import AsyncGenerator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.api.schemas import GpuUse, GpuView, SeriesView
from reconciler.loop.by_hand import CommandRefusedError
from reconciler.page.charts import HEIGHT, WIDTH, bar_of, chart_of
from reconciler.page.guard import local_path
from reconciler.page.show import Shown, ident, visible
from reconciler.page.streams import merged, sse
from reconciler.page.told import Message, Told


@given(st.lists(st.none() | st.floats(0, 1e12), max_size=80))
def test_a_chart_draws_every_point_inside_and_none_across_a_gap(points: list[float | None]) -> None:
    chart = chart_of(SeriesView(name="n", unit="u", start=0, step=60, points=tuple(points)))
    drawn = [tuple(map(float, point.split(","))) for line in chart.lines for point in line.split()]
    assert all(0 <= x <= WIDTH + 0.1 and 0 <= y <= HEIGHT for x, y in drawn)
    known = [point for point in points if point is not None]
    assert len(set(drawn)) >= min(1, len(known))
    stretches = "".join(" " if point is None else "x" for point in points).split()
    assert len(chart.lines) == len(stretches)
    assert chart.most == max(known, default=0)


@given(st.lists(st.integers(0, 200 * 2**30), max_size=12), st.integers(0, 80 * 2**30), st.integers(0, 80 * 2**30))
def test_a_bar_is_never_longer_than_it_is(sizes: list[int], total: int, foreign: int) -> None:
    uses = tuple(GpuUse(model=f"m{index}", bytes=size) for index, size in enumerate(sizes))
    gpu = GpuView(index=0, total=total, foreign=foreign, models=uses)
    parts = bar_of(gpu, uses, {use.model: "c0" for use in uses})
    assert sum(part.width for part in parts) <= 100.01
    for before, after in itertools.pairwise(parts):
        assert after.x == pytest.approx(before.x + before.width, abs=0.01)


@given(st.text())
def test_no_mark_that_turns_a_line_around_is_left(text: str) -> None:
    seen = visible(f"{text}\u202e\u2066\x1b")
    assert not set(seen) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\x00\x1b")


@given(st.text(max_size=30))
def test_whatever_is_said_is_one_event(text: str) -> None:
    event = sse("kind", {"text": text}, "7\n\ndata: x")
    assert event.count(b"\n\n") == 1
    assert event.endswith(b"\n\n")
    assert b"\r" not in event


def test_ids_are_ids_whatever_they_stand_for() -> None:
    assert {ident(name).isalnum() for name in ("a b", '"><script>', "", "\ud800")} == {True}
    assert ident("a") != ident("b")


@pytest.mark.parametrize(
    "path", ["//evil.example", "https://evil.example", "javascript:x", "/\\evil.example", "/\n/x", "", "/login"]
)
def test_nobody_is_sent_elsewhere(path: str) -> None:
    assert local_path(path) == "/"


def test_a_path_of_ours_is_kept() -> None:
    assert local_path("/models/a%2Fb?x=1") == "/models/a%2Fb?x=1"


def test_templates_escape_and_know_what_they_are_given() -> None:
    made = Shown().text("error.html", {"session": None, "told": None, "here": "", "status": 404, "why": "<b>'\""})
    assert "&lt;b&gt;&#39;&#34;" in made


def test_a_message_is_told_once_and_the_oldest_make_room() -> None:
    told = Told()
    told.tell("mine", "done")
    assert told.take("mine") == Message("done")
    assert told.take("mine") is None
    told.tell("first", "x")
    for number in range(1000):
        told.tell(str(number), "x")
    assert told.take("first") is None


async def _say(*texts: bytes, ends: bool = True, closed: list[bool] | None = None) -> AsyncGenerator[bytes, None]:
    try:
        for text in texts:
            yield text
        if not ends:
            await asyncio.Event().wait()
    finally:
        if closed is not None:
            closed.append(True)


async def test_streams_are_merged_until_all_end() -> None:
    got = [text async for text in merged([_say(b"a", b"b"), _say(b"c")])]
    assert sorted(got) == [b"a", b"b", b"c"]


async def test_whoever_leaves_leaves_nothing_running() -> None:
    closed: list[bool] = []
    before = asyncio.all_tasks()
    stream = merged([_say(*[b"x"] * 1000, ends=False, closed=closed)])
    assert await anext(stream) == b"x"
    await anext(stream)
    await stream.aclose()
    assert closed == [True]
    assert asyncio.all_tasks() == before


async def test_a_refusal_is_told_and_a_fault_ends_only_its_own_stream() -> None:
    async def refused() -> AsyncGenerator[bytes, None]:
        yield b"x"
        raise CommandRefusedError(503, "not now")

    async def broken() -> AsyncGenerator[bytes, None]:
        yield b"y"
        raise RuntimeError

    got = [text async for text in merged([refused(), broken(), _say(b"z")])]
    assert {b"x", b"y", b"z", sse("refused", {"text": "not now"})} == set(got)
