"""kill -9 at every step of taking a revision over: the next start serves the old one or the new one, whole."""

import os
import subprocess
import sys
import time
from pathlib import Path

from .conftest import MODEL, Make
from .git_server import GitServer, Repository

_POINTS = 24
_OLD = {"models.d/a.yaml": MODEL.encode(), "models.d/b.yaml": b"name: b\nsource: {repo: org/old}\n"}
_NEW = {"models.d/a.yaml": MODEL.encode() + b"# new\n", "models.d/b.yaml": b"name: b\nsource: {repo: org/new}\n"}
# Python itself tells of each call that changes something on disk or starts a process.
_FETCH = """
import asyncio, os, signal, sys
from pathlib import Path
from reconciler.sources.git import GitSource
from reconciler.sources.git_options import GitOptions

url, folder, at = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
names = {"os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "os.utime", "os.chmod", "subprocess.Popen"}
steps = 0

def count(name, args):
    global steps
    if name in names or (name == "open" and isinstance(args[2], int) and args[2] & os.O_CREAT):
        steps += 1
        if steps == at:
            os.kill(os.getpid(), signal.SIGKILL)

source = GitSource(GitOptions(url, folder))
sys.addaudithook(count)
print(asyncio.run(source.fetch()), steps)
"""


def _fetch(server: GitServer, folder: Path, at: int = 0) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", _FETCH, f"{server.url}/models.git", str(folder), str(at)],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def _killed_after(seconds: float, server: GitServer, folder: Path) -> None:
    subprocess.run(["rm", "-rf", folder], check=True)
    with subprocess.Popen(
        [sys.executable, "-c", _FETCH, f"{server.url}/models.git", str(folder), "0"], stdout=subprocess.PIPE
    ) as process:
        time.sleep(seconds)
        process.kill()


def _text(*parts: str) -> str:
    return Path(*parts).read_text()


def _copy(source: Path, target: Path) -> None:
    subprocess.run(["rm", "-rf", target], check=True)
    subprocess.run(["cp", "-a", source, target], check=True)


async def test_a_kill_at_any_step_leaves_one_whole_revision(
    server: GitServer, repo: Repository, make: Make, tmp_path: Path
) -> None:
    first, folder = tmp_path / "first", tmp_path / "state"
    old = repo.commit({**_OLD, "models.d/w/x": "old"})
    assert "True" in _fetch(server, first)[1]
    new = repo.commit({**_NEW, "models.d/w/x": "new"})
    _copy(first, folder)
    taken, steps = _fetch(server, folder)[1].splitlines()[-1].split()
    assert taken == "True"
    assert int(steps) > _POINTS, "or not each of them is another step"
    served = []
    points = int(os.environ.get("GIT_KILL_POINTS", _POINTS))
    for at in sorted({1 + count * int(steps) // points for count in range(points)} | {int(steps)}):
        _copy(first, folder)
        code, _ = _fetch(server, folder, at)
        assert code == -9, at
        source = make(folder=folder)
        snapshot = await source.read()
        assert (snapshot.revision, snapshot.files) in ((old, _OLD), (new, _NEW)), at
        assert _text(snapshot.objects["w"], "x") == ("old" if snapshot.revision == old else "new"), at
        served.append(snapshot.revision)
        await source.fetch()
        after = await source.read()
        assert (after.revision, after.files) == (new, _NEW), at
        assert after.provenance is not None
        assert not after.provenance.problem
    assert served[0] == old
    assert served[-1] == new


async def test_a_kill_at_any_time_of_the_first_fetch_leaves_nothing_or_all(
    server: GitServer, repo: Repository, make: Make, tmp_path: Path
) -> None:
    commit = repo.commit({**_OLD, "models.d/w/x": "old"})
    folder = tmp_path / "state"
    for tenths in range(2, 14, 2):
        _killed_after(tenths / 10, server, folder)
        source = make(folder=folder)
        snapshot = await source.read()
        assert bool(snapshot.unreadable) != (snapshot.files == _OLD)
        await source.fetch()
        assert (await source.read()).revision == commit
