"""What the edge itself costs, with nothing behind it that could be noisy: a server that answers at once.

    python -m bench.edge_alone [--quick] [--output json]

`bench.front_door` shows the edge in front of a real engine, where 0.3 ms drown in what two cores do anyway. Here
the same requests go to a HAProxy that answers by itself, directly and through the edge, in slices that take turns;
what the edge adds is the difference of neighbouring slices, and what it computes is read off its process.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from bench import ceiling, machine, ours
from bench.asking import chat_body
from bench.load import Job
from bench.load_process import LoadProcess, load_process
from bench.machine import BenchError, say
from bench.measure import difference, paired, table, verdict
from reconciler.edge.edge import Edge
from reconciler.edge.options import EdgeOptions
from reconciler.host.templates import read_template

_CHAT = "/v1/chat/completions"
_MODEL = "chat"
_CLIENTS = (1, 16, 64)
_AIM_MS, _AIM_PERCENT = 0.3, 3.0
_ENGINE_PER_SECOND = 300
"""What the demo's engine manages at most here (bench.front_door): how often the edge has to compute then."""


@dataclass(slots=True)
class Cost:
    """What was measured with so many clients; one value a slice.

    Attributes:
        direct_ms: Median latency without the edge.
        edge_ms: Median latency through it.
        cpu_us: Microseconds that the edge computed for a request.
    """

    clients: int
    direct_ms: list[float] = field(default_factory=list)
    edge_ms: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)


def run(folder: Path, *, turns: int, requests: int) -> list[Cost]:
    """Start both, measure, end both."""
    costs = [Cost(clients) for clients in _CLIENTS]
    with ceiling.answering_haproxy(folder) as port, load_process() as generator:
        listen, activator = ours.free_ports(2)
        options = EdgeOptions(
            folder=folder / "edge", listen_port=listen, activator_port=activator, serve_port=port
        )
        edge = Edge(options, read_template("edge.cfg.j2", None))
        asyncio.run(_start(edge))
        try:
            worker = _worker(options)
            for turn in range(turns + 1):
                for cost in costs:
                    _slice(cost, generator, worker, (port, listen), requests=requests, keep=turn > 0, turn=turn)
        finally:
            asyncio.run(edge.stop())
    return costs


async def _start(edge: Edge) -> None:
    await edge.set_routes({_MODEL: "application"})
    await edge.ensure_running()


def _slice(
    cost: Cost,
    generator: LoadProcess,
    worker: psutil.Process,
    ports: tuple[int, int],
    *,
    requests: int,
    keep: bool,
    turn: int,
) -> None:
    """Both paths once; who comes first changes. The first turn only warms up."""
    direct, listen = ports
    body = chat_body(_MODEL, 4, stream=False)
    for port in (direct, listen) if turn % 2 else (listen, direct):
        before = worker.cpu_times()
        done = generator.run(Job("127.0.0.1", port, _CHAT, body, cost.clients, requests, ceiling.EXPECTED))
        after = worker.cpu_times()
        if done.failures:
            raise BenchError(f"a request failed: {done.failures[0]}")
        if not keep:
            continue
        middle = statistics.median(done.latency_ms)
        (cost.direct_ms if port == direct else cost.edge_ms).append(middle)
        if port == listen:
            seconds = after.user + after.system - before.user - before.system
            cost.cpu_us.append(seconds * 1e6 / requests)


def _worker(options: EdgeOptions) -> psutil.Process:
    master = psutil.Process(int(options.pid_file.read_text()))
    return master.children()[0]


def text(costs: list[Cost], about: dict[str, object]) -> str:
    """The report, as Markdown."""
    cores = psutil.cpu_count() or 1
    rows = []
    for cost in costs:
        added = paired(cost.edge_ms, cost.direct_ms, difference)
        computed = statistics.median(cost.cpu_us)
        share = computed * _ENGINE_PER_SECOND / 1e6 / cores * 100
        # With more clients, nothing is behind the edge to slow them down, so they wait for the edge itself.
        judged = verdict(added.median, _AIM_MS) if cost.clients == 1 else "at its limit"
        rows.append(
            [
                str(cost.clients),
                f"{statistics.median(cost.direct_ms):.3f}",
                f"{statistics.median(cost.edge_ms):.3f}",
                added.show(3, signed=True),
                judged,
                f"{computed:.0f}",
                f"{share:.1f}, {verdict(share, _AIM_PERCENT)}",
            ]
        )
    header = ["clients", "direct p50, ms", "edge p50, ms", "added, ms", f"aim {_AIM_MS} ms", "CPU a request, us"]
    header.append(f"% of {cores} cores at {_ENGINE_PER_SECOND}/s, aim {_AIM_PERCENT:g} %")
    return f"Measured {machine.sentence(about)}\n\n{table(header, rows)}"


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.edge_alone", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="2 turns instead of 15")
    parser.add_argument("--output", choices=("text", "json"), default="text")
    options = parser.parse_args()
    about = machine.describe()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        try:
            costs = run(Path(folder), turns=2 if options.quick else 15, requests=2000)
        except BenchError as error:
            say(f"error: {error}")
            return 1
    if options.output == "json":
        print(json.dumps({"machine": about, "costs": [asdict(cost) for cost in costs]}, indent=1))
    else:
        print(text(costs, about))
    return 0


if __name__ == "__main__":
    sys.exit(main())
