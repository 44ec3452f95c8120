"""`reconcile install-service` and its undoing: the services of this machine, written where its supervisor looks.

Writes files and nothing else: no service is started or stopped, and no folder of data is touched. What is left to
do is printed as commands, for a person to read and to give.
"""

import difflib
import os
import pwd
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from reconciler.cli.common import OK, PARTIAL, fail
from reconciler.core.units import Installation, Role, UnitError, environment_text, supervisor_config, units
from reconciler.host.settings import Settings

SYSTEMD, SUPERVISORD = "systemd", "supervisord"
_UNITS = Path("/etc/systemd/system")
_PROGRAMS = Path("/etc/supervisor/conf.d/llm-reconciler.conf")
_NAMES = ("llm-reconciler", "llm-edge", "llm-ray-head", "llm-ray-worker")
_READABLE, _PRIVATE = 0o644, 0o640
_REPO = Path(__file__).resolve().parents[2]
_OF_THE_UNITS = {
    f"RECONCILE_{name}" for name in ("MODELS_DIR", "STATE_DIR", "HUB_CACHE", "ENGINE", "RAY_DASHBOARD")
} | {"RECONCILE_RAY_TOKEN_PATH", "RECONCILE_RAY_START_COMMAND", "RECONCILE_FAST_START"}
"""Settings that the units say themselves, or that a service must not have."""
_OF_START_SH = (
    *("RAY_PORT", "DASHBOARD_PORT", "RAY_AGENT_PORT", "RAY_CLIENT_PORT", "HAPROXY_STATS_PORT"),
    *("HAPROXY_METRICS_PORT", "FALLBACK_PORT", "RAY_ARGS"),
)
_OF_THE_HUB = ("HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_TOKEN_PATH", "CUDA_VISIBLE_DEVICES", "HTTPS_PROXY", "NO_PROXY")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line asks for.

    Attributes:
        user: Who runs the services; None for the owner of the state directory.
        prefix: Folder for state, model files and weights, instead of those of the settings.
        root: What `/` is for the files that are written.
        supervisor: `systemd`, `supervisord` or `auto`.
        head: `HOST:PORT` that a worker joins.
    """

    user: str | None
    prefix: Path | None
    root: Path
    roles: tuple[Role, ...]
    supervisor: str
    head: str
    create_user: bool
    dry_run: bool
    force: bool


def install(settings: Settings, wanted: Wanted) -> int:
    """Write the services. Exit 3 where a file that somebody changed was left as it is."""
    if not (_REPO / "start.sh").is_file():
        fail("the services run start.sh, which a package does not have: install from a clone of the repository")
    try:
        where = _installation(settings, wanted)
        kind = _supervisor(wanted)
        files = _files(where, wanted.roles, kind)
    except UnitError as error:
        fail(str(error))
    settings_file = Path(where.environment_file)
    if _below(wanted.root, settings_file).exists():
        click.echo(f"kept            {_below(wanted.root, settings_file)}: it is yours")
        del files[settings_file]
    left = [path for path, (text, mode) in files.items() if not _write(wanted, path, text, mode)]
    if wanted.create_user and not wanted.dry_run:
        _create_user(where.user, where.state_dir)
    _say_what_next(where, wanted, kind)
    return PARTIAL if left else OK


def uninstall(root: Path, *, dry_run: bool) -> int:
    """Remove the services' files; state, models, weights and settings stay."""
    found = [
        path
        for path in (*(_UNITS / f"{name}.service" for name in _NAMES), _PROGRAMS)
        if _below(root, path).is_file()
    ]
    if not found:
        click.echo("No service of ours is installed.")
        return OK
    services = [path.stem for path in found if path.parent == _UNITS]
    if not dry_run:
        for path in found:
            try:
                _below(root, path).unlink()
            except OSError as error:
                fail(f"{_below(root, path)}: {error.strerror}")
    for path in found:
        click.echo(f"{'would remove' if dry_run else 'removed'} {_below(root, path)}")
    click.echo("\nWhat runs goes on until it is stopped. In this order:\n")
    if services:
        for name in services:
            click.echo(f"  systemctl disable --now {name}")
        click.echo("  systemctl daemon-reload")
    if _PROGRAMS in found:
        click.echo("  supervisorctl stop llm-reconciler")
        click.echo("  reconcile edge stop")
        click.echo("  supervisorctl update")
    click.echo("\nState, model files, weights and settings were left alone; docs/runbook.md says where they are.")
    return OK


def _installation(settings: Settings, wanted: Wanted) -> Installation:
    prefix = None if wanted.prefix is None else wanted.prefix.absolute()
    state = prefix / "state" if prefix else settings.state_dir.absolute()
    models = prefix / "models.d" if prefix else settings.models_dir.absolute()
    cache = prefix / "hub" if prefix else settings.hub_cache_folder
    user = wanted.user or _owner(state)
    return Installation(
        repo=str(_REPO),
        state_dir=str(state),
        models_dir=str(models),
        hub_cache=str(cache),
        user=user,
        group=_group(user),
        engine=settings.device,
        head=wanted.head,
        ray_dashboard=settings.ray_dashboard,
        ray_token="" if prefix or settings.ray_token_path is None else str(settings.ray_token_path.absolute()),
    )


def _owner(state: Path) -> str:
    """Whose state it is; a service does not run as root unless it is told to."""
    try:
        name = state.owner()
    except (OSError, KeyError):
        name = ""
    return name if name not in ("", "root") else "llm"


def _group(user: str) -> str:
    import grp  # noqa: PLC0415 -- beside pwd, only here

    try:
        return grp.getgrgid(pwd.getpwnam(user).pw_gid).gr_name
    except KeyError:
        return user  # As useradd makes it.


def _supervisor(wanted: Wanted) -> str:
    if wanted.supervisor != "auto":
        return wanted.supervisor
    return SYSTEMD if _below(wanted.root, Path("/run/systemd/system")).is_dir() else SUPERVISORD


def _files(where: Installation, roles: Sequence[Role], kind: str) -> dict[Path, tuple[str, int]]:
    files = {Path(where.environment_file): (environment_text(_settings_here()), _PRIVATE)}
    if kind == SUPERVISORD:
        files[_PROGRAMS] = (supervisor_config(where, roles), _READABLE)
    else:
        files |= {_UNITS / name: (text, _READABLE) for name, text in units(where, roles).items()}
    return files


def _settings_here() -> dict[str, str]:
    """The settings of this shell that the services are to have too. Secrets are no settings."""
    names = {f"RECONCILE_{name.upper()}" for name in Settings.model_fields} - _OF_THE_UNITS
    names |= {f"RECONCILE_{name}" for name in _OF_START_SH} | set(_OF_THE_HUB)
    return {name: value for name in sorted(names) if (value := os.environ.get(name))}


def _write(wanted: Wanted, path: Path, text: str, mode: int) -> bool:
    """Write one file; False where one is there that says something else, and nobody said --force."""
    place = _below(wanted.root, path)
    try:
        before = place.read_text(encoding="utf-8") if place.exists() else None
        if before == text:
            click.echo(f"as it should be {place}")
            return True
        if before is not None:
            lines = difflib.unified_diff(
                before.splitlines(), text.splitlines(), str(place), "as it would be written", lineterm=""
            )
            for line in lines:
                click.echo(f"    {line}")
            if not wanted.force:
                click.echo(f"left as it is   {place}: it was changed; --force replaces it")
                return False
        if not wanted.dry_run:
            place.parent.mkdir(parents=True, exist_ok=True)
            temporary = place.with_name(f".{place.name}.new")
            temporary.write_text(text, encoding="utf-8")
            temporary.chmod(mode)
            temporary.replace(place)
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{place}: {error}; run it as root, or look at what it would write with --dry-run")
    click.echo(f"{'would write     ' if wanted.dry_run else 'wrote           '}{place}")
    return True


def _create_user(user: str, home: str) -> None:
    if _exists(user):
        return
    command = _useradd(user, home)
    try:
        subprocess.run(command, check=True, timeout=30)  # noqa: S603 -- fixed words and a checked name
    except (OSError, subprocess.SubprocessError) as error:
        fail(f"{shlex.join(command)}: {error}")
    click.echo(f"made the user   {user}")


def _useradd(user: str, home: str) -> list[str]:
    return ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", home, *_SHELL, user]


_SHELL = ("--shell", "/usr/sbin/nologin")


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def _say_what_next(where: Installation, wanted: Wanted, kind: str) -> None:
    """The commands that are left to give, which is all that needs root or starts something."""
    commands = []
    if not _exists(where.user):
        commands.append(shlex.join(_useradd(where.user, where.state_dir)))
    for folder, mode in (*((each, "0700") for each in where.folders), (where.config_dir, "0755")):
        if not Path(folder).is_dir():
            owner = "root" if folder == where.config_dir else where.user
            group = "root" if folder == where.config_dir else where.group
            commands.append(f"install -d -o {owner} -g {group} -m {mode} {folder}")
    commands.append(f"chgrp {where.group} {where.environment_file}")
    if Role.WORKER in wanted.roles:
        token = f"{where.state_dir}/ray-token"
        commands.append(f"install -o {where.user} -g {where.group} -m 0600 COPY-OF-THE-HEADS-ray-token {token}")
    if kind == SYSTEMD:
        names = [name for name in _NAMES if f"{name}.service" in units(where, wanted.roles)]
        commands += ["systemctl daemon-reload", f"systemctl enable --now {' '.join(reversed(names))}"]
    else:
        commands += [
            "test -s /etc/supervisor/supervisord.conf || echo 'no supervisord yet: see docs/services.md'",
            "supervisorctl update",
        ]
    click.echo("\nNext, as root:\n")
    for command in commands:
        click.echo(f"  {command}")
    click.echo("\nThen, as the service's user or as root: `reconcile doctor` says whether all is well.")


def _below(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")
