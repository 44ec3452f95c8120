"""One reconciler for each state directory, however the last one ended."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from reconciler.host.lock import AlreadyRunningError, exclusive, exclusive_probe, holder

HOLD = """
import sys, time
from pathlib import Path
from reconciler.host.lock import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_told_who_runs_and_kill_frees_the_lock(tmp_path: Path) -> None:
    process = hold(tmp_path)
    try:
        with pytest.raises(AlreadyRunningError) as caught, exclusive(tmp_path):
            pass
        assert caught.value.pid == process.pid
        assert holder(tmp_path) == process.pid
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert holder(tmp_path) is None
    with exclusive(tmp_path):
        assert holder(tmp_path) == os.getpid()


def test_the_lock_is_free_again_after_the_block(tmp_path: Path) -> None:
    for _ in range(2):
        with exclusive(tmp_path):
            pass
        assert holder(tmp_path) is None


def test_an_error_in_the_block_frees_it_too(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), exclusive(tmp_path):
        raise ZeroDivisionError
    assert holder(tmp_path) is None


def test_asking_makes_no_file(tmp_path: Path) -> None:
    assert holder(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_a_command_that_only_asks_does_not_keep_a_reconciler_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with exclusive(tmp_path):
        pass
    asking = exclusive_probe(tmp_path / "reconciler.pid")
    asking.__enter__()

    def asked(_seconds: float) -> None:
        asking.__exit__(None, None, None)

    monkeypatch.setattr("reconciler.host.lock.time.sleep", asked)
    with exclusive(tmp_path):
        assert holder(tmp_path) == os.getpid()


def test_the_state_directory_is_made_private(tmp_path: Path) -> None:
    with exclusive(tmp_path / "state"):
        assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
