"""The limit of open files, tried in processes of their own, for it is the process's."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.host import open_files

ROOT = Path(__file__).parents[2]
_TRY = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 600))
{call}
kept = [os.dup(0) for _ in range(500)]
print(resource.getrlimit(resource.RLIMIT_NOFILE), len(kept))
"""
# `watch` itself, as far as its first line that needs more than a limit.
_WATCH = """
import asyncio
from reconciler.daemon import watch
class Ended(Exception): pass
def end(): raise Ended
watch.Notifier = end
try:
    asyncio.run(watch.watch(None, None, None))
except Ended:
    pass
"""
_RAISE = "from reconciler.host.open_files import raise_limit; assert raise_limit() == 600"


def run(call: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _TRY.format(call=call)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize("call", [_RAISE, _WATCH])
def test_the_reconciler_that_stays_takes_as_many_as_it_may(call: str) -> None:
    done = run(call)
    assert (done.stdout.strip(), done.stderr) == ("(600, 600) 500", "")


def test_without_it_they_run_out() -> None:
    assert "Too many open files" in run("").stderr


@given(st.integers(0, 2**31), st.integers(0, 2**31))
def test_a_limit_is_never_lowered_and_never_above_the_hard_one(one: int, other: int) -> None:
    soft, hard = sorted((one, other))
    assert soft <= open_files.raised(soft, hard) <= hard
    assert open_files.raised(soft, -1) >= soft
    assert open_files.raised(-1, -1) == -1
