"""The edge as the rest of the reconciler knows it: kept running, given routes and keys, asked for usage.

Requests never come through here. The process goes on without us, and what it needs to start again, its
configuration and its maps, is always in its folder.
"""

import asyncio
import contextlib
import time
from collections.abc import Iterable, Mapping
from typing import Final

from reconciler.core.exposure import is_loopback
from reconciler.core.keys import KeyRing
from reconciler.edge import maps, process
from reconciler.edge.access import Access
from reconciler.edge.config import fingerprint, render_config, stamp
from reconciler.edge.errors import EdgeStartError, EdgeUnreachableError
from reconciler.edge.live_maps import LiveMaps
from reconciler.edge.maps import KEY_MODELS, KEYS, MAPS, REVISIONS, ROUTES
from reconciler.edge.options import EdgeOptions
from reconciler.edge.replies import reply_files
from reconciler.edge.runtime_api import RuntimeApi
from reconciler.edge.tls import Certificate
from reconciler.edge.usage import Usage, add_up
from reconciler.host.files import write_atomic

__all__ = ["Edge", "EdgeOptions", "EdgeStartError", "EdgeUnreachableError", "Usage"]

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
        self._options = options
        self._config = render_config(template_text, options)
        self._api = RuntimeApi(options.socket_file)
        self._certificate = (
            None if options.tls_cert is None else Certificate(options.tls_cert, options.tls_key, options.folder)
        )
        self._maps = LiveMaps(options.folder, self._api, locked=not is_loopback(options.listen_host))
        self._access: Access | None = None
        self._changing_maps = asyncio.Lock()
        self._used: set[str] = set()

    async def ensure_running(self) -> bool:
        """Start the edge if it is down; reload it if it runs with another configuration or certificate.

        A reload cuts nothing: requests in flight end in the old worker. Idle times of applications start anew with
        it, and with a start too as far as this object has seen any.

        Returns:
            Whether it had to be started.

        Raises:
            EdgeStartError: HAProxy refuses its configuration or cannot listen, the certificate's files hold none,
                or the edge's folder cannot be written. An edge that ran goes on as it was.
        """
        try:
            async with process.exclusively(self._options):
                pem = self._certificate.read() if self._certificate is not None else ""
                wanted = fingerprint(self._config, pem)
                running = await self._running()
                if running == wanted:
                    return False
                async with self._changing_maps:
                    self._write_files(pem)
                    if running is None:
                        await self._start(wanted)
                    else:
                        await self._reload(wanted)
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
            return await self._api.entries(ROUTES.name)
        except EdgeUnreachableError:
            return self._maps.on_file(ROUTES)

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
        async with self._changing_maps:
            await self._maps.put(ROUTES, routes)
            # Until then whoever may use one model alone reaches its new application through the activator.
            if self._access is not None:
                await self._maps.put(KEY_MODELS, self._access.model_entries(routes))

    async def set_keys(self, ring: KeyRing, now: float) -> None:
        """`set_access` with what follows from the keys that there are.

        Args:
            ring: All keys.
            now: Seconds since the epoch.

        Raises:
            ValueError: A key is none; nothing was changed.
            OSError: As `set_access`.
            EdgeUnreachableError: As `set_access`.
        """
        await self.set_access(Access.of(ring, now))

    async def set_access(self, access: Access) -> None:
        """Let these keys infer and no other: on file, and in the running edge without a reload.

        Requests that have begun are not cut. An edge that is down will start with them.

        Raises:
            OSError: A map file cannot be written; the running edge has what it was to have.
            EdgeUnreachableError: The edge answers and yet does not take them; the files have them.
        """
        async with self._changing_maps:
            self._access = access
            # In between, whoever may use some models alone goes to the activator.
            try:
                await self._maps.put(KEYS, access.key_entries())
            finally:
                await self._maps.put(KEY_MODELS, access.model_entries(await self.routes()))

    async def set_revisions(self, revisions: Mapping[str, str]) -> None:
        """Say which commit each application comes from, for the header of its responses where that is asked for.

        Args:
            revisions: Application name to commit, 12 to 40 hexadecimal digits; all of them.

        Raises:
            ValueError: A name or a commit is none; nothing was changed.
            OSError: The map file cannot be written; nothing was changed.
            EdgeUnreachableError: The edge answers and yet does not take them; the file has them.
        """
        REVISIONS.check(revisions)
        async with self._changing_maps:
            if self._options.revision_header:
                await self._maps.put(REVISIONS, revisions)

    async def usage(self) -> dict[str, Usage]:
        """What is in flight and for how long nothing was, by application, of all that are routed to or ever were.

        Raises:
            EdgeUnreachableError: It is down.
        """
        leaving = (await self._api.processes()).leaving
        tables = [
            {name: Usage(0, None) for name in (await self._api.entries(ROUTES.name)).values()},
            await self._api.usage(),
        ]
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

    async def key_usage(self) -> dict[str, int]:
        """Requests that were let through, by a key's fingerprint, since the edge was started.

        Raises:
            EdgeUnreachableError: It is down.
        """
        return {key: count.requests for key, count in (await self._api.key_counts()).items()}

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

    def _write_files(self, pem: str) -> None:
        for name, text in reply_files().items():
            write_atomic(self._options.folder / "errors" / name, text)
        for each in MAPS:
            self._maps.mend(each)
        if pem:
            write_atomic(self._options.pem_file, pem)
        else:
            self._options.pem_file.unlink(missing_ok=True)
        write_atomic(self._options.config_file, stamp(self._config, pem))

    async def _start(self, wanted: str) -> None:
        used = sorted(self._used)
        await process.start(self._options, self._api, wanted)
        # The table ended with the process before, and "never used" would be wrong. This one may be gone again.
        with contextlib.suppress(EdgeUnreachableError):
            await self._api.touch(used)

    async def _reload(self, wanted: str) -> None:
        try:
            counts = await self._api.key_counts()
            known = [name for name, use in (await self.usage()).items() if use.idle_seconds is not None]
            complaint = await self._api.reload()
            if complaint is not None:
                raise EdgeStartError(f"HAProxy refused a reload: {process.complaint_in(complaint)}")
            deadline = time.monotonic() + _RELOAD_SECONDS
            while not await self._took_over(wanted):
                if time.monotonic() > deadline:
                    raise EdgeStartError(f"the reloaded HAProxy was not up in {_RELOAD_SECONDS} seconds")
                await asyncio.sleep(_POLL_SECONDS)
            # A new worker's table is empty, and "never used" would be wrong.
            await self._api.touch(known)
            await self._api.set_key_counts(counts)
        except EdgeUnreachableError as error:
            raise EdgeStartError(f"the edge went away during a reload: {error}") from error

    async def _took_over(self, wanted: str) -> bool:
        try:
            return await self._api.fingerprint() == wanted
        except EdgeUnreachableError:
            return False
