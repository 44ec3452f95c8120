"""Processes that do not end by themselves."""

import asyncio

import psutil
import pytest

from reconciler.host import children

pytestmark = pytest.mark.timeout(60)


async def _started(script: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        "sh", "-c", script, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
    )


async def test_one_that_says_more_than_anybody_reads() -> None:
    process = await _started("exec yes")
    assert process.stdout is not None
    await process.stdout.read(1)
    # So that asyncio stops to read and never sees the pipe's end.
    await asyncio.sleep(0.2)
    await children.end(process)
    assert process.returncode == -9


async def test_one_whose_grandchild_holds_its_pipes() -> None:
    process = await _started("setsid sleep 60 & echo $!; exec sleep 60")
    assert process.stdout is not None
    grandchild = psutil.Process(int(await process.stdout.readline()))
    try:
        await children.end(process)
        assert process.returncode == -9
        assert grandchild.is_running(), "it is nobody's of ours"
    finally:
        grandchild.kill()


async def test_one_that_has_ended() -> None:
    process = await _started("exit 3")
    await process.communicate()
    await children.end(process)
    await children.end(process)
    assert process.returncode == 3
