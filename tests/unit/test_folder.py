"""A folder of model files: whatever editors, mounts and accidents do to it."""

import os
import threading
import time
from pathlib import Path

import pytest

from reconciler.core.desired import Snapshot
from reconciler.core.yaml_reader import MAX_BYTES
from reconciler.sources import folder as source
from reconciler.sources.folder import FolderSource

CONTENT = b"source: {repo: o/m}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "models.d"
    folder.mkdir()
    return folder


def write(file: Path, content: bytes = CONTENT) -> None:
    """A file that has lain there for a while."""
    file.write_bytes(content)
    age(file)


def age(*paths: Path) -> None:
    before = time.time() - 60
    for path in paths:
        os.utime(path, (before, before))
        os.utime(path.parent, (before, before))


async def read(folder: Path) -> Snapshot:
    return await FolderSource(folder).read()


async def test_model_files_are_read_and_nothing_else(folder: Path) -> None:
    for name in ("a.yaml", "b.yml", "C.YAML", ".hidden.yaml", "d.yaml~", ".e.yaml.swp", "f.txt", "4913"):
        write(folder / name)
    (folder / "sub").mkdir()
    write(folder / "sub" / "g.yaml")
    snapshot = await read(folder)
    assert set(snapshot.files) == {"models.d/a.yaml", "models.d/b.yml", "models.d/C.YAML"}
    assert snapshot.problems == ()
    assert snapshot.unreadable == ""


async def test_the_revision_is_the_content_s(folder: Path) -> None:
    write(folder / "a.yaml")
    first = await read(folder)
    os.utime(folder / "a.yaml", (1.0, 1.0))
    assert await read(folder) == first
    write(folder / "a.yaml", CONTENT + b"#")
    assert (await read(folder)).revision != first.revision


async def test_an_empty_folder_is_read_as_empty(folder: Path) -> None:
    snapshot = await read(folder)
    assert (snapshot.files, snapshot.unreadable) == ({}, "")


@pytest.mark.parametrize("kind", ["absent", "file", "loop"])
async def test_a_folder_that_is_none_is_unreadable(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "models.d"
    if kind == "file":
        path.write_text("x")
    elif kind == "loop":
        path.symlink_to(path)
    snapshot = await read(path)
    assert str(path) in snapshot.unreadable
    assert snapshot.files == {}


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
async def test_a_folder_that_may_not_be_read_is_unreadable(folder: Path) -> None:
    folder.chmod(0)  # noqa: ASYNC240 -- a test
    try:
        assert "Permission denied" in (await read(folder)).unreadable
    finally:
        folder.chmod(0o700)  # noqa: ASYNC240 -- a test


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
async def test_a_file_that_may_not_be_read_is_a_problem(folder: Path) -> None:
    write(folder / "a.yaml")
    (folder / "a.yaml").chmod(0)
    assert [problem.path for problem in (await read(folder)).problems] == ["models.d/a.yaml"]


@pytest.mark.timeout(20)
async def test_a_pipe_a_folder_and_a_giant_are_problems_and_block_nobody(folder: Path) -> None:
    write(folder / "a.yaml")
    os.mkfifo(folder / "pipe.yaml")
    (folder / "sub.yaml").mkdir()
    write(folder / "big.yaml", b"#" * (MAX_BYTES + 1))
    (folder / "dangling.yaml").symlink_to("nowhere")
    snapshot = await read(folder)
    assert set(snapshot.files) == {"models.d/a.yaml"}
    assert sorted(problem.path for problem in snapshot.problems) == [
        "models.d/big.yaml",
        "models.d/dangling.yaml",
        "models.d/pipe.yaml",
        "models.d/sub.yaml",
    ]


async def test_a_linked_folder_is_followed(folder: Path, tmp_path: Path) -> None:
    write(folder / "a.yaml")
    link = tmp_path / "link.d"
    link.symlink_to(folder)
    snapshot = await read(link)
    assert snapshot.files == {"link.d/a.yaml": CONTENT}
    assert snapshot.folder == str(folder)


async def test_a_configmap_swap_is_seen_whole(folder: Path) -> None:
    """Kubernetes puts files behind `..data`, a link that is swapped by a rename."""
    for version in ("1", "2"):
        (folder / f"..{version}").mkdir()
        write(folder / f"..{version}" / "a.yaml", f"# {version}".encode())
    (folder / "..data").symlink_to("..1")
    (folder / "a.yaml").symlink_to("..data/a.yaml")
    assert (await read(folder)).files == {"models.d/a.yaml": b"# 1"}
    (folder / "..data_tmp").symlink_to("..2")
    (folder / "..data_tmp").rename(folder / "..data")
    assert (await read(folder)).files == {"models.d/a.yaml": b"# 2"}


async def test_an_atomic_rename_is_the_old_content_or_the_new_one(folder: Path) -> None:
    write(folder / "a.yaml", b"old")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            for content in (b"new" * 1000, b"old"):
                (folder / ".a.tmp").write_bytes(content)
                (folder / ".a.tmp").rename(folder / "a.yaml")

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        snapshot = await read(folder)
    finally:
        stop.set()
        thread.join()
    assert snapshot.files["models.d/a.yaml"] in (b"old", b"new" * 1000)


async def test_a_file_that_is_truncated_and_then_written_is_never_read_half(folder: Path) -> None:
    file = folder / "a.yaml"
    write(file, b"old: 1\n")
    parts = [b"name: a\n", CONTENT]
    started = threading.Event()

    def edit() -> None:
        with file.open("wb") as handle:
            for part in parts:
                handle.write(part)
                handle.flush()
                started.set()
                time.sleep(0.1)

    thread = threading.Thread(target=edit)
    thread.start()
    started.wait()
    snapshot = await read(folder)
    thread.join()
    assert snapshot.files["models.d/a.yaml"] == b"".join(parts)


async def test_a_file_that_changes_while_it_is_read_is_read_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time stamp was old when we looked, and the content half when we read."""
    file = folder / "a.yaml"
    write(file)
    real, readings = source._content_of, []

    def torn(path: Path) -> tuple[os.stat_result, bytes]:
        readings.append(path)
        if len(readings) == 1:
            path.write_bytes(CONTENT[:5])
            half = real(path)
            path.write_bytes(CONTENT)
            return half
        return real(path)

    monkeypatch.setattr(source, "_content_of", torn)
    assert (await read(folder)).files == {"models.d/a.yaml": CONTENT}
    assert len(readings) > 1


async def test_a_file_that_is_away_while_an_editor_saves_is_not_gone(folder: Path) -> None:
    """Vim renames the old file away before it writes the new one."""
    file = folder / "a.yaml"
    write(file)
    file.rename(folder / "a.yaml~")

    def save() -> None:
        time.sleep(0.1)
        file.write_bytes(CONTENT)

    thread = threading.Thread(target=save)
    thread.start()
    snapshot = await read(folder)
    thread.join()
    assert snapshot.files == {"models.d/a.yaml": CONTENT}


async def test_a_writer_that_never_rests_does_not_hold_us_up_for_ever(folder: Path) -> None:
    file, stop = folder / "a.yaml", threading.Event()
    file.write_bytes(b"0")

    def scribble() -> None:
        number = 0
        while not stop.wait(0.01):
            number += 1
            file.write_bytes(str(number).encode())

    thread = threading.Thread(target=scribble)
    thread.start()
    begin = time.monotonic()
    try:
        await read(folder)
    finally:
        stop.set()
        thread.join()
    assert time.monotonic() - begin < 10
