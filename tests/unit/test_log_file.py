"""Where events go: the terminal, the journal, the file with its rotation, the feed; no secret goes along."""

import errno
import io
import json
import logging
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from reconciler.host import log as logs
from reconciler.host.event_feed import EventFeed
from reconciler.host.log import configure, get_logger
from reconciler.host.log_file import LOST, LogFile


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = structlog.get_config()
    handlers = logging.getLogger().handlers[:]
    yield
    structlog.configure(**before)
    logging.getLogger().handlers[:] = handlers


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---- the file


def test_a_file_is_rotated_by_size_and_only_so_many_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "reconciler.log"
    file = LogFile(path, largest=100, keep=3)
    for n in range(50):
        file.write(f"{n:030d}")
    written = [path, *(path.with_name(f"reconciler.log.{n}") for n in (3, 2, 1))]
    assert sorted(path.parent.iterdir()) == sorted(written)
    assert all(each.stat().st_size <= 100 for each in written)
    assert all(stat.S_IMODE(each.stat().st_mode) == 0o600 for each in written)
    in_order = [*written[1:], path]
    kept = [int(line) for each in in_order for line in each.read_text().splitlines()]
    assert kept == list(range(kept[0], 50))
    assert kept[0] > 30


def test_a_line_that_is_longer_than_a_file_may_be_is_written_all_the_same(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "a.log", largest=10, keep=1)
    file.write("x" * 100)
    file.write("y")
    assert (tmp_path / "a.log").read_text() == "y\n"
    assert (tmp_path / "a.log.1").read_text() == "x" * 100 + "\n"


def test_a_file_that_was_moved_away_or_removed_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    file = LogFile(path)
    file.write("one")
    path.rename(tmp_path / "moved")
    file.write("two")
    path.unlink()
    file.write("three")
    assert ((tmp_path / "moved").read_text(), path.read_text()) == ("one\n", "three\n")


def test_a_file_that_was_cut_goes_on_at_its_start(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    file = LogFile(path)
    file.write("one")
    os.truncate(path, 0)
    file.write("two")
    assert path.read_text() == "two\n"


def test_a_full_disk_loses_lines_and_says_how_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.log"
    file = LogFile(path)
    file.write('{"n": 1}')
    write, room = os.write, 5

    def full(handle: int, data: bytes) -> int:
        nonlocal room
        if room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        part, room = data[:room], 0
        return write(handle, part)

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        for n in (2, 3, 4):
            file.write(json.dumps({"n": n}))
    file.write('{"n": 5}')
    first, torn, loss, last = path.read_text().splitlines()
    assert (first, torn, last) == ('{"n": 1}', '{"n":', '{"n": 5}')
    assert {"event": LOST, "lines": 3, "level": "warning"}.items() <= json.loads(loss).items()


def test_neither_a_link_nor_a_pipe_is_written_to(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("mine")
    (tmp_path / "link.log").symlink_to(target)
    os.mkfifo(tmp_path / "pipe.log")
    for name in ("link.log", "pipe.log"):
        LogFile(tmp_path / name).write("line")
    assert target.read_text() == "mine"


# ---- the events


def test_an_event_goes_to_the_stream_the_file_and_the_feed(tmp_path: Path) -> None:
    stream, feed = io.StringIO(), EventFeed()
    configure(json_lines=False, stream=stream, file=tmp_path / "reconciler.log", feed=feed)
    get_logger().info("model.ready", model="qwen", application="qwen-1")
    get_logger().debug("model.waiting", model="qwen")
    (line,) = read(tmp_path / "reconciler.log")
    assert line["timestamp"].endswith("Z")
    assert line == {
        "model": "qwen", "application": "qwen-1", "event": "model.ready", "level": "info",
        "timestamp": line["timestamp"],
    }  # fmt: skip
    assert [each.event for each in feed.after(None)] == [line]
    assert "model.ready" in stream.getvalue()
    assert not stream.getvalue().startswith("{")


@pytest.mark.parametrize(
    "fields",
    [
        {"reason": "HTTP 401 with hf_abcdefghijklmnop"},
        {"place": "https://me:s3cr3tpassword@host/x"},
        {"reasons": ["Bearer abcdefghijklmnop"]},
        {"detail": {"deep": ["ghp_abcdefghijklmnopqrstuvwx"]}},
        {"error": ValueError("hf_abcdefghijklmnop")},
        {"token": "anything"},
    ],
)
def test_no_secret_gets_out(tmp_path: Path, fields: dict[str, Any]) -> None:
    stream, feed = io.StringIO(), EventFeed()
    configure(json_lines=True, stream=stream, file=tmp_path / "a.log", feed=feed)
    get_logger().error("some.failed", **fields)
    get_logger().error("other.failed", exc_info=ValueError(str(fields)), **fields)
    everything = stream.getvalue() + (tmp_path / "a.log").read_text() + str(feed.after(None))
    for secret in ("abcdefghijklmnop", "s3cr3tpassword"):
        assert secret not in everything
    assert "***" in everything


def test_what_libraries_warn_of_is_an_event(tmp_path: Path) -> None:
    stream = io.StringIO()
    for _ in range(2):  # configured again, it is still said once
        configure(json_lines=True, stream=stream, file=tmp_path / "a.log")
    logging.getLogger("a.library").warning("it %s", "creaks")
    logging.getLogger("asyncio").info("not worth a line")
    logging.getLogger("asyncio").critical("lost it", exc_info=RuntimeError("broken"))
    # Not by its logger: pytest listens too, and does not bear it.
    logging.getLogger().handlers[-1].handle(logging.LogRecord("odd", 35, "", 1, "%d", ("no number",), None))
    first, second, third = read(tmp_path / "a.log")
    assert (first["event"], first["library"], first["text"]) == ("library.warned", "a.library", "it creaks")
    assert (second["event"], second["level"], second["text"]) == ("library.failed", "error", "lost it")
    assert "RuntimeError: broken" in second["exception"]
    assert (third["level"], third["text"]) == ("warning", "%d")


def test_the_journal_gets_levels_and_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryFile("w+") as stream:
        status = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        configure(json_lines=True, stream=stream, file=tmp_path / "a.log")
        get_logger().warning("model.held", model="qwen")
        get_logger().error("model.failed", model="qwen")
        configure(json_lines=False, stream=stream)
        get_logger().error("model.failed", reason="two\nlines")
        stream.seek(0)
        held, failed, *text = stream.read().splitlines()
    assert held == '<4>{"model": "qwen", "event": "model.held", "level": "warning"}'
    assert failed.startswith("<3>{")
    assert text
    assert all(line.startswith("<3>") for line in text)
    assert all("timestamp" in line for line in read(tmp_path / "a.log"))


def test_another_stream_than_the_journals_gets_no_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryFile("w+") as stream:
        monkeypatch.setenv("JOURNAL_STREAM", "1:1")
        assert not logs.is_journal(stream)
    assert not logs.is_journal(io.StringIO())


def test_a_terminal_that_is_gone_or_a_full_one_stops_nothing(tmp_path: Path) -> None:
    stream = (tmp_path / "closed").open("w")
    configure(json_lines=True, stream=stream, file=tmp_path / "a.log")
    stream.close()
    get_logger().info("model.ready")
    with Path("/dev/full").open("w") as full:
        configure(json_lines=True, stream=full, file=tmp_path / "a.log")
        get_logger().info("model.ready")
        assert len(read(tmp_path / "a.log")) == 2
        # What it still has to write is nobody's; the file would complain when it is closed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())
