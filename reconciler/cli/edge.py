"""The commands about the edge: start, stop, status, and follow on another node."""

import asyncio
import signal
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import click

from reconciler.cli.common import ERROR, OK, configure_log, fail
from reconciler.cli.run import run_to_end
from reconciler.cli.show import print_json
from reconciler.core.exposure import is_loopback
from reconciler.host.settings import Settings
from reconciler.loop.assemble import find_edge, make_edge
from reconciler.loop.exposed import check_exposure, keys_of
from reconciler.loop.follow import follow as follow_reconciler


def edge(settings: Settings, verb: str, *, output: str) -> int:
    """Start, stop or look at the edge."""
    return run_to_end(_edge(settings, verb, output))


def follow(settings: Settings, url: str, token: Path, *, name: str | None, listen_port: int | None) -> int:
    """Run an edge here that follows the reconciler at `url`, until told to stop."""
    configure_log(settings)
    try:
        return run_to_end(_follow(settings, url, token, name or socket.gethostname(), listen_port))
    except ValueError as error:
        fail(str(error))


async def _follow(settings: Settings, url: str, token: Path, name: str, listen_port: int | None) -> int:
    try:
        activator = urlsplit(url)
        host, port = activator.hostname or "", activator.port or 80
    except ValueError as error:
        fail(f"{url}: {error}")
    door = make_edge(
        settings.model_copy(update={"listen_port": listen_port or settings.listen_port}),
        settings.serve_port,
        activator=(host, port),
    )
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    exposed = not is_loopback(settings.listen_host)
    await follow_reconciler(door, url, token, name, stop, exposed=exposed)
    return OK


async def _edge(settings: Settings, verb: str, output: str) -> int:
    door = await find_edge(settings)
    if verb == "start":
        check_exposure(settings, front_door_alone=True)
        await door.set_keys(keys_of(settings).ring(), time.time())
        click.echo("started" if await door.ensure_running() else "it runs already")
        return OK
    if verb == "stop":
        await door.stop()
        return OK
    running, routes = await door.is_running(), await door.routes()
    if output == "json":
        print_json({"running": running, "routes": routes})
    else:
        click.echo("the edge runs" if running else "the edge does not run")
        for model, application in sorted(routes.items()):
            click.echo(f"{model} -> {application}")
    return OK if running else ERROR
