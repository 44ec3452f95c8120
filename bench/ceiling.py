"""How fast the load generator is where nothing is behind the socket: HAProxy that answers by itself."""

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from bench.machine import BenchError
from reconciler.edge.process import haproxy_binary

_CONFIG = """\
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend ceiling
    bind 127.0.0.1:{port}
    http-request wait-for-body time 5s
    http-request return status 200 content-type application/json string "{{\\"answer\\": 42}}"
"""
EXPECTED = "42"


@contextlib.contextmanager
def answering_haproxy(folder: Path) -> Iterator[int]:
    """HAProxy on a port of its own that answers every request at once; gives the port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    config = folder / "ceiling.cfg"
    config.write_text(_CONFIG.format(port=port), encoding="utf-8")
    with subprocess.Popen([haproxy_binary(), "-db", "-f", config], stderr=subprocess.DEVNULL) as process:
        try:
            _wait_open(port)
            yield port
        finally:
            process.kill()


def _wait_open(port: int) -> None:
    for _ in range(100):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise BenchError("the HAProxy that answers by itself did not come up")
