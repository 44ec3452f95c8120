"""Whole fetches: by the real ssh client from a real ssh server, and over https with an authority of ours."""

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from .conftest import MODEL, Make
from .git_server import GitServer, Repository

pytestmark = [
    pytest.mark.timeout(120),
    # asyncssh leaves one behind where a redirect's end is reached.
    pytest.mark.filterwarnings("ignore:coroutine 'Queue.join' was never awaited"),
]


def make_key(file: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(file)], check=True)
    return file


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return make_key(tmp_path / "key")


@pytest.fixture
async def over_ssh(tmp_path: Path, server: GitServer, key: Path) -> AsyncIterator[dict[str, Any]]:
    """The options of a source, whose repository an ssh server gives to the owner of `key`."""

    async def upload_pack(process: "asyncssh.SSHServerProcess[bytes]") -> None:
        assert process.command is not None
        assert process.command == "git-upload-pack '/models.git'"
        pipe = asyncio.subprocess.PIPE
        git = await asyncio.create_subprocess_exec(
            "git", "upload-pack", str(server.root / "models.git"), stdin=pipe, stdout=pipe, stderr=pipe
        )
        await process.redirect(stdin=git.stdin, stdout=git.stdout, stderr=git.stderr)
        code = await git.wait()
        # Nothing is redirected from what has ended, which asyncssh would complain about.
        await process.stdout.drain()
        process.exit(code)

    host_key = asyncssh.generate_private_key("ssh-ed25519")
    listener = await asyncssh.listen(
        "127.0.0.1",
        0,
        server_host_keys=[host_key],
        authorized_client_keys=str(key.with_suffix(".pub")),
        process_factory=upload_pack,
        encoding=None,
    )
    port = listener.get_port()
    known = tmp_path / "known"
    known.write_text(f"[127.0.0.1]:{port} {host_key.export_public_key().decode()}")
    yield {"url": f"ssh://git@127.0.0.1:{port}/models.git", "known_hosts": known, "ssh_key": key}
    listener.close()
    await listener.wait_closed()


async def test_a_repository_is_followed_over_ssh(make: Make, repo: Repository, over_ssh: dict[str, Any]) -> None:
    first = repo.commit({"models.d/a.yaml": MODEL})
    source = make(**over_ssh)
    assert await source.fetch()
    assert (await source.read()).revision == first
    second = repo.commit({"models.d/b.yaml": MODEL})
    assert await source.fetch()
    snapshot = await source.read()
    assert (snapshot.revision, len(snapshot.files)) == (second, 2)


async def test_the_wrong_ssh_key_opens_nothing(
    make: Make, repo: Repository, over_ssh: dict[str, Any], tmp_path: Path
) -> None:
    repo.commit({"models.d/a.yaml": MODEL})
    source = make(**over_ssh | {"ssh_key": make_key(tmp_path / "other")})
    assert not await source.fetch()
    assert "the server refuses the ssh key" in (await source.read()).unreadable


@pytest.fixture
def over_https(tmp_path: Path, server: GitServer) -> dict[str, Any]:
    """The same with a certificate that only `ca_file` knows."""
    made = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=git".split()
    extensions = ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:TRUE"]
    files = ["-keyout", str(tmp_path / "tls.key"), "-out", str(tmp_path / "tls.crt")]
    subprocess.run(["openssl", *made, *extensions, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")
    server._server.socket = context.wrap_socket(
        server._server.socket, server_side=True, do_handshake_on_connect=False
    )
    return {"url": f"{server.url.replace('http:', 'https:')}/models.git", "ca_file": tmp_path / "tls.crt"}


async def test_a_repository_is_followed_over_https(
    make: Make, repo: Repository, server: GitServer, over_https: dict[str, Any]
) -> None:
    server.token = "of-the-repository"
    commit = repo.commit({"models.d/a.yaml": MODEL})
    source = make(**over_https, token=lambda: "of-the-repository")
    assert await source.fetch()
    assert (await source.read()).revision == commit


async def test_a_server_that_no_authority_vouches_for_is_refused(
    make: Make, repo: Repository, server: GitServer, over_https: dict[str, Any]
) -> None:
    server.token = "of-the-repository"
    repo.commit({"models.d/a.yaml": MODEL})
    source = make(url=over_https["url"], token=lambda: "of-the-repository")
    assert not await source.fetch()
    assert "certificate" in (await source.read()).unreadable
    assert not any(server.headers), "the token was shown to a stranger"
