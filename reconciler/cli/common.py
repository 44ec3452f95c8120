"""What commands share: settings, exit codes, how a command ends."""

import shlex
import sys
from pathlib import Path
from typing import NoReturn

import click
from pydantic import ValidationError

from reconciler.core.plan import Plan
from reconciler.core.rollback import RollbackError
from reconciler.host import log as logging
from reconciler.host.event_feed import EventFeed
from reconciler.host.settings import Settings, load
from reconciler.loop.running import RefusedError
from reconciler.loop.weights import make_weights
from reconciler.weights.revisions import PinsUnreadableError
from reconciler.weights.store import WeightStore

OK, ERROR, PENDING, PARTIAL, REFUSED = 0, 1, 2, 3, 4
IS_RAY_RUNNING = "Is Ray running? ./start.sh starts it; RECONCILE_RAY_DASHBOARD names another one."


def ray_hint(settings: Settings) -> str:
    """What would help where Ray does not answer, or does not let us in."""
    file = settings.state_dir.absolute() / "env"
    if settings.ray_token_path is not None or not file.is_file():
        return IS_RAY_RUNNING
    return (
        "This shell does not know the token of the Ray that ./start.sh starts:\n"
        f"  source {shlex.quote(str(file))}\n  {IS_RAY_RUNNING}"
    )


def exit_code(plan: Plan, *, problems: bool) -> int:
    """0, 3 or 4 for the state a plan describes."""
    if plan.refused:
        return REFUSED
    return PARTIAL if plan.held or problems else OK


def fail(message: str) -> NoReturn:
    """Say what is wrong and exit 1."""
    click.echo(f"reconcile: {message}", err=True)
    sys.exit(ERROR)


def unobserved(error: Exception, what_to_do: str) -> NoReturn:
    """The cluster cannot be looked at, so nothing may be concluded or changed: say so and exit 4.

    Args:
        error: What was met.
        what_to_do: What would help, and the flag that goes without a look where there is one.
    """
    click.echo(f"refused: the cluster cannot be observed: {error}\n  {what_to_do}", err=True)
    sys.exit(REFUSED)


def with_near(error: RefusedError | RollbackError) -> str:
    """Why something is refused, and which names were perhaps meant."""
    return f"{error}; did you mean {' or '.join(error.near)}?" if error.near else str(error)


def no_answer(error: Exception) -> NoReturn:
    """The reconciler that runs in the state directory does not answer: say so and exit 1."""
    fail(
        f"the reconciler that runs here does not answer: {error}. It may be a `reconcile` that converges "
        "once, or one that waits for Ray: try again when it is done"
    )


def configure_log(settings: Settings, *, keep: bool = False, feed: EventFeed | None = None) -> None:
    """Log as the operator wants it: for a person on a terminal, else as JSON lines.

    Args:
        settings: The operator's.
        keep: Write the log file too, as the one reconciler of the state directory.
        feed: Takes every event as well.
    """
    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not sys.stderr.isatty())
    file = settings.state_dir / "logs" / "reconciler.log" if keep else None
    logging.configure(json_lines=as_json, level=settings.log_level, file=file, feed=feed)


def quiet(settings: Settings) -> None:
    """Log nothing but errors: for commands whose answer says everything."""
    logging.configure(json_lines=settings.log_format == "json", level="error")


def open_weights(settings: Settings, *, read_only: bool = False, ask_hub: bool = True) -> WeightStore:
    """The weights, or a message and exit 1 where it cannot be read which commits are needed."""
    try:
        return make_weights(settings, read_only=read_only, ask_hub=ask_hub)
    except PinsUnreadableError as error:
        fail(str(error))


def settings_of(state_dir: Path | None, models_dir: Path | None) -> Settings:
    """The settings in force, or a message and exit 1."""
    try:
        return load(state_dir=state_dir, models_dir=models_dir)
    except ValidationError as error:
        for mistake in error.errors():
            where = ".".join(str(part) for part in mistake["loc"])
            click.echo(f"reconcile: setting {where}: {mistake['msg']}", err=True)
        sys.exit(ERROR)
    except ValueError as error:  # reconcile.toml that is no TOML
        fail(f"reconcile.toml: {error}")
