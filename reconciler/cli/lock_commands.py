"""The commands about who may write to the cluster: lock, unlock."""

import sys
from pathlib import Path
from typing import Any

import click

from reconciler.cli.options import CONTEXT, merged, shared_options


@click.command(context_settings=CONTEXT)
@shared_options
@click.option("--reason", help="Lock the cluster, and say what for: others read it.")
@click.option("--for", "duration", help="With --reason: for how long: 90s, 15m, 1h30m, 2d. The default is 1h.")
@click.option("--no-wait", is_flag=True, help="With --reason: do not wait until a reconciler has stopped writing.")
@click.option("--dangerous-take", is_flag=True, help="With --reason: take the lock from another person.")
@click.pass_obj
def lock(
    shared: dict[str, Any],
    *,
    reason: str | None,
    duration: str | None,
    no_wait: bool,
    dangerous_take: bool,
    state_dir: Path | None,
    models_dir: Path | None,
    output: str,
) -> None:
    """Show who may write to the cluster; with --reason, lock it, so that no reconciler writes.

    Models go on serving meanwhile; nothing is loaded, replaced or removed. The lock ends after its time, or with
    `reconcile unlock`; then the reconciler that wrote before goes on. Exit 4: another person has locked it.
    """
    if reason is None and (duration is not None or no_wait or dangerous_take):
        raise click.UsageError("--for, --no-wait and --dangerous-take go with --reason")
    from reconciler.cli import lock as locking  # noqa: PLC0415

    settings, output = merged(shared, state_dir, models_dir, output)
    if reason is None:
        sys.exit(locking.show(settings, output=output))
    code = locking.lock(
        settings, reason, duration=duration, wait=not no_wait, dangerous_take=dangerous_take, output=output
    )
    sys.exit(code)


@click.command(context_settings=CONTEXT)
@shared_options
@click.option("--dangerous-take", is_flag=True, help="End also a lock of another person.")
@click.pass_obj
def unlock(
    shared: dict[str, Any],
    *,
    dangerous_take: bool,
    state_dir: Path | None,
    models_dir: Path | None,
    output: str,
) -> None:
    """End a lock of `reconcile lock`. Exit 4: it is another person's."""
    from reconciler.cli import lock as locking  # noqa: PLC0415

    settings, output = merged(shared, state_dir, models_dir, output)
    sys.exit(locking.unlock(settings, dangerous_take=dangerous_take, output=output))
