"""`python -m reconciler.host.watchdog SECONDS -- COMMAND...`: systemd's watchdog, where there is no systemd.

Runs the command with a NOTIFY_SOCKET of its own, hands signals on to it, and ends it, so that the supervisor above
starts it again, when it has given no sign of life (WATCHDOG=1) for that long. Counting begins with its READY=1.
Ends as the command does; with 124 where it had to end it.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

_POLL_SECONDS = 0.2
_LAST_WORDS_SECONDS = 10.0
"""Between SIGABRT, at which Python says where it hangs, and SIGKILL."""
_LARGEST = 4096
TIMED_OUT = 124
_USAGE = 2


def guard(seconds: float, command: Sequence[str]) -> int:
    """Run the command to its end, or end it; gives the exit code, 128 and more for a signal as shells do.

    Args:
        seconds: Without a sign of life.
        command: Words of it.

    Raises:
        OSError: It cannot be run, or there can be no socket.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind("")  # The kernel picks a name, in no folder.
        channel.settimeout(_POLL_SECONDS)
        name = "@" + channel.getsockname()[1:].decode()
        given = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": str(int(seconds * 1e6))}
        inherited = {key: value for key, value in os.environ.items() if key != "WATCHDOG_PID"}
        process = subprocess.Popen(command, env={**inherited, **given})  # noqa: S603 -- the caller's own command
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda number, _frame: process.send_signal(number))
        deadline: float | None = None
        while (code := process.poll()) is None:
            said = _hear(channel)
            if "READY=1" in said or "WATCHDOG=1" in said:
                deadline = time.monotonic() + seconds
            if "STOPPING=1" in said:
                deadline = None  # How long that may take is for the supervisor to say.
            if deadline is not None and time.monotonic() > deadline:
                _end(process)
                return TIMED_OUT
        return 128 - code if code < 0 else code


def _hear(channel: socket.socket) -> list[str]:
    try:
        return channel.recv(_LARGEST).decode(errors="replace").splitlines()
    except TimeoutError:
        return []


def _end(process: "subprocess.Popen[bytes]") -> None:
    sys.stderr.write(f"watchdog: process {process.pid} gives no sign of life and is ended\n")
    for number in (signal.SIGABRT, signal.SIGKILL):
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_LAST_WORDS_SECONDS)
            return


def main() -> None:
    """Read the command line; 2 where it is wrong."""
    match sys.argv[1:]:
        case [seconds, "--", *command] if command and seconds.isdigit() and int(seconds) > 0:
            sys.exit(guard(int(seconds), command))
    sys.stderr.write("usage: python -m reconciler.host.watchdog SECONDS -- COMMAND...\n")
    sys.exit(_USAGE)


if __name__ == "__main__":
    main()
