"""start.sh as far as it goes without an install: help, mistakes, stopping, and what belongs to whom."""

import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

START = Path(__file__).resolve().parents[2] / "start.sh"


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RECONCILE_")}
    return subprocess.run(
        [START, *arguments],
        env={**environment, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that a test starts; none outlives it."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def test_help_teaches() -> None:
    result = run("--help")
    assert result.returncode == 0
    for word in ("--demo", "--stop", "--test", "models.d/", "127.0.0.1:4000", "RAY_ADDRESS", "RECONCILE_RAY_ARGS"):
        assert word in result.stdout
    assert "\x1b" not in result.stdout


@pytest.mark.parametrize("argument", ["--dmeo", "demo", "-x"])
def test_unknown_argument(argument: str) -> None:
    result = run(argument)
    assert result.returncode == 2
    assert argument in result.stderr
    assert "--help" in result.stderr


def test_stop_where_nothing_runs(tmp_path: Path) -> None:
    state = tmp_path / "state"
    result = run("--stop", RECONCILE_STATE_DIR=str(state))
    assert result.returncode == 0
    assert "nothing of ours runs" in result.stdout
    assert stat.S_IMODE(state.stat().st_mode) == 0o700


def test_stop_ends_its_own_processes_only(tmp_path: Path, processes: list[subprocess.Popen[bytes]]) -> None:
    def start(run_id: str) -> subprocess.Popen[bytes]:
        processes.append(subprocess.Popen(["sleep", "60"], env={**os.environ, "RECONCILE_RAY_RUN": run_id}))
        return processes[-1]

    ours, foreign, similar = start("a1b2"), start("ffff"), start("a1b2c3")
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "run-id").write_text("a1b2\n")
    # A pid that was used again: alive, but not a reconciler.
    (tmp_path / "reconciler.pid").write_text(f"{foreign.pid}\n")

    result = run("--stop", RECONCILE_STATE_DIR=str(tmp_path))

    assert result.returncode == 0, result.stderr
    assert "stopping the Ray" in result.stdout
    assert "reconciler" not in result.stdout
    assert ours.wait(timeout=5) == -signal.SIGTERM
    assert foreign.poll() is None
    assert similar.poll() is None


def test_stop_kills_what_ignores_term(tmp_path: Path, processes: list[subprocess.Popen[bytes]]) -> None:
    stubborn = subprocess.Popen(
        ["bash", "-c", "trap '' TERM; echo ready; while :; do sleep 0.2; done"],
        env={**os.environ, "RECONCILE_RAY_RUN": "a1b2"},
        stdout=subprocess.PIPE,
    )
    processes.append(stubborn)
    assert stubborn.stdout is not None
    assert stubborn.stdout.readline() == b"ready\n"
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "run-id").write_text("a1b2\n")
    assert run("--stop", RECONCILE_STATE_DIR=str(tmp_path)).returncode == 0
    assert stubborn.wait(timeout=5) == -signal.SIGKILL
