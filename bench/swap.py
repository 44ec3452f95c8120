"""How long it takes to put one model in the place of another: ours against a script that does it with bare vLLM.

    python -m bench.swap [--quick] [--turns N] [--output json]

One simulated GPU, two models that need all of it. Ours: the one that is up is idle, a request for the other one
comes, and its first token is waited for. The script: SIGTERM for the server of the one; when its processes are
gone, the server of the other one is started and asked until its first token. In turns; each swap undoes the last.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from bench import machine, ours
from bench.asking import first_token, wait_first_token
from bench.bare import BareVllm, bare_vllm
from bench.machine import BenchError, say
from bench.measure import difference, paired, ratio, table, verdict
from bench.ours import Engine, Stack
from bench.phases import Mark, phase_rows, phases, read_events, start_marks, to_free_memory, unload_marks
from reconciler.core.room import IN_USE_SECONDS

AIM_RATIO, AIM_FREE_SECONDS = 1.2, 3.0
MODELS = ("one", "other")

_CHAT = "/v1/chat/completions"
_LOAD_SECONDS = 300.0
_IDLE_SECONDS = IN_USE_SECONDS + 3.0
_TURNS, _QUICK_TURNS = 4, 1
# As soon as a model is idle it may leave, so what is measured is the swap and no patience.
_LIFECYCLE = "{policy: on_demand, min_stay: 1s}"


@dataclass(slots=True)
class Times:
    """Seconds of each turn.

    Attributes:
        bare: The script's, to the first token.
        bare_stop: Of these, until the old server's processes were gone.
        ours: From the request to its first token.
        phases: Of ours, as the reconciler's log tells them.
        free: From the end of the drain until the reconciler has confirmed that the memory is free.
    """

    bare: list[float] = field(default_factory=list)
    bare_stop: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)
    phases: list[dict[str, float]] = field(default_factory=list)
    free: list[float] = field(default_factory=list)


def swap_marks(leaves: str, comes: str) -> tuple[Mark, ...]:
    """From the request for the one that comes to its traffic."""
    noticed = Mark("noticed", "plan.change", comes, lambda fields: fields["action"] == "load")
    return (noticed, *unload_marks(leaves), *start_marks(comes))


def one_ours(stack: Stack, leaves: str, comes: str, times: Times) -> None:
    """Ask for `comes` while `leaves` is up, and idle.

    Raises:
        BenchError: It is not as it should be, or the request failed.
    """
    time.sleep(_IDLE_SECONDS)
    states = ours.listed(stack)
    if (states[leaves], states[comes]) != ("loaded", "unloaded"):
        raise BenchError(f"{leaves} should be loaded, {comes} unloaded: {states}")
    asked = time.time()
    first = first_token(stack.ports["LISTEN_PORT"], _CHAT, comes, seconds=_LOAD_SECONDS)
    times.ours.append(first - asked)
    ours.wait_settled(stack, asked)
    events = read_events(stack.log)
    times.phases.append(phases(events, swap_marks(leaves, comes), asked, first))
    free = to_free_memory(events, leaves, asked)
    if free is None:
        raise BenchError(f"the reconciler did not confirm that {leaves} is gone")
    times.free.append(free)


class Script:
    """What a person without us would run: it ends one server and starts the next."""

    def __init__(self, engine: Engine, log: Path) -> None:
        self._engine = engine
        self._log = log
        self._servers = contextlib.ExitStack()
        self._server: BareVllm | None = None

    def swap(self, comes: str) -> tuple[float, float]:
        """End what runs, start `comes`; seconds to its first token, and of these until the old one was gone.

        Raises:
            BenchError: A server did not end, or did not come up.
        """
        began = time.time()
        gone = self._server.stop() if self._server is not None else 0.0
        self._server = self._servers.enter_context(bare_vllm(self._engine, comes, self._log))
        check = self._server.check
        first = wait_first_token(self._server.port, _CHAT, comes, seconds=_LOAD_SECONDS, check=check)
        return first - began, gone

    def close(self) -> None:
        """End what runs."""
        self._servers.close()


@contextlib.contextmanager
def _both_up(folder: Path) -> Iterator[tuple[Stack, Script]]:
    with ours.started(folder) as stack:
        for model in MODELS:
            text = ours.model_file(stack, model, accelerator="gpu", lifecycle=_LIFECYCLE)
            stack.write(model, text)
        ours.wait_cold(stack, MODELS)
        asked = time.time()
        say("loading the first model of both")
        first_token(stack.ports["LISTEN_PORT"], _CHAT, MODELS[0], seconds=_LOAD_SECONDS)
        ours.wait_settled(stack, asked)
        with contextlib.closing(Script(ours.engine_of(stack, MODELS[0]), folder / "bare.log")) as script:
            script.swap(MODELS[0])
            yield stack, script


def run(folder: Path, turns: int) -> Times:
    """Start everything, take turns, end everything.

    Raises:
        BenchError: Something did not come up, or a request failed.
    """
    times = Times()
    with _both_up(folder) as (stack, script):
        for turn in range(turns):
            leaves, comes = MODELS if turn % 2 == 0 else MODELS[::-1]
            say(f"turn {turn + 1} of {turns}: {leaves} out, {comes} in")
            if turn // 2 % 2 == 0:
                one_ours(stack, leaves, comes, times)
            seconds, gone = script.swap(comes)
            times.bare.append(seconds)
            times.bare_stop.append(gone)
            if turn // 2 % 2 == 1:
                one_ours(stack, leaves, comes, times)
    return times


def text(times: Times, about: dict[str, Any]) -> str:
    """The report, as Markdown."""
    ratios = paired(times.ours, times.bare, ratio)
    more = paired(times.ours, times.bare, difference)
    free = median(times.free)
    row = [f"{median(times.bare):.2f}", f"{median(times.ours):.2f}", ratios.show(), more.show(signed=True)]
    parts = [
        f"Measured {machine.sentence(about)}",
        f"{len(times.ours)} turns; medians.",
        table(
            ["bare vLLM, s", "ours, s", "ours / bare", "ours - bare, s", f"aim {AIM_RATIO}"],
            [[*row, verdict(ratios.median, AIM_RATIO)]],
        ),
        f"Of bare vLLM's seconds, {median(times.bare_stop):.2f} pass until the old server is gone.",
        (
            f"From the end of the drain to free memory: {free:.2f} s; aim {AIM_FREE_SECONDS:g} s "
            f"{verdict(free, AIM_FREE_SECONDS)}."
        ),
        "### Where our seconds go",
        table(["phase", "s"], phase_rows([times.phases], "first token")),
    ]
    return "\n\n".join(parts)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.swap", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one swap of each")
    parser.add_argument("--turns", type=int, help=f"swaps of each (default: {_TURNS})")
    parser.add_argument("--output", choices=("text", "json"), default="text")
    options = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    about = machine.describe()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        try:
            times = run(Path(folder), options.turns or (_QUICK_TURNS if options.quick else _TURNS))
        except BenchError as error:
            say(f"error: {error}")
            return 1
    if options.output == "json":
        print(json.dumps({"machine": about, **asdict(times)}, indent=1))
    else:
        print(text(times, about))
    return 0


if __name__ == "__main__":
    sys.exit(main())
