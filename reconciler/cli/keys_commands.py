"""The commands about keys: keys add, list, revoke, rotate."""

import sys
from pathlib import Path
from typing import Any

import click

from reconciler.cli.options import CONTEXT, merged, shared_options


@click.group(context_settings=CONTEXT)
def keys() -> None:
    """Make, list, replace and revoke the keys of the front door, the API and the page.

    A change counts at once, also for a reconciler that runs. Only hashes are kept.
    """


@keys.command("add", context_settings=CONTEXT)
@shared_options
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(["inference", "metrics", "admin"]),
    help="What it opens; may be given again. The default is inference.",
)
@click.option(
    "--model", "models", multiple=True, help="A model that it may use; may be given again. All, if none."
)
@click.option("--expires", help="When it ends, counted from now: 90s, 15m, 1h30m, 30d. The default is never.")
@click.option("--requests-per-minute", type=int, help="Over any 60 seconds.")
@click.option("--concurrent", type=int, help="Requests at a time.")
@click.pass_obj
def add(
    shared: dict[str, Any],
    *,
    name: str,
    scopes: tuple[str, ...],
    models: tuple[str, ...],
    expires: str | None,
    requests_per_minute: int | None,
    concurrent: int | None,
    state_dir: Path | None,
    models_dir: Path | None,
    output: str,
) -> None:
    """Make a key and print it. It is shown this once.

    Only the key goes to standard output. The first key for inference closes the front door to everybody who has
    none. Models are given by their own names; their aliases and adapters go with them.
    """
    from reconciler.cli import keys as keeping  # noqa: PLC0415

    settings, output = merged(shared, state_dir, models_dir, output)
    code = keeping.add(
        settings,
        name,
        scopes=scopes,
        models=models,
        expires=expires,
        requests_per_minute=requests_per_minute,
        concurrent=concurrent,
        output=output,
    )
    sys.exit(code)


@keys.command("list", context_settings=CONTEXT)
@shared_options
@click.option("--all", "everything", is_flag=True, help="Those that are revoked or have expired, too.")
@click.pass_obj
def list_(
    shared: dict[str, Any],
    *,
    everything: bool,
    state_dir: Path | None,
    models_dir: Path | None,
    output: str,
) -> None:
    """List the keys: what each opens, until when, its limits and its use."""
    from reconciler.cli import keys as keeping  # noqa: PLC0415

    settings, output = merged(shared, state_dir, models_dir, output)
    sys.exit(keeping.show(settings, everything=everything, output=output))


@keys.command(context_settings=CONTEXT)
@shared_options
@click.argument("which", metavar="NAME|FINGERPRINT")
@click.pass_obj
def revoke(
    shared: dict[str, Any], *, which: str, state_dir: Path | None, models_dir: Path | None, output: str
) -> None:
    """Close a key for good, by its name or by the fingerprint that the list shows.

    Requests that are under way end as they would; those that wait for a model are refused. By name, an old key
    that still holds after `rotate --grace` goes, too.
    """
    from reconciler.cli import keys as keeping  # noqa: PLC0415

    settings, output = merged(shared, state_dir, models_dir, output)
    sys.exit(keeping.revoke(settings, which, output=output))


@keys.command(context_settings=CONTEXT)
@shared_options
@click.argument("name")
@click.option(
    "--grace", help="For how long the old key still holds: 90s, 15m, 1h30m, 2d. The default is not at all."
)
@click.option("--expires", help="When the new key ends, counted from now. The default is when the old one would.")
@click.pass_obj
def rotate(
    shared: dict[str, Any],
    *,
    name: str,
    grace: str | None,
    expires: str | None,
    state_dir: Path | None,
    models_dir: Path | None,
    output: str,
) -> None:
    """Make another key in the place of one, under the same settings, and print it. It is shown this once."""
    from reconciler.cli import keys as keeping  # noqa: PLC0415

    settings, output = merged(shared, state_dir, models_dir, output)
    sys.exit(keeping.rotate(settings, name, grace=grace, expires=expires, output=output))
