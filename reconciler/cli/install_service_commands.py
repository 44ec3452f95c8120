"""The commands that write and remove the services of this machine."""

import sys
from pathlib import Path
from typing import Any

import click

from reconciler.cli.options import CONTEXT, merged, shared_options

_ROOT = click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("/"),
    help="Write below this folder instead of /, for an image or a look.",
)


@click.command("install-service", context_settings=CONTEXT)
@shared_options
@click.option("--user", help="Who runs it all; the default is the owner of the state directory, else llm.")
@click.option("--create-user", is_flag=True, help="Make that user where there is none.")
@click.option(
    "--prefix",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep state, model files and weights in this folder; the default is where the settings have them.",
)
@click.option(
    "--role",
    "roles",
    type=click.Choice(["head", "worker", "reconciler"]),
    multiple=True,
    help="What this machine does; may be given several times. The default is head and reconciler.",
)
@click.option("--head", default="", help="HOST:PORT of the Ray head, for a worker.")
@click.option(
    "--supervisor",
    type=click.Choice(["auto", "systemd", "supervisord"]),
    default="auto",
    help="Who starts the services; auto looks whether systemd runs.",
)
@_ROOT
@click.option("--dry-run", is_flag=True, help="Say what would be written; write nothing.")
@click.option("--force", is_flag=True, help="Replace files that were changed.")
@click.pass_obj
def install_service(
    shared: dict[str, Any],
    *,
    user: str | None,
    create_user: bool,
    prefix: Path | None,
    roles: tuple[str, ...],
    head: str,
    supervisor: str,
    root: Path,
    dry_run: bool,
    force: bool,
    state_dir: Path | None,
    models_dir: Path | None,
    output: str,
) -> None:
    """Write the services of this machine: for systemd, or for supervisord where there is no systemd.

    Nothing is started. The commands that are left to give are printed. A file that was changed is not replaced.
    """
    from reconciler.cli import install_service as installing  # noqa: PLC0415
    from reconciler.core.units import Role  # noqa: PLC0415

    settings, _ = merged(shared, state_dir, models_dir, output)
    wanted = installing.Wanted(
        user=user,
        prefix=prefix,
        root=root.absolute(),
        roles=tuple(Role(role) for role in roles) or (Role.HEAD, Role.RECONCILER),
        supervisor=supervisor,
        head=head,
        create_user=create_user,
        dry_run=dry_run,
        force=force,
    )
    sys.exit(installing.install(settings, wanted))


@click.command("uninstall-service", context_settings=CONTEXT)
@shared_options
@_ROOT
@click.option("--dry-run", is_flag=True, help="Say what would be removed; remove nothing.")
@click.pass_obj
def uninstall_service(
    shared: dict[str, Any],
    *,
    root: Path,
    dry_run: bool,
    state_dir: Path | None,
    models_dir: Path | None,
    output: str,
) -> None:
    """Remove the services' files. State, model files, weights and settings stay."""
    from reconciler.cli import install_service as installing  # noqa: PLC0415

    merged(shared, state_dir, models_dir, output)
    sys.exit(installing.uninstall(root.absolute(), dry_run=dry_run))
