"""What the control plane itself takes: planning 1,000 model files, and the wall time of two commands.

    python -m bench.planning [--quick] [--state-dir DIR | --start-stack] [--output json]

Planning needs no cluster: it is given what an observation of one would be. `--dry-run` is timed only on a real
one: `--state-dir` is the state directory of one that runs (.reconcile), `--start-stack` starts one for it.
"""

import argparse
import asyncio
import contextlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from bench import machine
from bench.machine import BenchError, say
from bench.measure import table, verdict
from reconciler.core.desired import Desired, Snapshot, compile_desired
from reconciler.core.fit.measured import Key
from reconciler.core.fitting import Cluster, Fitter
from reconciler.core.parse import parse_all
from reconciler.core.planner import make_plan
from reconciler.core.render import Renderer
from reconciler.core.state import Application, Node, Observed, Record, Status
from reconciler.core.target import Platform
from reconciler.host.templates import read_template
from reconciler.sources.folder import FolderSource

FILES = 1000
AIM_PLANNING, AIM_HELP, AIM_DRY_RUN = 1.0, 0.3, 2.0
_GPUS_OF_A_NODE = 8

T = TypeVar("T")

_FILE = """\
# yaml-language-server: $schema=../schema/model.schema.json
# Model {number} of a benchmark.
name: org-{team}/model-{number:04d}
source:
  repo: org-{team}/Model-{number:04d}
  revision: main
task: generate
engine:
  max_model_len: {length}
  gpu_memory_utilization: {share}
  max_num_seqs: 128
  args: {{enable_prefix_caching: true}}
resources:
  accelerator: auto
  replicas: {{min: 1, max: 2}}
lifecycle:
  policy: pinned
  idle_timeout: 15m
  priority: {priority}
aliases: [model-{number:04d}, m{number}]
description: Number {number} of many
labels: {{team: team-{team}}}
"""


@dataclass(frozen=True, slots=True)
class Timing:
    """One thing that was timed.

    Attributes:
        what: What it is.
        seconds: Every repetition.
        aim: At most so many seconds; None where it is only a part of something that has an aim.
    """

    what: str
    seconds: list[float]
    aim: float | None = None


def write_models(folder: Path) -> None:
    """1,000 model files as people write them: a comment, most fields, two aliases; all of them different."""
    for number in range(FILES):
        path = folder / f"model-{number:04d}.yaml"
        share = (0.9, 0.45, 0.3)[number % 3]
        length = 2048 * (1 + number % 16)
        text = _FILE.format(number=number, team=number % 20, length=length, share=share, priority=number % 100)
        path.write_text(text, encoding="utf-8")
        # Older than the moment in which the source would look twice, because somebody may still be writing.
        os.utime(path, (0, 0))
    os.utime(folder, (0, 0))


def first_observation(*, gpus: int) -> Observed:
    """An empty cluster with that many GPUs."""
    count = _GPUS_OF_A_NODE
    return Observed(nodes=tuple(Node(f"node-{number}", count) for number in range(gpus // count)))


def converged_observation(desired: Desired, *, gpus: int) -> Observed:
    """A cluster in which everything is as declared."""
    targets = desired.targets.values()
    names = [target.application for target in targets]
    return Observed(
        applications={
            target.application: Application(
                name=target.application,
                status=Status.RUNNING,
                config=target.config,
                model=target.model,
                demand=target.demand,
            )
            for target in targets
        },
        serve={"proxy_location": "HeadOnly"},
        nodes=first_observation(gpus=gpus).nodes,
        routes={target.model: target.application for target in targets},
        in_flight=dict.fromkeys(names, 0),
        ready=frozenset(names),
        ages=dict.fromkeys(names, 3600.0),
        records={t.model: Record(t.model, t.file, t.application, t.fields) for t in targets},
        now=1.0,
    )


def plan_timings(folder: Path, repetitions: int) -> list[Timing]:
    """Read, parse, compile and plan, on the first load and when all is as declared; on CPUs and with 1,000 GPUs.

    The models are pinned, so that all of them are loaded; once more they are on demand, and all at rest.

    Raises:
        BenchError: A plan is not what it should be.
    """
    read, snapshot = _timed(lambda: asyncio.run(FolderSource(folder).read()), repetitions)
    parse, _ = _timed(lambda: parse_all(snapshot.files), repetitions)
    return [
        Timing("read the files", read),
        Timing("parse them", parse),
        *_cluster_timings("CPUs", snapshot, read, gpus=0),
        *_cluster_timings("1,000 GPUs", snapshot, read, gpus=FILES),
    ]


def _cluster_timings(name: str, snapshot: Snapshot, read: Sequence[float], *, gpus: int) -> list[Timing]:
    renderer = Renderer(read_template("application.json.j2", None), Platform(device="cuda" if gpus else "cpu"))
    empty = first_observation(gpus=gpus)
    compiled, desired = _timed(lambda: compile_desired(snapshot, renderer), len(read))
    _require(len(desired.targets) == FILES, f"not all files are valid: {desired.problems[:1]}")
    on_demand = {
        path: file.replace(b"policy: pinned", b"policy: on_demand") for path, file in snapshot.files.items()
    }
    at_rest = compile_desired(replace(snapshot, files=on_demand), renderer)
    fitter = Fitter(renderer, Platform(device="cuda" if gpus else "cpu"), _NothingMeasured())
    nothing = Cluster({}, empty.nodes, {})
    weighed, desired = _timed(lambda: fitter.fitted(desired, nothing, {}), len(read))
    first, plan = _timed(lambda: make_plan(desired, empty), len(read))
    _require(len(plan.changes) == FILES, "the first plan does not add every model")
    converged = converged_observation(desired, gpus=gpus)
    cluster = Cluster(converged.applications, converged.nodes, converged.routes)
    fitter.fitted(desired, cluster, {})
    kept, _ = _timed(lambda: fitter.fitted(desired, cluster, {}), len(read))
    again, plan = _timed(lambda: make_plan(desired, converged), len(read))
    _require(plan.converged, f"the second plan is not empty: {plan.steps[:1]}{plan.changes[:1]}{plan.held[:1]}")
    resting, plan = _timed(lambda: make_plan(at_rest, empty), len(read))
    _require(len(plan.resting) == FILES, f"not every model is at rest: {plan.changes[:1]}{plan.held[:1]}")
    return [
        Timing(f"{name}: parse and compile", compiled),
        Timing(f"{name}: sizes, the models' facts not known yet", weighed),
        Timing(f"{name}: plan the first load", first),
        Timing(f"{name}: sizes kept of what runs", kept),
        Timing(f"{name}: plan when converged", again),
        Timing(f"{name}: plan when all are at rest", resting),
        Timing(f"{name}: all of a first load", _sums(read, compiled, weighed, first), AIM_PLANNING),
        Timing(f"{name}: all of a turn, files unchanged", _sums(read, kept, again), AIM_PLANNING),
    ]


class _NothingMeasured:
    """No model ran before."""

    def version(self, model: str) -> int:  # noqa: ARG002
        """Never another one."""
        return 0

    def known(self, key: Key) -> None:
        """Nothing."""


def command_timing(what: str, arguments: Sequence[str], repetitions: int, aim: float, **options: Any) -> Timing:
    """The wall time of `reconcile` with these arguments, from outside.

    Raises:
        BenchError: It failed.
    """
    command = [str(Path(sys.executable).with_name("reconcile")), *arguments]

    def once() -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
        _require(done.returncode == 0, f"{what} ended with {done.returncode}: {done.stdout}{done.stderr}")

    once()
    return Timing(what, _timed(once, repetitions)[0], aim)


def settings_of(state_dir: Path) -> dict[str, str]:
    """The environment that `source <state_dir>/env` gives a person."""
    words = [shlex.split(line) for line in (state_dir / "env").read_text(encoding="utf-8").splitlines()]
    chosen = dict(word.split("=", 1) for _, word in words if not word.startswith("PATH="))
    return {**os.environ, **chosen}


def text(timings: Sequence[Timing], about: dict[str, Any], note: str) -> str:
    """The report, as Markdown."""
    rows = []
    for timing in timings:
        middle, aim = median(timing.seconds), timing.aim
        judged = ["-", "-"] if aim is None else [f"{aim:g}", f"{middle / aim:.2f}, {verdict(middle, aim)}"]
        rows.append([timing.what, f"{middle:.3f}", f"{min(timing.seconds):.3f}", *judged])
    result = table([f"{FILES:,} model files", "median, s", "best, s", "aim, s", "of the aim"], rows)
    return "\n\n".join(filter(None, (f"Measured {machine.sentence(about)}", result, note)))


def _timed(work: Callable[[], T], repetitions: int) -> tuple[list[float], T]:
    seconds = []
    for _ in range(repetitions):
        began = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - began)
    return seconds, result


def _sums(*series: Sequence[float]) -> list[float]:
    return [sum(parts) for parts in zip(*series, strict=True)]


def _require(condition: bool, complaint: str) -> None:
    if not condition:
        raise BenchError(complaint)


@contextlib.contextmanager
def _state_dir(given: Path | None, *, start: bool, folder: Path) -> Iterator[Path | None]:
    if not start:
        yield given
        return
    from bench import ours  # noqa: PLC0415 -- only where a stack is wanted

    with ours.running(folder) as stack:
        yield stack.state


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.planning", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="2 repetitions instead of 7")
    parser.add_argument("--state-dir", type=Path, help="state directory of a stack that runs, for the dry run")
    parser.add_argument("--start-stack", action="store_true", help="start a stack for the dry run")
    parser.add_argument("--output", choices=("text", "json"), default="text")
    options = parser.parse_args()
    repetitions = 2 if options.quick else 7
    about = machine.describe()
    note = ""
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        folder = Path(temporary)
        try:
            (folder / "models.d").mkdir()
            write_models(folder / "models.d")
            timings = plan_timings(folder / "models.d", repetitions)
            timings.append(command_timing("reconcile --help", ["--help"], repetitions, AIM_HELP))
            with _state_dir(options.state_dir, start=options.start_stack, folder=folder / "stack") as state_dir:
                if state_dir is None:
                    note = "`reconcile --dry-run` was not timed: give --state-dir or --start-stack."
                else:
                    what, settings = "reconcile --dry-run, converged", settings_of(state_dir)
                    timings.append(command_timing(what, ["--dry-run"], repetitions, AIM_DRY_RUN, env=settings))
        except BenchError as error:
            say(f"error: {error}")
            return 1
    if options.output == "json":
        print(json.dumps({"machine": about, "timings": [asdict(timing) for timing in timings]}, indent=1))
    else:
        print(text(timings, about, note))
    return 0


if __name__ == "__main__":
    sys.exit(main())
