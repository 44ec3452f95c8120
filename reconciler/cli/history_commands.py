"""The commands that look back, and go back: history, rollback."""

import sys
from pathlib import Path
from typing import Any

import click

from reconciler.cli.options import CONTEXT, merged, shared_options


@click.command(context_settings=CONTEXT)
@shared_options
@click.argument("name", required=False)
@click.option("--limit", type=click.IntRange(1, 100_000), default=20, show_default=True, help="How many at most.")
@click.option("--since", help="Only what happened within that time: 90s, 15m, 2h, 7d.")
@click.option("--diff", is_flag=True, help="Under each change the fields that changed.")
@click.pass_obj
def history(
    shared: dict[str, Any],
    *,
    name: str | None,
    limit: int,
    since: str | None,
    diff: bool,
    state_dir: Path | None,
    models_dir: Path | None,
    output: str,
) -> None:
    """Show what happened, newest first: of all models, or of NAME.

    Which commit loaded, changed or evicted a model, when and why; what was held or refused; what was done by hand.
    Reads the journal in the state directory, whether a reconciler runs or not.
    """
    from reconciler.cli import history as telling  # noqa: PLC0415

    settings, output = merged(shared, state_dir, models_dir, output)
    sys.exit(telling.history(settings, name, limit=limit, since=since, diff=diff, output=output))


@click.command(context_settings=CONTEXT)
@shared_options
@click.argument("name", required=False)
@click.option(
    "--to", help="The revision to go back to, or its first 7 digits or more; without NAME for all models."
)
@click.option("--for", "duration", help="End it after that time: 90s, 15m, 1h30m, 2d.")
@click.option("--reason", default="", help="Why, in one line, for status, plan and history.")
@click.option("--end", is_flag=True, help="End the rollback of NAME, or without it that of all models.")
@click.pass_obj
def rollback(
    shared: dict[str, Any],
    *,
    name: str | None,
    to: str | None,
    duration: str | None,
    reason: str,
    end: bool,
    state_dir: Path | None,
    models_dir: Path | None,
    output: str,
) -> None:
    """Take a model back to the version before, or to that of a revision; or all models to a revision.

    No file is changed: the text that served is laid over what the source says, and `reconcile status` and the plan
    show it. It ends when the model's file changes in the source; that of all models with the next revision.
    """
    from reconciler.cli import history as telling  # noqa: PLC0415

    if end and (to is not None or duration is not None):
        raise click.UsageError("--end goes with neither --to nor --for")
    if not end and name is None and to is None:
        raise click.UsageError("say which model goes back, or with --to to which revision all do")
    settings, output = merged(shared, state_dir, models_dir, output)
    code = telling.rollback(settings, name, to=to, duration=duration, reason=reason, end=end, output=output)
    sys.exit(code)
