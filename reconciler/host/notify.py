"""Tells the supervisor how we are: systemd's protocol (sd_notify(3)), also spoken by `reconciler.host.watchdog`.

A datagram of `NAME=value` lines to the Unix socket in NOTIFY_SOCKET; without that variable nobody is told, and
nothing happens. `Heartbeat` says WATCHDOG=1 only while the loop gets on, so that one that hangs is started again.
"""

import asyncio
import contextlib
import os
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping

_SEND_SECONDS = 1.0
_BARRIER_SECONDS = 5.0
_LONGEST_STATUS = 200
TURN_SECONDS = 180.0
"""The longest that a turn may take: a PUT and the looks around it have timeouts of their own, far below it."""


class Notifier:
    """Where to tell it.

    Args:
        environment: Has NOTIFY_SOCKET, and WATCHDOG_USEC and WATCHDOG_PID where a sign of life is expected.
        pid: Ours; what is meant for another process (a shell around us) is not for us to answer.
    """

    def __init__(self, environment: Mapping[str, str] | None = None, *, pid: int | None = None) -> None:
        given = os.environ if environment is None else environment
        name = given.get("NOTIFY_SOCKET", "")
        # "@" stands for the zero byte of an abstract socket; anything else that is no path is no socket.
        self._address = f"\0{name[1:]}" if name.startswith("@") else name if name.startswith("/") else ""
        asked = given.get("WATCHDOG_PID", "")
        microseconds = given.get("WATCHDOG_USEC", "")
        ours = not asked or asked == str(os.getpid() if pid is None else pid)
        self.watchdog_seconds: float | None = None
        """Seconds without WATCHDOG=1 after which we are ended; None where nobody waits for it."""
        if self._address and ours and microseconds.isascii() and microseconds.isdigit() and int(microseconds) > 0:
            self.watchdog_seconds = int(microseconds) / 1e6

    def send(self, *lines: str, descriptors: tuple[int, ...] = ()) -> bool:
        """Send `NAME=value` lines; whether somebody took them. Never raises, and waits 1 s at most."""
        if not self._address:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                channel.settimeout(_SEND_SECONDS)
                channel.connect(self._address)
                socket.send_fds(channel, ["\n".join(lines).encode(errors="replace")], descriptors)
        except (OSError, ValueError):  # gone, full, or a path that cannot be one
            return False
        return True

    def ready(self, status: str = "") -> None:
        """All that is needed to be of use has been started."""
        self.send("READY=1", *([_status(status)] if status else []))

    def status(self, text: str) -> None:
        """One line for people, in `systemctl status`."""
        self.send(_status(text))

    def stopping(self) -> None:
        """The end has begun."""
        self.send("STOPPING=1")

    def alive(self) -> None:
        """A sign of life."""
        self.send("WATCHDOG=1")

    def barrier(self) -> None:
        """Wait, 5 s at most, until what was sent has been looked at, for a process that ends right afterwards.

        A supervisor finds out which service a message is from by asking for its sender, who must be there still.
        """
        ours, theirs = os.pipe()
        try:
            sent = self.send("BARRIER=1", descriptors=(theirs,))
        finally:
            os.close(theirs)
        try:
            if sent:
                waiting = select.poll()
                waiting.register(ours, 0)  # Only that the other end was closed.
                waiting.poll(int(_BARRIER_SECONDS * 1000))
        finally:
            os.close(ours)


class Heartbeat:
    """Signs of life, as long as the loop gets on. In the loop's own thread, so that one that hangs gives none.

    Args:
        notifier: Where they go.
        laps: How often the loop came round so far, failed turns included.
        rest_seconds: The longest pause between two turns.
        turn_seconds: The longest time that a turn may take.
        monotonic: Clock, in seconds.
    """

    def __init__(
        self,
        notifier: Notifier,
        laps: Callable[[], int],
        *,
        rest_seconds: float,
        turn_seconds: float = TURN_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._notifier = notifier
        self._laps = laps
        self._patience = rest_seconds + turn_seconds
        self._monotonic = monotonic
        self._seen: int | None = None
        self._moved = monotonic()
        self._waiting = 0

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """While the block runs there is no loop to get on: `what` may take as long as it takes."""
        self._notifier.status(what)
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1
            self._moved = self._monotonic()

    def gets_on(self) -> bool:
        """Whether the loop came round lately, or has not begun yet."""
        now, laps = self._monotonic(), self._laps()
        if laps != self._seen or self._waiting:
            self._seen, self._moved = laps, now
        return now - self._moved <= self._patience

    async def run(self) -> None:
        """Send them, three in the time in which one is expected; for ever, or not at all where nobody waits."""
        seconds = self._notifier.watchdog_seconds
        while seconds is not None:
            if self.gets_on():
                self._notifier.alive()
            await asyncio.sleep(seconds / 3)
        await asyncio.Event().wait()


def _status(text: str) -> str:
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    return f"STATUS={printable[:_LONGEST_STATUS]}"


def main() -> None:
    """`python -m reconciler.host.notify READY=1 ...`: for shell scripts."""
    notifier = Notifier()
    if notifier.send(*sys.argv[1:]):
        notifier.barrier()


if __name__ == "__main__":
    main()
