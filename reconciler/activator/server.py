"""Listen and serve an ASGI application in this process: uvicorn as a library, signals and logs left to us."""

import asyncio
import contextlib
import errno
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from reconciler.activator.certificate import Certificate, CertificateError
from reconciler.activator.protocol import Protocol
from reconciler.host.log import get_logger

log = get_logger()

_BACKLOG = 2048
# Longer than the edge keeps an idle connection of its own, so that it is the edge that closes first.
_KEEP_ALIVE_SECONDS = 75
# Request line and headers together; bodies are not affected.
_MAX_HEADER_BYTES = 64 * 1024
_GRACE_SECONDS = 10
_SAY_AGAIN_SECONDS = 60.0


class ListenError(RuntimeError):
    """An address cannot be listened on; the message says which and what to do."""


async def serve(
    app: ASGIApp,
    host: str,
    port: int,
    *,
    grace_seconds: int = _GRACE_SECONDS,
    on_stop: Callable[[], None] = lambda: None,
    tls: tuple[Path, Path] | None = None,
    most_connections: int | None = None,
) -> None:
    """Serve on a TCP port until cancelled.

    Args:
        app: The application. Its lifespan is not run: whoever makes it starts and closes it.
        host: Address to bind.
        port: Port to bind.
        grace_seconds: How long requests under way may go on after the cancellation before they are cut.
        on_stop: Called after the cancellation, once no new connection is taken and before that grace.
        tls: Files of the certificate chain and of its private key; without, plain HTTP. They are loaded again
            when they change.
        most_connections: So many at a time; further ones are closed at once. Without, as many as come.

    Raises:
        ListenError: The port is taken, the address is not ours, or that is no certificate.
    """
    await serve_on(
        app,
        listen_tcp(host, port),
        grace_seconds=grace_seconds,
        on_stop=on_stop,
        tls=tls,
        most_connections=most_connections,
    )


async def serve_unix(app: ASGIApp, path: Path, *, grace_seconds: int = _GRACE_SECONDS) -> None:
    """Serve on a unix socket that only this user can reach, until cancelled. The socket file goes away with it.

    Raises:
        ListenError: Another process listens there, or the path cannot be bound.
    """
    listener = listen_unix(path)
    try:
        await serve_on(app, listener, grace_seconds=grace_seconds)
    finally:
        _remove(path)


def listen_tcp(host: str, port: int) -> socket.socket:
    """A listening TCP socket; port 0 takes a free one.

    Raises:
        ListenError: The port is taken, or the address is not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        # For connections of a former run that linger; a port that someone listens on is refused all the same.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted connections inherit it. asyncio sets it only on sockets made with an explicit protocol number,
        # and without it each answer waits some 40 ms for the client's delayed acknowledgement.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            hint = f"port {port} on {host} is taken by another program; stop it or set another port"
            raise ListenError(hint) from error
        raise ListenError(f"cannot listen on port {port} of {host}: {error.strerror or error}") from error
    return listener


def listen_unix(path: Path) -> socket.socket:
    """A listening unix socket of mode 0600. A socket file that a dead process left behind is replaced.

    Raises:
        ListenError: Another process listens there, the path is not a socket, or it cannot be bound.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        listener.bind(str(path))
        # Before listen(): until then every connection is refused, so there is no moment when others could get in.
        path.chmod(0o600)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise ListenError(f"cannot listen on the socket {path}: {error.strerror or error}") from error
    except ListenError:
        listener.close()
        raise
    return listener


async def serve_on(
    app: ASGIApp,
    listener: socket.socket,
    *,
    grace_seconds: int = _GRACE_SECONDS,
    on_stop: Callable[[], None] = lambda: None,
    tls: tuple[Path, Path] | None = None,
    most_connections: int | None = None,
) -> None:
    """Serve on a listening socket until cancelled, then stop accepting, let requests finish, and close.

    An exception that leaves `app` breaks the connection, whether or not an answer has begun.

    Raises:
        ListenError: That is no certificate.
    """
    try:
        certificate = None if tls is None else Certificate(*tls)
    except CertificateError as error:
        listener.close()
        raise ListenError(str(error)) from error
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="off",
        interface="asgi3",
        # Our applications log for themselves, in our format; what uvicorn would add is a traceback for every
        # stream that we break off on purpose.
        log_config=None,
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=grace_seconds,
        h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
        ssl_context_factory=None if certificate is None else lambda _config, _default: certificate.context,
    )
    if most_connections is not None:
        listener = _Capped(listener, most_connections)
    server = _Server(config, on_stop)
    # A task of its own: cancelling uvicorn itself would skip its shutdown.
    running = asyncio.create_task(server.serve(sockets=[listener]))
    renewing = None if certificate is None else asyncio.create_task(certificate.keep_fresh())
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        server.should_exit = True
        await running
        raise
    finally:
        listener.close()
        if renewing is not None:
            renewing.cancel()


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the process has other things to end than this server."""

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # First of all nobody else comes in: what is let go now may be sent again, and not to us.
        for server in self.servers:
            server.close()
        self._on_stop()
        await super().shutdown(sockets)


class _Capped(socket.socket):
    """A listener that closes what comes while as many connections as allowed are open.

    It counts what was accepted and not closed since, so that handshakes count from their first byte on.
    """

    def __init__(self, listener: socket.socket, most: int) -> None:
        """Take the place of a listener, which is closed thereby."""
        super().__init__(listener.family, listener.type, listener.proto, fileno=listener.detach())
        self._most = most
        self._taken: list[socket.socket] = []
        self._said = -_SAY_AGAIN_SECONDS

    def accept(self) -> tuple[socket.socket, Any]:
        connection, address = super().accept()
        self._taken = [each for each in self._taken if each.fileno() >= 0]
        if len(self._taken) < self._most:
            self._taken.append(connection)
            return connection, address
        connection.close()
        if time.monotonic() - self._said >= _SAY_AGAIN_SECONDS:
            self._said = time.monotonic()
            log.warning("connections.refused", port=self.getsockname()[1], most=self._most)
        # What the event loop passes over.
        raise ConnectionAbortedError("there are too many connections")


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ListenError(f"cannot listen on {path}: it exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise ListenError(f"another process listens on the socket {path}; stop it or set another path")
