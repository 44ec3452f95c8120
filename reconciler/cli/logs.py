"""Logs as a person reads them: one line each, with time, origin and model in front."""

import asyncio
import json
import os
import sys
import time
from collections.abc import Collection
from dataclasses import asdict
from datetime import datetime

import click

from reconciler.cli.common import OK, fail, quiet
from reconciler.core.desired import wanted_in
from reconciler.core.log_lines import ORIGINS, LogLine
from reconciler.core.parse import parse_all
from reconciler.core.spec import parse_duration
from reconciler.host.errors import UserError
from reconciler.host.settings import Settings
from reconciler.loop.logs import Logs, Wanted
from reconciler.loop.rollbacks import RollbackStore
from reconciler.loop.source import make_source

_COLOURS = {"reconciler": "green", "edge": "yellow", "serve": "cyan", "vllm": "magenta"}
_LEVEL_COLOURS = {"warning": "yellow", "error": "red"}
_INTERRUPTED = 130


def logs(
    settings: Settings,
    model: str | None,
    *,
    follow: bool,
    lines: int,
    since: str | None,
    origins: Collection[str],
    level: str,
    output: str,
) -> int:
    """Print the lines; what cannot be looked at is said on standard error."""
    quiet(settings)
    try:
        begin = time.time() - parse_duration(since) if since else None
    except ValueError as error:
        fail(f"--since: {error}")
    wanted = Wanted(origins or ORIGINS, level, begin)
    repos = asyncio.run(_repos_of(settings, model)) if model is not None else ()
    reading = Logs(
        settings.state_dir,
        dashboard=settings.ray_dashboard,
        token_path=settings.ray_token_path,
        repos=lambda _model: repos,
    )
    try:
        asyncio.run(_print(reading, model, lines, wanted, follow=follow, output=output))
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # Whoever read has seen enough. What Python flushes at its end goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return OK


async def _repos_of(settings: Settings, model: str) -> Collection[str]:
    """The repositories that a model is made of by its file, for their downloads are its business too."""
    try:
        snapshot = RollbackStore(settings.state_dir, read_only=True).apply(await make_source(settings).read())
    except UserError as error:
        why = str(error)
    else:
        why = snapshot.unreadable
    if why:
        _say([f"downloads of {model} are left out: {why}"])
        return ()
    return {each.repo for each in wanted_in(parse_all(snapshot.files)) if each.model == model}


async def _print(
    reading: Logs, model: str | None, lines: int, wanted: Wanted, *, follow: bool, output: str
) -> None:
    if not follow:
        found = await reading.tail(model, lines, wanted=wanted)
        for line in found:
            click.echo(_shown(line, output))
        _say(reading.missing)
        if not found:
            _say([f"no such lines{f' of {model}' if model else ''}"])
        return
    await reading.tail(model, 0, wanted=wanted)
    said = reading.missing
    _say(said)
    async for line in reading.follow(model, lines, wanted=wanted):
        click.echo(_shown(line, output))
        _say([note for note in reading.missing if note not in said])
        said = reading.missing


def _say(notes: list[str]) -> None:
    for note in notes:
        click.echo(f"reconcile: {note}", err=True)


def _shown(line: LogLine, output: str) -> str:
    if output == "json":
        return json.dumps(asdict(line))
    when = datetime.fromtimestamp(line.at).strftime("%m-%d %H:%M:%S.%f")[:-3] if line.at is not None else "-"  # noqa: DTZ006 -- local time
    origin, text = f"{line.origin:<10}", line.text
    # Of colours only those that are asked for: click takes them off in a pipe, but does not know NO_COLOR.
    if "NO_COLOR" not in os.environ:
        origin = click.style(origin, fg=_COLOURS.get(line.origin))
        text = click.style(text, fg=_LEVEL_COLOURS[line.level]) if line.level in _LEVEL_COLOURS else text
    mark = line.level[0].upper()
    return f"{when:<18} {mark} {origin} {line.model or '-'}  {text}"
