"""What a machine's services are made of: units, supervisord, the container recipe, and start.sh as a service.

The units pass systemd's own checker; supervisord is the real one, with stand-ins for what it starts; so is
start.sh, with a stand-in for `ray`.
"""

import contextlib
import json
import os
import pwd
import re
import shlex
import signal
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner, Result

from reconciler.cli.install_service_commands import install_service, uninstall_service
from reconciler.cli.main import cli
from reconciler.core.units import Installation, Role, supervisor_config, units
from reconciler.host.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
LEAST_HARDENED = 3.0
"""The exposure that `systemd-analyze security` may give at most; 10 is worst."""
EXAMPLE = Installation(
    repo="/opt/llm-reconciler",
    state_dir="/var/lib/llm-reconciler/state",
    models_dir="/var/lib/llm-reconciler/models.d",
    hub_cache="/var/lib/llm-reconciler/hub",
    engine="cuda",
    head="head.example:6379",
)
HERE = (Role.HEAD, Role.RECONCILER)


def all_units(where: Installation) -> dict[str, str]:
    return {**units(where, HERE), **units(where, (Role.WORKER,))}


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A folder that looks like an installed repository."""
    folder = tmp_path / "repo"
    (folder / ".venv" / "bin").mkdir(parents=True)
    for name in ("start.sh", ".venv/bin/reconcile"):
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    return folder


# --- systemd ----------------------------------------------------------------------------------------------


def test_the_examples_are_what_the_code_writes() -> None:
    assert {path.name: path.read_text() for path in (DEPLOY / "systemd").iterdir()} == all_units(EXAMPLE)
    assert (DEPLOY / "supervisor" / "llm-reconciler.conf").read_text() == supervisor_config(EXAMPLE, HERE)


@pytest.mark.parametrize("engine", ["cpu", "cuda"])
def test_systemd_itself_finds_nothing_wrong(tmp_path: Path, repo: Path, engine: str) -> None:
    files = []
    for name, text in all_units(replace(EXAMPLE, repo=str(repo), engine=engine)).items():
        files.append(tmp_path / name)
        files[-1].write_text(text)
    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *files], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_the_checker_would_find_something(tmp_path: Path, repo: Path) -> None:
    text = all_units(replace(EXAMPLE, repo=str(repo)))["llm-reconciler.service"]
    path = tmp_path / "llm-reconciler.service"
    path.write_text(text.replace("WatchdogSec=60", "WatchdogSeconds=60"))
    result = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True, check=False)
    assert "WatchdogSeconds" in result.stderr


@pytest.mark.parametrize("name", sorted(all_units(EXAMPLE)))
def test_the_units_are_hardened(tmp_path: Path, repo: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(all_units(replace(EXAMPLE, repo=str(repo)))[name])
    result = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", path],
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.search(r"exposure level for \S+: ([0-9.]+)", result.stdout)
    assert found is not None
    assert float(found[1]) <= LEAST_HARDENED


# --- install-service --------------------------------------------------------------------------------------


def install(root: Path, *arguments: str, command: Any = install_service, **environment: str) -> Result:
    shared = {"state_dir": None, "models_dir": None, "output": "text"}
    cleared = {name: None for name in os.environ if name.startswith(("RECONCILE_", "RAY_", "HF_"))}
    given = {
        **cleared,
        "RECONCILE_ENGINE": "cpu",
        "RECONCILE_STATE_DIR": str(root / "state"),
        "RECONCILE_HUB_CACHE": str(root / "hub"),
        **environment,
    }
    return CliRunner().invoke(command, ["--root", str(root), *arguments], obj=shared, env=given)


def test_it_writes_units_for_this_machine(tmp_path: Path) -> None:
    result = install(
        tmp_path, "--supervisor", "systemd", RECONCILE_GIT_TOKEN="secret", RECONCILE_LISTEN_PORT="4400"
    )
    assert result.exit_code == 0, result.output
    unit = (tmp_path / "etc/systemd/system/llm-reconciler.service").read_text()
    assert f"ExecStart={ROOT}/.venv/bin/reconcile --watch" in unit
    assert f"RECONCILE_STATE_DIR={tmp_path}/state" in unit
    settings = tmp_path / "etc/llm-reconciler/environment"
    assert "RECONCILE_LISTEN_PORT='4400'" in settings.read_text()
    assert "secret" not in settings.read_text()
    assert stat.S_IMODE(settings.stat().st_mode) == 0o640
    for command in ("systemctl daemon-reload", "systemctl enable --now llm-ray-head llm-edge llm-reconciler"):
        assert command in result.output
    assert f"install -d -o llm -g llm -m 0700 {tmp_path}/state" in result.output


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    result = install(tmp_path, "--supervisor", "systemd", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "would write" in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_changed_file_is_shown_and_left(tmp_path: Path) -> None:
    arguments = ("--supervisor", "systemd")
    install(tmp_path, *arguments)
    unit = tmp_path / "etc/systemd/system/llm-reconciler.service"
    settings = tmp_path / "etc/llm-reconciler/environment"
    ours = unit.read_text()
    unit.write_text(ours.replace("WatchdogSec=60", "WatchdogSec=600"))
    settings.write_text("RECONCILE_LISTEN_PORT='1'\n")
    result = install(tmp_path, *arguments)
    assert result.exit_code == 3
    assert "-WatchdogSec=600" in result.output
    assert "--force" in result.output
    assert "WatchdogSec=600" in unit.read_text()
    assert install(tmp_path, *arguments, "--force").exit_code == 0
    assert unit.read_text() == ours
    assert settings.read_text() == "RECONCILE_LISTEN_PORT='1'\n", "settings are people's"
    again = install(tmp_path, *arguments)
    assert again.exit_code == 0
    assert "as it should be" in again.output


def test_where_no_systemd_runs_it_is_supervisord(tmp_path: Path) -> None:
    result = install(tmp_path)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "etc/supervisor/conf.d/llm-reconciler.conf").is_file()
    assert not (tmp_path / "etc/systemd").exists()
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    install(tmp_path)
    assert (tmp_path / "etc/systemd/system/llm-edge.service").is_file()


def test_a_worker(tmp_path: Path) -> None:
    result = install(tmp_path, "--supervisor", "systemd", "--role", "worker", "--head", "10.0.0.1:6379")
    assert result.exit_code == 0, result.output
    unit = (tmp_path / "etc/systemd/system/llm-ray-worker.service").read_text()
    assert "start.sh --ray-worker 10.0.0.1:6379" in unit
    assert "ray-token" in result.output
    assert install(tmp_path, "--role", "worker").exit_code == 1


def test_a_prefix_and_a_user(tmp_path: Path) -> None:
    user = pwd.getpwuid(os.getuid()).pw_name
    result = install(tmp_path, "--supervisor", "systemd", "--prefix", "/srv/llm", "--user", user)
    assert result.exit_code == 0, result.output
    unit = (tmp_path / "etc/systemd/system/llm-reconciler.service").read_text()
    assert f"User={user}" in unit
    assert "RECONCILE_STATE_DIR=/srv/llm/state" in unit
    assert "HF_HUB_CACHE=/srv/llm/hub" in unit
    assert "useradd" not in result.output


def test_uninstall_takes_what_was_written_and_nothing_else(tmp_path: Path) -> None:
    install(tmp_path, "--supervisor", "systemd")
    other = tmp_path / "etc/systemd/system/other.service"
    other.write_text("[Service]\n")
    dry = install(tmp_path, "--dry-run", command=uninstall_service)
    assert dry.exit_code == 0
    assert (other.parent / "llm-edge.service").exists()
    result = install(tmp_path, command=uninstall_service)
    assert result.exit_code == 0, result.output
    assert list(other.parent.iterdir()) == [other]
    assert (tmp_path / "etc/llm-reconciler/environment").exists()
    assert "systemctl disable --now llm-reconciler" in result.output
    assert "No service" in install(tmp_path, command=uninstall_service).output


# --- supervisord ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def supervisord(folder: Path, programs: str) -> Iterator[subprocess.Popen[bytes]]:
    config = folder / "supervisord.conf"
    config.write_text(
        f"[supervisord]\nnodaemon=true\nuser={pwd.getpwuid(os.getuid()).pw_name}\n"
        f"logfile={folder}/supervisord.log\npidfile={folder}/supervisord.pid\nchildlogdir={folder}\n\n{programs}"
    )
    command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(config)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def until(condition: Any, seconds: float = 30) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.1)
    return found


def test_supervisord_starts_it_again_when_it_ends_and_when_it_hangs(tmp_path: Path, repo: Path) -> None:
    user = pwd.getpwuid(os.getuid()).pw_name
    where = replace(
        EXAMPLE,
        repo=str(repo),
        state_dir=str(tmp_path),
        models_dir=str(tmp_path),
        hub_cache=str(tmp_path),
        config_dir=str(tmp_path),
        user=user,
        group=user,
    )
    (tmp_path / "environment").write_text("RECONCILE_LISTEN_PORT='4400'\n")
    (repo / ".venv/bin/python").symlink_to(sys.executable)
    # The first one ends, the second one hangs, the third one stays.
    (repo / ".venv/bin/reconcile").write_text(
        f"""#!{sys.executable}
import os, pathlib, sys, time
from reconciler.host.notify import Notifier
runs = pathlib.Path({str(tmp_path / "runs")!r})
with runs.open("a") as file:
    file.write(f"{{os.getpid()}} {{os.environ['RECONCILE_LISTEN_PORT']}} {{sys.argv[1]}}\\n")
count = len(runs.read_text().splitlines())
notifier = Notifier()
notifier.ready()
if count == 1:
    sys.exit(1)
while True:
    if count > 2:
        notifier.alive()
    time.sleep(0.3)
"""
    )
    text = supervisor_config(where, (Role.RECONCILER,)).replace("watchdog 60 --", "watchdog 2 --")
    text = text.replace(f'environment=PATH="{repo}', f'environment=PYTHONPATH="{ROOT}",PATH="{repo}')
    runs = tmp_path / "runs"
    with supervisord(tmp_path, text):
        until(lambda: runs.exists() and len(runs.read_text().splitlines()) == 3)
        lines = [line.split() for line in runs.read_text().splitlines()]
        assert [line[1:] for line in lines] == [["4400", "--watch"]] * 3
        time.sleep(3)
        assert len(runs.read_text().splitlines()) == 3, "one that gives signs of life is left alone"
        last = int(lines[-1][0])
        os.kill(last, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(last, 0)


# --- start.sh as a service --------------------------------------------------------------------------------

RAY = """#!{python}
# Stands in for `ray start`: leaves the daemons that Ray would, and listens where its dashboard would.
import os, subprocess, sys
options = dict(a.removeprefix("--").split("=", 1) for a in sys.argv if a.startswith("--") and "=" in a)
with open({told!r}, "a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
    for name in ("NOTIFY_SOCKET", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"):
        file.write(f"{{name}}={{os.environ.get(name)}}\\n")
def daemon(name, code="import time; time.sleep(600)"):
    subprocess.Popen([name, "-c", code, "x"], executable=sys.executable, stdout=subprocess.DEVNULL,
                     stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
if "--head" in sys.argv:
    daemon("/ray/gcs/gcs_server")
    listen = f"s = socket.create_server(('127.0.0.1', {{options['dashboard-port']}}))"
    daemon("/dashboard", f"import socket, time; {{listen}}; time.sleep(600)")
daemon("/ray/raylet/raylet")
"""


class Service:
    """start.sh under a supervisor: a socket that is told, and a process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.told = folder / "told"
        repo = folder / "repo"
        (repo / ".venv" / "bin").mkdir(parents=True)
        (repo / "deploy").mkdir()
        (repo / "start.sh").write_text((ROOT / "start.sh").read_text())
        (repo / ".venv" / ".engine").write_text("cpu\n")
        for name, text in {
            "ray": RAY.format(python=sys.executable, told=str(self.told)),
            "python": f'#!/bin/sh\nexec {sys.executable} "$@"\n',
            "reconcile": "#!/bin/sh\n",
        }.items():
            (repo / ".venv" / "bin" / name).write_text(text)
            (repo / ".venv" / "bin" / name).chmod(0o755)
        self.start_sh = repo / "start.sh"
        self.start_sh.chmod(0o755)
        self.channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.channel.bind(str(folder / "notify"))
        self.channel.settimeout(60)
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(8)]
            ports = [each.getsockname()[1] for each in sockets]
        names = "RAY DASHBOARD RAY_AGENT RAY_CLIENT HAPROXY_STATS HAPROXY_METRICS FALLBACK SERVE".split()
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("RECONCILE_", "RAY_"))},
            **{f"RECONCILE_{name}_PORT": str(port) for name, port in zip(names, ports, strict=True)},
            "RECONCILE_STATE_DIR": str(folder / "state"),
            "RECONCILE_RUN_DIR": tempfile.mkdtemp(prefix="rs-"),
            "PYTHONPATH": str(ROOT),
            "NOTIFY_SOCKET": str(folder / "notify"),
        }

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.start_sh, *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder,
        )

    def hear(self) -> list[str]:
        """The next message; who waits until it was heard goes on."""
        message, descriptors, _, _ = socket.recv_fds(self.channel, 1000, 4)
        for each in descriptors:
            os.close(each)
        return message.decode().splitlines()

    def daemons(self) -> dict[str, int]:
        run = (self.folder / "state" / "ray" / "run-id").read_text().strip()
        found = {}
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                with contextlib.suppress(OSError):
                    if f"RECONCILE_RAY_RUN={run}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                        found[(folder / "cmdline").read_bytes().split(b"\0")[0].decode()] = int(folder.name)
        return found


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path)
    yield made
    subprocess.run([made.start_sh, "--stop"], env=made.environment, capture_output=True, check=False, timeout=60)
    made.channel.close()
    subprocess.run(["rm", "-rf", made.environment["RECONCILE_RUN_DIR"]], check=True)


def _children(pid: int) -> list[str]:
    """The names of what a process runs."""
    names = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(OSError):
            names.append(Path(f"/proc/{child}/comm").read_text().strip())
    return names


@pytest.mark.parametrize("settled", [True, False], ids=["later", "at-once"])
def test_ray_in_the_foreground_says_when_it_is_up_and_ends_in_order(service: Service, *, settled: bool) -> None:
    process = service.start("--ray-foreground")
    assert service.hear()[0] == "READY=1"
    assert service.hear() == ["BARRIER=1"]
    told = service.told.read_text()
    assert "--head --node-ip-address=127.0.0.1" in told
    assert f"--temp-dir={service.environment['RECONCILE_RUN_DIR']}/ray" in told
    assert "NOTIFY_SOCKET=None" in told
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0" in told
    assert "RECONCILE_RAY_START_COMMAND" not in (service.folder / "state" / "env").read_text()
    daemons = service.daemons()
    assert {"/ray/gcs/gcs_server", "/ray/raylet/raylet", "/dashboard"} <= set(daemons)
    if settled:
        # As at most stops: it has said everything, and waits.
        assert process.stdout is not None
        until(lambda: "SIGTERM ends it" in process.stdout.readline())
        until(lambda: "sleep" in _children(process.pid))
    process.send_signal(signal.SIGTERM)
    assert service.hear() == ["STOPPING=1"]
    assert service.hear() == ["BARRIER=1"]
    assert process.wait(30) == 0
    assert not (service.folder / "state" / "ray" / "run-id").exists()
    for pid in daemons.values():
        assert not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.parametrize("name", ["/ray/gcs/gcs_server", "/ray/raylet/raylet"])
def test_it_ends_when_a_part_of_ray_does_and_takes_the_rest_along(service: Service, name: str) -> None:
    process = service.start("--ray-foreground")
    service.hear()
    service.hear()
    daemons = service.daemons()
    os.kill(daemons[name], signal.SIGKILL)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "Ray has ended" in output
    until(lambda: not Path(f"/proc/{daemons['/dashboard']}").exists())
    # And a restart finds nothing in its way.
    again = service.start("--ray-foreground")
    assert service.hear()[0] == "READY=1"
    service.hear()
    again.terminate()
    service.hear()
    service.hear()
    assert again.wait(30) == 0


def test_a_guard_that_was_killed_is_replaced_and_ray_goes_on(service: Service) -> None:
    process = service.start("--ray-foreground")
    service.hear()
    service.hear()
    before = service.daemons()
    process.kill()
    process.wait()
    again = service.start("--ray-foreground")
    assert service.hear()[0] == "READY=1"
    assert service.daemons() == before
    assert len(service.told.read_text().splitlines()) == 3, "ray was started once"
    again.kill()
    again.wait()


def test_a_worker_needs_the_heads_token_and_joins_it(service: Service) -> None:
    output, _ = (refused := service.start("--ray-worker", "10.0.0.1:6379")).communicate(timeout=60)
    assert refused.returncode == 1
    assert "copy the file of that name" in output
    (service.folder / "state" / "ray-token").write_text("a" * 64)
    process = service.start("--ray-worker", "10.0.0.1:6379")
    assert service.hear() == ["READY=1", "STATUS=10.0.0.1:6379"]
    service.hear()
    told = service.told.read_text()
    assert "--address=10.0.0.1:6379" in told
    assert "--head" not in told
    # Ray refuses to join another machine's cluster with this.
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=None" in told
    process.terminate()
    service.hear()
    service.hear()
    assert process.wait(30) == 0


@pytest.mark.parametrize("head", ["", "host", "host:port", "a b:1", "host:1;reboot"])
def test_what_is_no_head_is_refused(service: Service, head: str) -> None:
    process = service.start("--ray-worker", head)
    assert process.wait(30) == 2


def test_a_service_installs_nothing(service: Service) -> None:
    (service.start_sh.parent / ".venv" / ".engine").unlink()
    output, _ = (process := service.start("--ray-foreground")).communicate(timeout=30)
    assert process.returncode == 1
    assert "--install-only" in output


def test_a_folder_that_is_too_long_for_sockets_is_refused(service: Service) -> None:
    good = service.environment["RECONCILE_RUN_DIR"]
    service.environment["RECONCILE_RUN_DIR"] = f"{good}/{'x' * 30}"
    output, _ = (process := service.start("--ray-foreground")).communicate(timeout=30)
    assert process.returncode == 1
    assert "26 characters" in output
    service.environment["RECONCILE_RUN_DIR"] = good


# --- the container recipe ---------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    text = (DEPLOY / "container" / "Dockerfile").read_text()
    joined = re.sub(r"\\\n\s*", " ", "\n".join(line for line in text.splitlines() if not line.startswith("#")))
    return [
        (line.partition(" ")[0], line.partition(" ")[2].strip()) for line in joined.splitlines() if line.strip()
    ]


def test_what_the_image_copies_is_there_and_is_sent() -> None:
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [source for verb, rest in instructions() if verb == "COPY" for source in rest.split()[:-1]]
    assert copied
    for source in copied:
        assert (ROOT / source).exists(), source
        assert any(source.rstrip("/") == each or source.startswith(f"{each}/") for each in sent), source
    assert sorted(sent) == sorted(source.rstrip("/") for source in copied)


def test_the_image_runs_as_a_user_and_enters_by_start_sh() -> None:
    verbs = dict(instructions())
    assert verbs["USER"] == "llm"
    assert json.loads(verbs["ENTRYPOINT"])[-1] == "/opt/llm-reconciler/start.sh"
    assert json.loads(verbs["CMD"])[0] == "--"
    order = [verb for verb, _ in instructions()]
    assert order.index("USER") > max(index for index, verb in enumerate(order) if verb == "RUN")
    command = re.search(r"CMD (\[.*\])", verbs["HEALTHCHECK"])
    assert command is not None
    assert Path(json.loads(command[1])[-1]).relative_to("/opt/llm-reconciler") == Path(
        "deploy/container/healthy.py"
    )
    known = subprocess.run([ROOT / "start.sh", "--help"], capture_output=True, text=True, check=True).stdout
    for engine in ("cpu", "gpu"):
        assert f"--{engine}" in known


def test_the_compositions_publish_on_loopback_only() -> None:
    document = yaml.safe_load((DEPLOY / "container" / "compose.yaml").read_text())
    gpu, publish = (
        yaml.safe_load((DEPLOY / "container" / f"compose.{name}.yaml").read_text()) for name in ("gpu", "publish")
    )
    for each in (document, gpu, publish):
        assert set(each["services"]) <= set(document["services"])
        for service in each["services"].values():
            for port in service.get("ports", []):
                assert port.startswith("127.0.0.1:")
    assert all("latest" not in service["image"] for service in document["services"].values())
    # What is published is what listens there, by settings that there are.
    usual, models = Settings(), publish["services"]["models"]
    assert models["ports"] == [f"127.0.0.1:{port}:{port}" for port in (usual.listen_port, usual.api_port)]
    names = {name.removeprefix("RECONCILE_").lower() for name in models["environment"]}
    assert names == {"api_host", "listen_host"} <= set(Settings.model_fields)
    build = document["services"]["models"]["build"]
    assert (DEPLOY / "container" / build["context"] / build["dockerfile"]).is_file()
    assert set(document["services"]["webui"]["secrets"]) <= set(document["secrets"])


def healthy(port: int, **environment: str) -> int:
    """The exit code of the container's health check."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RECONCILE_")}
    return subprocess.run(
        [sys.executable, DEPLOY / "container" / "healthy.py"],
        env={**kept, "RECONCILE_LISTEN_PORT": str(port), **environment},
        check=False,
    ).returncode


@contextlib.contextmanager
def door(status: int | None, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """A front door that gives one answer, or none; gives its port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as server:

        def answer() -> None:
            connection, _ = server.accept()
            # One who does not speak TLS is hung up on.
            with contextlib.suppress(OSError), connection:
                secured = tls.wrap_socket(connection, server_side=True) if tls is not None else connection
                if status is not None:
                    secured.recv(4096)
                    secured.sendall(f"HTTP/1.1 {status} x\r\nContent-Length: 0\r\n\r\n".encode())
                    secured.shutdown(socket.SHUT_RDWR)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        thread.join(5)


@pytest.mark.parametrize(("status", "code"), [(200, 0), (401, 0), (503, 1), (None, 1)])
def test_the_health_is_that_of_the_front_door(status: int | None, code: int) -> None:
    with door(status) as port:
        assert healthy(port) == code


def test_the_health_of_a_front_door_with_a_certificate(tmp_path: Path) -> None:
    cert, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=models.example.org", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(cert, key)
    for status, code in ((401, 0), (503, 1)):
        with door(status, tls=tls) as port:
            assert healthy(port, RECONCILE_TLS_CERT_PATH=str(cert)) == code
    with door(200, tls=tls) as port:
        assert healthy(port) == 1
    with door(200) as port:
        assert healthy(port, RECONCILE_TLS_CERT_PATH=str(cert)) == 1


@pytest.mark.parametrize(
    ("listens", "setting"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "0.0.0.0"),
        ("127.0.0.1", "localhost"),
        ("127.0.0.2", "127.0.0.2"),
        ("::1", "::1"),
        ("::1", "::"),
    ],
)
def test_the_health_is_asked_where_the_front_door_listens(listens: str, setting: str) -> None:
    try:
        with door(200, listens) as port:
            assert healthy(port, RECONCILE_LISTEN_HOST=setting) == 0
    except OSError:
        pytest.skip("no IPv6 here")


# --- the documents ----------------------------------------------------------------------------------------


def commands_in(page: str) -> list[list[str]]:
    """What a page has people type: `reconcile ...`, and `llm ...`, which the runbook makes of it."""
    text = (ROOT / "docs" / page).read_text()
    blocks = re.findall(r"^```(?:bash|console|sh)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    blocks += re.findall(r"^ {4}((?:llm|reconcile) .*)", text, re.MULTILINE)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    found = [shlex.split(line, comments=True)[1:] for line in lines if re.match(r"(llm|reconcile) ", line)]
    inline = re.findall(r"`(?:llm|reconcile) ([^`\n]+)`", text)
    return found + [shlex.split(each, comments=True) for each in inline]


@pytest.mark.parametrize(
    "page", ["services.md", "runbook.md", "keys.md", "logs.md", "api.md", "page.md", "tls.md"]
)
def test_the_commands_of_the_documents_exist(page: str) -> None:
    assert commands_in(page)
    for words in commands_in(page):
        command: click.Command = cli
        depth = 0
        while depth < len(words) and isinstance(command, click.Group) and not words[depth].startswith("-"):
            assert words[depth] in command.commands, f"reconcile {' '.join(words)}"
            command, depth = command.commands[words[depth]], depth + 1
        options = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in words[depth:] if word.startswith("-")} <= options, words
