"""Listen and serve an ASGI application in this process: uvicorn as a library, signals and logs left to us."""

import asyncio
import contextlib
import errno
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import h11
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.h11_impl import H11Protocol

from reconciler.activator import errors

_BACKLOG = 2048
# Longer than the edge keeps an idle connection of its own, so that it is the edge that closes first.
_KEEP_ALIVE_SECONDS = 75
# Request line and headers together; bodies are not affected.
_MAX_HEADER_BYTES = 64 * 1024
_GRACE_SECONDS = 10


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
) -> None:
    """Serve on a TCP port until cancelled.

    Args:
        app: The application. Its lifespan is not run: whoever makes it starts and closes it.
        host: Address to bind.
        port: Port to bind.
        grace_seconds: How long requests under way may go on after the cancellation before they are cut.
        on_stop: Called after the cancellation, once no new connection is taken and before that grace.
        tls: Files of the certificate chain and of its private key; without, plain HTTP.

    Raises:
        ListenError: The port is taken, the address is not ours, or that is no certificate.
    """
    await serve_on(app, listen_tcp(host, port), grace_seconds=grace_seconds, on_stop=on_stop, tls=tls)


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
) -> None:
    """Serve on a listening socket until cancelled, then stop accepting, let requests finish, and close.

    An exception that leaves `app` breaks the connection, whether or not an answer has begun.
    """
    config = uvicorn.Config(
        app,
        http=_Protocol,
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
        ssl_certfile=None if tls is None else str(tls[0]),
        ssl_keyfile=None if tls is None else str(tls[1]),
    )
    try:
        config.load()
    except OSError as error:  # ssl.SSLError is one
        listener.close()
        raise ListenError(f"the certificate {tls[0] if tls else ''} cannot be used: {error}") from error
    server = _Server(config, on_stop)
    # A task of its own: cancelling uvicorn itself would skip its shutdown.
    running = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        server.should_exit = True
        await running
        raise
    finally:
        listener.close()


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


class _Protocol(H11Protocol):
    """uvicorn's protocol without the 500 that it makes up when an application raises before it has answered.

    No answer at all says that the request may be sent again; and the activator's own errors are JSON, that of a
    request which is no HTTP among them.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        app = cast(ASGIApp, self.app)

        async def breaking(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await app(scope, receive, send)
            except BaseException:
                if not self.cycle.response_started:
                    # Also drops what is written from here on, which is that 500.
                    transport.abort()
                raise

        self.app = cast(ASGI3Application, breaking)

    def send_400_response(self, msg: str) -> None:
        if self.cycle is not None:
            # Whoever reads the body, or is about to answer, has nobody left to answer.
            self.cycle.disconnected = True
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            # An answer has begun: it can only be broken off.
            self.transport.abort()
            return
        refusal = errors.bad_request(msg)
        body = refusal.body()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        for event in (
            h11.Response(status_code=refusal.status, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


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
