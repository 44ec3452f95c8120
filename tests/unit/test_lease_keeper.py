"""Who holds the lease while processes die, clocks differ, calls hang and people lock: one at most, in time one."""

import asyncio
import functools
import json
import selectors
from collections.abc import Awaitable, Callable, Coroutine, Generator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import structlog.testing
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.cli import lock as locking
from reconciler.cli.lock_commands import lock as lock_command
from reconciler.cli.lock_commands import unlock as unlock_command
from reconciler.core.lease import HOLDS_SECONDS, LASTS_SECONDS, Kept, Lease, LeaseStoreError, read_lease, to_text
from reconciler.loop import lease as keeping
from reconciler.loop.lease import (
    RENEW_SECONDS,
    Keeper,
    NoLeaseError,
    boot_id,
    home_of,
    lock_by_hand,
    owner_of,
    unlock_by_hand,
)


@dataclass
class Register:
    """The cluster's register, with faults to order."""

    kept: Kept = field(default_factory=lambda: Kept("c", 0, ""))
    error: str = ""
    hangs: bool = False

    async def read(self) -> Kept:
        await self._meet()
        return self.kept

    async def replace(self, kept: Kept, text: str) -> bool:
        await self._meet()
        if kept.cluster != self.kept.cluster:
            raise LeaseStoreError("WrongClusterID")
        if kept != self.kept:
            return False
        self.kept = replace(kept, version=kept.version + 1, text=text)
        return True

    async def _meet(self) -> None:
        if self.hangs:
            await asyncio.Event().wait()
        if self.error:
            raise LeaseStoreError(self.error)

    @property
    def owner(self) -> str | None:
        lease = read_lease(self.kept.text)
        return lease.owner if lease is not None else None


# --- a law: never two ---------------------------------------------------------------------------------------


class Turn:
    """Where another one may come between, and time may pass."""

    def __await__(self) -> Generator[None, None, None]:
        yield


class Slow(Register):
    """Others come before each call and after it, before whoever asked hears the answer."""

    async def read(self) -> Kept:
        await Turn()
        kept = await super().read()
        await Turn()
        return kept

    async def replace(self, kept: Kept, text: str) -> bool:
        await Turn()
        won = await super().replace(kept, text)
        await Turn()
        return won


@dataclass
class World:
    """Some reconcilers at one register, each stepped by hand, on clocks that tell different times."""

    register: Slow
    now: float = 0.0
    keepers: list[Keeper] = field(default_factory=list)
    busy: dict[int, Coroutine[Any, Any, Any]] = field(default_factory=dict)
    offsets: list[float] = field(default_factory=list)

    def add(self, house: str, offset: float) -> None:
        def clock() -> float:
            return self.now + offset

        made = Keeper(self.register, house, house, "watch", clock=clock, wall_clock=clock)
        self.keepers.append(made)
        self.offsets.append(offset)

    def step(self, number: int, begin: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        work = self.busy.get(number) or self.busy.setdefault(number, begin())
        try:
            work.send(None)
        except (StopIteration, LeaseStoreError, NoLeaseError):
            del self.busy[number]

    def go_on(self, number: int, count: int) -> None:
        for _ in range(count):
            self.step(number, lambda: self.keepers[number]._look_and_take(self.register))

    def holders(self) -> list[str]:
        return [keeper._me.owner for keeper in self.keepers if keeper.holds()]

    def end(self) -> None:
        for work in self.busy.values():
            work.close()


Action = tuple[str, float]
actions = st.lists(
    st.one_of(
        # One of them goes on for some calls, and may be left in the middle of one.
        st.tuples(st.sampled_from(["a", "b", "c"]), st.sampled_from([1, 2, 3, 5])),
        st.tuples(st.sampled_from(["lock", "unlock"]), st.sampled_from([1, 2, 5])),
        st.tuples(st.just("time"), st.sampled_from([0.1, 2.0, 9.0, 19.0, 25.0, 31.0])),
        st.tuples(st.sampled_from(["down", "up", "give up", "restart a"]), st.just(1)),
    ),
    min_size=5,
    max_size=60,
)


@settings(max_examples=1500, deadline=None)
@given(actions, st.lists(st.sampled_from([-1e6, -40.0, 0.0, 7.0, 1e6]), min_size=4, max_size=4))
def test_never_do_two_hold_it_at_once(steps: list[Action], offsets: list[float]) -> None:
    world = World(Slow())
    for house, offset in zip("abc", offsets, strict=False):
        world.add(house, offset)

    def person() -> float:
        return world.now + offsets[3]

    by_hand = {
        "lock": lambda: lock_by_hand(world.register, "person", "", 40.0, take=True, wall_clock=person),
        "unlock": lambda: unlock_by_hand(world.register, "person", wall_clock=person),
    }
    for what, count in steps:
        if what in "abc":
            world.go_on("abc".index(what), int(count))
        elif what == "time":
            world.now += count
        elif what in by_hand:
            for _ in range(int(count)):
                world.step(9, by_hand[what])
        elif what in ("down", "up"):
            world.register.error = "down" if what == "down" else ""
        elif what == "give up" and world.busy:
            world.busy.pop(next(iter(world.busy))).close()
        elif what == "restart a":
            # The kernel's lock: the one before it is gone.
            if 0 in world.busy:
                world.busy.pop(0).close()
            successor = World(world.register)
            successor.add("a", offsets[0])
            world.keepers[0] = successor.keepers[0]
            world.keepers[0]._clock = world.keepers[0]._wall_clock = lambda: world.now + offsets[0]
        assert len(world.holders()) <= 1, world.holders()
    world.end()


def test_a_holder_counts_from_before_it_sent_and_not_from_when_it_heard() -> None:
    world = World(Slow())
    world.add("a", 0.0)
    while world.register.kept.version == 0:
        world.go_on(0, 1)
    world.now += 15
    world.go_on(0, 1)
    assert world.holders() == ["a"]
    world.now += 6
    assert world.holders() == []


@pytest.mark.parametrize("offset", [-1e6, 0.0, 1e6])
def test_a_lock_that_was_short_does_not_let_another_one_in_beside_who_did_not_notice(offset: float) -> None:
    world = World(Slow())
    world.add("a", 0.0)
    # By its clock the lock is over for long, or will be in days.
    world.add("b", offset)
    world.go_on(0, 5)
    assert world.holders() == ["a"]
    locking = lock_by_hand(world.register, "ann", "", 60.0, wall_clock=lambda: world.now)
    world.busy[8], world.busy[9] = locking, unlock_by_hand(world.register, "ann", wall_clock=lambda: world.now)
    for person in (8, 9):
        while person in world.busy:
            world.step(person, lambda: locking)
    world.go_on(1, 10)
    assert world.holders() == ["a"]
    world.now += LASTS_SECONDS
    world.go_on(1, 10)
    assert world.holders() == ["b"]


@settings(max_examples=200, deadline=None)
@given(actions, st.integers(0, 2))
def test_whatever_was_before_one_who_goes_on_asking_gets_it_in_two_lifetimes(
    steps: list[Action], who: int
) -> None:
    world = World(Slow())
    for house in "abc":
        world.add(house, 0.0)
    for what, count in steps:
        if what in "abc":
            world.go_on("abc".index(what), int(count))
        elif what == "time":
            world.now += count
    # All the others die; nothing of theirs is left under way.
    for number in list(world.busy):
        world.busy.pop(number).close()
    until = world.now + 2 * LASTS_SECONDS + 4
    while not world.keepers[who].holds():
        assert world.now < until
        world.go_on(who, 1)
        if who not in world.busy:
            world.now += 2.0
    world.end()


# --- a keeper that runs -------------------------------------------------------------------------------------


class _Selector(selectors.SelectSelector):
    """Does not wait: it moves the loop's clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        assert timeout is not None, "everybody waits, and nobody for a time"
        self.now += max(0.0, timeout)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its seconds take no time, so that nothing here depends on how busy the machine is."""

    def __init__(self) -> None:
        self._waits = _Selector()
        super().__init__(self._waits)

    def time(self) -> float:
        return self._waits.now


def in_virtual_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(test(*arguments, **named))

    return run


def clock() -> float:
    return asyncio.get_running_loop().time()


def wall() -> float:
    return 1e9 + clock()


Make = Callable[[str], Keeper]


@pytest.fixture
def register() -> Register:
    return Register()


@pytest.fixture
def make(register: Register) -> Make:
    def one(house: str) -> Keeper:
        return Keeper(register, f"{house}@host:/s", house, "reconcile --watch", clock=clock, wall_clock=wall)

    return one


async def lock(register: Register, owner: str, reason: str, seconds: float, *, take: bool = False) -> Lease:
    return (await lock_by_hand(register, owner, reason, seconds, take=take, wall_clock=wall))[0]


async def unlock(register: Register, owner: str, *, take: bool = False) -> Lease | None:
    return await unlock_by_hand(register, owner, take=take, wall_clock=wall)


async def within(seconds: float, work: Awaitable[Any]) -> Any:
    return await asyncio.wait_for(work, seconds)


def said(log: list[Any], event: str) -> list[dict[str, Any]]:
    return [dict(each) for each in log if each["event"] == event]


@in_virtual_time
async def test_it_takes_renews_and_gives_back(make: Make, register: Register) -> None:
    keeper = make("a")
    assert not keeper.holds()
    assert "not been taken yet" in keeper.why_not()
    with structlog.testing.capture_logs() as log:
        keeper.start()
        await within(1, keeper.wait())
        assert keeper.why_not() == ""
        for _ in range(300):
            await asyncio.sleep(1)
            assert keeper.holds()
        lease = read_lease(register.kept.text)
        assert lease is not None
        assert (lease.owner, lease.reason, lease.by_hand) == ("a@host:/s", "reconcile --watch", False)
        assert lease.since == 1e9, "when it was taken"
        assert lease.until >= wall() + LASTS_SECONDS - RENEW_SECONDS
        assert register.kept.version <= 32, "renewed every 10 s"
        await keeper.close()
    assert not keeper.holds()
    assert read_lease(register.kept.text) is None
    assert [each["event"] for each in log] == ["lease.taken", "lease.given_back"]
    assert log[0] == {"event": "lease.taken", "log_level": "info", "owner": "a@host:/s", "previous": None}


@in_virtual_time
async def test_a_second_one_waits_says_so_once_and_takes_over_when_it_is_given_back(make: Make) -> None:
    first, second = make("a"), make("b")
    first.start()
    await within(1, first.wait())
    with structlog.testing.capture_logs() as log:
        second.start()
        await asyncio.sleep(200)
        assert not second.holds()
        assert second.why_not() == "a@host:/s writes to this cluster (reconcile --watch)"
        (waiting,) = said(log, "lease.waiting")
        assert {key: waiting[key] for key in ("owner", "reason", "log_level")} == {
            "owner": "a@host:/s",
            "reason": "reconcile --watch",
            "log_level": "warning",
        }
        assert waiting["until"] == 1e9 + LASTS_SECONDS
        await first.close()
        await within(3, second.wait())
    assert said(log, "lease.taken")[0]["previous"] is None


def kill(keeper: Keeper) -> None:
    """As kill -9: nothing is given back."""
    assert keeper._task is not None
    keeper._task.cancel()


@in_virtual_time
async def test_after_a_kill_it_expires_and_the_next_one_takes_it(make: Make, register: Register) -> None:
    first, second = make("a"), make("b")
    first.start()
    await within(1, first.wait())
    second.start()
    await asyncio.sleep(5)
    kill(first)
    with structlog.testing.capture_logs() as log:
        await asyncio.sleep(LASTS_SECONDS - 6)
        assert not first.holds()
        assert not second.holds()
        await within(6, second.wait())
    assert said(log, "lease.taken")[0]["previous"] == "a@host:/s"
    assert register.owner == "b@host:/s"


@in_virtual_time
async def test_the_same_state_directorys_successor_takes_it_at_once(make: Make) -> None:
    first, successor = make("a"), make("a")
    first.start()
    await within(1, first.wait())
    kill(first)
    successor.start()
    await within(0.1, successor.wait())


@pytest.mark.parametrize("how", ["fails", "hangs"])
@in_virtual_time
async def test_a_cluster_that_does_not_answer_ends_it_in_time_and_it_comes_back(
    make: Make, register: Register, how: str
) -> None:
    keeper, woken = make("a"), []
    keeper.wake_loop = lambda: woken.append(keeper.holds())
    keeper.start()
    await within(1, keeper.wait())
    with structlog.testing.capture_logs() as log:
        register.error, register.hangs = ("" if how == "hangs" else "GCS is down"), how == "hangs"
        await asyncio.sleep(HOLDS_SECONDS - 0.1)
        assert keeper.holds()
        await asyncio.sleep(0.2)
        assert not keeper.holds()
        reason = "GCS is down" if how == "fails" else "cannot be read within"
        assert reason in keeper.why_not()
        await asyncio.sleep(100)
        assert reason in said(log, "lease.lost")[0]["reason"]
        register.error, register.hangs = "", False
        await within(15, keeper.wait())
    assert [each["event"] for each in log] == ["lease.failed", "lease.lost", "lease.taken"], "each once"
    assert woken == [True, False, True]


@in_virtual_time
async def test_a_short_outage_is_bridged(make: Make, register: Register) -> None:
    keeper = make("a")
    keeper.start()
    await within(1, keeper.wait())
    with structlog.testing.capture_logs() as log:
        register.error = "down"
        await asyncio.sleep(15)
        register.error = ""
        for _ in range(100):
            assert keeper.holds()
            await asyncio.sleep(0.5)
    assert [each["event"] for each in log] == ["lease.failed"]


@in_virtual_time
async def test_somebody_who_took_it_ends_it_at_the_next_renewal(make: Make, register: Register) -> None:
    keeper = make("a")
    keeper.start()
    await within(1, keeper.wait())
    await asyncio.sleep(1)
    with structlog.testing.capture_logs() as log:
        await lock(register, "ann@host:/s", "driver upgrade", 60.0)
        await asyncio.sleep(RENEW_SECONDS)
        assert not keeper.holds()
        assert keeper.why_not() == "ann@host:/s has locked this cluster for another 50 s (driver upgrade)"
        await asyncio.sleep(20)
    assert [each["event"] for each in log] == ["lease.lost", "lease.waiting"]
    assert "driver upgrade" in log[0]["reason"]


@in_virtual_time
async def test_a_lock_locks_all_out_and_its_end_gives_it_back_to_who_had_it(
    make: Make, register: Register
) -> None:
    first, second = make("a"), make("b")
    first.start()
    await within(1, first.wait())
    second.start()
    await lock(register, "ann@host:/s", "driver upgrade", 3600.0)
    await asyncio.sleep(1000)
    assert not first.holds()
    assert not second.holds()
    assert await unlock(register, "ann@host:/s") is not None
    await within(3, first.wait())
    assert not second.holds()
    assert await unlock(register, "ann@host:/s") is None


@in_virtual_time
async def test_after_a_lock_another_one_comes_when_who_had_it_does_not(make: Make, register: Register) -> None:
    first, second = make("a"), make("b")
    first.start()
    await within(1, first.wait())
    kill(first)
    await lock(register, "ann@host:/s", "driver upgrade", 3600.0)
    second.start()
    await asyncio.sleep(3600 + LASTS_SECONDS - 1)
    assert not second.holds()
    await within(4, second.wait())


@in_virtual_time
async def test_a_lock_ends_by_itself(make: Make, register: Register) -> None:
    keeper = make("a")
    await lock(register, "ann@host:/s", "driver upgrade", 50)
    keeper.start()
    await asyncio.sleep(49)
    assert not keeper.holds()
    await within(4, keeper.wait())


@in_virtual_time
async def test_a_lock_of_another_person_is_taken_and_ended_only_when_told_so(register: Register) -> None:
    first = await lock(register, "ann", "driver upgrade", 60.0)
    assert read_lease(register.kept.text) == first
    with pytest.raises(NoLeaseError, match=r"ann has locked this cluster for another .* \(driver upgrade\)"):
        await lock(register, "bob", "mine", 60.0)
    with pytest.raises(NoLeaseError, match="ann has locked"):
        await unlock(register, "bob")
    assert register.owner == "ann"
    assert (await lock(register, "ann", "driver upgrade", 600.0)).until == first.until + 540
    await lock(register, "bob", "mine", 60.0, take=True)
    assert register.owner == "bob"
    await unlock(register, "ann", take=True)
    assert register.kept.text == to_text(None)
    await lock(register, "ann", "once more", 60.0)
    await asyncio.sleep(61)
    await lock(register, "bob", "it is over", 60.0)


@in_virtual_time
async def test_a_lock_over_a_lock_keeps_whom_it_was_first_taken_from(make: Make, register: Register) -> None:
    keeper = make("a")
    keeper.start()
    await within(1, keeper.wait())
    await lock(register, "ann", "one", 60.0)
    assert (await lock(register, "bob", "two", 60.0, take=True)).heir == "a a@host:/s "


@in_virtual_time
async def test_one_who_converges_once_does_not_wait_for_one_who_is_alive(make: Make, register: Register) -> None:
    holder, other = make("a"), make("b")
    await holder.take()
    assert holder.holds()
    with pytest.raises(NoLeaseError, match="a@host:/s writes to this cluster"):
        await within(0.1, other.take())
    # By its clock it is over long ago, and yet it is renewed.
    holder._wall_clock = lambda: 1000.0
    await asyncio.sleep(RENEW_SECONDS + 1)
    with pytest.raises(NoLeaseError, match="a@host:/s"):
        await within(RENEW_SECONDS + 3, other.take())
    register.error = "GCS is down"
    with pytest.raises(LeaseStoreError, match="GCS is down"):
        await other.take()


@in_virtual_time
async def test_one_who_converges_once_takes_what_one_who_is_gone_has_left(make: Make, register: Register) -> None:
    gone, other = make("a"), make("b")
    await gone._try(register)
    assert gone.holds()
    await asyncio.sleep(1000)
    await within(LASTS_SECONDS + 3, other.take())
    assert other.holds()
    assert not gone.holds()


@in_virtual_time
async def test_work_ends_with_its_result_its_error_or_with_the_lease(make: Make, register: Register) -> None:
    keeper, broken_off = make("a"), asyncio.Event()
    await keeper.take()

    async def answer() -> int:
        return 42

    async def fail() -> int:
        raise ValueError("mine")

    async def endless() -> int:
        try:
            await asyncio.sleep(1e6)
        finally:
            broken_off.set()
        return 0

    assert await keeper.while_held(answer()) == 42
    with pytest.raises(ValueError, match="mine"):
        await keeper.while_held(fail())
    working = asyncio.create_task(keeper.while_held(endless()))
    await asyncio.sleep(1)
    await lock(register, "ann", "driver upgrade", 60.0)
    with pytest.raises(NoLeaseError, match="ann has locked"):
        await within(RENEW_SECONDS + 1, working)
    assert broken_off.is_set()


@in_virtual_time
async def test_without_a_register_everybody_may_write_and_one_event_says_so() -> None:
    keeper = Keeper(None, "a", "a", "watch", off="gRPC is not installed")
    with structlog.testing.capture_logs() as log:
        await keeper.take()
        await within(0.1, keeper.wait())
        assert keeper.holds()
        assert keeper.why_not() == ""
        await keeper.close()
    assert log == [{"event": "lease.skipped", "log_level": "warning", "reason": "gRPC is not installed"}]


@in_virtual_time
async def test_a_fault_of_ours_is_said_and_does_not_end_the_keeper(make: Make, register: Register) -> None:
    keeper = make("a")
    original, register.read = register.read, None  # type: ignore[method-assign, assignment]
    with structlog.testing.capture_logs() as log:
        keeper.start()
        await asyncio.sleep(1)
        assert said(log, "lease.failed")
        register.read = original  # type: ignore[method-assign]
        await within(3, keeper.wait())


@in_virtual_time
async def test_giving_back_does_not_wait_for_a_cluster_that_hangs_and_takes_nothing_from_others(
    make: Make, register: Register
) -> None:
    keeper, other = make("a"), make("a")
    await keeper.take()
    register.hangs = True
    await within(6, keeper.close())
    register.hangs = False
    await other.take()
    await lock(register, "ann", "", 60.0)
    await other.close()
    assert register.owner == "ann"


@in_virtual_time
async def test_a_new_cluster_at_the_same_place_is_taken_anew(make: Make, register: Register) -> None:
    keeper = make("a")
    keeper.start()
    await within(1, keeper.wait())
    register.kept = Kept("another", 0, "")
    await asyncio.sleep(RENEW_SECONDS + 1)
    assert keeper.holds()
    assert register.owner == "a@host:/s"


@in_virtual_time
async def test_a_copy_of_the_machine_waits_as_any_other_one_and_is_told_why(register: Register) -> None:
    def of(boot: str) -> Keeper:
        return Keeper(register, "a@host:/s", "a", "reconcile", boot=boot, clock=clock, wall_clock=wall)

    first, after_a_crash, copy = of("one"), of("one"), of("two")
    await first._try(register)
    await after_a_crash._try(register)
    assert after_a_crash.holds(), "the kernel's lock says that the other one is gone"
    with pytest.raises(NoLeaseError, match=r"a@host:/s writes .*; that is this state directory .* a copy of the"):
        await within(0.1, copy.take())
    after_a_crash.start()
    copy.start()
    for _ in range(200):
        await asyncio.sleep(1)
        assert after_a_crash.holds()
        assert not copy.holds()
    kill(after_a_crash)
    await asyncio.sleep(LASTS_SECONDS - RENEW_SECONDS - 1)
    assert not copy.holds()
    await within(RENEW_SECONDS + 4, copy.wait())


# --- the commands --------------------------------------------------------------------------------------------


Command = Callable[..., tuple[int, str]]


@pytest.fixture
def command(register: Register, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setattr(locking, "lease_store", lambda settings, client: register)
    monkeypatch.setattr("getpass.getuser", lambda: "ann")
    monkeypatch.setattr("socket.gethostname", lambda: "gpu1")

    def run(name: str, *arguments: str, state: str = "s", output: str = "text") -> tuple[int, str]:
        shared = {"state_dir": tmp_path / state, "models_dir": None, "output": output}
        result = CliRunner().invoke({"lock": lock_command, "unlock": unlock_command}[name], arguments, obj=shared)
        assert isinstance(result.exception, SystemExit | None), result.exception
        return result.exit_code, result.output.strip()

    return run


def test_the_commands_show_lock_and_unlock(command: Command, tmp_path: Path) -> None:
    owner = f"ann@gpu1:{tmp_path}/s"
    assert command("lock") == (0, "Nobody writes to this cluster.")
    assert json.loads(command("lock", output="json")[1]) == {"lease": None}
    assert command("unlock") == (0, "The cluster was not locked.")
    assert command("lock", "--reason", "driver upgrade") == (
        0,
        f"{owner} has locked this cluster for another 1 h (driver upgrade).",
    )
    code, text = command("lock", output="json")
    lease = json.loads(text)["lease"]
    assert (code, lease["owner"], lease["reason"], lease["by_hand"]) == (0, owner, "driver upgrade", True)
    assert lease["until"] == lease["since"] + 3600
    assert set(lease) == {"owner", "reason", "since", "until", "by_hand", "text"}
    assert command("unlock") == (0, f"The lock of {owner} is over (driver upgrade).")
    assert command("lock") == (0, "Nobody writes to this cluster.")


def test_the_lock_of_another_person_is_exit_4_and_names_the_flag(command: Command, register: Register) -> None:
    assert command("lock", "--reason", "mine", "--for", "2d", state="other")[0] == 0
    for arguments in (["lock", "--reason", "x"], ["unlock"]):
        code, text = command(*arguments)
        assert code == 4
        assert "other has locked this cluster for another 2 d (mine); --dangerous-take" in text
    assert command("unlock", "--dangerous-take")[0] == 0
    assert register.owner is None


def test_a_lock_waits_until_a_reconciler_has_stopped_unless_told_not_to(
    command: Command, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    mine = Lease("bob@b:/s", "1", "h", "reconcile --watch", 0.0, 0.0, LASTS_SECONDS)
    register.kept = Kept("c", 5, to_text(mine))
    code, text = command("lock", "--reason", "driver upgrade", output="json")
    assert (code, slept) == (0, [HOLDS_SECONDS])
    assert json.loads(text)["previous"]["owner"] == "bob@b:/s"
    register.kept = Kept("c", 5, to_text(mine))
    assert command("lock", "--reason", "driver upgrade", "--no-wait")[0] == 0
    assert slept == [HOLDS_SECONDS]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--for", "1h"], "go with --reason"),
        (["--dangerous-take"], "go with --reason"),
        (["--reason", " "], "say what the lock is for"),
        (["--reason", "x", "--for", "soon"], "is not a duration"),
        (["--reason", "x", "--for", "31d"], "at most 30 d"),
    ],
)
def test_a_lock_that_makes_no_sense_is_refused(
    command: Command, register: Register, arguments: list[str], says: str
) -> None:
    code, text = command("lock", *arguments)
    assert code in (1, 2)  # `main` makes click's 2 a 1.
    assert says in text
    assert register.kept.version == 0


def test_a_cluster_that_does_not_answer_is_exit_1(command: Command, register: Register) -> None:
    register.error = "GCS is down"
    code, text = command("lock")
    assert code == 1
    assert "GCS is down" in text


# --- names --------------------------------------------------------------------------------------------------


def test_a_state_directory_keeps_its_name_and_a_damaged_one_gets_another(tmp_path: Path) -> None:
    home = home_of(tmp_path)
    assert len(home) == 32
    assert home_of(tmp_path) == home
    assert home_of(tmp_path / "other") != home
    file = tmp_path / "lease-home"
    assert file.stat().st_mode & 0o777 == 0o600
    for damage in (b"", b"\xff\xfe", b"x" * 10**6, b"../../etc/passwd"):
        file.write_bytes(damage)
        made = home_of(tmp_path)
        assert len(made) == 32
        assert home_of(tmp_path) == made


def test_where_nothing_can_be_written_it_still_has_a_name(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert len(home_of(file / "state")) == 32


def test_a_start_of_the_machine_has_a_name_and_where_none_can_be_read_each_process_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert boot_id() == boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    for content in (None, b"", b"\xff"):
        file = tmp_path / f"{content!r}"
        if content is not None:
            file.write_bytes(content)
        monkeypatch.setattr(keeping, "_BOOT_FILE", file)
        assert boot_id() != boot_id()


def test_an_owner_has_user_host_and_folder_and_nothing_a_terminal_obeys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "ann")
    monkeypatch.setattr("socket.gethostname", lambda: "gpu1")
    assert owner_of(tmp_path) == f"ann@gpu1:{tmp_path}"
    assert "\x1b" not in owner_of(tmp_path / "\x1b[2J")

    def nobody() -> str:
        raise KeyError("no such user")

    monkeypatch.setattr("getpass.getuser", nobody)
    assert owner_of(tmp_path).partition("@")[0].isdigit()


def test_a_holder_stops_well_before_others_may_begin() -> None:
    assert HOLDS_SECONDS + 5 <= LASTS_SECONDS
