"""The command that removes weights: gc."""

import asyncio
from collections.abc import Mapping

import click
from rich.table import Table

from reconciler.cli.common import OK, REFUSED, open_weights, unobserved
from reconciler.cli.files import read_desired
from reconciler.cli.show import console, print_json
from reconciler.core.desired import Desired
from reconciler.core.weights import in_words
from reconciler.host.settings import Settings
from reconciler.loop.service import keep_now
from reconciler.ray_serve.client import ServeUnreachableError
from reconciler.weights.garbage import Unneeded


def gc(
    settings: Settings,
    *,
    dry_run: bool,
    everything: bool,
    without_cluster: bool,
    allow_removals: bool,
    output: str,
) -> int:
    """Remove revisions that no model needs; exit 4 where it is not safe to say what is needed."""
    weights = open_weights(settings, ask_hub=False, read_only=True)
    desired = asyncio.run(read_desired(settings, weights))
    reason = _why_not(settings, desired, allow_removals=allow_removals)
    if reason:
        click.echo(f"refused: {reason}", err=True)
        return REFUSED
    try:
        keep = asyncio.run(keep_now(settings, desired, without_cluster=without_cluster))
    except ServeUnreachableError as error:
        unobserved(error, "What is in use must stay. Where no Ray runs, --without-cluster goes on all the same.")
    assert keep is not None, "refused above"
    unneeded = weights.garbage.unneeded(keep, everything=everything)
    partial = weights.garbage.partial(keep)
    freed = 0 if dry_run else weights.garbage.remove(unneeded, keep, partial)
    if output == "json":
        rows = [{"repo": u.repo, "commit": u.commit, "bytes": u.size, "ours": u.ours} for u in unneeded]
        sizes: Mapping[str, int] = {str(path): path.stat().st_size for path in partial if path.exists()}
        print_json({"dry_run": dry_run, "revisions": rows, "partial": sizes, "bytes_freed": freed})
    else:
        _show_garbage(unneeded, dry_run=dry_run, freed=freed, partial=len(partial))
    return OK


def _why_not(settings: Settings, desired: Desired, *, allow_removals: bool) -> str:
    """Why nobody can tell what is needed; empty where one can."""
    if desired.unreadable:
        return desired.unreadable
    if desired.invalid:
        files = ", ".join(file.path for file in desired.invalid)
        return f"nobody can tell what an invalid file needs: {files} (`reconcile validate` says what is wrong)"
    if not desired.declared and not allow_removals:
        allowed_by = "allowed by --dangerous-allow-removals"
        return f"{settings.models_dir} declares no model, so everything would go ({allowed_by})"
    return ""


def _show_garbage(unneeded: list[Unneeded], *, dry_run: bool, freed: int, partial: int) -> None:
    out = console()
    if not unneeded and not partial:
        out.print("[green]Nothing to remove.[/] Everything that was fetched is needed.")
        return
    if unneeded:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in ("REPO", "COMMIT", "SIZE", "FETCHED BY"):
            table.add_column(heading, no_wrap=True)
        for each in unneeded:
            table.add_row(each.repo, each.commit[:12], in_words(each.size), "us" if each.ours else "others")
        out.print(table)
    if partial:
        out.print(f"{partial} partial file{'s' if partial != 1 else ''} of downloads that were given up")
    total = sum(each.size for each in unneeded)
    out.print(f"[bold]{in_words(total)} would be free[/]" if dry_run else f"[bold]{in_words(freed)} freed[/]")
