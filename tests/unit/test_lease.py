"""The lease's rules, and the register in Ray's key-value store: of those who take it at once, one wins."""

import importlib
import importlib.util
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core.lease import (
    LASTS_SECONDS,
    LONGEST_LOCK_SECONDS,
    Kept,
    Lease,
    LeaseStoreError,
    Seen,
    free_in,
    read_lease,
    seen_after,
    to_text,
)
from reconciler.ray_serve import lease_store
from reconciler.ray_serve.lease_store import GcsLeaseStore

grpc: Any = importlib.import_module("grpc") if importlib.util.find_spec("grpc") else None
needs_grpc = pytest.mark.skipif(grpc is None, reason="gRPC comes with Ray, which is not installed")
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")

ANN = Lease("ann@a:/s", "1", "home-a", "reconcile --watch", 1000.0, 1030.0, LASTS_SECONDS)
BOB = Lease("bob@b:/s", "2", "home-b", "reconcile --watch", 0.0, 0.0, LASTS_SECONDS)
LOCK = replace(ANN, id="3", home="", until=4600.0, lasts=3600.0, by_hand=True, reason="driver", heir=ANN.house)


def seen(lease: Lease | None, first: float = 0.0) -> Seen:
    return Seen(Kept("c", 1, to_text(lease)), lease, first)


# --- the rules --------------------------------------------------------------------------------------------


def test_a_lease_is_free_when_nobody_renewed_it_for_its_time_on_the_onlookers_own_clock() -> None:
    for wall in (-1e9, 1000.0, 1e9):
        assert free_in(seen(ANN, 50.0), BOB, clock=50.0, wall=wall) == LASTS_SECONDS
        assert free_in(seen(ANN, 50.0), BOB, clock=79.0, wall=wall) == 1.0
        assert free_in(seen(ANN, 50.0), BOB, clock=80.0, wall=wall) == 0.0


def test_a_renewal_begins_the_count_anew_and_a_look_at_the_same_does_not() -> None:
    first = seen_after(None, Kept("c", 4, to_text(ANN)), 10.0)
    assert seen_after(first, Kept("c", 4, to_text(ANN)), 35.0) is first
    assert seen_after(first, Kept("c", 5, to_text(ANN)), 35.0).first == 35.0
    assert seen_after(first, Kept("d", 4, to_text(ANN)), 35.0).first == 35.0, "another cluster's"


def test_free_own_and_a_predecessors_leases_are_taken_at_once() -> None:
    assert free_in(seen(None), BOB, clock=0, wall=0) == 0
    assert free_in(seen(ANN), ANN, clock=0, wall=0) == 0
    assert free_in(seen(ANN), replace(ANN, id="new process"), clock=0, wall=0) == 0
    # A copy of the directory is not its successor.
    assert free_in(seen(ANN), replace(ANN, id="9", owner="ann@clone:/s"), clock=0, wall=0) == LASTS_SECONDS
    assert free_in(seen(ANN), replace(ANN, id="9", home="other"), clock=0, wall=0) == LASTS_SECONDS
    # Nor is the one on a copy of the machine, which has the same name and the same path.
    assert free_in(seen(ANN), replace(ANN, id="9", boot="another"), clock=0, wall=0) == LASTS_SECONDS
    assert replace(ANN, boot="another").is_namesake(ANN)
    assert not replace(ANN, id="9").is_namesake(ANN)
    assert not BOB.is_namesake(ANN)


def test_a_persons_lock_ends_at_its_time_of_day_and_its_heir_comes_first() -> None:
    assert free_in(seen(LOCK), replace(ANN, id="9"), clock=0, wall=4000.0) == 600.0
    assert free_in(seen(LOCK), replace(ANN, id="9"), clock=0, wall=4600.0) == 0.0
    assert free_in(seen(LOCK), BOB, clock=100.0, wall=4600.0) == LASTS_SECONDS
    assert free_in(seen(LOCK), BOB, clock=100.0, wall=4630.0) == 0.0
    copy = replace(ANN, id="9", boot="another")
    assert free_in(seen(LOCK), copy, clock=100.0, wall=4600.0) == LASTS_SECONDS, "it is no heir"
    assert free_in(seen(replace(LOCK, heir="")), BOB, clock=0, wall=4600.0) == 0.0
    # The owner of the lock is as locked out as everybody else.
    assert free_in(seen(LOCK), replace(LOCK, id="9", by_hand=False), clock=0, wall=4000.0) > 0


def test_a_lock_of_a_clock_that_is_wrong_lasts_no_longer_than_was_said() -> None:
    future = replace(LOCK, since=1e9, until=1e9 + 3600)
    assert free_in(seen(future, 10.0), replace(ANN, id="9"), clock=10.0, wall=0.0) == 3600.0
    assert free_in(seen(future, 10.0), replace(ANN, id="9"), clock=3610.0, wall=0.0) == 0.0
    # For others too it is over in the end.
    assert free_in(seen(future, 10.0), BOB, clock=3639.0, wall=0.0) == 1.0
    assert free_in(seen(future, 10.0), BOB, clock=3640.0, wall=0.0) == 0.0
    past = replace(LOCK, until=5.0)
    # Whoever was locked out may not have noticed yet.
    assert free_in(seen(past, 10.0), BOB, clock=12.0, wall=1e9) == LASTS_SECONDS - 2


def test_the_words_say_who_how_long_and_what_for() -> None:
    assert ANN.in_words(1010.0) == "ann@a:/s writes to this cluster (reconcile --watch)"
    assert ANN.in_words(1090.0).endswith("(reconcile --watch), and has been silent for 1 min")
    assert LOCK.in_words(1000.0) == "ann@a:/s has locked this cluster for another 1 h (driver)"
    assert LOCK.in_words(4610.0) == "ann@a:/s had locked this cluster (driver), until 10 s ago"


texts = st.text(st.characters(blacklist_categories=("Cs", "Cc", "Zl", "Zp", "Cf", "Co", "Cn", "Zs")), max_size=50)
numbers = st.floats(0, LONGEST_LOCK_SECONDS)


@given(st.builds(Lease, texts, texts, texts, texts, numbers, numbers, numbers, st.booleans(), texts, texts))
def test_what_is_written_is_read_again(lease: Lease) -> None:
    assert read_lease(to_text(lease)) == lease


def test_no_lease_is_read_as_none() -> None:
    assert read_lease(to_text(None)) is None
    assert read_lease("") is None


@given(
    st.one_of(
        st.text().filter(lambda text: text not in ("", "{}")),
        st.sampled_from(["[" * 30000, '{"a":' * 9000, "1" * 60000, "null", "[]", "NaN", "x" * 10**6, "\udcff"]),
    )
)
def test_what_makes_no_sense_is_somebodys_and_ends_by_itself(text: str) -> None:
    lease = read_lease(text)
    assert lease is not None
    assert lease.owner == "somebody unknown"
    assert free_in(Seen(Kept("c", 1, text), lease, 0.0), BOB, clock=0.0, wall=0.0) == LASTS_SECONDS


@pytest.mark.parametrize("name", ["since", "until", "lasts"])
@pytest.mark.parametrize("value", ["1", None, True, float("nan"), float("inf"), 10**400, [1]])
def test_numbers_that_are_none_make_it_somebodys(name: str, value: Any) -> None:
    found = read_lease(json.dumps({**json.loads(to_text(ANN)), name: value}))
    assert found is not None
    assert found.owner == "somebody unknown"


def test_what_a_terminal_would_obey_is_not_printed_and_no_lock_is_for_ever() -> None:
    record = {**json.loads(to_text(ANN)), "owner": "\x1b[2J\nann\u2028" + "x" * 5000, "lasts": 1e300}
    lease = read_lease(json.dumps(record))
    assert lease is not None
    assert lease.owner.startswith("?[2J?ann?x")
    assert len(lease.owner) == 1000
    assert lease.lasts == LONGEST_LOCK_SECONDS


# --- the register, with the key-value store's semantics -----------------------------------------------------


class Turn:
    """Where another one may come between."""

    def __await__(self) -> Generator[None, None, None]:
        yield


@dataclass
class Gcs:
    """What the GCS does, one call at a time: create, delete, list, read; nothing is replaced conditionally."""

    cluster: str = "aa" * 28
    keys: dict[bytes, bytes] = field(default_factory=dict)

    def answer(self, method: str, request: bytes, cluster: str) -> bytes:
        ok = lease_store._field(1, b"")
        if method == lease_store._CLUSTER:
            return ok + lease_store._field(2, bytes.fromhex(self.cluster))
        if cluster != self.cluster:
            raise LeaseStoreError("WrongClusterID")
        fields = dict(lease_store._fields(request))
        key = fields[1]
        assert isinstance(key, bytes)
        match method.removeprefix(lease_store._KV):
            case "Put":
                assert 3 not in fields, "never overwritten"
                assert fields[4] == b"llm_reconciler"
                value = fields[2]
                assert isinstance(value, bytes)
                added = self.keys.setdefault(key, value) is value
                return ok + (b"\x10\x01" if added else b"")
            case "Keys":
                found = [name for name in self.keys if name.startswith(key)]
                return ok + b"".join(lease_store._field(2, name) for name in found)
            case "Get":
                if key not in self.keys:
                    return lease_store._field(1, b"\x08\x11" + lease_store._field(2, b"Failed to find the key"))
                return ok + lease_store._field(2, self.keys[key])
        assert method.endswith("Del"), method
        self.keys.pop(key, None)
        return ok


class Store(GcsLeaseStore):
    """The real register; only its calls go to a `Gcs`, and others may come before each of them."""

    def __init__(self, gcs: Gcs, fails: Callable[[], str] = lambda: "") -> None:
        super().__init__(_nowhere, None)
        self.gcs = gcs
        self.fails = fails
        self.late: list[tuple[str, bytes, str]] = []

    @asynccontextmanager
    async def _calls(self, cluster: str) -> AsyncIterator[Callable[..., Awaitable[bytes]]]:
        async def call(method: str, request: bytes) -> bytes:
            await Turn()
            how = self.fails()
            if how == "late":
                self.late.append((method, request, cluster))
            if how in ("late", "lost"):
                raise LeaseStoreError("no answer")
            answer = self.gcs.answer(method, request, cluster)
            if how == "unheard":
                raise LeaseStoreError("no answer")
            return answer

        yield call


async def _nowhere() -> str:
    raise AssertionError("not asked")


@dataclass
class Run:
    """Several at work on one register, and what each was told."""

    work: list[Coroutine[Any, Any, Any]]
    done: dict[int, Any] = field(default_factory=dict)

    def step(self, number: int) -> None:
        if number in self.done:
            return
        try:
            self.work[number].send(None)
        except StopIteration as end:
            self.done[number] = end.value
        except LeaseStoreError as error:
            self.done[number] = error

    def finish(self) -> None:
        for number in range(len(self.work)):
            while number not in self.done:
                self.step(number)


def at_once(work: Coroutine[Any, Any, Any]) -> Any:
    run = Run([work])
    run.finish()
    if isinstance(run.done[0], Exception):
        raise run.done[0]
    return run.done[0]


async def take(store: Store, name: str) -> tuple[Kept, bool]:
    kept = await store.read()
    return kept, await store.replace(kept, name)


def orders(counts: tuple[int, ...]) -> Iterator[list[int]]:
    """All orders in which each of several takes its number of steps."""
    if not any(counts):
        yield []
        return
    for each, left in enumerate(counts):
        if left:
            for rest in orders((*counts[:each], left - 1, *counts[each + 1 :])):
                yield [each, *rest]


def filled(versions: int) -> Gcs:
    gcs = Gcs()
    store = Store(gcs)
    for number in range(versions):
        assert at_once(store.replace(at_once(store.read()), f"old {number}"))
    return gcs


@pytest.mark.parametrize("before", [0, 1, 7])
def test_of_two_takers_one_wins_in_every_order_of_their_calls(before: int) -> None:
    start = filled(before)
    # Six calls at most: the cluster, the keys, the value; create, look again, delete.
    for order in orders((6, 6)):
        gcs = replace(start, keys=dict(start.keys))
        run = Run([take(Store(gcs), "a"), take(Store(gcs), "b")])
        for each in order:
            run.step(each)
        run.finish()
        (read_a, won_a), (read_b, won_b) = run.done[0], run.done[1]
        last = at_once(Store(gcs).read())
        if read_a.version == read_b.version:
            assert won_a + won_b == 1
            assert last == Kept(gcs.cluster, before + 1, "a" if won_a else "b")
        else:
            # The later one has seen the other's, and replaced it; perhaps before that one knew that it had won.
            assert won_a if read_a.version > read_b.version else won_b
            assert last == Kept(gcs.cluster, before + 2, "a" if read_a.version > read_b.version else "b")
        assert len(gcs.keys) <= 3


def test_of_three_who_saw_the_same_one_wins_in_every_order_of_their_calls() -> None:
    start = filled(5)
    kept = at_once(Store(start).read())
    for order in orders((4, 4, 4)):
        gcs = replace(start, keys=dict(start.keys))
        run = Run([Store(gcs).replace(kept, name) for name in "abc"])
        for each in order:
            run.step(each)
        run.finish()
        assert sorted(run.done.values()) == [False, False, True]
        winner = next(name for number, name in enumerate("abc") if run.done[number])
        assert at_once(Store(gcs).read()) == Kept(gcs.cluster, 6, winner)


def test_one_who_looked_long_ago_does_not_win_though_what_it_creates_was_deleted() -> None:
    gcs = filled(2)
    old = at_once(Store(gcs).read())
    for _ in range(8):
        at_once(take(Store(gcs), "others"))
    assert lease_store._key(3) not in gcs.keys
    assert not at_once(Store(gcs).replace(old, "late"))
    assert at_once(Store(gcs).read()) == Kept(gcs.cluster, 10, "others")


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_each_version_has_one_winner_whatever_is_lost_late_or_given_up(data: st.DataObject) -> None:
    gcs = filled(data.draw(st.integers(0, 5)))
    begun = at_once(Store(gcs).read()).version
    fails = st.sampled_from(["", "", "", "", "lost", "unheard", "late"])
    stores = [Store(gcs, lambda: data.draw(fails)) for _ in range(3)]
    wins: dict[int, str] = {}

    async def keep_taking(number: int) -> None:
        for turn in itertools.count():
            try:
                kept, won = await take(stores[number], f"{number}.{turn}")
            except LeaseStoreError:
                continue
            if won:
                assert kept.version + 1 not in wins
                wins[kept.version + 1] = f"{number}.{turn}"
                found = gcs.keys.get(lease_store._key(kept.version + 1))
                assert found in (None, f"{number}.{turn}".encode())

    chances = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=60))
    run = Run([keep_taking(number) for number in range(3)])
    for number in range(3):
        run.step(number)
    greatest = begun
    for chosen in chances:
        late = [store for store in stores if store.late]
        if chosen < 3:
            run.step(chosen)
        elif late:
            # What was sent before somebody gave up may arrive at any time.
            gcs.answer(*late[0].late.pop(0))
        now = max((int(key[-20:]) for key in gcs.keys), default=0)
        assert now >= greatest, "the greatest version only grows"
        greatest = now
    for work in run.work:
        work.close()


def test_what_was_read_in_another_cluster_is_not_replaced_in_this_one() -> None:
    gcs = filled(4)
    kept = at_once(Store(gcs).read())
    gcs.cluster, gcs.keys = "bb" * 28, {}
    with pytest.raises(LeaseStoreError, match="WrongClusterID"):
        at_once(Store(gcs).replace(kept, "late"))
    assert gcs.keys == {}
    assert at_once(Store(gcs).read()) == Kept("bb" * 28, 0, "")


def test_others_keys_and_leftovers_do_not_count_and_leftovers_go() -> None:
    gcs = filled(9)
    gcs.keys |= {b"lease/": b"x", b"lease/12": b"x", b"lease/" + b"9" * 21: b"x", b"other": b"x"}
    gcs.keys |= {lease_store._key(number): b"left over" for number in (1, 2)}
    assert at_once(Store(gcs).read()) == Kept(gcs.cluster, 9, "old 8")
    assert at_once(take(Store(gcs), "new"))[1]
    assert sorted(key for key in gcs.keys if len(key) == 26) == [lease_store._key(number) for number in (8, 9, 10)]


@given(st.binary(max_size=80))
def test_an_answer_that_makes_no_sense_is_an_error_and_nothing_else(reply: bytes) -> None:
    class Babbling(Store):
        @asynccontextmanager
        async def _calls(self, cluster: str) -> AsyncIterator[Callable[..., Awaitable[bytes]]]:
            async def call(method: str, request: bytes) -> bytes:
                return reply

            yield call

    try:
        kept = at_once(Babbling(Gcs()).read())
    except LeaseStoreError:
        return
    assert kept.cluster
    assert kept.version == 0 or kept.text


def test_a_list_of_keys_with_an_error_is_not_an_empty_list() -> None:
    class Failing(Gcs):
        def answer(self, method: str, request: bytes, cluster: str) -> bytes:
            if method.endswith("Keys"):
                return lease_store._field(1, b"\x08\x05" + lease_store._field(2, b"Redis is gone"))
            return super().answer(method, request, cluster)

    with pytest.raises(LeaseStoreError, match="Redis is gone"):
        at_once(Store(Failing()).read())


# --- over gRPC ----------------------------------------------------------------------------------------------


class Server:
    """A gRPC server with a `Gcs` behind it, that wants a token and knows its cluster."""

    def __init__(self) -> None:
        self.gcs = Gcs()
        self.cut = False
        self._server = grpc.server(ThreadPoolExecutor(2))
        methods = ("Put", "Keys", "Get", "Del")
        kv = {f"InternalKV{name}": self._handler(f"{lease_store._KV}{name}") for name in methods}
        cluster = {"GetClusterId": self._handler(lease_store._CLUSTER)}
        for service, handlers in (("InternalKVGcsService", kv), ("NodeInfoGcsService", cluster)):
            generic = grpc.method_handlers_generic_handler(f"ray.rpc.{service}", handlers)
            self._server.add_generic_rpc_handlers((generic,))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def _handler(self, method: str) -> Any:
        def answer(request: bytes, context: Any) -> bytes:
            told = dict(context.invocation_metadata())
            if told.get("authorization") != "Bearer secret":
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
            try:
                return self.gcs.answer(method, request, told.get("ray_cluster_id", ""))
            except LeaseStoreError as error:
                context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
                raise

        return grpc.unary_unary_rpc_method_handler(answer)

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None).wait()


def over_grpc(server: Server, folder: Path, token: str = "secret") -> GcsLeaseStore:
    file = folder / "token"
    file.write_text(f"{token}\n")

    async def address() -> str:
        return server.address

    return GcsLeaseStore(address, file)


@needs_grpc
async def test_it_speaks_grpc_with_rays_token_and_names_the_cluster(tmp_path: Path) -> None:
    with Server() as server:
        store = over_grpc(server, tmp_path)
        empty = await store.read()
        assert empty == Kept(server.gcs.cluster, 0, "")
        assert await store.replace(empty, "a" * 300)
        assert not await store.replace(empty, "b")
        assert await store.read() == Kept(server.gcs.cluster, 1, "a" * 300)
        server.gcs.cluster = "cc" * 28
        with pytest.raises(LeaseStoreError, match="UNAUTHENTICATED: WrongClusterID"):
            await store.replace(empty, "c")


@needs_grpc
async def test_a_wrong_token_no_token_and_nobody_there_are_errors_that_say_so(tmp_path: Path) -> None:
    with Server() as server:
        with pytest.raises(LeaseStoreError, match="InvalidAuthToken") as error:
            await over_grpc(server, tmp_path, "wrong").read()
        assert "wrong" not in str(error.value), "tokens are never shown"
        store = over_grpc(server, tmp_path)
        (tmp_path / "token").unlink()
        with pytest.raises(LeaseStoreError, match="cannot be asked"):
            await store.read()
    store = over_grpc(server, tmp_path)
    with pytest.raises(LeaseStoreError, match=r"UNAVAILABLE|DEADLINE"):
        await store.read()


@needs_grpc
async def test_a_token_file_that_is_no_token_is_an_error(tmp_path: Path) -> None:
    with Server() as server:
        for text in ("two\nlines", "\x00", "ä"):
            with pytest.raises(LeaseStoreError):
                await over_grpc(server, tmp_path, text).read()


@needs_grpc
@needs_ray
async def test_rays_own_definitions_read_in_the_messages_what_is_meant(tmp_path: Path) -> None:
    from ray.core.generated import gcs_service_pb2 as messages

    asked: list[tuple[str, bytes]] = []

    class Noting(Gcs):
        def answer(self, method: str, request: bytes, cluster: str) -> bytes:
            asked.append((method.rpartition("/")[2], request))
            return super().answer(method, request, cluster)

    store = Store(Noting())
    for _ in range(5):
        kept = await _alone(store.read())
        assert await _alone(store.replace(kept, "x" * 200))
    put = messages.InternalKVPutRequest.FromString(next(body for name, body in asked if name.endswith("Put")))
    assert (put.key, put.value, put.namespace) == (lease_store._key(1), b"x" * 200, b"llm_reconciler")
    assert put.overwrite is False
    kinds = {
        "InternalKVKeys": messages.InternalKVKeysRequest,
        "InternalKVGet": messages.InternalKVGetRequest,
        "InternalKVDel": messages.InternalKVDelRequest,
    }
    for name, body in asked:
        if name in kinds:
            request = kinds[name].FromString(body)
            assert request.namespace == b"llm_reconciler"
            assert not getattr(request, "del_by_prefix", False)
    assert {name for name, _ in asked} == {*kinds, "InternalKVPut", "GetClusterId"}


async def _alone(work: Coroutine[Any, Any, Any]) -> Any:
    return at_once(work)
