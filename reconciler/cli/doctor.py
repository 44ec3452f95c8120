"""`reconcile doctor`: looks at the machine, its services and what they depend on, and says what to do.

All looks run at once, each with a time of its own, so that one thing that hangs is a finding and not the end of
the others. Nothing is changed or started; what is fetched of a git source goes to a folder that is removed again.
"""

import asyncio
import contextlib
import email.utils
import os
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TypeVar

import aiohttp
import click

from reconciler.cli.show import print_json
from reconciler.core.findings import Finding, Level, exit_code, ordered
from reconciler.host import checks
from reconciler.host.exposure import OurPort, exposed, open_sockets, owners, taken
from reconciler.host.key_file import FILE as KEY_FILE
from reconciler.host.key_file import KeyFile, KeyFileError
from reconciler.host.lock import holder
from reconciler.host.nvml import Gpus
from reconciler.host.settings import Settings
from reconciler.loop.assemble import make_edge
from reconciler.loop.running import NoReconcilerError, RefusedError, states
from reconciler.loop.source import SourceSettingsError, check_source, make_git
from reconciler.ray_serve.client import ServeClient, ServeRefusedError, ServeUnreachableError

T = TypeVar("T")
Look = Callable[[Settings], Awaitable[list[Finding]]]

SECONDS = 8.0
"""What one look may take."""
_GIB = 2**30
_CALL_SECONDS = 5.0
_SKEW_SECONDS = 30.0
_MOST_HEADERS = 8190
_OLD_TURNS = 6
"""A last turn that is as many pauses old is late."""
_LEAST_STATE = 1.0
_COLOURS = {Level.ERROR: "red", Level.WARNING: "yellow", Level.NOTE: "cyan", Level.OK: "green"}
_OF_START_SH = {
    "RECONCILE_RAY_PORT": (6379, "Ray's GCS", "token"),
    "RECONCILE_DASHBOARD_PORT": (8265, "Ray's dashboard", "token"),
    "RECONCILE_RAY_AGENT_PORT": (52365, "Ray's dashboard agent", "token"),
    "RECONCILE_RAY_CLIENT_PORT": (10001, "Ray's client server", "token"),
    "RECONCILE_HAPROXY_STATS_PORT": (8404, "the statistics of Serve's HAProxy", "nothing"),
    "RECONCILE_HAPROXY_METRICS_PORT": (9101, "the metrics of Serve's HAProxy", "nothing"),
    "RECONCILE_FALLBACK_PORT": (8500, "Serve's fallback proxy", "nothing"),
}
_SECRETS = ("git_token_path", "git_ssh_key_path", "hook_secret_path", "status_token_path", "notify_secret_path")


def doctor(settings: Settings, *, output: str) -> int:
    """Look at everything and print what was found. Exit 1 with an error, 3 with a warning, else 0."""
    findings = ordered(asyncio.run(look(settings)))
    if output == "json":
        print_json({"findings": [each.to_json() for each in findings]})
    else:
        _show(findings)
    return exit_code(findings)


async def look(settings: Settings, looks: Iterable[tuple[str, Look]] | None = None) -> list[Finding]:
    """All findings, in the order of the looks."""
    found = await asyncio.gather(*(_bounded(name, each, settings) for name, each in looks or _LOOKS))
    return [finding for findings in found for finding in findings]


async def _bounded(name: str, call: Look, settings: Settings) -> list[Finding]:
    try:
        return await asyncio.wait_for(call(settings), SECONDS)
    except TimeoutError:
        what = f"no answer within {SECONDS:.0f} s"
    except Exception as error:  # noqa: BLE001 -- one look that fails must not hide the others
        what = f"this could not be looked at: {error!r}"
    return [Finding(name, Level.ERROR, what, "Nothing can be said of it.", "See docs/troubleshooting.md.")]


async def _apart(call: Callable[[], T]) -> T:
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


# --- this machine -----------------------------------------------------------------------------------------


async def _versions(settings: Settings) -> list[Finding]:
    def call() -> list[Finding]:
        device = settings.device
        return [checks.python_version(), checks.engine(device), checks.versions(device)]

    return await _apart(call)


async def _gpus(settings: Settings) -> list[Finding]:
    def call() -> list[Finding]:
        driver = checks.driver_version()
        readings = Gpus(os.environ.get("CUDA_VISIBLE_DEVICES"), patience=SECONDS / 2).readings() if driver else ()
        return checks.gpus(settings.device, readings, driver)

    return await _apart(call)


async def _disk(settings: Settings) -> list[Finding]:
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

    return await _apart(call)


async def _files(settings: Settings) -> list[Finding]:
    def call() -> list[Finding]:
        state = settings.state_dir.absolute()
        found: list[Finding | None] = [checks.state_directory(state)]
        found += [checks.secret_file(name, state / name, needed=False) for name in ("ray-token", "edge-token")]
        if settings.ray_token_path is not None and settings.ray_token_path.absolute() != state / "ray-token":
            found.append(checks.secret_file("Ray's token", settings.ray_token_path, needed=True))
        for name in _SECRETS:
            path: Path | None = getattr(settings, name)
            if path is not None:
                found.append(checks.secret_file(name, path, needed=True))
        keys = checks.secret_file("keys", state / KEY_FILE, needed=False)
        found.append(keys or _no_keys())
        try:
            KeyFile(state).ring()
        except KeyFileError as error:
            why = "All requests that need a key are refused."
            found.append(Finding("keys", Level.ERROR, str(error), why, "Mend the file; keys can be made anew."))
        return [each for each in found if each is not None]

    return await _apart(call)


def _no_keys() -> Finding:
    return Finding(
        "keys",
        Level.NOTE,
        "there is no key",
        "Every process of this machine may use the models, and nobody the page and the management API.",
        "reconcile keys makes some.",
    )


async def _ports(settings: Settings) -> list[Finding]:
    def call() -> list[Finding]:
        sockets = open_sockets()
        holders = owners(sockets)
        ports = our_ports(settings)
        return [
            *taken(sockets, holders, ports),
            *exposed(
                sockets, holders, ports, ray_token=settings.ray_token_path is not None, keys=_has_keys(settings)
            ),
        ]

    return await _apart(call)


def our_ports(settings: Settings) -> list[OurPort]:
    """The ports of these settings, with the processes that should have them."""
    reconciler, edge = holder(settings.state_dir), _edge_pid(settings)
    ports = [
        OurPort(settings.listen_port, "front door", "keys", edge, exclusive=True),
        OurPort(settings.activator_port, "activator", "nothing", reconciler, exclusive=True),
        OurPort(settings.api_port, "management API", "keys", reconciler, exclusive=True),
        OurPort(settings.serve_port, "Serve's HTTP proxy", "nothing"),
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


def _has_keys(settings: Settings) -> bool:
    try:
        return not KeyFile(settings.state_dir.absolute()).ring().inference_is_open
    except KeyFileError:
        return True  # They are there, and the door stays shut.


# --- what it depends on -----------------------------------------------------------------------------------


async def _hub(_settings: Settings) -> list[Finding]:
    from huggingface_hub import constants  # noqa: PLC0415 -- takes a while, and only here

    if constants.HF_HUB_OFFLINE:
        return [Finding("hub", Level.NOTE, "HF_HUB_OFFLINE is set: nothing is downloaded")]
    endpoint = constants.ENDPOINT
    why = "Weights that are not on disk cannot be fetched, and branches are not followed."
    do = "Look at HF_ENDPOINT, HTTPS_PROXY and the firewall; without a network: HF_HUB_OFFLINE=1."
    timeout = aiohttp.ClientTimeout(total=_CALL_SECONDS)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=True, max_field_size=_MOST_HEADERS) as session,
            session.head(endpoint, allow_redirects=False) as answer,
        ):
            status, date = answer.status, answer.headers.get("Date", "")
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        reason = "no answer" if isinstance(error, TimeoutError) else str(error)
        return [Finding("hub", Level.WARNING, f"{endpoint}: {reason}", why, do)]
    if status >= 500:  # noqa: PLR2004 -- a server's own fault
        return [Finding("hub", Level.WARNING, f"{endpoint} answers {status}", why, "Try again later.")]
    return [Finding("hub", Level.OK, f"{endpoint} answers"), *_clock(date)]


def _clock(date: str) -> list[Finding]:
    """How far our clock is from that of a server, roughly."""
    try:
        theirs = email.utils.parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return []
    skew = time.time() - theirs
    if abs(skew) <= _SKEW_SECONDS:
        return [Finding("clock", Level.OK, f"within {_SKEW_SECONDS:.0f} s of the hub's")]
    return [
        Finding(
            "clock",
            Level.WARNING,
            f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the hub's",
            "Schedules, expiring keys and leases go by it, and so do certificates.",
            "timedatectl set-ntp true; in a container, mend the host's.",
        )
    ]


async def _source(settings: Settings) -> list[Finding]:
    try:
        check_source(settings)
    except (SourceSettingsError, ValueError) as error:
        return [Finding("source", Level.ERROR, str(error), "No model is declared.", "See docs/settings.md.")]
    if settings.source == "git":
        return await _git(settings)
    folder = settings.models_dir.absolute()
    why, do = "What runs is held as it is, and no change is seen.", "Correct RECONCILE_MODELS_DIR, or its mode."
    try:
        names = await _apart(lambda: [each.name for each in folder.iterdir()])
    except OSError as error:
        return [Finding("source", Level.ERROR, f"{folder}: {error.strerror}", why, do)]
    count = sum(name.endswith((".yaml", ".yml")) for name in names)
    if not count:
        do = "reconcile catalogue lists models; reconcile add NAME writes a file."
        return [Finding("source", Level.NOTE, f"{folder} has no model file", "Nothing is served.", do)]
    return [Finding("source", Level.OK, f"{folder}: {count} model files; reconcile validate checks them")]


async def _git(settings: Settings) -> list[Finding]:
    with tempfile.TemporaryDirectory(prefix="reconcile-doctor-") as folder:
        changes = {"state_dir": Path(folder), "git_timeout": min(settings.git_timeout, SECONDS - 1)}
        source = make_git(settings.model_copy(update=changes))
        await source.fetch()
        if source.unreachable:
            return [
                Finding(
                    "source",
                    Level.ERROR,
                    source.unreachable,
                    "The commit that was taken over last goes on being served; nothing newer comes.",
                    "docs/git.md: address, token or key, known hosts, signatures.",
                )
            ]
        return [Finding("source", Level.OK, f"{source.place} can be fetched")]


async def _serve(settings: Settings) -> list[Finding]:
    why = "Nothing can be loaded; hot models go on answering while Ray itself is there."
    do = "Is Ray running? systemctl status llm-ray-head, or ./start.sh; and RECONCILE_RAY_DASHBOARD."
    try:
        async with ServeClient(settings.ray_dashboard, settings.ray_token_path, timeout=_CALL_SECONDS) as client:
            instance = await client.instance()
    except (ServeUnreachableError, ServeRefusedError) as error:
        return [Finding("serve", Level.ERROR, str(error), why, do)]
    found = [Finding("serve", Level.OK, f"{settings.ray_dashboard} answers")]
    applications = instance.get("applications")
    bad = [
        f"{name} is {details.get('status')}"
        for name, details in (applications.items() if isinstance(applications, dict) else ())
        if isinstance(details, dict) and details.get("status") in ("DEPLOY_FAILED", "UNHEALTHY")
    ]
    if bad:
        why, do = "It does not answer as it should.", "reconcile status has the reason."
        found.append(Finding("serve", Level.WARNING, ", ".join(bad[:5]), why, do))
    if settings.ray_token_path is None:
        found.append(
            Finding(
                "serve",
                Level.ERROR,
                "Ray answers without a token",
                "Every process that reaches it runs code as Ray's user.",
                "Start Ray with RAY_AUTH_MODE=token, as ./start.sh does (docs/security.md).",
            )
        )
    return found


async def _reconciler(settings: Settings) -> list[Finding]:
    pid = holder(settings.state_dir)
    if pid is None:
        return [
            Finding(
                "reconciler",
                Level.WARNING,
                f"none runs in {settings.state_dir.absolute()}",
                "Changes are not seen, and cold models are not loaded.",
                "systemctl start llm-reconciler, or ./start.sh.",
            )
        ]
    try:
        looked_at, _ = await states(settings.state_dir)
    except (NoReconcilerError, RefusedError) as error:
        return [
            Finding(
                "reconciler",
                Level.WARNING,
                f"process {pid} runs, and has nothing to say: {error}",
                "It waits for Ray or the cluster's lease, or converges once; or it hangs.",
                "reconcile logs; reconcile lock shows who may write.",
            )
        ]
    age = max(0.0, time.time() - looked_at)
    if age > _OLD_TURNS * min(settings.resync_interval, settings.sweep_interval):
        return [
            Finding(
                "reconciler",
                Level.WARNING,
                f"process {pid}: its last turn was {age:.0f} s ago",
                "Nothing is changed meanwhile. Ray that does not answer is the usual reason.",
                "reconcile logs: look for turn.failed. A loop that hangs is restarted by the watchdog.",
            )
        ]
    return [Finding("reconciler", Level.OK, f"process {pid} runs; its last turn was {age:.0f} s ago")]


async def _edge(settings: Settings) -> list[Finding]:
    # Serve's port, which would be asked for, is of no matter here.
    if await make_edge(settings, settings.serve_port).is_running():
        return [Finding("edge", Level.OK, f"answers at {settings.listen_host}:{settings.listen_port}")]
    why, do = (
        "No request is answered.",
        "systemctl start llm-edge, or reconcile edge start, which says what is wrong.",
    )
    return [Finding("edge", Level.WARNING, "the edge does not run", why, do)]


_LOOKS: tuple[tuple[str, Look], ...] = (
    ("versions", _versions),
    ("gpus", _gpus),
    ("disk", _disk),
    ("files", _files),
    ("ports", _ports),
    ("hub", _hub),
    ("source", _source),
    ("serve", _serve),
    ("edge", _edge),
    ("reconciler", _reconciler),
)


def _show(findings: list[Finding]) -> None:
    width = max(len(each.check) for each in findings)
    for each in findings:
        level = click.style(f"{each.level.value:<8}", fg=_COLOURS[each.level])
        click.echo(f"{level} {each.check:<{width}}  {each.what}")
        for line in (each.why, f"-> {each.do}" if each.do else ""):
            if line:
                click.echo(f"{'':<9}{'':<{width}}  {line}")
    counts = {level: sum(each.level is level for each in findings) for level in Level}
    click.echo(f"\n{counts[Level.ERROR]} errors, {counts[Level.WARNING]} warnings, {counts[Level.NOTE]} notes.")
