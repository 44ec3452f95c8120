"""Keys on the disk: who may read them, what is damaged, who else changes them, and how much they are used."""

import fcntl
import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from reconciler.core.key_usage import KeyUse
from reconciler.core.keys import KeyRefusedError, KeyRing, Scope, digest_of
from reconciler.host import key_file
from reconciler.host.key_file import FILE, KeyFile, KeyFileError
from reconciler.loop import key_usage
from reconciler.loop.key_usage import KeyUsage

NOW = 1_790_000_000.0


def file_of(folder: Path) -> KeyFile:
    return KeyFile(folder, wall_clock=lambda: NOW)


def test_what_is_made_is_read_and_only_its_hash_is_kept(tmp_path: Path) -> None:
    state = tmp_path / "state"
    keys = file_of(state)
    assert keys.ring() == KeyRing()
    key, secret = keys.add(
        "app", [Scope.INFERENCE], models=["m", "org/n"], expires=NOW + 60, requests_per_minute=5, concurrent=2
    )
    operator, _ = keys.add("operator", [Scope.ADMIN, Scope.METRICS])
    for each in (keys, file_of(state)):
        assert each.ring().keys == (key, operator)
        assert each.ring().find(secret, NOW) == key
        assert each.ring() is each.ring(), "read once"
    assert key.created == NOW
    assert [path.stat().st_mode & 0o777 for path in sorted(state.iterdir())] == [0o600, 0o600]
    for path in state.iterdir():
        assert secret[3:] not in path.read_text()
    assert digest_of(secret) in (state / FILE).read_text()


def test_revoking_and_rotating_are_seen_by_another_process_at_once(tmp_path: Path) -> None:
    mine, others = file_of(tmp_path), file_of(tmp_path)
    first, secret = mine.add("app", [Scope.INFERENCE])
    assert others.ring().find(secret, NOW) is not None
    new, old, newer = mine.rotate("app", grace=60.0)
    assert (old.fingerprint, old.expires) == (first.fingerprint, NOW + 60)
    assert others.ring().find(newer, NOW) == new
    assert mine.revoke("app").fingerprint == new.fingerprint
    assert others.ring().find(secret, NOW) is others.ring().find(newer, NOW) is None
    assert not others.ring().inference_is_open
    with pytest.raises(KeyRefusedError):
        mine.revoke("app")


def test_what_is_refused_changes_nothing(tmp_path: Path) -> None:
    keys = file_of(tmp_path)
    keys.add("app", [Scope.INFERENCE])
    before = (tmp_path / FILE).read_bytes()
    for call in (
        lambda: keys.add("app", [Scope.INFERENCE]),
        lambda: keys.add("b", []),
        lambda: keys.revoke("b"),
        lambda: keys.rotate("b"),
    ):
        with pytest.raises(KeyRefusedError):
            call()
    assert (tmp_path / FILE).read_bytes() == before


def test_what_is_done_is_told_without_the_key(tmp_path: Path) -> None:
    keys = file_of(tmp_path)
    with capture_logs() as events:
        key, secret = keys.add("app", [Scope.INFERENCE])
        new, _, newer = keys.rotate("app")
        keys.revoke("app")
    assert [event["event"] for event in events] == ["key.added", "key.rotated", "key.revoked"]
    assert [event["fingerprint"] for event in events] == [key.fingerprint, new.fingerprint, new.fingerprint]
    assert secret[3:] not in str(events)
    assert newer[3:] not in str(events)


# --- what must not be believed ----------------------------------------------------------------------------------


def document(**more: object) -> dict[str, object]:
    row = {"name": "a", "digest": "0" * 64, "scopes": ["inference"], "created": 1.0}
    return {"version": 1, "keys": [{**row, **more}]}


BAD: list[bytes | dict[str, object]] = [
    b"",
    b"\x00" * 100,
    b"null",
    b"[]",
    b"{}",
    b"[" * 100_000,
    b"\xff\xfe",
    b'{"version": 1, "keys": [',
    {"version": 2, "keys": []},
    {"keys": []},
    {"version": 1, "keys": [], "more": 1},
    document(unknown_limit=1),
    document(name="a b"),
    document(digest="0" * 63),
    document(digest="ä" * 64),
    document(digest="A" * 64),
    document(scopes=[]),
    document(scopes=["root"]),
    document(models=[]),
    document(created="NaN"),
    document(expires=1e300),
    document(revoked=-1),
    document(requests_per_minute=0),
    document(concurrent=10**30),
    {"version": 1, "keys": [*document()["keys"], *document(revoked=2.0)["keys"]]},  # type: ignore[misc]
    {"version": 1, "keys": [{**document()["keys"][0], "digest": f"{n:064x}"} for n in range(1001)]},  # type: ignore[index]
]


@pytest.mark.parametrize("content", BAD, ids=range(len(BAD)))
def test_a_damaged_file_is_an_error_and_never_no_keys(tmp_path: Path, content: bytes | dict[str, object]) -> None:
    path = tmp_path / FILE
    path.touch(mode=0o600)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    keys = file_of(tmp_path)
    for call in (keys.ring, keys.ring, lambda: keys.add("b", [Scope.INFERENCE]), lambda: keys.revoke("a")):
        with pytest.raises(KeyFileError, match=r"keys\.json") as caught:
            call()
        assert "unknown_limit" not in str(caught.value)
    path.write_text(json.dumps(document()))
    assert len(keys.ring().keys) == 1, "mended, it counts at once"


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_file, "_MOST_BYTES", 1000)
    path = tmp_path / FILE
    path.touch(mode=0o600)
    path.write_text(json.dumps(document()) + " " * 1000)
    with pytest.raises(KeyFileError, match="larger"):
        file_of(tmp_path).ring()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o644, 0o666])
def test_a_file_that_others_may_read_or_change_is_not_believed(tmp_path: Path, mode: int) -> None:
    keys = file_of(tmp_path)
    keys.add("app", [Scope.INFERENCE])
    (tmp_path / FILE).chmod(mode)
    with pytest.raises(KeyFileError, match="chmod 600"):
        keys.ring()
    (tmp_path / FILE).chmod(0o600)
    assert keys.ring().keys


def _pipe(path: Path) -> None:
    os.mkfifo(path, 0o600)


def _link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize("make", [_pipe, _link_to_itself, Path.mkdir], ids=["pipe", "loop", "folder"])
def test_what_is_no_file_is_an_error(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / FILE)
    with pytest.raises(KeyFileError):
        file_of(tmp_path).ring()


def test_a_file_of_somebody_elses_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = file_of(tmp_path)
    keys.add("app", [Scope.INFERENCE])
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 4321)
    with pytest.raises(KeyFileError, match="belongs to"):
        file_of(tmp_path).ring()
    with pytest.raises(KeyFileError, match="run this as that user"):
        file_of(tmp_path).add("b", [Scope.INFERENCE])


def test_a_file_that_goes_while_it_is_in_use_opens_nothing(tmp_path: Path) -> None:
    keys = file_of(tmp_path)
    keys.add("app", [Scope.INFERENCE])
    moved = (tmp_path / FILE).rename(tmp_path / "elsewhere")
    for call in (keys.ring, lambda: keys.add("b", [Scope.INFERENCE])):
        with pytest.raises(KeyFileError, match="gone"):
            call()
    moved.rename(tmp_path / FILE)
    assert len(keys.ring().keys) == 1


def test_a_change_within_the_file_is_seen(tmp_path: Path) -> None:
    keys = file_of(tmp_path)
    _, secret = keys.add("app", [Scope.INFERENCE])
    path = tmp_path / FILE
    told = json.loads(path.read_text())
    told["keys"][0]["revoked"] = NOW
    path.write_text(json.dumps(told))
    assert keys.ring().find(secret, NOW) is None


# --- several at once --------------------------------------------------------------------------------------------


def _add_many(folder: str, prefix: str, count: int) -> None:
    keys = KeyFile(Path(folder))
    for number in range(count):
        keys.add(f"{prefix}{number}", [Scope.INFERENCE])


def test_several_processes_lose_none_of_their_keys(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_add_many, args=(str(tmp_path), prefix, 10)) for prefix in "abc"]
    for process in processes:
        process.start()
    reader = KeyFile(tmp_path)
    while any(process.is_alive() for process in processes):
        seen = len(reader.ring().keys)
        assert len(reader.ring().keys) >= seen
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sorted(key.name for key in reader.ring().keys) == sorted(f"{p}{n}" for p in "abc" for n in range(10))


def test_whoever_holds_the_lock_for_long_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_file, "_LOCK_SECONDS", 0.1)
    with (tmp_path / "keys.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(KeyFileError, match="another process"):
            file_of(tmp_path).add("a", [Scope.INFERENCE])
    file_of(tmp_path).add("a", [Scope.INFERENCE])


def test_a_disk_that_takes_nothing_leaves_the_keys_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = file_of(tmp_path)
    keys.add("app", [Scope.INFERENCE])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        keys.revoke("app")
    assert keys.ring().keys[0].revoked is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["keys.json", "keys.lock"]


# --- use --------------------------------------------------------------------------------------------------------

F = "0123456789ab"


def test_use_survives_a_restart_and_is_written_now_and_then(tmp_path: Path) -> None:
    clock = [0.0]
    usage = KeyUsage(tmp_path, wall_clock=lambda: NOW + clock[0], monotonic=lambda: clock[0])
    usage.note({F: 0})
    assert not (tmp_path / key_usage.FILE).exists(), "nothing to write"
    usage.note({F: 3})
    assert key_usage.read(tmp_path) == {F: KeyUse(3, NOW, 3)}
    clock[0] = 1.0
    usage.note({F: 5})
    assert key_usage.read(tmp_path)[F].requests == 3, "not for each request"
    assert usage.usage()[F] == KeyUse(5, NOW + 1, 5)
    crashed = KeyUsage(tmp_path, wall_clock=lambda: NOW + 2)
    crashed.note({F: 6})
    assert crashed.usage()[F] == KeyUse(6, NOW + 2, 6), "the counter knows what the file does not"
    crashed.note({F: 1})
    crashed.save()
    assert key_usage.read(tmp_path)[F].requests == 7
    crashed.keep(set())
    crashed.save()
    assert key_usage.read(tmp_path) == {}


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{" * 10**5, b'{"x": {}}', b'{"0123456789ab": {"last_used": 1e300}}', b'{"0123456789ab": 1}'],
)
def test_use_that_is_damaged_is_begun_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / key_usage.FILE).write_bytes(content)
    usage = KeyUsage(tmp_path, wall_clock=lambda: NOW)
    usage.note({F: 2})
    assert key_usage.read(tmp_path) == {F: KeyUse(2, NOW, 2)}


def test_use_that_cannot_be_written_still_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    usage = KeyUsage(tmp_path, wall_clock=lambda: NOW, monotonic=lambda: clock[0])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            usage.note({F: 2})
    clock[0] = 11.0
    usage.note({F: 3})
    assert key_usage.read(tmp_path)[F].requests == 3


def test_where_strangers_come_it_is_never_open(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path)
    keys.strangers_come = True
    assert not keys.ring().inference_is_open
    keys.add("me", [Scope.ADMIN])
    assert not keys.ring().inference_is_open
    keys.revoke("me")
    assert not keys.ring().inference_is_open
