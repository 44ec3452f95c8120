"""`reconcile doctor`: looks at the machine, its services and what they depend on, and says what to do.

All looks run at once, each with a time of its own, so that one thing that hangs is a finding and not the end of
the others. Nothing is changed or started; what is fetched of a git source goes to a folder that is removed again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import click

from reconciler.cli import doctor_beyond, doctor_here
from reconciler.cli.doctor_here import SECONDS
from reconciler.cli.show import print_json
from reconciler.core.findings import Finding, Level, exit_code, ordered
from reconciler.host.settings import Settings

Look = Callable[[Settings], Awaitable[list[Finding]]]

_COLOURS = {Level.ERROR: "red", Level.WARNING: "yellow", Level.NOTE: "cyan", Level.OK: "green"}


def doctor(settings: Settings, *, output: str) -> int:
    """Look at everything and print what was found. Exit 1 with an error, 3 with a warning, else 0."""
    findings = ordered(asyncio.run(look(settings)))
    if output == "json":
        print_json({"findings": [each.to_json() for each in findings]})
    else:
        _show(findings)
    return exit_code(findings)


async def look(settings: Settings, looks: Iterable[tuple[str, Look]] | None = None) -> list[Finding]:
    """All findings, in the order of the looks."""
    found = await asyncio.gather(*(_bounded(name, each, settings) for name, each in looks or _LOOKS))
    return [finding for findings in found for finding in findings]


async def _bounded(name: str, call: Look, settings: Settings) -> list[Finding]:
    try:
        return await asyncio.wait_for(call(settings), SECONDS)
    except TimeoutError:
        what = f"no answer within {SECONDS:.0f} s"
    except Exception as error:  # noqa: BLE001 -- one look that fails must not hide the others
        what = f"this could not be looked at: {error!r}"
    return [Finding(name, Level.ERROR, what, "Nothing can be said of it.", "See docs/troubleshooting.md.")]


_LOOKS: tuple[tuple[str, Look], ...] = (
    ("versions", doctor_here.versions),
    ("gpus", doctor_here.gpus),
    ("disk", doctor_here.disk),
    ("files", doctor_here.files),
    ("certificate", doctor_here.tls),
    ("ports", doctor_here.ports),
    ("hub", doctor_beyond.hub),
    ("source", doctor_beyond.source),
    ("serve", doctor_beyond.serve),
    ("edge", doctor_beyond.edge),
    ("reconciler", doctor_beyond.reconciler),
)


def _show(findings: list[Finding]) -> None:
    width = max(len(each.check) for each in findings)
    for each in findings:
        level = click.style(f"{each.level.value:<8}", fg=_COLOURS[each.level])
        click.echo(f"{level} {each.check:<{width}}  {each.what}")
        for line in (each.why, f"-> {each.do}" if each.do else ""):
            if line:
                click.echo(f"{'':<9}{'':<{width}}  {line}")
    counts = {level: sum(each.level is level for each in findings) for level in Level}
    click.echo(f"\n{counts[Level.ERROR]} errors, {counts[Level.WARNING]} warnings, {counts[Level.NOTE]} notes.")
