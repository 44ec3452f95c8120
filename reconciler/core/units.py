"""Where things lie on a machine -> texts of its services: systemd units and a supervisord configuration. Pure.

Each is a service of its own, so that none takes another with it: Ray's head or a worker node, with all engines;
the edge, which answers for hot models whatever becomes of the reconciler; the reconciler. Under supervisord it is
the reconciler that starts the edge.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath

_PATH = re.compile(r"/[A-Za-z0-9_@+=:,./-]*")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_HEAD = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:]+\]):[0-9]{1,5}")
_URL = re.compile(r"https?://[A-Za-z0-9.:_\[\]-]+/?")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_LONGEST_RUN_DIR = 26
"""Characters; the rest of a Unix socket's 107 is for Ray's own names (`start.sh`, make_socket_dir)."""
WATCHDOG_SECONDS = 60
"""A reconciler that gives no sign of life for that long is ended and started again."""
_HOMES = ("/home/", "/root/", "/run/user/")


class UnitError(ValueError):
    """No service can be made of this; the message says why."""


class Role(StrEnum):
    """What a machine does."""

    HEAD = "head"
    """Ray's head, and engines."""
    WORKER = "worker"
    """A further node of a Ray elsewhere."""
    RECONCILER = "reconciler"
    """The reconciler, and the edge beside it."""


@dataclass(frozen=True, slots=True)
class Installation:
    """One machine.

    Attributes:
        repo: The folder of `start.sh`; the Python environment is `.venv` in it.
        state_dir: The reconciler's own files.
        models_dir: The model files.
        hub_cache: The weights.
        config_dir: Settings that people write: `environment`, and `reconcile.toml` if there is one.
        run_dir: Ray's sockets, sessions and logs; 26 characters at most.
        user: Who runs it all; the group has the same name.
        group: The user's.
        engine: `cpu` or `cuda`.
        head: `HOST:PORT` of the Ray that a worker joins.
        ray_dashboard: URL of Ray's dashboard.
        ray_token: The file with Ray's token, where it is not the one that `start.sh` makes.

    Raises:
        UnitError: A name or path has characters that mean something to a supervisor, or is too long.
    """

    repo: str
    state_dir: str
    models_dir: str
    hub_cache: str
    config_dir: str = "/etc/llm-reconciler"
    run_dir: str = "/var/lib/llm-ray"
    user: str = "llm"
    group: str = "llm"
    engine: str = "cpu"
    head: str = ""
    ray_dashboard: str = "http://127.0.0.1:8265"
    ray_token: str = ""

    def __post_init__(self) -> None:
        for path in (
            self.repo,
            self.state_dir,
            self.models_dir,
            self.hub_cache,
            self.config_dir,
            self.run_dir,
            self.ray_token or self.state_dir,
        ):
            if not _PATH.fullmatch(path) or len(path) < 2 or ".." in PurePosixPath(path).parts:  # noqa: PLR2004 -- not the root itself
                raise UnitError(f"{path!r}: a service's path is absolute, of letters, digits and _@+=:,./-")
        if not _URL.fullmatch(self.ray_dashboard):
            raise UnitError(f"{self.ray_dashboard!r} is no URL of a dashboard")
        if len(self.run_dir) > _LONGEST_RUN_DIR:
            raise UnitError(
                f"{self.run_dir} has more than {_LONGEST_RUN_DIR} characters, which leaves too few for Ray"
            )
        for name in (self.user, self.group):
            if not _USER.fullmatch(name):
                raise UnitError(f"{name!r} is no name of a user or group")
        if self.engine not in ("cpu", "cuda"):
            raise UnitError(f"{self.engine!r} is no engine: cpu or cuda")
        if self.head and not _HEAD.fullmatch(self.head):
            raise UnitError(f"{self.head!r}: a head is HOST:PORT")

    @property
    def venv(self) -> str:
        """The Python environment."""
        return f"{self.repo}/.venv"

    @property
    def environment_file(self) -> str:
        """Settings that people write, `NAME='value'` a line: what systemd and a shell both read."""
        return f"{self.config_dir}/environment"

    @property
    def folders(self) -> tuple[str, ...]:
        """What the services write to."""
        return tuple(dict.fromkeys((self.state_dir, self.run_dir, self.models_dir, self.hub_cache)))


def units(where: Installation, roles: Sequence[Role]) -> dict[str, str]:
    """The systemd units of a machine: file name to text.

    Raises:
        UnitError: The roles do not go together, or a worker has no head.
    """
    _check(where, roles)
    made: dict[str, str] = {}
    if Role.HEAD in roles:
        made["llm-ray-head.service"] = _ray(where, "Ray head and engines", "--ray-foreground")
    if Role.WORKER in roles:
        made["llm-ray-worker.service"] = _ray(where, f"Ray node of {where.head}", f"--ray-worker {where.head}")
    if Role.RECONCILER in roles:
        made["llm-edge.service"] = _edge(where)
        made["llm-reconciler.service"] = _reconciler(where, loopback=Role.HEAD in roles)
    return made


def supervisor_config(where: Installation, roles: Sequence[Role]) -> str:
    """The same services for supervisord, where there is no systemd.

    Raises:
        UnitError: The roles do not go together, or a worker has no head.
    """
    _check(where, roles)
    programs = []
    if Role.HEAD in roles:
        programs.append(_program(where, "llm-ray-head", f"{where.repo}/start.sh --ray-foreground", 10))
    if Role.WORKER in roles:
        programs.append(_program(where, "llm-ray-worker", f"{where.repo}/start.sh --ray-worker {where.head}", 10))
    if Role.RECONCILER in roles:
        follows = f"{where.venv}/bin/python -m reconciler.host.watchdog {WATCHDOG_SECONDS} --"
        command = f"{follows} {where.venv}/bin/reconcile --watch"
        programs.append(_program(where, "llm-reconciler", command, 20, loopback=Role.HEAD in roles))
    head = (
        "; Made by `reconcile install-service`. Ray ends with its program; the edge outlives the reconciler.\n"
        "; supervisord has no watchdog: reconciler.host.watchdog stands in, with the protocol of systemd's.\n"
    )
    return head + "".join(f"\n{program}" for program in programs)


def environment_text(settings: Mapping[str, str]) -> str:
    """The settings file of a machine, `NAME='value'` a line.

    Raises:
        UnitError: A name or value cannot be written so that systemd and a shell read the same.
    """
    lines = [
        "# Settings of the services (docs/settings.md). What is here goes before what the units say.",
        "# One NAME='value' a line, read by systemd or by a shell. After a change: restart llm-reconciler.",
        "# A token belongs into a file of its own (mode 0600) that is named here: RECONCILE_GIT_TOKEN_PATH, say.",
    ]
    for name, value in sorted(settings.items()):
        if not _NAME.fullmatch(name):
            raise UnitError(f"{name!r} is no name of a variable")
        if "'" in value or "\\" in value or not value.isprintable():
            raise UnitError(
                f"{name} has a quote, a backslash or a control character, which a file of settings cannot"
            )
        lines.append(f"{name}='{value}'")
    return "\n".join(lines) + "\n"


def _check(where: Installation, roles: Sequence[Role]) -> None:
    if not roles:
        raise UnitError("no role, no service")
    if Role.HEAD in roles and Role.WORKER in roles:
        raise UnitError("a machine is a Ray head or a worker of one, not both")
    if Role.WORKER in roles and not where.head:
        raise UnitError("a worker joins a head: give its HOST:PORT (--head)")


def _environment(where: Installation, *, loopback: bool) -> dict[str, str]:
    made = {
        "PATH": f"{where.venv}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": where.state_dir,
        "HF_HUB_CACHE": where.hub_cache,
        "RECONCILE_STATE_DIR": where.state_dir,
        "RECONCILE_MODELS_DIR": where.models_dir,
        "RECONCILE_RUN_DIR": where.run_dir,
        "RECONCILE_ENGINE": where.engine,
        "RECONCILE_RAY_DASHBOARD": where.ray_dashboard,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": where.ray_token or f"{where.state_dir}/ray-token",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # The services cannot write into the environment, and a load is faster with bytecode that was kept.
        "PYTHONPYCACHEPREFIX": f"{where.state_dir}/pycache",
        # Where a hung process is, in the log, when a watchdog aborts it.
        "PYTHONFAULTHANDLER": "1",
    }
    if loopback:
        made["RECONCILE_FAST_START"] = "1"
    return made


def _unit(about: str, unit: Sequence[str], service: Sequence[str], target: str = "multi-user.target") -> str:
    return "\n".join(
        (
            "# Made by `reconcile install-service`; docs/services.md says why each line is there. Changes belong",
            "# into a drop-in (systemctl edit), settings into the environment file.",
            "[Unit]",
            f"Description={about}",
            *unit,
            "# Never give up: what is wrong may be mended while nobody looks.",
            "StartLimitIntervalSec=0",
            "",
            "[Service]",
            *service,
            "",
            "[Install]",
            f"WantedBy={target}",
            "",
        )
    )


def _ray(where: Installation, about: str, mode: str) -> str:
    service = [
        "Type=notify",
        "# READY=1 comes from a child of start.sh.",
        "NotifyAccess=all",
        f"ExecStart={where.repo}/start.sh {mode}",
        "# start.sh is told first, and ends Ray in order; what is left after that is killed.",
        "KillMode=mixed",
        "TimeoutStartSec=300",
        "TimeoutStopSec=60",
        "Restart=always",
        "RestartSec=5",
        *_who(where, loopback=False),
        "# One engine that is killed for memory is Ray's to start again, no reason to end all others.",
        "OOMPolicy=continue",
        "LimitNOFILE=1048576",
        "# Pinned memory of GPUs, and of NCCL.",
        "LimitMEMLOCK=infinity",
        "TasksMax=infinity",
        *_hardening(where),
        "# What is refused, not what is allowed: engines use calls (NUMA, pidfd_getfd) that such lists miss.",
        "SystemCallFilter=~@clock @cpu-emulation @module @mount @obsolete @raw-io @reboot @swap",
        "SystemCallErrorNumber=EPERM",
    ]
    after = "network-online.target nvidia-persistenced.service systemd-modules-load.service"
    return _unit(about, ["Wants=network-online.target", f"After={after}"], service)


def _edge(where: Installation) -> str:
    unit = [
        "# At a shutdown it ends before Ray does, so that requests are answered to the end.",
        "After=network-online.target llm-ray-head.service",
        "Wants=network-online.target",
    ]
    service = [
        "# HAProxy goes on when the command ends. The reconciler looks after it every second, and starts it again",
        "# if it is gone; this unit starts it first, so that it lives in a cgroup of its own.",
        "Type=oneshot",
        "RemainAfterExit=yes",
        f"ExecStart={where.venv}/bin/reconcile edge start",
        f"ExecStop={where.venv}/bin/reconcile edge stop",
        "TimeoutStartSec=60",
        "TimeoutStopSec=30",
        *_who(where, loopback=False),
        "LimitNOFILE=65536",
        "OOMScoreAdjust=-500",
        *_hardening(where),
        "SystemCallFilter=@system-service",
        "SystemCallErrorNumber=EPERM",
    ]
    return _unit("Front door of the models (HAProxy)", unit, service)


def _reconciler(where: Installation, *, loopback: bool) -> str:
    unit = [
        "# Ray may come later, or elsewhere: the reconciler waits for it.",
        "After=network-online.target llm-ray-head.service llm-edge.service",
        "Wants=network-online.target llm-edge.service" + (" llm-ray-head.service" if loopback else ""),
        "# An edge that is stopped would be started again within a second by a reconciler that runs.",
        "PartOf=llm-edge.service",
    ]
    service = [
        "Type=notify",
        "NotifyAccess=main",
        f"ExecStart={where.venv}/bin/reconcile --watch",
        "# WATCHDOG=1 is sent only while the loop takes its turns (reconciler/host/notify.py).",
        f"WatchdogSec={WATCHDOG_SECONDS}",
        "# Only the reconciler itself: an edge that it had to start again is in this cgroup, and outlives it.",
        "KillMode=process",
        "TimeoutStartSec=90",
        "TimeoutStopSec=90",
        "Restart=always",
        "RestartSec=2",
        *_who(where, loopback=loopback),
        "LimitNOFILE=65536",
        "OOMPolicy=continue",
        "OOMScoreAdjust=-500",
        *_hardening(where),
        "SystemCallFilter=@system-service",
        "SystemCallErrorNumber=EPERM",
    ]
    return _unit("Reconciler of model files and Ray Serve", unit, service)


def _who(where: Installation, *, loopback: bool) -> list[str]:
    return [
        f"User={where.user}",
        f"Group={where.group}",
        "UMask=0077",
        f"WorkingDirectory=-{where.config_dir}",
        *(f"Environment={name}={value}" for name, value in _environment(where, loopback=loopback).items()),
        f"EnvironmentFile=-{where.environment_file}",
        "LimitCORE=0",
    ]


def _hardening(where: Installation) -> list[str]:
    in_home = any(path.startswith(_HOMES) for path in (where.repo, *where.folders))
    return [
        "NoNewPrivileges=yes",
        "CapabilityBoundingSet=",
        "AmbientCapabilities=",
        "ProtectSystem=strict",
        "ReadWritePaths=" + " ".join(where.folders),
        f"ProtectHome={'read-only' if in_home else 'yes'}",
        "# /dev/shm stays the machine's, which engines need; Ray's sockets are in RECONCILE_RUN_DIR.",
        "PrivateTmp=yes",
        *_devices(where.engine),
        "ProtectClock=yes",
        "ProtectControlGroups=yes",
        "ProtectHostname=yes",
        "ProtectKernelLogs=yes",
        "ProtectKernelModules=yes",
        "ProtectKernelTunables=yes",
        "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
        "RestrictNamespaces=yes",
        "RestrictRealtime=yes",
        "RestrictSUIDSGID=yes",
        "LockPersonality=yes",
        "SystemCallArchitectures=native",
    ]


def _devices(engine: str) -> list[str]:
    if engine == "cpu":
        return ["PrivateDevices=yes"]
    return [
        "# The driver's modules (nvidia, nvidia-uvm) have to be loaded before: see docs/services.md.",
        "DevicePolicy=closed",
        *(f"DeviceAllow={name} rw" for name in ("char-nvidia*", "/dev/nvidiactl", "/dev/nvidia-uvm")),
    ]


def _program(where: Installation, name: str, command: str, priority: int, *, loopback: bool = False) -> str:
    variables = ",".join(f'{key}="{value}"' for key, value in _environment(where, loopback=loopback).items())
    read = f"set -a; test ! -r {where.environment_file} || . {where.environment_file}; set +a"
    lines = [
        f"[program:{name}]",
        f"command=/bin/bash -c '{read}; exec {command}'",
        f"directory={where.config_dir}",
        f"user={where.user}",
        f"environment={variables}",
        "umask=077",
        f"priority={priority}",
        "autostart=true",
        "autorestart=true",
        "startsecs=5",
        "; Never give up: a head may be away for long, and what is wrong may be mended meanwhile.",
        "startretries=1000000",
        "stopsignal=TERM",
        "stopwaitsecs=90",
        "; Ray's processes and the edge are in sessions of their own, and end only by who looks after them.",
        "stopasgroup=false",
        "killasgroup=false",
        "redirect_stderr=true",
        f"stdout_logfile={where.state_dir}/{name}.log",
        "stdout_logfile_maxbytes=20MB",
        "stdout_logfile_backups=3",
    ]
    return "\n".join(lines) + "\n"
