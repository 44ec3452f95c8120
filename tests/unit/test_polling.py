"""When the source is looked at."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from structlog.testing import capture_logs

from reconciler.core.desired import Snapshot
from reconciler.core.provenance import Commit, Provenance
from reconciler.loop.polling import LONGEST_PAUSE_SECONDS, Polling, answer_sync


class Remote:
    """A repository that answers when it is let, and counts who looks."""

    def __init__(self) -> None:
        self.began = 0
        self.at_once = 0
        self.most_at_once = 0
        self.woken = 0
        self.forgiven = 0
        self.new = False
        self.down = ""
        self.fault: Exception | None = None
        self.times: list[float] = []
        self.go = asyncio.Event()
        self.go.set()

    async def fetch(self) -> bool:
        self.began += 1
        self.times.append(time.monotonic())
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.go.wait()
            if self.fault is not None:
                raise self.fault
            return self.new
        finally:
            self.at_once -= 1

    def wake(self) -> None:
        self.woken += 1

    def forgive(self) -> None:
        self.forgiven += 1

    def polling(self, *, interval: float = 60.0, jitter: float = 0.0, least_pause: float = 0.0) -> Polling:
        return Polling(
            self.fetch,
            self.wake,
            lambda: self.down,
            interval=interval,
            jitter=jitter,
            least_pause=least_pause,
            forgive=self.forgive,
        )


@pytest.fixture
async def scheduler() -> AsyncIterator[AsyncIOScheduler]:
    found = AsyncIOScheduler()
    found.start()
    yield found
    found.shutdown(wait=False)


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not done():  # noqa: ASYNC110 -- nobody tells
            await asyncio.sleep(0.005)


async def test_what_is_new_wakes_the_loop_and_nothing_else_does() -> None:
    remote = Remote()
    polling = remote.polling()
    assert polling.last is None
    assert await polling.sync() is False
    assert remote.woken == 0
    remote.new = True
    before = time.time()
    assert await polling.sync() is True
    assert remote.woken == 1
    assert polling.last is not None
    assert polling.last.new
    assert before <= polling.last.at <= time.time()


async def test_who_asks_during_a_look_gets_another_one_together_with_the_others() -> None:
    remote = Remote()
    polling = remote.polling()
    remote.go.clear()
    first = asyncio.create_task(polling.sync())
    await until(lambda: remote.began == 1)
    others = [asyncio.create_task(polling.sync()) for _ in range(5)]
    polling.look_soon()
    await asyncio.sleep(0.05)
    assert remote.began == 1
    remote.new = True  # it came after the first look began, and that one may have missed it
    remote.go.set()
    await first
    assert await asyncio.gather(*others) == [True] * 5
    assert (remote.began, remote.most_at_once) == (2, 1)


async def test_who_stops_waiting_stops_no_look() -> None:
    remote = Remote()
    polling = remote.polling()
    remote.go.clear()
    impatient = asyncio.create_task(polling.sync())
    await until(lambda: remote.began == 1)
    patient, another = (asyncio.create_task(polling.sync()) for _ in range(2))
    await asyncio.sleep(0.01)
    for each in (impatient, another):
        each.cancel()
        with pytest.raises(asyncio.CancelledError):
            await each
    remote.go.set()
    assert await patient is False
    assert remote.began == 2


async def test_however_often_somebody_asks_looks_keep_their_distance() -> None:
    remote = Remote()
    polling = remote.polling(least_pause=0.2)
    async with asyncio.timeout(10):
        while remote.began < 4:
            polling.look_soon()
            await asyncio.sleep(0.001)
    distances = [later - earlier for earlier, later in zip(remote.times, remote.times[1:], strict=False)]
    assert min(distances) >= 0.195
    await polling.close()


async def test_the_first_look_is_at_once_and_the_others_at_the_interval(scheduler: AsyncIOScheduler) -> None:
    remote = Remote()
    polling = remote.polling(interval=0.2, jitter=0.5)
    began = time.monotonic()
    polling.add_to(scheduler)
    await until(lambda: remote.began == 4)
    assert remote.times[0] - began < 0.15
    distances = [later - earlier for earlier, later in zip(remote.times, remote.times[1:], strict=False)]
    assert min(distances) >= 0.195
    await polling.close()
    seen = remote.began
    await asyncio.sleep(0.4)
    assert remote.began <= seen + 1  # one that the scheduler had begun; the lead shuts it down next


async def test_who_asks_has_what_was_refused_judged_anew_and_the_interval_has_not(
    scheduler: AsyncIOScheduler,
) -> None:
    remote = Remote()
    polling = remote.polling()
    polling.add_to(scheduler)
    await until(lambda: remote.began == 1)
    assert remote.forgiven == 0
    await polling.sync()
    polling.look_soon()
    assert remote.forgiven == 2
    await polling.close()


async def test_a_look_that_comes_late_is_not_left_out(scheduler: AsyncIOScheduler) -> None:
    remote = Remote()
    polling = remote.polling()
    polling.add_to(scheduler)
    await until(lambda: polling.last is not None)
    (job,) = scheduler.get_jobs()
    assert job.misfire_grace_time is None
    await polling.close()


async def test_no_answer_doubles_the_pause_and_an_answer_or_a_push_ends_that(scheduler: AsyncIOScheduler) -> None:
    remote = Remote()
    polling = remote.polling(interval=60.0)
    polling.add_to(scheduler)
    remote.down = "no route to host"
    await until(lambda: polling.last is not None)
    pauses = [polling.pause]
    for _ in range(5):
        await polling.sync()
        pauses.append(polling.pause)
    assert pauses == [120.0, 240.0, 480.0, LONGEST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS]
    assert polling.last is not None
    assert (polling.last.failures, polling.last.unreachable) == (6, "no route to host")
    (job,) = scheduler.get_jobs()
    assert job.trigger.interval_length == LONGEST_PAUSE_SECONDS
    seen = remote.began
    polling.look_soon()
    await until(lambda: remote.began == seen + 1 and polling.pause == 120.0)
    remote.down = ""
    await polling.sync()
    assert polling.pause == 60.0
    assert job.trigger.interval_length == 60.0
    assert polling.last.failures == 0
    await polling.close()


async def test_an_interval_that_is_longer_than_the_longest_pause_stays() -> None:
    remote = Remote()
    remote.down = "down"
    polling = remote.polling(interval=3600.0)
    for _ in range(3):
        await polling.sync()
    assert polling.pause == 3600.0


async def test_a_fault_of_ours_ends_no_looking() -> None:
    remote = Remote()
    polling = remote.polling()
    remote.fault = RuntimeError("a bug")
    with capture_logs() as events:
        assert await polling.sync() is False
    assert [event["event"] for event in events] == ["sync.crashed"]
    assert polling.last is not None
    assert "a bug" in polling.last.unreachable
    remote.fault, remote.new = None, True
    assert await polling.sync() is True


async def test_close_gives_up_what_is_under_way() -> None:
    remote = Remote()
    polling = remote.polling()
    remote.go.clear()
    waits = asyncio.create_task(polling.sync())
    await until(lambda: remote.began == 1)
    polling.look_soon()
    await polling.close()
    with pytest.raises(asyncio.CancelledError):
        await waits
    assert (remote.began, remote.at_once) == (1, 0)


async def test_what_is_answered_to_reconcile_sync() -> None:
    commit = Commit("3fa9c1d2e0aa" + "0" * 28, "Ada", 0.0, "A new model")
    remote = Remote()
    remote.new = True
    polling = remote.polling()
    snapshot = Snapshot("", {}, "/", unreadable="nothing has been fetched yet")

    async def read() -> Snapshot:
        return snapshot

    assert (await answer_sync(polling, read))["problem"] == "nothing has been fetched yet"
    remote.down = "no route to host"
    answer = await answer_sync(polling, read)
    assert (answer["commit"], answer["problem"]) == ("", "no route to host")
    remote.down = ""
    snapshot = Snapshot(commit.id, {}, "/", provenance=Provenance("https://host/o/r", "main", commit))
    assert await answer_sync(polling, read) == {
        "source": "git",
        "new": True,
        "ref": "main",
        "commit": commit.id,
        "author": "Ada",
        "subject": "A new model",
        "problem": "",
    }
    refused = Provenance("https://host/o/r", "main", commit, problem="its signature is not valid")
    snapshot = Snapshot(commit.id, {}, "/", provenance=refused)
    remote.new = False
    answer = await answer_sync(polling, read)
    assert (answer["new"], answer["problem"]) == (False, "its signature is not valid")
    assert await answer_sync(None, read) == {"source": "folder"}
