"""Ends a process that asyncio started, whatever it left behind."""

import asyncio
import contextlib
import os
import signal


async def end(process: asyncio.subprocess.Process) -> None:
    """Kill a process and all of its session, close its pipes and wait until it is gone.

    `Process.wait` waits for the pipes too. One that nobody reads any more, or that a grandchild in a session of
    its own holds open, never ends by itself, so they are closed here first. The transport's own `close` would not
    do: it asks for the exit code itself, and asyncio's watcher then misses it.

    Args:
        process: Started with `start_new_session=True`; it may have ended.
    """
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    close_pipes(process)
    await process.wait()


def close_pipes(process: asyncio.subprocess.Process) -> None:
    """Close our ends of its pipes, which are otherwise left to the garbage collector."""
    transport: asyncio.SubprocessTransport = process._transport  # type: ignore[attr-defined]  # noqa: SLF001 -- asyncio has no other way
    for number in range(3):
        pipe = transport.get_pipe_transport(number)
        if pipe is not None:
            pipe.close()
