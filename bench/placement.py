"""Placement: how long 1,000 models on 1,000 GPUs take, and how near an arrangement is to the best one.

    python -m bench.placement [--quick] [--output json]

The best one comes from OR-Tools' CP-SAT, which may put every model on any device that has room. That is more than
anybody can do: Serve and Ray choose node and device themselves, and all we have is the order of starts. So the
share of the optimum is given by kind of instance, and small ones are compared with the best of all orders, too.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context

from ortools.sat.python import cp_model

from bench import machine
from bench.measure import table, verdict
from reconciler.core.gpu_node import UNITS
from reconciler.core.packing import Wish, arrange
from reconciler.core.placement import Ledger
from reconciler.core.state import Demand, Device, Node

MODELS, AIM_SECONDS = 1000, 1.0
INSTANCES = 1000
TIERS = 3
SMALL = 7
"""Up to so many wishes, every order of starts is tried."""
KINDS = ("empty", "used", "memory", "spanning")
_MEMORY = 80
_SHARES = [share / 10 for share in range(1, 11)]

HEADER = (
    "instances",
    "proven",
    "models, %",
    "GPUs, %",
    *(f"tier {tier}, %" for tier in range(TIERS)),
    "below",
    "avoidably",
)
"""Ours of the optimum, with all tiers weighted; `below`: instances that miss it; `avoidably`: of those tried."""

Score = tuple[float, ...]
"""By tier, the most important first: wishes placed, GPUs placed."""


@dataclass(frozen=True, slots=True)
class Instance:
    """A cluster, what is on it, and what is wanted beside that.

    Attributes:
        kind: `empty`: nothing is placed; `used`: something is; `memory`: others have memory on some devices;
            `spanning`: a model may span nodes, which turns Serve's packing off.
    """

    kind: str
    nodes: tuple[Node, ...]
    placed: dict[str, Demand]
    wishes: tuple[Wish, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one instance.

    Attributes:
        best: The optimum of free assignment; None where it was not proven.
        reachable: The best of all orders of starts; None where not all were tried.
    """

    seed: int
    kind: str
    ours: Score
    best: Score | None
    reachable: Score | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Timing:
    """One plan for a large cluster."""

    what: str
    seconds: list[float]
    placed: int
    left_out: int


def instance(seed: int) -> Instance:
    """1 to 4 nodes with 1 to 8 GPUs each, up to half full, and wishes for 70 to 160 % of what is left."""
    dice = random.Random(seed)
    kind = dice.choices(KINDS, (20, 50, 20, 10))[0]
    types: Sequence[str | None] = dice.choice(([None], ["L4", "H100"], ["L4", "H100"]))
    others = 0.2 if kind == "memory" else 0.0
    nodes = []
    for number in range(dice.randint(1, 4)):
        gpus = dice.randint(1, 8)
        taken = [dice.choice((4, 8, 20, 40)) if dice.random() < others else 0 for _ in range(gpus)]
        failed = ["it fell off the bus" if dice.random() < 0.02 else "" for _ in range(gpus)]
        devices = (Device(i, total=_MEMORY, foreign=taken[i], failed=failed[i]) for i in range(gpus))
        nodes.append(Node(f"node-{number}", gpus, 0.0, dice.choice(types), tuple(devices)))
    total = sum(node.gpus for node in nodes)
    used = 0.0 if kind == "empty" else dice.choice((0.2, 0.5))
    ledger, placed = Ledger(nodes), {}
    for number, demand in enumerate(_demands(dice, used * total, [None], spanning=0.0)):
        if ledger.take(demand):
            placed[f"old-{number}"] = demand
    left = total - sum(map(_size, placed.values()))
    wanted = _demands(
        dice, left * dice.choice((0.7, 0.9, 1.0, 1.2, 1.6)), types, spanning=0.3 * (kind == "spanning")
    )
    wishes = [
        Wish(f"new-{number}", _choices(dice, demand, types), (dice.choice((0, 1, 1, 2)),))
        for number, demand in zip(range(14), wanted, strict=False)
    ]
    return Instance(kind, tuple(nodes), placed, tuple(wishes))


def _demands(
    dice: random.Random, gpus: float, types: Sequence[str | None], *, spanning: float
) -> Iterator[Demand]:
    while gpus > 0:
        ranks = dice.choice((1, 1, 1, 1, 2, 2, 4))
        share = dice.choice(_SHARES if ranks == 1 else (1.0, 1.0, 0.9, 0.8, 0.6, 0.5))
        one_node = dice.random() >= spanning
        accelerator = dice.choice((None, dice.choice(types)))
        demand = Demand(ranks, share, one_node, accelerator, replicas=dice.choice([1] * 9 + [2]))
        gpus -= _size(demand)
        yield demand


def _choices(dice: random.Random, demand: Demand, types: Sequence[str | None]) -> tuple[Demand, ...]:
    others = [kind for kind in types if kind != demand.accelerator]
    if demand.accelerator is None or not others or dice.random() < 0.6:
        return (demand,)
    ranks = min(4, 2 * demand.ranks)
    return (demand, Demand(ranks, demand.gpus, demand.one_node, others[0], demand.replicas))


def _size(demand: Demand) -> float:
    return demand.replicas * demand.ranks * demand.gpus


def score(case: Instance, placed: Iterable[str]) -> Score:
    """What these wishes are worth, by their first choices."""
    by_name = {wish.name: wish for wish in case.wishes}
    values = [0.0] * (2 * TIERS)
    for name in placed:
        wish = by_name[name]
        values[2 * wish.tier[0]] += 1
        values[2 * wish.tier[0] + 1] += _size(wish.choices[0])
    return tuple(round(value, 6) for value in values)


def optimum(case: Instance, limit: float = 1.0) -> Score | None:
    """The best score where models may be put on any device that has room; None where it was not proven in time.

    Args:
        case: The instance.
        limit: For each tier, in the solver's own measure, which is the same on every machine.
    """
    model = cp_model.CpModel()
    capacity: dict[tuple[str, int], int] = {}
    ledger = Ledger(case.nodes, case.placed)
    for bar in ledger.bars(ledger):
        free = 0 if bar.failed else UNITS - round(bar.before.share * UNITS) - round(bar.foreign * UNITS)
        capacity[bar.node, bar.device] = max(0, free)
    loads: dict[tuple[str, int], list[cp_model.LinearExpr]] = {place: [] for place in capacity}
    chosen: dict[str, cp_model.LinearExprT] = {}
    for wish in case.wishes:
        options = [model.new_bool_var("") for _ in wish.choices]
        for demand, option in zip(wish.choices, options, strict=True):
            for _ in range(demand.replicas):
                _offer(model, case, demand, option, capacity=capacity, loads=loads)
        model.add_at_most_one(options)
        chosen[wish.name] = sum(options)
    for place, terms in loads.items():
        model.add(sum(terms) <= capacity[place])
    return _by_tier(model, case, chosen, limit)


def _offer(
    model: cp_model.CpModel,
    case: Instance,
    demand: Demand,
    option: cp_model.IntVar,
    *,
    capacity: dict[tuple[str, int], int],
    loads: dict[tuple[str, int], list[cp_model.LinearExpr]],
) -> None:
    """One replica may be placed, if `option`: on one node, or on several where the demand allows it."""
    units, groups = round(demand.gpus * UNITS), []
    for node in case.nodes:
        places = [place for place in capacity if place[0] == node.id and capacity[place] >= units]
        if demand.accelerator not in (None, node.accelerator):
            continue
        counts = []
        for place in places:
            count = model.new_int_var(0, min(demand.ranks, capacity[place] // units), "")
            loads[place].append(units * count)
            counts.append(count)
        groups.append(counts)
    if demand.one_node:
        homes = [model.new_bool_var("") for _ in groups]
        for counts, home in zip(groups, homes, strict=True):
            model.add(sum(counts) == demand.ranks * home)
        model.add(sum(homes) == option)
    else:
        model.add(sum(count for counts in groups for count in counts) == demand.ranks * option)


def _by_tier(
    model: cp_model.CpModel, case: Instance, chosen: dict[str, cp_model.LinearExprT], limit: float
) -> Score | None:
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.max_deterministic_time = limit
    for tier in range(TIERS):
        value = sum(
            (UNITS + round(10 * _size(wish.choices[0]))) * chosen[wish.name]
            for wish in case.wishes
            if wish.tier == (tier,)
        )
        model.maximize(value)
        if solver.solve(model) != cp_model.OPTIMAL:
            return None
        model.add(value >= round(solver.objective_value))
    return score(case, [name for name, options in chosen.items() if solver.value(options)])


def reachable(case: Instance) -> Score:
    """The best score of all orders of starts, with every choice and with everybody left out who can be."""
    ledger = Ledger(case.nodes, case.placed)
    best = score(case, ())
    placed: list[str] = []
    seen = set()

    def go_on(waiting: Sequence[Wish]) -> None:
        nonlocal best
        loads = tuple((load.share, bool(load.applications)) for load in ledger.loads().values())
        state = (loads, tuple(wish.name for wish in waiting))
        if state in seen:
            return
        seen.add(state)
        best = max(best, score(case, placed))
        for wish in waiting:
            for demand in wish.choices:
                if ledger.take(demand, wish.name):
                    placed.append(wish.name)
                    go_on([other for other in waiting if other is not wish])
                    placed.pop()
                    ledger.release([wish.name])

    go_on(case.wishes)
    return best


def judge(seed: int) -> Outcome:
    """Arrange one instance and compare; where everybody has a place, there is nothing better."""
    case = instance(seed)
    began = time.perf_counter()
    arrangement = arrange(case.nodes, case.placed, case.wishes)
    seconds = time.perf_counter() - began
    ours = score(case, [start.name for start in arrangement.starts])
    best = optimum(case) if arrangement.left_out else ours
    reached = ours if ours == best else reachable(case) if len(case.wishes) <= SMALL else None
    return Outcome(seed, case.kind, ours, best, reached, seconds)


def judge_all(seeds: Sequence[int], processes: int = 2) -> list[Outcome]:
    """`judge` all of them."""
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        return list(pool.map(judge, seeds, chunksize=10))


def share(outcomes: Iterable[Outcome], part: int, tier: int) -> float:
    """Ours of the optimum, in total: of the wishes (`part` 0) or GPUs (1) placed in a tier."""
    pairs = [
        (each.ours[2 * tier + part], each.best[2 * tier + part]) for each in outcomes if each.best is not None
    ]
    return sum(ours for ours, _ in pairs) / (sum(best for _, best in pairs) or 1.0)


def weighted(outcomes: Iterable[Outcome], part: int) -> float:
    """As `share`, over all tiers, each of which counts ten times as much as the next one."""
    ours = best = 0.0
    for each in outcomes:
        for tier in range(TIERS):
            if each.best is not None:
                ours += each.ours[2 * tier + part] / 10**tier
                best += each.best[2 * tier + part] / 10**tier
    return ours / (best or 1.0)


def avoidable(outcome: Outcome) -> bool:
    """Another order of starts would have been better."""
    return outcome.reachable is not None and outcome.ours < outcome.reachable


def rows(outcomes: Sequence[Outcome]) -> list[list[str]]:
    """A line for each kind of instance."""
    lines = []
    for kind in (*KINDS, "all"):
        mine = [each for each in outcomes if kind in (each.kind, "all")]
        proven = [each for each in mine if each.best is not None]
        below = [each for each in proven if each.best is not None and each.ours < each.best]
        tried = [each for each in below if each.reachable is not None]
        lines.append(
            [
                kind,
                f"{len(proven)} of {len(mine)}",
                *(f"{100 * weighted(proven, part):.2f}" for part in (0, 1)),
                *(f"{100 * share(proven, 0, tier):.2f}" for tier in range(TIERS)),
                str(len(below)),
                f"{sum(avoidable(each) for each in tried)} of {len(tried)}",
            ]
        )
    return lines


def large_cluster(nodes: int, gpus: int) -> tuple[list[Node], dict[str, Demand], list[Wish]]:
    """Nearly full when all are placed: half of the models are, and half of them want to be."""
    dice = random.Random(nodes)
    cluster = [Node(f"node-{number:04d}", gpus, 0.0, ("L4", "H100")[number % 2]) for number in range(nodes)]
    demands = [_usual(dice, gpus) for _ in range(MODELS)]
    excess = sum(map(_size, demands)) / (0.97 * nodes * gpus)
    demands = [
        replace(each, gpus=max(0.05, round(each.gpus / excess, 2))) if each.gpus < 1 else each for each in demands
    ]
    placed = {f"old-{number}": demand for number, demand in enumerate(demands[: MODELS // 2])}
    wishes = [
        Wish(f"new-{number}", (demand,), (number % TIERS,)) for number, demand in enumerate(demands[MODELS // 2 :])
    ]
    return cluster, placed, wishes


def _usual(dice: random.Random, gpus: int) -> Demand:
    ranks = dice.choice((1, 1, 1, 1, 1, 2, 4)) if gpus > 1 else 1
    share = 1.0 if ranks > 1 else dice.choice((*_SHARES, 0.9, 1.0))
    return Demand(ranks, share, accelerator=dice.choice((None, "L4", "H100")))


def time_plan(what: str, nodes: int, gpus: int, repetitions: int) -> Timing:
    """Build the ledger and arrange, as a plan does."""
    cluster, placed, wishes = large_cluster(nodes, gpus)
    seconds = []
    for _ in range(repetitions):
        began = time.perf_counter()
        arrangement = arrange(cluster, placed, wishes)
        seconds.append(time.perf_counter() - began)
    return Timing(what, seconds, len(arrangement.starts), len(arrangement.left_out))


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.placement", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the instances, 1 repetition instead of 5")
    parser.add_argument("--output", choices=("text", "json"), default="text")
    options = parser.parse_args()
    repetitions = 1 if options.quick else 5
    about = machine.describe()
    timings = [
        time_plan("125 nodes with 8 GPUs", 125, 8, repetitions),
        time_plan("1,000 nodes with 1 GPU", 1000, 1, repetitions),
    ]
    outcomes = judge_all(range(INSTANCES // 10 if options.quick else INSTANCES))
    if options.output == "json":
        result = {"timings": list(map(asdict, timings)), "outcomes": list(map(asdict, outcomes))}
        print(json.dumps({"machine": about, **result}, indent=1))
    else:
        print(text(timings, outcomes, about))
    return 0


def text(timings: Sequence[Timing], outcomes: Sequence[Outcome], about: dict[str, object]) -> str:
    """The report, as Markdown."""
    times = []
    for timing in timings:
        middle = statistics.median(timing.seconds)
        judged = [f"{AIM_SECONDS:g}", verdict(middle, AIM_SECONDS)]
        times.append([timing.what, f"{middle:.3f}", *judged, str(timing.placed), str(timing.left_out)])
    return "\n\n".join(
        (
            f"Measured {machine.sentence(about)}",
            table([f"{MODELS:,} models", "median, s", "aim, s", "", "placed", "left out"], times),
            table(HEADER, rows(outcomes)),
        )
    )


if __name__ == "__main__":
    sys.exit(main())
