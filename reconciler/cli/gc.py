"""The command that removes weights: gc."""

import asyncio
from collections.abc import Mapping

import click
from rich.table import Table

from reconciler.cli.common import OK, REFUSED, fail
from reconciler.cli.files import read_desired
from reconciler.cli.show import console, print_json
from reconciler.core.desired import Desired
from reconciler.core.weights import in_words
from reconciler.host.settings import Settings
from reconciler.loop.service import copies_in_use_now
from reconciler.loop.weights import make_weights
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
    weights = make_weights(settings, ask_hub=False, read_only=True)
    desired = asyncio.run(read_desired(settings, weights))
    if desired.unreadable or (not desired.declared and not allow_removals):
        reason = desired.unreadable or f"{settings.models_dir} declares no model, so everything would go"
        click.echo(f"refused: {reason} (allowed by --dangerous-allow-removals)", err=True)
        if desired.unreadable or not allow_removals:
            return REFUSED
    try:
        in_use = asyncio.run(copies_in_use_now(settings))
    except ServeUnreachableError as error:
        if not without_cluster:
            fail(
                f"cannot see what is in use: {error}\n  Where no Ray runs, --without-cluster goes on all the same."
            )
        in_use = frozenset()
    declared = {copy for target in desired.targets.values() for copy in target.copies}
    needed = declared | weights.pinned(_spoken_for(desired)) | in_use
    unneeded = weights.garbage.unneeded(needed, everything=everything)
    partial = weights.garbage.partial(needed)
    freed = 0 if dry_run else weights.garbage.remove(unneeded, partial)
    if output == "json":
        rows = [{"repo": u.repo, "commit": u.commit, "bytes": u.size, "ours": u.ours} for u in unneeded]
        sizes: Mapping[str, int] = {str(path): path.stat().st_size for path in partial if path.exists()}
        print_json({"dry_run": dry_run, "revisions": rows, "partial": sizes, "bytes_freed": freed})
    else:
        _show_garbage(unneeded, dry_run=dry_run, freed=freed, partial=len(partial))
    return OK


def _spoken_for(desired: Desired) -> frozenset[str] | None:
    """The models that files speak for, valid or not; None where a file may speak for any."""
    names = set(desired.targets)
    for file in desired.invalid:
        if file.claims is None:
            return None
        names |= file.claims
    return frozenset(names)


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
