"""ssh, by the real client: only a server whose host key is known is talked to, and by our settings alone."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reconciler.core.git_names import GitError
from reconciler.sources.git_access import Access

from .conftest import Make

pytest.importorskip("cryptography")

from .ssh_server import SshServer

CHANGED = "the server's host key is not the one in the known hosts file"


@pytest.fixture
def ssh() -> Iterator[SshServer]:
    with SshServer() as server:
        yield server


@pytest.fixture
def options(ssh: SshServer, tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "known").write_text(ssh.known_hosts)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "key")], check=True)
    return {
        "url": f"ssh://git@127.0.0.1:{ssh.port}/models.git",
        "known_hosts": tmp_path / "known",
        "ssh_key": tmp_path / "key",
    }


async def test_a_server_whose_key_is_known_is_talked_to(
    make: Make, ssh: SshServer, options: dict[str, Any]
) -> None:
    source = make(**options)
    assert not await source.fetch()
    assert ssh.accepted == 1
    assert "host key" not in (await source.read()).unreadable, "it hung up on us afterwards"


async def test_a_changed_host_key_is_refused(
    make: Make, ssh: SshServer, options: dict[str, Any], events: list[Any]
) -> None:
    ssh.new_key()
    source = make(**options)
    assert not await source.fetch()
    assert (ssh.clients, ssh.accepted) == (1, 0)
    assert CHANGED in (await source.read()).unreadable
    assert (events[-1]["event"], events[-1]["reason"]) == ("source.unreachable", CHANGED)


async def test_an_unknown_host_is_refused_and_not_learnt(
    make: Make, ssh: SshServer, options: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "known").write_text("")
    source = make(**options)
    for _ in range(2):
        assert not await source.fetch()
        assert CHANGED in (await source.read()).unreadable
    assert (ssh.clients, ssh.accepted) == (2, 0)
    assert (tmp_path / "known").read_text() == ""


@pytest.mark.parametrize("path", ["a b", "a'b", "%h", "$HOME", "~", 'a"b', "ä"])
def test_a_path_that_ssh_would_read_otherwise_is_refused(path: str) -> None:
    access = Access("git@host:x", "ssh", known_hosts=Path("/known"), ssh_key=Path("/", path))
    with pytest.raises(GitError):
        access.environment()
