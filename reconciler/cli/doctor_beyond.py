"""What `reconcile doctor` looks at beyond this machine's own state: hub, source, Serve, edge, the reconciler."""

import email.utils
import tempfile
import time
from pathlib import Path

import aiohttp

from reconciler.cli.doctor_here import SECONDS, apart
from reconciler.core.findings import Finding, Level
from reconciler.core.parse import SUFFIXES
from reconciler.host.lock import holder
from reconciler.host.settings import Settings
from reconciler.loop.assemble import make_edge
from reconciler.loop.running import NoReconcilerError, RefusedError, states
from reconciler.loop.source import SourceSettingsError, check_source, make_git
from reconciler.ray_serve.client import ServeClient, ServeRefusedError, ServeUnreachableError

_CALL_SECONDS = 5.0
_SKEW_SECONDS = 30.0
_MOST_HEADERS = 8190
_OLD_TURNS = 6
"""A last turn that is as many pauses old is late."""


async def hub(_settings: Settings) -> list[Finding]:
    """Whether the hub answers, and what time it has."""
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


async def source(settings: Settings) -> list[Finding]:
    """Whether model files can be had."""
    try:
        check_source(settings)
    except (SourceSettingsError, ValueError) as error:
        return [Finding("source", Level.ERROR, str(error), "No model is declared.", "See docs/settings.md.")]
    if settings.source == "git":
        return await _git(settings)
    folder = settings.models_dir.absolute()
    why, do = "What runs is held as it is, and no change is seen.", "Correct RECONCILE_MODELS_DIR, or its mode."
    try:
        names = await apart(lambda: [each.name for each in folder.iterdir()])
    except OSError as error:
        return [Finding("source", Level.ERROR, f"{folder}: {error.strerror}", why, do)]
    count = sum(name.lower().endswith(SUFFIXES) and not name.startswith(".") for name in names)
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


async def serve(settings: Settings) -> list[Finding]:
    """Whether Ray Serve answers, and wants a token."""
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


async def reconciler(settings: Settings) -> list[Finding]:
    """Whether one runs here, and takes turns."""
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


async def edge(settings: Settings) -> list[Finding]:
    """Whether the edge answers."""
    # Serve's port, which would be asked for, is of no matter here.
    if await make_edge(settings, settings.serve_port).is_running():
        return [Finding("edge", Level.OK, f"answers at {settings.listen_host}:{settings.listen_port}")]
    why, do = (
        "No request is answered.",
        "systemctl start llm-edge, or reconcile edge start, which says what is wrong.",
    )
    return [Finding("edge", Level.WARNING, "the edge does not run", why, do)]
