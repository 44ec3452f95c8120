"""File events as a hint: they make the loop look sooner, and nothing rests on them."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import watchfiles

from reconciler.host.log import get_logger

log = get_logger()
_AGAIN_SECONDS = 5.0


async def watch_folder(folder: Path, wake: Callable[[], None]) -> None:
    """Call `wake` whenever something happens in `folder`, for ever.

    A folder that is not there, or a watcher that breaks (inotify's limits), is tried again; the periodic full
    read goes on meanwhile.
    """
    complaint = ""
    while True:
        try:
            async for _ in watchfiles.awatch(folder, debounce=200, step=50, recursive=False):
                wake()
        except (OSError, RuntimeError) as error:
            if str(error) != complaint:
                log.warning("watch.failed", folder=str(folder), reason=str(error))
            complaint = str(error)
        await asyncio.sleep(_AGAIN_SECONDS)
        wake()
