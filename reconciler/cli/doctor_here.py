"""What `reconcile doctor` looks at on this machine: each look gives findings, off the loop's own thread."""

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from reconciler.core.exposure import is_loopback
from reconciler.core.findings import Finding, Level
from reconciler.core.keys import Scope
from reconciler.host import checks
from reconciler.host.certificate import certificate
from reconciler.host.exposure import OurPort, exposed, open_sockets, owners, taken
from reconciler.host.key_file import FILE as KEY_FILE
from reconciler.host.key_file import KeyFile, KeyFileError
from reconciler.host.lock import holder
from reconciler.host.nvml import Gpus
from reconciler.host.settings import Settings

T = TypeVar("T")

SECONDS = 8.0
"""What one look may take."""
_GIB = 2**30
_LEAST_STATE = 1.0
_OF_START_SH = {
    "RECONCILE_RAY_PORT": (6379, "Ray's GCS", "token"),
    "RECONCILE_DASHBOARD_PORT": (8265, "Ray's dashboard", "token"),
    "RECONCILE_RAY_AGENT_PORT": (52365, "Ray's dashboard agent", "token"),
    "RECONCILE_RAY_CLIENT_PORT": (10001, "Ray's client server", "token"),
    "RECONCILE_HAPROXY_STATS_PORT": (8404, "the statistics of Serve's HAProxy", "nothing"),
    "RECONCILE_HAPROXY_METRICS_PORT": (9101, "the metrics of Serve's HAProxy", "nothing"),
    "RECONCILE_FALLBACK_PORT": (8500, "Serve's fallback proxy", "nothing"),
}
_SECRETS = (
    "git_token_path",
    "git_push_token_path",
    "git_ssh_key_path",
    "hook_secret_path",
    "status_token_path",
    "notify_secret_path",
    "tls_key_path",
)


async def apart(call: Callable[[], T]) -> T:
    """In a thread that nobody waits for at the end: drivers and network disks can hang for good."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def tell(say: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # The loop has ended meanwhile.
            loop.call_soon_threadsafe(lambda: None if result.done() else say())

    def run() -> None:
        try:
            value = call()
        except Exception as error:  # noqa: BLE001 -- handed on
            failure = error
            tell(lambda: result.set_exception(failure))
        else:
            tell(lambda: result.set_result(value))

    threading.Thread(target=run, name="doctor", daemon=True).start()
    return await result


async def versions(settings: Settings) -> list[Finding]:
    """Python, the engine's build, and what is pinned."""

    def call() -> list[Finding]:
        device = settings.device
        return [checks.python_version(), checks.engine(device), checks.versions(device)]

    return await apart(call)


async def gpus(settings: Settings) -> list[Finding]:
    """Driver and GPUs."""

    def call() -> list[Finding]:
        driver = checks.driver_version()
        readings = Gpus(os.environ.get("CUDA_VISIBLE_DEVICES"), patience=SECONDS / 2).readings() if driver else ()
        return checks.gpus(settings.device, readings, driver)

    return await apart(call)


async def disk(settings: Settings) -> list[Finding]:
    """Room for state and weights, shared memory, limits."""

    def call() -> list[Finding]:
        return [
            checks.disk(
                "disk of the state",
                settings.state_dir.absolute(),
                _LEAST_STATE * _GIB,
                why="Records, logs and the journal are written there; without room, nothing is changed.",
                do="Make room there, or set RECONCILE_STATE_DIR.",
            ),
            checks.disk(
                "disk of the weights",
                settings.hub_cache_folder,
                (settings.disk_reserve_gib + 1) * _GIB,
                why="A download that would leave less than disk_reserve_gib free is refused.",
                do="reconcile gc --dry-run says what could go; or set RECONCILE_HUB_CACHE to a larger disk.",
            ),
            checks.shared_memory(),
            *checks.limits(watches_models=settings.source == "folder"),
        ]

    return await apart(call)


async def files(settings: Settings) -> list[Finding]:
    """The state directory, and all secrets."""

    def call() -> list[Finding]:
        state = settings.state_dir.absolute()
        found: list[Finding | None] = [checks.state_directory(state)]
        found += [checks.secret_file(name, state / name, needed=False) for name in ("ray-token", "edge-token")]
        if settings.ray_token_path is not None and settings.ray_token_path.absolute() != state / "ray-token":
            found.append(checks.secret_file("Ray's token", settings.ray_token_path, needed=True))
        for name in _SECRETS:
            path: Path | None = getattr(settings, name)
            if path is not None:
                of_group = name == "tls_key_path"  # A group of those who may serve with it is usual.
                found.append(checks.secret_file(name, path, needed=True, of_group=of_group))
        keys = checks.secret_file("keys", state / KEY_FILE, needed=False)
        found.append(keys or _no_keys())
        try:
            KeyFile(state).ring()
        except KeyFileError as error:
            why = "All requests that need a key are refused."
            found.append(Finding("keys", Level.ERROR, str(error), why, "Mend the file; keys can be made anew."))
        return [each for each in found if each is not None]

    return await apart(call)


def _no_keys() -> Finding:
    return Finding(
        "keys",
        Level.NOTE,
        "there is no key",
        "Every process of this machine may use the models, and nobody the page and the management API.",
        "reconcile keys makes some.",
    )


async def ports(settings: Settings) -> list[Finding]:
    """Who has our ports, and who reaches them."""

    def call() -> list[Finding]:
        sockets = open_sockets()
        holders = owners(sockets)
        ports = our_ports(settings)
        return [
            *taken(sockets, holders, ports),
            *exposed(
                sockets,
                holders,
                ports,
                ray_token=settings.ray_token_path is not None,
                keys=_open_with_keys(settings),
                tls=settings.tls_cert_path is not None,
            ),
            *_serve_host(settings),
        ]

    return await apart(call)


def our_ports(settings: Settings) -> list[OurPort]:
    """The ports of these settings, with the processes that should have them."""
    reconciler, edge = holder(settings.state_dir), _edge_pid(settings)
    ports = [
        OurPort(settings.listen_port, "front door", "inference", edge, exclusive=True),
        OurPort(settings.activator_port, "activator", "nothing", reconciler, exclusive=True),
        OurPort(settings.api_port, "management API", "admin", reconciler, exclusive=True),
        OurPort(
            settings.serve_port, "Serve's HTTP proxy", "network" if settings.trust_serve_network else "nothing"
        ),
    ]
    ports += [OurPort(_port(name, number), what, guard) for name, (number, what, guard) in _OF_START_SH.items()]
    return ports


def _port(name: str, usual: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else usual


def _edge_pid(settings: Settings) -> int | None:
    pid_file = settings.state_dir.absolute() / "edge" / "edge.pid"
    try:
        pid = int(pid_file.read_text(encoding="ascii").split()[0])
        return pid if b"edge.cfg" in Path(f"/proc/{pid}/cmdline").read_bytes() else None
    except (OSError, ValueError, IndexError):
        return None


def _open_with_keys(settings: Settings) -> frozenset[Scope]:
    """Of the doors that ask for keys, those that somebody has one for."""
    doors = frozenset({Scope.INFERENCE, Scope.ADMIN})
    try:
        ring, now = KeyFile(settings.state_dir.absolute()).ring(), time.time()
    except KeyFileError:
        return doors  # They are there, and the doors stay shut.
    return frozenset(each for each in doors if any(key.opens(each) and key.is_valid(now) for key in ring.keys))


def _serve_host(settings: Settings) -> list[Finding]:
    if is_loopback(settings.serve_host) or settings.trust_serve_network:
        return []
    return [
        Finding(
            "exposure",
            Level.ERROR,
            f"serve_host is {settings.serve_host}, beyond loopback",
            "Serve's HTTP asks nobody for a key, and has every path of vLLM. The reconciler does not start so.",
            "Set it to 127.0.0.1. Where only machines of yours reach that address: "
            "RECONCILE_TRUST_SERVE_NETWORK=true.",
        )
    ]


async def tls(settings: Settings) -> list[Finding]:
    """The certificate of front door, API and page, where there is one."""
    cert, key = settings.tls_cert_path, settings.tls_key_path
    if cert is None or key is None:
        return []
    return await apart(lambda: certificate(cert, key, time.time()))
