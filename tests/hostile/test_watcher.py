"""Whatever lies in the folder, the models whose files are well are read, and nobody waits for the rest."""

import asyncio
import errno
import io
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import watchfiles

from reconciler.core.desired import Desired, compile_desired
from reconciler.host import log
from reconciler.sources import folder as folder_module
from reconciler.sources import watch
from reconciler.sources.folder import MAX_FILES, FolderSource

from . import cases_watcher
from .cases_watcher import FolderCase
from .conftest import FOLDER, GOOD, RENDERER, SICK, SLOWEST_SECONDS, Judged, assert_held, assert_located, judge


def _name(case: FolderCase) -> str:
    return case.name


def make_folder(path: Path) -> Path:
    """The folder with the healthy models' files, as old as files are."""
    folder = path / FOLDER
    folder.mkdir()
    for name in ("steady", "newcomer"):
        (folder / f"{name}.yaml").write_text(GOOD)
    age(folder)
    return folder


def age(folder: Path) -> None:
    """What was touched just now is read twice, after a pause."""
    for path in (*folder.iterdir(), folder):
        os.utime(path, (1.0, 1.0), follow_symlinks=False)


def desired_in(folder: Path) -> Desired:
    began = time.process_time()
    snapshot = asyncio.run(FolderSource(folder).read())
    assert time.process_time() - began < SLOWEST_SECONDS
    assert snapshot.unreadable == ""
    return compile_desired(snapshot, RENDERER)


def run_folder(case: FolderCase, tmp_path: Path) -> Judged:
    folder = make_folder(tmp_path)
    case.make(folder / "sick.yaml")
    age(folder)
    judged = judge(desired_in(folder))
    assert_located(judged.of_sick, case.at, case.says)
    assert_held(judged)
    return judged


@pytest.mark.parametrize("case", cases_watcher.CASES, ids=_name)
def test_what_is_no_model_file(case: FolderCase, tmp_path: Path) -> None:
    run_folder(case, tmp_path)


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that other users may look into."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


@pytest.fixture
def nobody() -> Iterator[None]:
    """Not root, who may read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_file_without_permissions(public: Path, request: pytest.FixtureRequest) -> None:
    folder = make_folder(public)
    (folder / "sick.yaml").write_text(GOOD)
    (folder / "sick.yaml").chmod(0)
    age(folder)
    request.getfixturevalue("nobody")
    judged = judge(desired_in(folder))
    assert_located(judged.of_sick, "1:1", "Permission denied")
    assert_held(judged)


def test_a_folder_without_permissions_is_unreadable_and_not_empty(
    public: Path, request: pytest.FixtureRequest
) -> None:
    folder = make_folder(public)
    folder.chmod(0)
    request.getfixturevalue("nobody")
    snapshot = asyncio.run(FolderSource(folder).read())
    assert "Permission denied" in snapshot.unreadable


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"no\xffutf8.yaml", r"no\udcffutf8.yaml"),
        (b"line\nend.yaml", r"line\nend.yaml"),
        (b"\x1b[31mred.yaml", r"\x1b[31mred.yaml"),
        ("\u202egpj.yaml".encode(), r"\u202egpj.yaml"),
        (b"{{7*7}}.yaml", "{{7*7}}.yaml"),
        (b"-rf.yaml", "-rf.yaml"),
        (b"a:b.yaml", "a:b.yaml"),
        (b"x" * 240 + b".yaml", "x" * 240 + ".yaml"),
        ("cafe\u0301.yaml".encode(), "cafe\u0301.yaml"),
        (b"..yaml.yaml", ""),
    ],
)
def test_a_file_with_a_hostile_name(tmp_path: Path, name: bytes, shown: str) -> None:
    folder = make_folder(tmp_path)
    Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_text(GOOD)
    age(folder)
    desired = desired_in(folder)
    judge_others = {model for model in desired.targets if model in ("steady", "newcomer")}
    assert judge_others == {"steady", "newcomer"}
    others = [str(problem) for problem in desired.problems]
    assert [each.startswith(f"{FOLDER}/{shown}:1:1: the file's name ") for each in others] == [True] * bool(shown)
    assert all(each.isprintable() or "\u0301" in each for each in others)


@pytest.mark.parametrize("swap", ["pipe", "device", "grows", "removed"])
def test_a_file_that_is_swapped_between_the_look_and_the_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swap: str
) -> None:
    folder = make_folder(tmp_path)
    sick = folder / "sick.yaml"
    sick.write_text(GOOD)
    age(folder)
    real = os.open

    def swapped(path: object, flags: int, *args: int, **options: int) -> int:
        if path == sick and not sick.is_symlink():
            sick.unlink()
            if swap == "pipe":
                os.mkfifo(sick)
            elif swap == "device":
                sick.symlink_to("/dev/zero")
            elif swap == "grows":
                sick.write_bytes(b"#" * 2**20)
        return real(path, flags, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", swapped)
    if swap == "removed":
        # As good as removed before: it is gone, and says so after a second look.
        assert "sick" not in desired_in(folder).targets
        return
    judged = judge(desired_in(folder))
    assert_located(judged.of_sick, "1:1", "larger than" if swap == "grows" else "not a regular file")
    assert_held(judged)


def test_a_file_without_an_end_is_read_to_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of the kernel's files are regular, have no size, and never end."""
    folder = make_folder(tmp_path)
    (folder / "sick.yaml").write_bytes(b"")
    age(folder)
    asked: list[int] = []

    class Endless(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            asked.append(size)
            return b"#" * min(size, 4096)

    def endless(handle: int, *_args: object, **_options: object) -> Endless:
        os.close(handle)
        return Endless()

    monkeypatch.setattr(folder_module, "open", endless, raising=False)
    monkeypatch.setattr(os, "fstat", lambda _handle: (folder / "sick.yaml").stat())
    snapshot = asyncio.run(FolderSource(folder).read())
    assert {problem.message for problem in snapshot.problems} == {"cannot be read: larger than 256 KiB"}
    assert sum(min(size, 4096) for size in asked) <= 3 * (256 * 1024 + 4096)


def test_twenty_thousand_files(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    (folder / "z0.yaml").write_text("{")
    for index in range(1, 20_000):
        os.link(folder / "z0.yaml", folder / f"z{index}.yaml")
    age(folder)
    began = time.process_time()
    snapshot = asyncio.run(FolderSource(folder).read())
    assert time.process_time() - began < 2 * SLOWEST_SECONDS
    assert len(snapshot.files) == MAX_FILES
    assert len(snapshot.problems) == 20_002 - MAX_FILES
    desired = compile_desired(snapshot, RENDERER)
    assert set(desired.targets) == {"steady", "newcomer"}
    assert len(desired.invalid) == 20_000


def test_a_file_behind_the_bound_is_held_and_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "MAX_FILES", 2)
    folder = make_folder(tmp_path)
    (folder / "sick.yaml").write_text(GOOD)
    (folder / "steady.yaml").rename(folder / "a.yaml")
    (folder / "a.yaml").write_text(f"name: steady\n{GOOD}")
    age(folder)
    desired = desired_in(folder)
    assert set(desired.targets) == {"steady", "newcomer"}
    assert [str(problem) for problem in desired.problems] == [
        f"{SICK}:1:1: not read: there are more than 2 model files"
    ]


# --- the folder itself -------------------------------------------------------------------------------------------


def _pipe_instead(folder: Path) -> None:
    folder.rename(folder.with_name("away"))
    os.mkfifo(folder)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("removed", lambda folder: folder.rename(folder.with_name("away"))),
        ("replaced by a file", lambda folder: (folder.rename(folder.with_name("away")), folder.touch())),
        ("replaced by a pipe", _pipe_instead),
        (
            "replaced by a link in a circle",
            lambda folder: (folder.rename(folder.with_name("away")), folder.symlink_to(folder)),
        ),
        (
            "replaced by a device",
            lambda folder: (folder.rename(folder.with_name("away")), folder.symlink_to("/dev/zero")),
        ),
    ],
)
def test_a_folder_that_is_none_is_unreadable_and_not_empty(
    tmp_path: Path, name: str, change: Callable[[Path], object]
) -> None:
    folder = make_folder(tmp_path)
    change(folder)
    snapshot = asyncio.run(FolderSource(folder).read())
    assert str(folder) in snapshot.unreadable, name
    assert (snapshot.files, snapshot.problems) == ({}, ())


async def woken(folder: Path, change: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """The real watcher, woken by a change of the folder."""
    monkeypatch.setattr(watch, "_AGAIN_SECONDS", 0.1)
    wake = asyncio.Event()
    watching = asyncio.create_task(watch.watch_folder(folder, wake.set))
    try:
        await asyncio.sleep(0.4)
        wake.clear()
        change()
        async with asyncio.timeout(10):
            await wake.wait()
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def test_a_replaced_folder_is_watched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path)

    def replace() -> None:
        folder.rename(tmp_path / "away")
        make_folder(tmp_path)

    await woken(folder, replace, monkeypatch)
    assert set((await FolderSource(folder).read()).files) == {f"{FOLDER}/steady.yaml", f"{FOLDER}/newcomer.yaml"}


async def test_a_configmap_swap_wakes_and_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / FOLDER
    folder.mkdir()
    for version in ("1", "2"):
        (folder / f"..{version}").mkdir()
        for name in ("steady", "newcomer"):
            (folder / f"..{version}" / f"{name}.yaml").write_text(GOOD + f"# {version}\n")
    (folder / "..data").symlink_to("..1")
    for name in ("steady", "newcomer"):
        (folder / f"{name}.yaml").symlink_to(f"..data/{name}.yaml")

    def swap() -> None:
        (folder / "..data_tmp").symlink_to("..2")
        (folder / "..data_tmp").rename(folder / "..data")

    await woken(folder, swap, monkeypatch)
    files = (await FolderSource(folder).read()).files
    assert [content.endswith(b"# 2\n") for content in files.values()] == [True, True]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE, errno.ENOENT, errno.EACCES])
async def test_an_exhausted_inotify_is_told_once_and_the_looks_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """No events any more: the loop is woken every few seconds all the same, and looks at everything itself."""
    folder = make_folder(tmp_path)

    async def broken(*_paths: Path, **_options: object) -> AsyncIterator[set[object]]:
        raise OSError(number, os.strerror(number))
        yield set()

    monkeypatch.setattr(watchfiles, "awatch", broken)
    monkeypatch.setattr(watch, "_AGAIN_SECONDS", 0.01)
    lines = io.StringIO()
    log.configure(json_lines=True, level="debug", stream=lines)
    wakes = 0

    def wake() -> None:
        nonlocal wakes
        wakes += 1

    watching = asyncio.create_task(watch.watch_folder(folder, wake))
    async with asyncio.timeout(10):
        while wakes < 5:  # noqa: ASYNC110 -- counted by the watcher
            await asyncio.sleep(0.01)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    told = lines.getvalue().splitlines()
    assert len(told) == 1
    assert '"event": "watch.failed"' in told[0]
    assert os.strerror(number) in told[0]
