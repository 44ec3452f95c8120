"""What the commands about keys do: change `keys.json` in the state directory, or show it.

Whatever makes a key prints only that to standard output, for `KEY=$(reconcile keys add NAME)`; what a person
should know beside it goes to standard error.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import click
from rich.markup import escape
from rich.table import Table

from reconciler.api.schemas import KeyView
from reconciler.cli.common import OK, fail, quiet
from reconciler.cli.show import console, print_json
from reconciler.core.key_usage import KeyUse
from reconciler.core.keys import Key, KeyRefusedError, Scope
from reconciler.core.spec import parse_duration
from reconciler.core.words import in_time
from reconciler.host.key_file import KeyFile
from reconciler.host.settings import Settings
from reconciler.loop import key_usage


def add(
    settings: Settings,
    name: str,
    *,
    scopes: Sequence[str],
    models: Sequence[str],
    expires: str | None,
    requests_per_minute: int | None,
    concurrent: int | None,
    output: str,
) -> int:
    """Make a key and print it."""
    with _told(settings):
        file = KeyFile(settings.state_dir)
        was_open = file.ring().inference_is_open
        key, secret = file.add(
            name,
            [Scope(scope) for scope in scopes or (Scope.INFERENCE,)],
            models=models,
            expires=_until("--expires", expires),
            requests_per_minute=requests_per_minute,
            concurrent=concurrent,
        )
    if was_open and Scope.INFERENCE in key.scopes:
        click.echo(
            "This is the first key for inference: from now on the front door asks everybody for one.", err=True
        )
    return _handed_out(key, secret, {}, output)


def show(settings: Settings, *, everything: bool, output: str) -> int:
    """List the keys."""
    with _told(settings):
        ring = KeyFile(settings.state_dir).ring()
    usage, now = key_usage.read(settings.state_dir), time.time()
    if output == "json":
        print_json({"keys": [_view(key, usage.get(key.fingerprint)) for key in ring.keys]})
        return OK
    shown = [key for key in ring.keys if everything or key.is_valid(now)]
    if shown:
        _table(shown, usage, now)
    if ring.inference_is_open:
        click.echo("There is no key for inference: the front door asks nobody for one.", err=True)
    if hidden := len(ring.keys) - len(shown):
        click.echo(f"{hidden} revoked or expired; --all shows them.", err=True)
    return OK


def revoke(settings: Settings, which: str, *, output: str) -> int:
    """Close a key for good."""
    with _told(settings):
        gone = KeyFile(settings.state_dir).revoke(which)
    if output == "json":
        print_json({"key": _view(gone, None)})
    else:
        click.echo(f"{gone.name} ({gone.fingerprint}): revoked.")
    return OK


def rotate(settings: Settings, name: str, *, grace: str | None, expires: str | None, output: str) -> int:
    """Make another key in the place of one, and print it."""
    with _told(settings):
        seconds = 0.0 if grace is None else _seconds("--grace", grace)
        until = _until("--expires", expires)
        new, old, secret = KeyFile(settings.state_dir).rotate(name, grace=seconds, expires=until)
    ends = "is revoked" if old.revoked is not None or old.expires is None else f"holds until {_date(old.expires)}"
    click.echo(f"The old key ({old.fingerprint}) {ends}.", err=True)
    return _handed_out(new, secret, {"old": _view(old, None)}, output)


@contextlib.contextmanager
def _told(settings: Settings) -> Iterator[None]:
    """Log nothing but errors, and say in one line why something cannot be done."""
    quiet(settings)
    try:
        yield
    except KeyRefusedError as error:
        fail(str(error))
    except OSError as error:
        fail(f"it could not be written down: {error}")


def _handed_out(key: Key, secret: str, more: dict[str, Any], output: str) -> int:
    if output == "json":
        print_json({"key": _view(key, None), "secret": secret} | more)
        return OK
    click.echo(f"{key.name} ({key.fingerprint}). The key is shown this once, and kept nowhere:", err=True)
    click.echo(secret)
    return OK


def _view(key: Key, use: KeyUse | None) -> dict[str, Any]:
    """A key as the API shows it."""
    return KeyView.of(key, use).model_dump(mode="json")


def _table(keys: Sequence[Key], usage: dict[str, KeyUse], now: float) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in (
        "NAME",
        "FINGERPRINT",
        "SCOPES",
        "MODELS",
        "ENDS",
        "PER MINUTE",
        "AT A TIME",
        "REQUESTS",
        "USED",
    ):
        table.add_column(heading, overflow="fold", no_wrap=heading != "MODELS")
    for key in keys:
        use = usage.get(key.fingerprint, KeyUse())
        table.add_row(
            escape(key.name),
            key.fingerprint,
            ", ".join(sorted(key.scopes)),
            escape("all" if key.models is None else ", ".join(sorted(key.models))),
            _end(key, now),
            "-" if key.requests_per_minute is None else str(key.requests_per_minute),
            "-" if key.concurrent is None else str(key.concurrent),
            str(use.requests),
            "never" if use.last_used is None else f"{in_time(now - use.last_used)} ago",
        )
    console().print(table)


def _end(key: Key, now: float) -> str:
    if key.revoked is not None:
        return "[red]revoked[/]"
    if key.expires is None:
        return "never"
    return _date(key.expires) if key.is_valid(now) else "[red]expired[/]"


def _date(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds).astimezone():%Y-%m-%d %H:%M}"


def _until(option: str, duration: str | None) -> float | None:
    return None if duration is None else time.time() + _seconds(option, duration)


def _seconds(option: str, duration: str) -> float:
    try:
        return parse_duration(duration)
    except ValueError as error:
        fail(f"{option}: {error}")
