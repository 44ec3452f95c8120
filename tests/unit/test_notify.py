"""What the supervisor is told, over a real socket, and when a loop counts as getting on."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.host.notify import Heartbeat, Notifier


@pytest.fixture(params=["path", "abstract"])
def supervisor(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A socket as systemd has one, and what NOTIFY_SOCKET is for it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        name = f"reconciler-test-{os.getpid()}"
        channel.bind(f"\0{name}" if request.param == "abstract" else str(tmp_path / "notify"))
        channel.settimeout(5)
        yield channel, f"@{name}" if request.param == "abstract" else str(tmp_path / "notify")


def said(channel: socket.socket) -> list[str]:
    return channel.recv(4096).decode().splitlines()


def test_each_message_arrives(supervisor: tuple[socket.socket, str]) -> None:
    channel, name = supervisor
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.ready("up\nREADY=0")
    notifier.status("x" * 1000)
    notifier.alive()
    notifier.stopping()
    assert said(channel) == ["READY=1", "STATUS=up READY=0"]
    assert said(channel) == [f"STATUS={'x' * 200}"]
    assert said(channel) == ["WATCHDOG=1"]
    assert said(channel) == ["STOPPING=1"]


@pytest.mark.parametrize("name", ["", "relative", "@gone-for-good", "/nowhere/notify", "/" + "x" * 500, "/\0"])
def test_where_nobody_listens_nothing_happens(name: str) -> None:
    assert not Notifier({"NOTIFY_SOCKET": name}).send("READY=1")
    assert not Notifier({}).send("READY=1")


def test_a_supervisor_that_does_not_read_holds_nobody_up(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(tmp_path / "deaf"))
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "deaf")})
        while notifier.send("WATCHDOG=1"):
            pass
        began = time.monotonic()
        assert not notifier.send("WATCHDOG=1")
        assert time.monotonic() - began < 3


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({"WATCHDOG_USEC": "60000000"}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "7"}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
        ({"WATCHDOG_USEC": "a minute"}, None),
        ({"WATCHDOG_USEC": "\N{SUPERSCRIPT TWO}"}, None),
        ({}, None),
    ],
)
def test_how_often_a_sign_of_life_is_wanted(environment: dict[str, str], seconds: float | None) -> None:
    assert Notifier({"NOTIFY_SOCKET": "@x", **environment}, pid=7).watchdog_seconds == seconds
    assert Notifier(environment, pid=7).watchdog_seconds is None, "nobody to tell"


def test_the_command_waits_until_it_was_heard(supervisor: tuple[socket.socket, str]) -> None:
    channel, name = supervisor
    process = subprocess.Popen(
        [sys.executable, "-m", "reconciler.host.notify", "READY=1", "STATUS=up"],
        env={**os.environ, "NOTIFY_SOCKET": name},
    )
    try:
        channel.settimeout(30)
        assert said(channel) == ["READY=1", "STATUS=up"]
        message, descriptors, _, _ = socket.recv_fds(channel, 100, 4)
        assert message == b"BARRIER=1"
        assert len(descriptors) == 1
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        os.close(descriptors[0])
        assert process.wait(5) == 0
    finally:
        process.kill()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_loop_gets_on_while_its_turns_come_round() -> None:
    clock, laps = Clock(), 0
    heart = Heartbeat(Notifier({}), lambda: laps, rest_seconds=10, turn_seconds=100, monotonic=clock)
    for _ in range(50):
        laps += 1
        clock.now += 90
        assert heart.gets_on(), "a long turn is no hang"
    clock.now += 109
    assert heart.gets_on()
    clock.now += 2
    assert not heart.gets_on()
    assert not heart.gets_on()
    laps += 1
    assert heart.gets_on(), "it came back"


def test_waiting_for_ray_is_no_hang() -> None:
    clock = Clock()
    heart = Heartbeat(Notifier({}), lambda: 0, rest_seconds=10, turn_seconds=100, monotonic=clock)
    with heart.waiting("waits for Ray"):
        for _ in range(5):
            clock.now += 1000
            assert heart.gets_on()
    clock.now += 109
    assert heart.gets_on(), "the time for the first turn begins when the wait is over"
    clock.now += 2
    assert not heart.gets_on()


async def beats(channel: socket.socket, seconds: float) -> int:
    channel.settimeout(0)
    await asyncio.sleep(seconds)
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            count += said(channel) == ["WATCHDOG=1"]
    return count


async def test_signs_of_life_stop_when_the_loop_does(supervisor: tuple[socket.socket, str]) -> None:
    channel, name = supervisor
    notifier = Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "150000"})
    laps = 0
    heart = Heartbeat(notifier, lambda: laps, rest_seconds=0.1, turn_seconds=0.2)
    task = asyncio.create_task(heart.run())
    try:
        for _ in range(5):
            laps += 1
            assert await beats(channel, 0.2) >= 1
        await beats(channel, 0.5)
        assert await beats(channel, 0.5) == 0
        laps += 1
        assert await beats(channel, 0.2) >= 1
        time.sleep(0.5)  # noqa: ASYNC251 -- a loop whose thread hangs is what is tested
        channel.settimeout(0)
        pending = 0
        with contextlib.suppress(BlockingIOError):
            while said(channel):
                pending += 1
        assert pending == 0, "the thread hung, and so nothing was said"
    finally:
        task.cancel()


async def test_where_no_sign_is_wanted_none_is_given(supervisor: tuple[socket.socket, str]) -> None:
    channel, name = supervisor
    task = asyncio.create_task(Heartbeat(Notifier({"NOTIFY_SOCKET": name}), lambda: 0, rest_seconds=1).run())
    assert await beats(channel, 0.3) == 0
    assert not task.done()
    task.cancel()


# --- the watchdog that stands in for systemd's ------------------------------------------------------------

ALIVE = "import signal, sys, time; from reconciler.host.notify import Notifier; n = Notifier(); "


def guard(code: str, *, seconds: int = 1) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "reconciler.host.watchdog", str(seconds), "--", sys.executable, "-uc", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_end_of_the_command_is_the_watchdogs() -> None:
    assert guard("raise SystemExit(7)").wait(30) == 7
    assert guard("import os; os.kill(os.getpid(), 9)").wait(30) == 137


def test_a_command_that_gives_no_sign_of_life_is_ended() -> None:
    process = guard(ALIVE + "n.ready(); time.sleep(60)")
    began = time.monotonic()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 124
    assert time.monotonic() - began < 25
    assert "no sign of life" in errors


def test_one_that_gives_signs_goes_on_and_gets_its_signals() -> None:
    code = (
        "import sys; from reconciler.host.notify import Notifier; import signal, time; n = Notifier()\n"
        "signal.signal(signal.SIGTERM, lambda *_: (n.stopping(), time.sleep(2), sys.exit(5)))\n"
        "assert n.watchdog_seconds == 1\n"
        "n.ready(); print('up')\n"
        "while True: n.alive(); time.sleep(0.3)\n"
    )
    process = guard(code)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(2.5)
    process.send_signal(signal.SIGTERM)
    # It takes longer to end than a sign of life may: it has said that it ends.
    assert process.wait(15) == 5


def test_what_is_not_ready_yet_has_time() -> None:
    process = guard("import time; time.sleep(2.5)")
    assert process.wait(30) == 0


@pytest.mark.parametrize("words", [[], ["5"], ["5", "--"], ["x", "--", "true"], ["0", "--", "true"]])
def test_a_wrong_command_line_is_refused(words: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "reconciler.host.watchdog", *words], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert "usage" in result.stderr
