"""The edge as the rest of the reconciler knows it: kept running, given routes, asked for usage.

Requests never come through here. The process goes on without us, and what it needs to start again, its
configuration and its routes, is always in its folder.
"""

import asyncio
import contextlib
import time
from collections.abc import Iterable, Mapping
from typing import Final

from reconciler.edge import maps, process
from reconciler.edge.config import fingerprint, render_config, stamp
from reconciler.edge.errors import EdgeStartError, EdgeUnreachableError
from reconciler.edge.options import EdgeOptions
from reconciler.edge.replies import reply_files
from reconciler.edge.runtime_api import CURRENT, RuntimeApi
from reconciler.edge.usage import Usage, add_up
from reconciler.host.files import write_atomic

__all__ = ["Edge", "EdgeOptions", "EdgeStartError", "EdgeUnreachableError", "Usage"]

_ATTEMPTS: Final = 3
_RELOAD_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.02


class Edge:
    """One edge, by its folder. Any number of objects, in any number of processes, may stand for it.

    Args:
        options: Where it listens and what it forwards to.
        template_text: The template of its configuration.

    Raises:
        ValueError: The template and the options make no configuration.
    """

    def __init__(self, options: EdgeOptions, template_text: str) -> None:
        config = render_config(template_text, options)
        self._options = options
        self._config = stamp(config)
        self._fingerprint = fingerprint(config)
        self._api = RuntimeApi(options.socket_file)
        self._changing_routes = asyncio.Lock()
        self._used: set[str] = set()

    async def ensure_running(self) -> bool:
        """Start the edge if it is down; reload it if it runs with another configuration.

        A reload cuts nothing: requests in flight end in the old worker. Idle times of applications start anew with
        it, and with a start too as far as this object has seen any.

        Returns:
            Whether it had to be started.

        Raises:
            EdgeStartError: HAProxy refuses its configuration or cannot listen, or the edge's folder cannot be
                written. An edge that ran goes on as it was.
        """
        try:
            async with process.exclusively(self._options):
                running = await self._running()
                if running == self._fingerprint:
                    return False
                async with self._changing_routes:
                    self._write_files()
                    if running is None:
                        await self._start()
                    else:
                        await self._reload()
                return running is None
        except OSError as error:
            raise EdgeStartError(f"the edge's folder {self._options.folder} cannot be used: {error}") from error

    async def is_running(self) -> bool:
        """Whether it accepts connections now."""
        try:
            return (await self._api.processes()).worker is not None
        except EdgeUnreachableError:
            return False

    async def routes(self) -> dict[str, str]:
        """Model name to application: what the edge routes by, or will when it is up again."""
        try:
            return await self._api.routes()
        except EdgeUnreachableError:
            return self._routes_on_file()

    async def set_routes(self, routes: Mapping[str, str]) -> None:
        """Make these the routes: on file, and in the running edge by the differences alone.

        A request sees the old application or the new one, never none. An edge that is down will start with them.

        Args:
            routes: Model name to application name; all of them.

        Raises:
            ValueError: A name cannot be a model's or an application's; nothing was changed.
            OSError: The map file cannot be written; nothing was changed.
            EdgeUnreachableError: The edge answers and yet does not take them; the file has them.
        """
        text = maps.format_map(routes)
        async with self._changing_routes:
            write_atomic(self._options.routes_file, text)
            try:
                await self._apply(routes)
            except EdgeUnreachableError:
                # Where it is down, the file is all that is wanted. Where it is not, models would be taken away
                # that it still sends requests to.
                if await self.is_running():
                    raise

    async def usage(self) -> dict[str, Usage]:
        """What is in flight and for how long nothing was, by application, of all that are routed to or ever were.

        Raises:
            EdgeUnreachableError: It is down.
        """
        leaving = (await self._api.processes()).leaving
        tables = [{name: Usage(0, None) for name in (await self._api.routes()).values()}, await self._api.usage()]
        for pid in leaving:
            try:
                left = {name: use for name, use in (await self._api.usage(f"@!{pid}")).items() if use.in_flight}
            except EdgeUnreachableError:
                # One that has ended meanwhile has nothing in flight; of one that is only silent nobody knows.
                if pid in (await self._api.processes()).leaving:
                    raise
                continue
            # The worker that stays has to know, for the other takes its table along when it ends.
            await self._api.touch(list(left))
            tables.append(left)
        total = add_up(tables)
        self._used = {name for name, use in total.items() if use.idle_seconds is not None}
        return total

    async def touch(self, applications: Iterable[str]) -> None:
        """Make these applications used at this moment, for requests that did not pass here straight to them.

        What is in flight is not changed by it.

        Args:
            applications: Names; those that were never routed to are taken too.

        Raises:
            ValueError: A name cannot be an application's; nothing was changed.
            EdgeUnreachableError: It is down.
        """
        names = sorted(set(applications))
        maps.check_applications(names)
        await self._api.touch(names)

    async def stop(self, *, grace_seconds: float = 5.0) -> None:
        """End the edge; nothing happens if it is down.

        Args:
            grace_seconds: How long requests in flight may go on. New ones are refused at once.

        Raises:
            EdgeStartError: It does not end.
        """
        async with process.exclusively(self._options):
            try:
                master = (await self._api.processes()).master
            except EdgeUnreachableError:
                await process.end_remains(self._options)
                return
            await process.stop(self._options, master, grace_seconds=grace_seconds)

    async def _running(self) -> str | None:
        # An edge that is silent is killed and started anew. It may only be slow, so it is asked twice.
        for _ in range(2):
            with contextlib.suppress(EdgeUnreachableError):
                return await self._api.fingerprint()
        return None

    def _write_files(self) -> None:
        for name, text in reply_files().items():
            write_atomic(self._options.folder / "errors" / name, text)
        # Lines that are no route would keep HAProxy from starting.
        write_atomic(self._options.routes_file, maps.format_map(self._routes_on_file()))
        write_atomic(self._options.config_file, self._config)

    def _routes_on_file(self) -> dict[str, str]:
        try:
            return maps.parse_map(self._options.routes_file.read_text(encoding="utf-8"))
        except (FileNotFoundError, UnicodeDecodeError):
            return {}

    async def _start(self) -> None:
        used = sorted(self._used)
        await process.start(self._options, self._api, self._fingerprint)
        # The table ended with the process before, and "never used" would be wrong. This one may be gone again.
        with contextlib.suppress(EdgeUnreachableError):
            await self._api.touch(used)

    async def _reload(self) -> None:
        try:
            known = [name for name, use in (await self.usage()).items() if use.idle_seconds is not None]
            complaint = await self._api.reload()
            if complaint is not None:
                raise EdgeStartError(f"HAProxy refused a reload: {process.complaint_in(complaint)}")
            deadline = time.monotonic() + _RELOAD_SECONDS
            while not await self._took_over():
                if time.monotonic() > deadline:
                    raise EdgeStartError(f"the reloaded HAProxy was not up in {_RELOAD_SECONDS} seconds")
                await asyncio.sleep(_POLL_SECONDS)
            # A new worker's table is empty, and "never used" would be wrong.
            await self._api.touch(known)
        except EdgeUnreachableError as error:
            raise EdgeStartError(f"the edge went away during a reload: {error}") from error

    async def _took_over(self) -> bool:
        try:
            return await self._api.fingerprint() == self._fingerprint
        except EdgeUnreachableError:
            return False

    async def _apply(self, routes: Mapping[str, str]) -> None:
        for pid in (await self._api.processes()).leaving:
            # A request whose body was still arriving when its worker was replaced is routed by that worker.
            with contextlib.suppress(EdgeUnreachableError):
                await self._apply_once(routes, f"@!{pid}")
        # Not what was sent counts but what is there afterwards.
        for _ in range(_ATTEMPTS):
            if await self._apply_once(routes):
                return
        raise EdgeUnreachableError("the edge does not take its routes")

    async def _apply_once(self, routes: Mapping[str, str], worker: str = CURRENT) -> bool:
        commands = maps.commands_between(await self._api.routes(worker), routes)
        await self._api.tell(commands, worker)
        return not commands
