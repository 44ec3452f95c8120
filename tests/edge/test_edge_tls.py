"""The front door with a certificate: what it speaks, what it notices, what it refuses."""

import asyncio
import os
import shutil
import ssl
import stat
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import aiohttp
import pytest
from edge_harness import CHAT, TEMPLATE, House, eventually, house

from reconciler.core.keys import Key, KeyRing, Scope, digest_of, secret_from
from reconciler.edge.config import render_config
from reconciler.edge.edge import Edge, EdgeStartError
from reconciler.edge.options import EdgeOptions


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate for localhost that signs itself, and its key."""
    cert, key = folder / f"{name}.crt", folder / f"{name}.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-days", "2", "-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", key, "-out", cert], check=True, capture_output=True)
    return cert, key


@pytest.fixture(scope="module")
def made() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        for name in ("one", "two"):
            certificate(Path(folder), name)
        command = ["openssl", "ec", "-aes256", "-passout", "pass:x", "-in", f"{folder}/one.key"]
        subprocess.run([*command, "-out", f"{folder}/encrypted.key"], check=True, capture_output=True)
        yield Path(folder)


@pytest.fixture
def files(made: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The first certificate and key, as the operator's files that may be replaced."""
    _install(made, "one", cert := tmp_path / "tls.crt", key := tmp_path / "tls.key")
    return cert, key


def _install(made: Path, name: str, cert: Path, key: Path) -> None:
    shutil.copy(made / f"{name}.crt", cert)
    shutil.copy(made / f"{name}.key", key)


async def _ask(home: House, trusted: Path, key: str = "") -> int:
    """The status of a request that trusts this certificate alone."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    tls = ssl.create_default_context(cafile=str(trusted))
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"https://127.0.0.1:{home.options.listen_port}{CHAT}", json={"model": "m"}, headers=headers, ssl=tls
        ) as answer,
    ):
        return answer.status


@pytest.fixture
async def home() -> AsyncIterator[House]:
    async with house(running=False) as made:
        yield made


async def test_it_speaks_tls_and_nothing_else(home: House, files: tuple[Path, Path]) -> None:
    edge = home.another(tls_cert=files[0], tls_key=files[1])
    assert await edge.ensure_running()
    assert await edge.ensure_running() is False
    assert await _ask(home, files[0]) == 200
    assert stat.S_IMODE(home.options.pem_file.stat().st_mode) == 0o600
    assert not list(home.options.folder.glob(".edge.pem*"))
    with pytest.raises(aiohttp.ClientError):
        await home.ask()


async def test_nothing_older_than_tls_1_2_is_spoken(home: House, files: tuple[Path, Path]) -> None:
    await home.another(tls_cert=files[0], tls_key=files[1]).ensure_running()
    for option, expected in (("-tls1_1", False), ("-tls1_2", True), ("-tls1_3", True)):
        process = await asyncio.create_subprocess_exec(
            *("openssl", "s_client", "-connect", f"127.0.0.1:{home.options.listen_port}", option),
            *("-cipher", "ALL:@SECLEVEL=0", "-alpn", "h2,http/1.1"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said = (await process.communicate())[0].decode(errors="replace")
        assert (process.returncode == 0) is expected, said
        if expected:
            assert "ALPN protocol: http/1.1" in said


async def test_a_changed_certificate_is_served_without_cutting_a_stream(
    home: House, files: tuple[Path, Path], made: Path
) -> None:
    edge = home.another(tls_cert=files[0], tls_key=files[1])
    await edge.ensure_running()
    tls = ssl.create_default_context(cafile=str(made / "one.crt"))
    url = f"https://127.0.0.1:{home.options.listen_port}{CHAT}"
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, json={"model": "m", "x": "stream"}, ssl=tls) as response,
    ):
        assert await response.content.readline() == b"data: one\n"
        _install(made, "two", *files)
        assert await edge.ensure_running() is False

        async def served() -> bool:
            return await _ask(home, made / "two.crt") == 200

        await eventually(served)
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await _ask(home, made / "one.crt")
        home.serve.gate.set()
        assert b"data: two" in await response.content.read()


async def test_one_file_may_hold_both(home: House, files: tuple[Path, Path]) -> None:
    files[0].write_text(files[0].read_text() + files[1].read_text())
    await home.another(tls_cert=files[0]).ensure_running()
    assert await _ask(home, files[0]) == 200


async def test_a_broken_certificate_is_named_and_what_runs_goes_on(
    home: House, files: tuple[Path, Path], made: Path
) -> None:
    cert, key = files
    edge = home.another(tls_cert=cert, tls_key=key)
    await edge.ensure_running()
    good, secret = cert.read_text(), key.read_text().splitlines()[1]

    def no_file() -> None:
        cert.unlink()
        os.mkfifo(cert)

    def folder() -> None:
        cert.unlink()
        cert.mkdir()

    breakages: list[tuple[Callable[[], object], str]] = [
        (lambda: key.write_text((made / "two.key").read_text()), r"tls\.key .* not that of the certificate"),
        (lambda: key.write_text((made / "encrypted.key").read_text()), "encrypted"),
        (lambda: key.write_text("-----BEGIN nonsense"), r"tls\.crt with .*tls\.key cannot be served with"),
        (lambda: cert.write_text(good[:200] + "-----END CERTIFICATE-----\n"), r"tls\.crt with"),
        (lambda: cert.write_text(""), r"tls\.crt is no PEM file"),
        (lambda: cert.write_bytes(b"\xff\0" * 100), r"tls\.crt is no PEM file"),
        (lambda: cert.write_bytes(b"-----BEGIN " + b"a" * 2**21), r"tls\.crt is no PEM file"),
        (no_file, r"tls\.crt is no file"),
        (cert.unlink, r"tls\.crt cannot be read: No such file"),
        (folder, r"tls\.crt is no file"),
    ]
    for breaking, complaint in breakages:
        breaking()
        with pytest.raises(EdgeStartError, match=complaint) as caught:
            await edge.ensure_running()
        assert secret not in str(caught.value)
        assert await _ask(home, made / "one.crt") == 200
        if cert.is_dir():
            cert.rmdir()
        else:
            cert.unlink(missing_ok=True)
        _install(made, "one", cert, key)
        assert await edge.ensure_running() is False


async def test_without_a_certificate_it_does_not_start(home: House, tmp_path: Path) -> None:
    with pytest.raises(EdgeStartError, match=r"absent\.crt cannot be read"):
        await home.another(tls_cert=tmp_path / "absent.crt").ensure_running()
    assert not await home.edge.is_running()


async def test_tls_may_be_switched_on_and_off(home: House, files: tuple[Path, Path]) -> None:
    await home.edge.ensure_running()
    assert (await home.ask())[0] == "serve"
    await home.another(tls_cert=files[0], tls_key=files[1]).ensure_running()
    assert await _ask(home, files[0]) == 200
    await home.edge.ensure_running()

    async def plain() -> bool:
        return (await home.ask())[0] == "serve"

    await eventually(plain)
    assert not home.options.pem_file.exists()


def test_a_key_without_a_certificate_is_refused() -> None:
    with pytest.raises(ValueError, match="no certificate"):
        render_config(TEMPLATE, EdgeOptions(Path("/e"), tls_key=Path("/k")))


async def test_it_may_listen_beyond_loopback(home: House, files: tuple[Path, Path]) -> None:
    edge = Edge(
        EdgeOptions(
            home.options.folder,
            listen_host="0.0.0.0",
            listen_port=home.options.listen_port,
            serve_port=home.options.serve_port,
            activator_port=home.options.activator_port,
            tls_cert=files[0],
            tls_key=files[1],
        ),
        TEMPLATE,
    )
    await edge.ensure_running()
    assert await _ask(home, files[0]) == 401, "strangers reach it"
    secret = secret_from("a" * 43)
    key = Key("k", digest_of(secret), frozenset({Scope.INFERENCE}), created=0.0)
    await edge.set_keys(KeyRing((key,)), time.time())
    assert await _ask(home, files[0], secret) == 200
