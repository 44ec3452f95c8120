"""The commands about weights on disk: pull, gc."""

import asyncio
from collections.abc import Mapping
from typing import Any

import click
from rich.table import Table

from reconciler.cli.common import OK, PARTIAL, REFUSED, configure_log, fail
from reconciler.cli.files import read_desired
from reconciler.cli.progress import download_bars
from reconciler.cli.show import console, print_json, show_problems
from reconciler.core.desired import Desired
from reconciler.core.weights import Copy, CopyState, Phase, in_words
from reconciler.core.weights_json import states_to_json
from reconciler.host.settings import Settings
from reconciler.loop.service import copies_in_use_now
from reconciler.loop.weights import make_weights
from reconciler.ray_serve.client import ServeUnreachableError
from reconciler.weights.garbage import Unneeded


def pull(settings: Settings, names: tuple[str, ...], *, output: str) -> int:
    """Fetch what models need, and serve nothing; exit 3 where something could not be had."""
    with download_bars() as show:
        configure_log(settings)
        desired, states = asyncio.run(_pull(settings, names, show))
    chosen = {name: target for name, target in desired.targets.items() if not names or name in names}
    problems = {
        name: resolution.problem or "the hub did not say in time which commit it is"
        for name, target in chosen.items()
        for resolution in target.unresolved.values()
    }
    failed = [state for state in states.values() if state.phase is not Phase.READY]
    if output == "json":
        print_json({"copies": states_to_json(states), "unresolved": problems})
    else:
        show_problems(desired.problems)
        for copy, state in states.items():
            size = in_words(state.total or 0)
            ready = state.phase is Phase.READY
            click.echo(
                f"{copy}: {'on disk and verified, ' + size if ready else f'{state.phase.value}: {state.reason}'}"
            )
        for name, problem in problems.items():
            click.echo(f"{name}: {problem}")
        if not (states or problems):
            click.echo("Nothing to fetch: these models are local folders." if chosen else "No models.")
    return PARTIAL if failed or problems or desired.problems else OK


async def _pull(settings: Settings, names: tuple[str, ...], show: Any) -> tuple[Desired, dict[Copy, CopyState]]:  # noqa: ANN401
    weights = make_weights(settings)
    try:
        desired = await read_desired(settings, weights, patience=60.0)
        unknown = sorted(set(names) - set(desired.targets))
        if unknown:
            fail(f"no valid model file declares {', '.join(unknown)}")
        wanted = {
            copy: revision
            for name, target in desired.targets.items()
            if not names or name in names
            for copy, revision in target.copies.items()
        }
        there = await weights.states(wanted)
        missing = {copy: wanted[copy] for copy, state in there.items() if state.phase is not Phase.READY}
        needed = _declared(desired)
        weights.forgive()
        weights.fetch_only(missing, needed)
        watcher = asyncio.create_task(_watch(weights.subscribe(), show))
        try:
            return desired, await weights.finished(wanted)
        finally:
            watcher.cancel()
    finally:
        await weights.close()


async def _watch(changes: Any, show: Any) -> None:  # noqa: ANN401 -- an iterator of states, and what shows them
    async for states in changes:
        show(states)


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
    needed = _declared(desired) | weights.pinned(_spoken_for(desired)) | in_use
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


def _declared(desired: Desired) -> frozenset[Copy]:
    return frozenset(copy for target in desired.targets.values() for copy in target.copies)


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
