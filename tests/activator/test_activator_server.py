"""Listening: taken ports by name, unix sockets for their owner only, a clean end."""

import asyncio
import shutil
import signal
import socket
import ssl
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from activator_stack import eventually
from structlog.testing import capture_logs

from reconciler.activator.app import Activator
from reconciler.activator.server import ListenError, listen_tcp, listen_unix, serve, serve_on, serve_unix


async def slow(scope: Any, receive: Any, send: Any) -> None:
    """Begin at once, end half a second later."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"begun ", "more_body": True})
    await asyncio.sleep(0.5)
    await send({"type": "http.response.body", "body": b"ended"})


async def end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 10)


async def test_a_taken_port_is_named() -> None:
    taken = listen_tcp("127.0.0.1", 0)
    port = taken.getsockname()[1]
    with pytest.raises(ListenError, match=f"port {port} on 127.0.0.1 is taken"):
        await serve(slow, "127.0.0.1", port)
    taken.close()
    with pytest.raises(ListenError, match=r"cannot listen on port 0 of 192\.0\.2\.1"):
        listen_tcp("192.0.2.1", 0)


def test_connections_do_not_wait_for_acknowledgements() -> None:
    with listen_tcp("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        listener.setblocking(True)
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


async def test_serves_until_cancelled_and_leaves_signals_alone() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    free = listen_tcp("127.0.0.1", 0)
    port = free.getsockname()[1]
    free.close()
    activator = Activator("http://127.0.0.1:1")
    await activator.start()
    task = asyncio.create_task(serve(activator.asgi, "127.0.0.1", port, grace_seconds=1))
    async with aiohttp.ClientSession() as http:

        async def status() -> int:
            async with http.get(f"http://127.0.0.1:{port}/v1/models") as response:
                return response.status

        for _ in range(500):
            try:
                assert await status() == 200
                break
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(0.01)
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
        await end(task)
        with pytest.raises(aiohttp.ClientConnectorError):
            await status()
    await activator.close()
    listen_tcp("127.0.0.1", port).close()


@pytest.mark.parametrize(("grace", "whole"), [(5, True), (0, False)])
async def test_requests_under_way_get_their_grace(grace: int, *, whole: bool) -> None:
    listener = listen_tcp("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    task = asyncio.create_task(serve_on(slow, listener, grace_seconds=grace))
    async with aiohttp.ClientSession() as http, http.get(url) as response:
        assert await response.content.readany() == b"begun "
        ending = asyncio.create_task(end(task))
        if whole:
            assert await response.content.read() == b"ended"
        else:
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.content.read()
        await ending


async def test_a_unix_socket_is_for_its_owner_and_goes_away(tmp_path: Path) -> None:
    path = tmp_path / "activator.sock"
    # What a killed process leaves behind.
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    task = asyncio.create_task(serve_unix(slow, path))
    await eventually(lambda: path.exists() and stat.S_IMODE(path.stat().st_mode) == 0o600)
    with pytest.raises(ListenError, match="another process listens"):
        listen_unix(path)
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as http,
        http.get("http://activator/") as response,
    ):
        assert await response.read() == b"begun ended"
    await end(task)
    assert not path.exists()


def test_a_path_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("precious")
    with pytest.raises(ListenError, match="not a socket"):
        listen_unix(path)
    assert path.read_text() == "precious"
    with pytest.raises(ListenError, match="cannot listen on the socket"):
        listen_unix(tmp_path / "absent" / "x.sock")


HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n"


async def quick(scope: Any, receive: Any, send: Any) -> None:
    """Answer without a look at the body."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def _trickle(writer: asyncio.StreamWriter, *texts: bytes) -> None:
    for text in texts:
        writer.write(text)
    while True:
        await asyncio.sleep(0.02)
        writer.write(b"a")


@pytest.mark.parametrize(
    "texts",
    [
        (),
        (b"GET / HT",),
        (HEAD + b"a: ",),
        (HEAD + b"\r\n", HEAD + b"a: "),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n",),
    ],
    ids=["nothing", "a line", "a head", "a second head", "a body after its answer"],
)
async def test_a_client_that_does_not_go_on_is_let_go(
    monkeypatch: pytest.MonkeyPatch, texts: tuple[bytes, ...]
) -> None:
    monkeypatch.setattr("reconciler.activator.protocol._HEAD_SECONDS", 0.3)
    listener = listen_tcp("127.0.0.1", 0)
    task = asyncio.create_task(serve_on(quick, listener))
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    sending = asyncio.create_task(_trickle(writer, *texts)) if texts else None
    try:
        async with asyncio.timeout(5):
            await reader.read()
    except ConnectionResetError:
        pass  # What was on its way comes to nobody.
    if sending is not None:
        sending.cancel()
    writer.close()
    await end(task)


async def test_a_request_that_has_come_takes_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reconciler.activator.protocol._HEAD_SECONDS", 0.1)
    listener = listen_tcp("127.0.0.1", 0)
    task = asyncio.create_task(serve_on(slow, listener))
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    for _ in range(2):
        writer.write(HEAD + b"\r\n")
        answer = await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), 5)
        assert b"ended" in answer
        await asyncio.sleep(0.3)  # Between requests there is more time.
    writer.close()
    await end(task)


@pytest.mark.parametrize("over_tls", [False, True])
async def test_so_many_connections_at_a_time(tmp_path: Path, *, over_tls: bool) -> None:
    tls = certificate(tmp_path, "one") if over_tls else None
    listener = listen_tcp("127.0.0.1", 0)
    address = listener.getsockname()
    with capture_logs() as logged:
        task = asyncio.create_task(serve_on(quick, listener, tls=tls, most_connections=3))
        # Over TLS these never shake hands.
        first = [await asyncio.open_connection(*address) for _ in range(3)]
        for _ in range(2):
            reader, writer = await asyncio.open_connection(*address)
            assert await asyncio.wait_for(reader.read(), 5) == b""
            writer.close()
        first[0][1].close()
        await asyncio.sleep(0.2)
        context = ssl.create_default_context(cafile=str(tls[0])) if tls is not None else None
        reader, writer = await asyncio.open_connection(*address, ssl=context)
        writer.write(HEAD + b"connection: close\r\n\r\n")
        assert (await asyncio.wait_for(reader.read(), 5)).endswith(b"ok")
        for _, each in (*first, (reader, writer)):
            each.close()
        await end(task)
    refused = [each for each in logged if each["event"] == "connections.refused"]
    assert [(each["most"], each["port"], each["log_level"]) for each in refused] == [(3, address[1], "warning")]


def certificate(folder: Path, name: str, *, kind: str = "ec") -> tuple[Path, Path]:
    """A certificate for localhost that signs itself, and its key."""
    cert, key = folder / f"{name}.crt", folder / f"{name}.key"
    command = ["openssl", "req", "-x509", "-newkey"]
    command += ["rsa:2048"] if kind == "rsa" else ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    return cert, key


def encrypted(folder: Path, key: Path) -> Path:
    path = folder / "encrypted.key"
    command = ["openssl", "ec", "-aes256", "-passout", "pass:x", "-in", str(key), "-out", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return path


async def _served(address: Any) -> bytes:
    """The certificate that a new connection gets."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.wait_for(asyncio.open_connection(*address, ssl=context), 5)
    found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    assert isinstance(found, bytes)
    return found


def _der(cert: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert(cert.read_text())


async def test_a_renewed_certificate_is_taken_up_and_an_unfit_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reconciler.activator.certificate._LOOK_SECONDS", 0.05)
    one, two = certificate(tmp_path, "one", kind="rsa"), certificate(tmp_path, "two")
    cert, key = tmp_path / "tls.crt", tmp_path / "tls.key"

    def install(from_cert: Path, from_key: Path) -> None:
        shutil.copy(from_cert, cert)
        shutil.copy(from_key, key)

    async def comes(served: bytes) -> None:
        for _ in range(500):
            if await _served(address) == served:
                return
            await asyncio.sleep(0.02)
        raise AssertionError("it is not taken up")

    async def told(times: int) -> None:
        await eventually(lambda: len(logged) == times)

    install(*one)
    listener = listen_tcp("127.0.0.1", 0)
    address = listener.getsockname()
    with capture_logs() as logged:
        task = asyncio.create_task(serve_on(quick, listener, tls=(cert, key)))
        assert await _served(address) == _der(one[0])
        unfit: list[tuple[str, Callable[[], object]]] = [
            ("the key is not that of the certificate", lambda: shutil.copy(two[0], cert)),
            ("is encrypted", lambda: install(two[0], encrypted(tmp_path, two[1]))),
            ("cannot be served with", lambda: cert.write_text("nonsense")),
            ("cannot be read: No such file", cert.unlink),
        ]
        for number, (reason, spoil) in enumerate(unfit, 1):
            spoil()
            await told(number)
            assert (logged[-1]["event"], logged[-1]["log_level"]) == ("api.certificate_unusable", "warning")
            assert reason in logged[-1]["reason"]
            await asyncio.sleep(0.3)
            assert len(logged) == number, "each is told once"
            assert await _served(address) == _der(one[0])
        install(*two)
        await comes(_der(two[0]))
        install(*one)
        await comes(_der(one[0]))
        await end(task)


async def test_a_certificate_that_cannot_be_served_with_is_refused_at_once(tmp_path: Path) -> None:
    one, two = certificate(tmp_path, "one"), certificate(tmp_path, "two")
    for tls, reason in (
        ((one[0], encrypted(tmp_path, one[1])), "encrypted.key is encrypted"),
        ((one[0], two[1]), "the key is not that of the certificate"),
        ((tmp_path / "none.crt", one[1]), "none.crt cannot be read"),
        ((one[1], one[1]), "cannot be served with"),
    ):
        listener = listen_tcp("127.0.0.1", 0)
        with pytest.raises(ListenError, match=reason):
            await asyncio.wait_for(serve_on(quick, listener, tls=tls), 5)
        assert listener.fileno() == -1
