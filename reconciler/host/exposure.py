"""Which of our ports others than this machine can reach, and which are somebody else's: for `reconcile doctor`."""

import contextlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from reconciler.core.findings import Finding, Level
from reconciler.core.keys import Scope
from reconciler.core.listening import Listener, listeners

_PROC = Path("/proc")
_LARGEST_TABLE = 16 << 20
_OF_RAY = ("gcs_server", "raylet", "ray::", "/ray/", "VLLM::", "start-ray")
_FIREWALL = (
    "Close it with a firewall or a network namespace (docs/security.md), which `ss -ltnp` shows the need of."
)


@dataclass(frozen=True, slots=True)
class OurPort:
    """A port that is ours.

    Attributes:
        what: Whose it is, for people.
        guard: What it asks of a caller: a key of the scope `inference` or `admin`, Ray's `token`, or `nothing`;
            `network`: nothing, and the operator says that no stranger reaches it.
        owner: Process that should have it; None where it does not run, or is not known.
        exclusive: It is known whenever it runs, so without one nobody may have the port.
    """

    port: int
    what: str
    guard: str
    owner: int | None = None
    exclusive: bool = False


def open_sockets(proc: Path = _PROC) -> list[Listener]:
    """Everything that listens in this network namespace."""
    found: list[Listener] = []
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError), (proc / "net" / name).open(encoding="ascii", errors="replace") as file:
            found += listeners(file.read(_LARGEST_TABLE))
    return found


def owners(sockets: Iterable[Listener], proc: Path = _PROC) -> dict[int, tuple[int, str]]:
    """Socket inode to process id and command line, of processes that we may look at."""
    wanted = {f"socket:[{each.inode}]": each.inode for each in sockets}
    found: dict[int, tuple[int, str]] = {}
    for folder in proc.iterdir():
        if not folder.name.isdigit():
            continue
        ours = [wanted[link] for link in _links(folder / "fd") if link in wanted]
        if ours:
            command = ""
            with contextlib.suppress(OSError):
                raw = (folder / "cmdline").read_bytes()[:4096]
                command = raw.replace(b"\0", b" ").decode(errors="replace").strip()
            found |= {inode: (int(folder.name), command) for inode in ours if inode not in found}
    return found


def _links(folder: Path) -> list[str]:
    """What a process has open; nothing where it is gone or another user's."""
    found: list[str] = []
    with contextlib.suppress(OSError):
        for entry in folder.iterdir():
            with contextlib.suppress(OSError):  # Closed meanwhile, as our own look at this folder is.
                found.append(str(entry.readlink()))
    return found


def exposed(
    sockets: Sequence[Listener],
    holders: Mapping[int, tuple[int, str]],
    ports: Sequence[OurPort],
    *,
    ray_token: bool,
    keys: Collection[Scope],
    tls: bool,
) -> list[Finding]:
    """What of ours can be reached from elsewhere.

    Args:
        sockets: What listens.
        holders: Who, as far as known.
        ports: Ours.
        ray_token: Ray asks for a token.
        keys: The scopes that there are keys for.
        tls: There is a certificate for the front door and the API.
    """
    ours = {each.port: each for each in ports}
    found: list[Finding] = []
    of_ray: list[Listener] = []
    for each in sockets:
        if each.is_loopback:
            continue
        known = ours.get(each.port)
        if known is not None:
            found.append(_of_ours(each, known, ray_token=ray_token, keys=keys, tls=tls))
        elif any(word in holders.get(each.inode, (0, ""))[1] for word in _OF_RAY):
            of_ray.append(each)
    if of_ray:
        numbers = ", ".join(str(each.port) for each in of_ray[:8]) + (" and more" if len(of_ray) > 8 else "")  # noqa: PLR2004
        found.append(
            Finding(
                "exposure",
                Level.WARNING if ray_token else Level.ERROR,
                f"Ray listens beyond loopback on {len(of_ray)} ports: {numbers}",
                "Each Serve replica opens one; a caller needs the token, and can reach it without."
                if ray_token
                else "Whoever reaches Ray without a token runs code here.",
                _FIREWALL if ray_token else "Set RAY_AUTH_MODE=token, as ./start.sh does, and restart Ray.",
            )
        )
    if not found:
        found.append(Finding("exposure", Level.OK, "nothing of ours listens beyond loopback"))
    return found


def taken(
    sockets: Sequence[Listener], holders: Mapping[int, tuple[int, str]], ports: Sequence[OurPort]
) -> list[Finding]:
    """Ports that somebody else has, or that nobody has though its owner runs."""
    found: list[Finding] = []
    by_port: dict[int, list[Listener]] = {}
    for each in sockets:
        by_port.setdefault(each.port, []).append(each)
    for port in ports:
        there = by_port.get(port.port, [])
        pids = {holders[each.inode][0] for each in there if each.inode in holders}
        if port.owner is None and not (port.exclusive and there):
            continue
        if not there:
            found.append(
                Finding(
                    "ports",
                    Level.ERROR,
                    f"nobody listens on {port.port}, though the {port.what} runs (process {port.owner})",
                    "It is just starting, or its port was taken when it did.",
                    "Look at `reconcile logs`; `ss -ltnp` shows who has which port.",
                )
            )
        elif port.owner is None or (pids and not _is_or_descends(pids, port.owner)):
            who = "; ".join(
                f"{holders[each.inode][0]} {holders[each.inode][1][:60]}"
                for each in there
                if each.inode in holders
            )
            found.append(
                Finding(
                    "ports",
                    Level.ERROR,
                    f"{port.port} belongs to another process than the {port.what}: {who or 'of another user'}",
                    "Requests go to that one.",
                    "End it, or set another port.",
                )
            )
    return found or [Finding("ports", Level.OK, "no port of ours is somebody else's")]


def _is_or_descends(pids: Iterable[int], owner: int) -> bool:
    for start in pids:
        pid, steps = start, 0
        while pid > 1 and steps < 16:  # noqa: PLR2004 -- deeper is no tree of ours
            if pid == owner:
                return True
            try:
                stat = (_PROC / str(pid) / "stat").read_text(errors="replace")
                pid = int(stat.rpartition(")")[2].split()[1])
            except (OSError, ValueError, IndexError):
                break
            steps += 1
    return False


def _of_ours(socket: Listener, port: OurPort, *, ray_token: bool, keys: Collection[Scope], tls: bool) -> Finding:
    what = f"{port.what} listens on {socket}"
    if port.guard in (Scope.INFERENCE, Scope.ADMIN):
        return _of_a_door(what, Scope(port.guard), keys=keys, tls=tls)
    if port.guard == "token":
        return _of_ray(what, ray_token=ray_token)
    if port.guard == "network":
        why = "It asks nobody for a key; trust_serve_network says that only machines of yours reach it."
        return Finding("exposure", Level.NOTE, what, why, "docs/security.md has more.")
    return Finding(
        "exposure",
        Level.ERROR,
        what,
        "It asks nobody who they are.",
        _FIREWALL + " For Ray's HAProxy: RAY_SERVE_HAPROXY_BINARY_PATH=deploy/haproxy-loopback.sh.",
    )


def _of_a_door(what: str, scope: Scope, *, keys: Collection[Scope], tls: bool) -> Finding:
    if scope not in keys:
        level = Level.WARNING if scope is Scope.ADMIN else Level.ERROR
        why = "It lets nobody in, and what listens there does not start so the next time."
        if scope is Scope.INFERENCE:
            why += " A front door of an earlier version lets everybody in."
        do = f"Make one (reconcile keys add NAME --scope {scope}), or listen on 127.0.0.1."
        return Finding("exposure", level, f"{what}, and there is no {scope} key", why, do)
    asks = f"{what}; it asks for an {scope} key"
    if tls:
        return Finding("exposure", Level.NOTE, asks)
    why = "Keys, prompts and answers can be read on the way."
    return Finding("exposure", Level.NOTE, f"{asks}, in plain HTTP", why, "Give it a certificate: docs/tls.md.")


def _of_ray(what: str, *, ray_token: bool) -> Finding:
    if ray_token:
        do = "Let only your own nodes reach it. " + _FIREWALL
        asks = f"{what}; it asks for Ray's token"
        return Finding("exposure", Level.WARNING, asks, "Whoever has the token runs code.", do)
    why = "Whoever reaches Ray without a token runs code here."
    do = "Set RAY_AUTH_MODE=token, as ./start.sh does, and restart Ray."
    return Finding("exposure", Level.ERROR, what, why, do)
