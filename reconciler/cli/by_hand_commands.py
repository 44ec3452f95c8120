"""The commands that ask for a model by hand: load, unload, pin, unpin."""

import sys
from pathlib import Path
from typing import Any

import click

from reconciler.cli.options import CONTEXT, merged, shared_options


@click.command(context_settings=CONTEXT)
@shared_options
@click.argument("name")
@click.option("--for", "duration", help="Keep it up for that long, idle or not: 90s, 15m, 1h30m, 2d.")
@click.option("--no-wait", is_flag=True, help="Return at once; the load goes on.")
@click.pass_obj
def load(
    shared: dict[str, Any],
    *,
    name: str,
    duration: str | None,
    no_wait: bool,
    state_dir: Path | None,
    models_dir: Path | None,
    output: str,
) -> None:
    """Bring a model up now, and wait until it answers.

    A model on demand goes again when it has been idle for its time, with --for not before that is over. A manual
    model stays until `reconcile unload`. Needs a reconciler that runs. Exit 3: it cannot be loaded; the reason is
    printed.
    """
    from reconciler.cli import residency  # noqa: PLC0415

    settings, output = merged(shared, state_dir, models_dir, output)
    sys.exit(residency.load(settings, name, duration=duration, wait=not no_wait, output=output))


@click.command(context_settings=CONTEXT)
@shared_options
@click.argument("name")
@click.option("--for", "duration", help="Keep it away for that long, asked for or not: 90s, 15m, 1h30m, 2d.")
@click.option("--no-wait", is_flag=True, help="Return at once; the unload goes on.")
@click.pass_obj
def unload(
    shared: dict[str, Any],
    *,
    name: str,
    duration: str | None,
    no_wait: bool,
    state_dir: Path | None,
    models_dir: Path | None,
    output: str,
) -> None:
    """Take a model down now, and wait until it is gone.

    Requests in flight are finished first. Afterwards a request may load a model on demand again; with --for
    requests are refused until that is over, or until `reconcile load`. A model that its file pins goes only with
    --for. Needs a reconciler that runs.
    """
    from reconciler.cli import residency  # noqa: PLC0415

    settings, output = merged(shared, state_dir, models_dir, output)
    sys.exit(residency.unload(settings, name, duration=duration, wait=not no_wait, output=output))


@click.command(context_settings=CONTEXT)
@shared_options
@click.argument("name")
@click.option("--for", "duration", help="For how long: 90s, 15m, 1h30m, 2d. The default is 1h.")
@click.pass_obj
def pin(
    shared: dict[str, Any],
    *,
    name: str,
    duration: str | None,
    state_dir: Path | None,
    models_dir: Path | None,
    output: str,
) -> None:
    """Keep a model up for a time, as if its file said `policy: pinned`.

    It is loaded if it is not up, and does not leave to make room. The file is not changed; `reconcile status` and
    the plan show the difference. `reconcile unpin` ends it earlier. For a model that its file pins and that was
    unpinned by hand, it ends just that. Needs a reconciler that runs.
    """
    from reconciler.cli import residency  # noqa: PLC0415

    settings, output = merged(shared, state_dir, models_dir, output)
    sys.exit(residency.pin(settings, name, duration=duration, output=output))


@click.command(context_settings=CONTEXT)
@shared_options
@click.argument("name")
@click.option("--for", "duration", help="For how long: 90s, 15m, 1h30m, 2d. The default is 1h.")
@click.pass_obj
def unpin(
    shared: dict[str, Any],
    *,
    name: str,
    duration: str | None,
    state_dir: Path | None,
    models_dir: Path | None,
    output: str,
) -> None:
    """End a pin; or let a model that its file pins go when it is idle, for a time.

    For that time a model whose file says `policy: pinned` is treated as one on demand: it leaves when it is idle
    or to make room, and a request loads it. `reconcile pin` ends it earlier. Needs a reconciler that runs.
    """
    from reconciler.cli import residency  # noqa: PLC0415

    settings, output = merged(shared, state_dir, models_dir, output)
    sys.exit(residency.unpin(settings, name, duration=duration, output=output))
