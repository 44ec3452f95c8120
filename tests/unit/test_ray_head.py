"""Ray's head is started again by a command: with patience, one at a time, and what goes wrong is said."""

import asyncio
import shlex
import sys
from pathlib import Path

from structlog.testing import capture_logs

from reconciler.loop.ray_head import PATIENCE_SECONDS, RayHead


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def script(tmp_path: Path, text: str) -> tuple[str, Path]:
    """A command that notes each of its starts, then does as `text` says; and where the notes are."""
    notes = tmp_path / "starts"
    body = f"open({str(notes)!r}, 'a').write('x')\n{text}"
    return f"{shlex.quote(sys.executable)} -c {shlex.quote(body)}", notes


async def test_a_dashboard_that_is_slow_for_a_moment_is_left_alone(tmp_path: Path) -> None:
    clock, (command, notes) = Clock(), script(tmp_path, "")
    head = RayHead(command, lambda: None, monotonic=clock)
    head.missing()
    clock.now += PATIENCE_SECONDS - 0.1
    head.missing()
    head.answers()
    clock.now += PATIENCE_SECONDS
    head.missing()
    await head.close()
    assert not notes.exists()


async def test_the_command_is_given_once_and_again_only_after_a_while(tmp_path: Path) -> None:
    clock, woken = Clock(), []
    command, notes = script(tmp_path, "")
    head = RayHead(command, lambda: woken.append(1), monotonic=clock)
    head.missing()
    clock.now += PATIENCE_SECONDS
    with capture_logs() as logs:
        head.missing()
        head.missing()
        await head.close()
        head.missing()
        await head.close()
    assert [log["event"] for log in logs] == ["ray.start_again", "ray.started"]
    assert notes.read_text() == "x"
    assert woken == [1]
    clock.now += 20
    head.missing()
    await head.close()
    assert notes.read_text() == "xx"


async def test_why_it_failed_is_said(tmp_path: Path) -> None:
    clock, (command, _) = Clock(), script(tmp_path, "raise SystemExit('port 6379 is taken')")
    head = RayHead(command, lambda: None, monotonic=clock)
    head.missing()
    clock.now += PATIENCE_SECONDS
    with capture_logs() as logs:
        head.missing()
        await head.close()
    assert (logs[-1]["event"], logs[-1]["reason"]) == ("ray.start_failed", "port 6379 is taken")


async def test_a_command_that_is_not_there_is_said() -> None:
    clock = Clock()
    head = RayHead("/nowhere/start", lambda: None, monotonic=clock)
    head.missing()
    clock.now += PATIENCE_SECONDS
    with capture_logs() as logs:
        head.missing()
        await head.close()
    assert logs[-1]["event"] == "ray.start_failed"


async def test_without_a_command_nothing_is_done() -> None:
    clock = Clock()
    head = RayHead("", lambda: None, monotonic=clock)
    head.missing()
    clock.now += 100
    with capture_logs() as logs:
        head.missing()
        await asyncio.sleep(0)
        await head.close()
    assert not logs
