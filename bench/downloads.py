"""Fetching a repository with `reconcile pull` against plain `hf download`, from the same server on this machine.

    python -m bench.downloads [--quick] [--output json]

One large file, and many small ones. The two take turns, each into an empty cache; a result is the median over the
pairs. `hf download` compares sizes; ours also hashes every byte. Wall time is that of the whole command, its start
included; memory is the peak of its process.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench import machine
from bench.machine import BenchError, say
from bench.measure import paired, ratio, table

_MIB = 2**20
_SERVER = """
import json, sys
sys.path.insert(0, {hub!r})
from pathlib import Path
from hub_server import Hub
folder = Path({folder!r})
with Hub() as hub:
    for repo in sorted(folder.iterdir()):
        hub.repo(f"bench/{{repo.name}}", {{path.name: path for path in sorted(repo.iterdir())}})
    print(hub.url, flush=True)
    sys.stdin.read()
"""


@dataclass(slots=True)
class Contest:
    """One repository, fetched both ways.

    Attributes:
        size: Bytes in all.
        seconds: By command, one value a turn.
        memory: Peak resident bytes, by command.
    """

    name: str
    files: int
    size: int
    seconds: dict[str, list[float]] = field(default_factory=dict)
    memory: dict[str, list[int]] = field(default_factory=dict)


def make_repository(folder: Path, *, files: int, size: int) -> Contest:
    """A repository with so many shards of so many bytes."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    names = [f"model-{number:05d}-of-{files:05d}.safetensors" for number in range(1, files + 1)]
    index = {"weight_map": {f"w{number}": name for number, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in names:
        with (folder / name).open("wb") as out:
            for start in range(0, size, 16 * _MIB):
                out.write(os.urandom(min(16 * _MIB, size - start)))
    return Contest(folder.name, files, files * size)


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """A hub in a process of its own; gives its address."""
    hub = str(Path(__file__).resolve().parents[1] / "tests" / "hub")
    code = _SERVER.format(hub=hub, folder=str(folder))
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().decode().strip()
        finally:
            process.kill()


def once(command: list[str], work: Path, endpoint: str) -> tuple[float, int]:
    """Run it into an empty cache; gives seconds and peak bytes.

    Raises:
        BenchError: It failed.
    """
    home = work / "home"
    shutil.rmtree(home, ignore_errors=True)
    shutil.rmtree(work / ".reconcile", ignore_errors=True)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "RECONCILE_"))}
    environment |= {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "RECONCILE_ENGINE": "cpu",
        "RECONCILE_LOG_LEVEL": "error",
    }
    began = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=work, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if os.waitstatus_to_exitcode(status) != 0:
        raise BenchError(f"{' '.join(command)} failed ({os.waitstatus_to_exitcode(status)})")
    return seconds, usage.ru_maxrss * 1024


def run(folder: Path, *, large: int, small: int, turns: int) -> list[Contest]:
    """Make both repositories, and fetch them in turns."""
    programs = Path(sys.executable).parent
    contests = [
        make_repository(folder / "repos" / "large", files=1, size=large),
        make_repository(folder / "repos" / "small", files=small, size=64 * 1024),
    ]
    with serving(folder / "repos") as endpoint:
        for contest in contests:
            work = folder / "work" / contest.name
            (work / "models.d").mkdir(parents=True)
            (work / "models.d" / "m.yaml").write_text(f"source: {{repo: bench/{contest.name}}}\n")
            commands = {
                "hf download": [str(programs / "hf"), "download", f"bench/{contest.name}"],
                "reconcile pull": [str(programs / "reconcile"), "pull"],
            }
            for turn in range(turns + 1):
                say(f"{contest.name}: turn {turn} of {turns}")
                for name in list(commands)[:: 1 if turn % 2 else -1]:
                    seconds, memory = once(commands[name], work, endpoint)
                    if turn:  # The first turn warms up the page cache.
                        contest.seconds.setdefault(name, []).append(seconds)
                        contest.memory.setdefault(name, []).append(memory)
            shutil.rmtree(work)
    return contests


def text(contests: list[Contest], about: dict[str, object]) -> str:
    """The report, as Markdown."""
    rows = []
    for contest in contests:
        theirs, ours = "hf download", "reconcile pull"
        speed = paired(contest.seconds[theirs], contest.seconds[ours], ratio)
        memory = paired(
            [float(each) for each in contest.memory[ours]], [float(each) for each in contest.memory[theirs]], ratio
        )
        middle = {name: sorted(values)[len(values) // 2] for name, values in contest.seconds.items()}
        peak = {name: sorted(values)[len(values) // 2] / _MIB for name, values in contest.memory.items()}
        rows.append(
            [
                f"{contest.files} x {contest.size / contest.files / _MIB:g} MiB",
                f"{middle[theirs]:.2f}",
                f"{middle[ours]:.2f}",
                speed.show(),
                f"{peak[theirs]:.0f}",
                f"{peak[ours]:.0f}",
                memory.show(),
            ]
        )
    header = ["files", "hf, s", "ours, s", "speed, ours / hf", "hf, MiB", "ours, MiB", "memory, ours / hf"]
    return f"Measured {machine.sentence(about)}\n\n{table(header, rows)}"


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.downloads", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the bytes, two turns")
    parser.add_argument("--output", choices=("text", "json"), default="text")
    options = parser.parse_args()
    about = machine.describe()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        try:
            if options.quick:
                contests = run(Path(folder), large=200 * _MIB, small=50, turns=2)
            else:
                contests = run(Path(folder), large=2048 * _MIB, small=500, turns=7)
        except BenchError as error:
            say(f"error: {error}")
            return 1
    if options.output == "json":
        print(json.dumps({"machine": about, "contests": [asdict(each) for each in contests]}, indent=1))
    else:
        print(text(contests, about))
    return 0


if __name__ == "__main__":
    sys.exit(main())
