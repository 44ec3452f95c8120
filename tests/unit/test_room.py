"""Who leaves for whom: the smallest sufficient set, over GPUs, groups, promises and main memory."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from reconciler.core.desired import Desired, Snapshot, compile_desired
from reconciler.core.overrides import Kind, Override
from reconciler.core.plan import Action, Do, HeldKind, Plan
from reconciler.core.planner import make_plan
from reconciler.core.render import Renderer
from reconciler.core.residency import want_of
from reconciler.core.room import Place, find_place
from reconciler.core.state import Application, Failure, Node, Observed, Record, Replica, Status, Waiting
from reconciler.core.target import Platform
from reconciler.core.turn import Options, Turn
from reconciler.core.windows import Window

TEMPLATE = (Path(__file__).parents[2] / "templates" / "application.json.j2").read_text(encoding="utf-8")
ON_GPUS = Renderer(TEMPLATE, Platform(simulate_gpus=True))
ON_CPUS = Renderer(TEMPLATE, Platform())
GIB = 2**30
HOUR = 3600.0
NEW = "new"
"""The model that looks for room."""


@dataclasses.dataclass(frozen=True)
class Model:
    """A declared model, and what is there of it.

    Attributes:
        share: Of one GPU; with more `ranks`, whole ones.
        is_up: Routed and up for `stayed` seconds; without, it comes up and never had traffic.
    """

    share: float = 0.5
    ranks: int = 1
    gpu: str = ""
    priority: int = 50
    policy: str = "on_demand"
    group: str = ""
    idle: float = 600.0
    stayed: float = HOUR
    in_flight: int = 0
    is_up: bool = True
    status: Status = Status.RUNNING
    node: str = "n"
    more: str = ""

    @property
    def text(self) -> str:
        group = f", group: {self.group}" if self.group else ""
        accelerator = f", accelerator: {self.gpu}" if self.gpu else ""
        return (
            "source: {path: /w}\n"
            f"engine: {{gpu_memory_utilization: {self.share}, max_model_len: 1{self.more}}}\n"
            f"resources: {{tensor_parallel: {self.ranks}{accelerator}}}\n"
            f"lifecycle: {{policy: {self.policy}, priority: {self.priority}, min_stay: 1m{group}}}\n"
        )


@dataclasses.dataclass
class Case:
    """What is there, and the model that looks for room among it."""

    new: Model
    there: dict[str, Model]
    nodes: Sequence[Node] = (Node("n", 1),)
    waits: float | None = 30.0
    seen: dict[str, Any] = dataclasses.field(default_factory=dict)
    renderer: Renderer = ON_GPUS

    def declared(self, **others: Model) -> Desired:
        models = self.there | {NEW: self.new} | others
        files = {f"m/{name}.yaml": model.text.encode() for name, model in models.items()}
        desired = compile_desired(Snapshot("r", files, "/m"), self.renderer)
        assert not desired.problems
        return desired

    def observed(self, desired: Desired, waiting: dict[str, float] | None = None) -> Observed:
        apps: dict[str, Application] = {}
        up: dict[str, Model] = {}
        routes: dict[str, str] = {}
        for name, model in self.there.items():
            target = desired.targets[name]
            config = None if model.status is Status.DELETING else target.config
            replicas = (Replica("r", "RUNNING", node_id=model.node),)
            app = Application(target.application, model.status, config, name, replicas=replicas)
            apps[app.name] = dataclasses.replace(app, demand=target.demand)
            if model.is_up and config is not None:
                up[app.name], routes[name] = model, app.name
        requests = {NEW: self.waits} if self.waits is not None else {}
        facts: dict[str, Any] = {
            "in_flight": {name: model.in_flight for name, model in up.items()},
            "idle_seconds": {name: model.idle for name, model in up.items()},
            "up_seconds": {name: model.stayed for name, model in up.items()},
            "waiting": {model: Waiting(1, seconds) for model, seconds in (requests | (waiting or {})).items()},
            # Up and routed before: nothing proves itself, so the loading slots are free.
            "ready": frozenset(apps),
        }
        return Observed(
            applications=apps,
            nodes=tuple(self.nodes),
            routes=routes,
            **facts | self.seen,
        )

    def find(self, **options: Any) -> tuple[Place, str, dict[str, str]]:
        """The place, the reason, and who was sent away with what reason."""
        desired = self.declared()
        turn = Turn(desired, self.observed(desired), Options(**options))
        turn.wants = {model: want_of(turn, target) for model, target in desired.targets.items()}
        place, why = find_place(turn, desired.targets[NEW], turn.wants[NEW])
        return place, why, turn.sent_away

    def leaving(self, **options: Any) -> set[str]:
        """Who is sent away, where that is enough."""
        place, _, sent_away = self.find(**options)
        assert place is Place.SOON
        return set(sent_away)

    def plan(self, others: dict[str, tuple[Model, float]], **options: Any) -> Plan:
        """A whole turn, with further models that are down and for which requests wait."""
        desired = self.declared(**{name: model for name, (model, _) in others.items()})
        waiting = {name: seconds for name, (_, seconds) in others.items()}
        return make_plan(desired, self.observed(desired, waiting), Options(max_loads=9, **options))


def nodes(*gpus: int, types: Sequence[str] = ()) -> tuple[Node, ...]:
    kinds = [*types, *[None] * len(gpus)]
    return tuple(Node(f"n{at}", count, accelerator=kinds[at]) for at, count in enumerate(gpus))


BUSY = Model(idle=0.0, in_flight=2)
FRESH = Model(idle=20.0, stayed=59.0)


# --- the smallest sufficient set ----------------------------------------------------------------------------


def test_where_there_is_room_nobody_leaves() -> None:
    assert Case(Model(), {"a": Model()}).find() == (Place.HERE, "", {})


def test_what_is_being_deleted_makes_room_without_anybody_else() -> None:
    case = Case(Model(0.9), {"a": Model(0.4), "b": Model(0.5, status=Status.DELETING)}, nodes(2))
    assert Case(Model(0.6), case.there).find() == (Place.SOON, "waits until what leaves is gone", {})


CHOICES: dict[str, tuple[Model, dict[str, Model], set[str]]] = {
    "the one that was used longest ago": (
        Model(0.4),
        {"a": Model(idle=100.0), "b": Model(idle=101.0)},
        {"b"},
    ),
    "priority before last use": (
        Model(0.4),
        {"a": Model(priority=49, idle=15.0), "b": Model(priority=50, idle=1700.0)},
        {"a"},
    ),
    "rank before priority": (
        Model(0.4),
        {"a": Model(priority=0, idle=0.0, in_flight=1), "b": Model(priority=100)},
        {"b"},
    ),
    "a moment ago counts as in use": (
        Model(0.4),
        {"a": Model(priority=0, idle=9.9), "b": Model(priority=100, idle=10.0)},
        {"b"},
    ),
    "what comes up though nobody waits for it goes first": (
        Model(0.4),
        {"a": Model(priority=0), "b": Model(priority=100, is_up=False)},
        {"b"},
    ),
    "what goes anyway, because its idle_timeout is over": (
        Model(0.4),
        {"a": Model(priority=0, idle=1799.0), "b": Model(priority=100, idle=1800.0)},
        {"b"},
    ),
    "in use, where nothing else is enough": (
        Model(0.9),
        {"a": BUSY, "b": Model()},
        {"a", "b"},
    ),
    "what is in use stays where idle ones are enough": (
        Model(0.5),
        {"a": Model(0.2), "b": Model(0.3), "c": dataclasses.replace(BUSY, priority=0)},
        {"a", "b"},
    ),
    "all that are needed and no more": (
        Model(0.6),
        {"a": Model(0.3, idle=900.0), "b": Model(0.3, idle=800.0), "c": Model(0.3, idle=700.0)},
        {"a", "b"},
    ),
    "a model may send away a more important one": (
        Model(0.9, priority=1),
        {"a": Model(priority=99)},
        {"a"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHOICES)
def test_who_leaves(name: str) -> None:
    new, there, leaving = CHOICES[name]
    assert Case(new, there).leaving() == leaving


@pytest.mark.parametrize(("priority", "leaving"), [(50, {"one"}), (51, {"a", "b"}), (49, {"one"})])
def test_priority_before_count_before_last_use(priority: int, leaving: set[str]) -> None:
    """Either two that were used long ago or one that was used lately: fewer, unless it is more important."""
    there = {
        "one": Model(0.8, priority=priority, idle=60.0, node="n0"),
        "a": Model(0.4, idle=1700.0, node="n1"),
        "b": Model(0.4, idle=1700.0, node="n1"),
    }
    assert Case(Model(0.7), there, nodes(1, 1)).leaving() == leaving


def test_nobody_leaves_in_vain() -> None:
    """The least important one would leave first, but what it has is too small, or at the wrong place."""
    there = {
        "in_vain": Model(0.3, priority=0, node="n0"),
        "pinned": Model(0.6, policy="pinned", node="n0"),
        "enough": Model(0.7, priority=9, node="n1"),
    }
    assert Case(Model(0.8), there, nodes(1, 1)).leaving() == {"enough"}


def test_nobody_leaves_in_vain_among_very_many_either() -> None:
    there = {f"m{at}": Model(0.3, priority=at, node=f"n{at}") for at in range(30)}
    there |= {f"p{at}": Model(0.6, policy="pinned", node=f"n{at}") for at in range(30)}
    there["enough"] = Model(0.7, priority=50, node="n30")
    assert Case(Model(0.8), there, nodes(*[1] * 31)).leaving() == {"enough"}


def test_the_reason_says_use_priority_and_what_for() -> None:
    _, why, sent_away = Case(Model(0.9), {"a": Model(priority=10, idle=720.0), "b": BUSY}).find()
    assert why == "waits until a, b made room"
    assert sent_away == {
        "a": "idle 12 min, priority 10, to make 0.9 GPU for new",
        "b": "2 in flight, had its turn, priority 50, to make 0.9 GPU for new",
    }


# --- who stays ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "seen", "place"),
    [
        (Model(), {}, Place.SOON),
        (BUSY, {}, Place.SOON),
        (dataclasses.replace(BUSY, stayed=60.0), {}, Place.SOON),
        (dataclasses.replace(BUSY, stayed=59.9), {}, Place.QUEUED),
        (FRESH, {}, Place.QUEUED),
        (dataclasses.replace(FRESH, stayed=60.0), {}, Place.SOON),
        # A turn lasts as long as the next one takes to load, for who is used.
        (dataclasses.replace(BUSY, stayed=100.0), {"load_seconds": {NEW: 100.0}}, Place.SOON),
        (dataclasses.replace(BUSY, stayed=99.9), {"load_seconds": {NEW: 100.0}}, Place.QUEUED),
        (dataclasses.replace(FRESH, stayed=60.0), {"load_seconds": {NEW: 9e9}}, Place.SOON),
        # Usage is unknown.
        (Model(), {"in_flight": None}, Place.QUEUED),
        # It comes up, for nobody or for requests of its own.
        (Model(is_up=False), {}, Place.SOON),
        (Model(is_up=False), {"waiting": {NEW: Waiting(1, 5.0), "a": Waiting(1, 6.0)}}, Place.QUEUED),
        # Pinned, by its file or by hand.
        (Model(policy="pinned"), {}, Place.NEVER),
        (Model(policy="manual"), {}, Place.NEVER),
        (Model(), {"overrides": {"a": Override("a", Kind.PIN, 0.0, 9e9)}}, Place.NEVER),
        (Model(policy="pinned"), {"overrides": {"a": Override("a", Kind.UNPIN, 0.0, 9e9)}}, Place.SOON),
    ],
)
def test_who_may_leave_now_later_or_never(other: Model, seen: dict[str, Any], place: Place) -> None:
    found, why, sent_away = Case(Model(0.9), {"a": other}, seen=seen).find()
    assert found is place
    assert set(sent_away) == ({"a"} if place is Place.SOON else set())
    if place is Place.QUEUED:
        assert why.startswith("waits for room: a ")
    if place is Place.NEVER:
        assert why == "it needs 0.9 GPU; 0.50 GPU free; a may not leave"


def test_a_model_that_is_being_replaced_stays() -> None:
    case = Case(Model(0.9), {"a": Model()})
    target = case.declared().targets["a"]
    record = Record("a", target.file, target.application, target.fields, previous={"name": "a-old"})
    case.seen = {"records": {"a": record}}
    assert case.find()[0] is Place.QUEUED


def test_what_does_not_fit_on_empty_gpus_sends_nobody_away() -> None:
    place, why, sent_away = Case(Model(ranks=2, share=0.9), {"a": Model()}).find()
    assert (place, sent_away) == (Place.NEVER, {})
    assert why == "it needs 2 x 0.9 GPU; 0.50 GPU free"


def test_while_another_load_has_the_slot_only_what_nobody_uses_yet_leaves() -> None:
    loading = Model(0.3, is_up=False, status=Status.DEPLOYING)
    waiting = {NEW: Waiting(1, 5.0), "load": Waiting(1, 9.0)}
    case = Case(Model(0.6), {"a": Model(0.6), "load": loading}, seen={"waiting": waiting, "ready": frozenset()})
    desired = case.declared()
    observed = case.observed(desired)
    name = desired.targets["load"].application
    bare = dataclasses.replace(observed.applications[name], replicas=())
    observed = dataclasses.replace(observed, applications={**observed.applications, name: bare})
    for slots, expected in ((1, Place.QUEUED), (2, Place.SOON)):
        turn = Turn(desired, observed, Options(max_loads=slots))
        turn.wants = {model: want_of(turn, target) for model, target in desired.targets.items()}
        place, why = find_place(turn, desired.targets[NEW], turn.wants[NEW])
        assert (place, set(turn.sent_away)) == (expected, set() if slots == 1 else {"a"})
        assert (why == "queued behind another load") is (slots == 1)


# --- several GPUs -------------------------------------------------------------------------------------------


def test_only_gpus_of_its_type_are_cleared() -> None:
    there = {
        "small": Model(0.9, priority=0, idle=1700.0, node="n0"),
        "large": Model(0.9, priority=99, idle=60.0, node="n1"),
    }
    cluster = nodes(1, 1, types=("L4", "H100"))
    assert Case(Model(0.8, gpu="H100"), there, cluster).leaving() == {"large"}
    assert Case(Model(0.8, gpu="L4"), there, cluster).leaving() == {"small"}
    assert Case(Model(0.8), there, cluster).leaving() == {"small"}
    place, why, _ = Case(Model(0.8, gpu="A100"), there, cluster).find()
    assert place is Place.NEVER
    assert why.startswith("it needs 0.8 GPU of type A100; ")


def test_tensor_parallel_ranks_need_the_gpus_of_one_node() -> None:
    """One on each node would leave first; only two of one node are of use."""
    there = {
        "a": Model(0.9, priority=0, node="n0"),
        "b": Model(0.9, priority=9, node="n0"),
        "c": Model(0.9, priority=1, node="n1"),
        "d": Model(0.9, priority=2, node="n1"),
    }
    assert Case(Model(0.9, ranks=2), there, nodes(2, 2)).leaving() == {"c", "d"}
    there["d"] = dataclasses.replace(there["d"], policy="pinned")
    assert Case(Model(0.9, ranks=2), there, nodes(2, 2)).leaving() == {"a", "b"}
    there["b"] = dataclasses.replace(FRESH, share=0.9, node="n0")
    assert Case(Model(0.9, ranks=2), there, nodes(2, 2)).find()[0] is Place.QUEUED
    there["b"] = dataclasses.replace(there["d"], node="n0")
    place, why, _ = Case(Model(0.9, ranks=2), there, nodes(2, 2)).find()
    assert place is Place.NEVER
    assert why.endswith("; b, d may not leave")


def test_one_large_model_rather_than_four_small_ones() -> None:
    small = {f"s{at}": Model(0.9, idle=1700.0, node="n0") for at in range(4)}
    there = {**small, "large": Model(0.9, ranks=4, idle=60.0, node="n1")}
    new = Model(0.9, ranks=4)
    assert Case(new, there, nodes(4, 4)).leaving() == {"large"}
    there["large"] = dataclasses.replace(there["large"], priority=51)
    assert Case(new, there, nodes(4, 4)).leaving() == set(small)


def test_a_free_gpu_beside_counts() -> None:
    there = {"a": Model(0.9, idle=700.0), "b": Model(0.9, idle=800.0), "c": Model(0.9, idle=900.0)}
    assert Case(Model(0.9, ranks=2), there, nodes(4)).leaving() == {"c"}
    assert Case(Model(0.9, ranks=3), there, nodes(4)).leaving() == {"b", "c"}


# --- groups -------------------------------------------------------------------------------------------------

GROUP = Model(0.2, group="g")


@pytest.mark.parametrize(
    ("mate", "place", "why"),
    [
        (GROUP, Place.SOON, "waits until a made room"),
        (dataclasses.replace(GROUP, in_flight=1, idle=0.0), Place.SOON, "waits until a made room"),
        (dataclasses.replace(GROUP, is_up=False), Place.SOON, "waits until a made room"),
        (dataclasses.replace(GROUP, stayed=9.0), Place.QUEUED, "waits for room: a "),
        (dataclasses.replace(GROUP, policy="pinned"), Place.NEVER, "a of its group g is up and may not leave"),
        (dataclasses.replace(GROUP, policy="manual"), Place.NEVER, "a of its group g is up and may not leave"),
        (dataclasses.replace(GROUP, status=Status.DELETING), Place.SOON, "waits until what leaves is gone"),
        (dataclasses.replace(GROUP, group="other"), Place.HERE, ""),
    ],
)
def test_a_mate_leaves_though_there_is_room_for_both(mate: Model, place: Place, why: str) -> None:
    found, reason, sent_away = Case(GROUP, {"a": mate}, nodes(4)).find()
    assert (found, reason[: len(why)] if place is Place.QUEUED else reason) == (place, why)
    assert set(sent_away) == ({"a"} if reason == "waits until a made room" else set())


def test_mates_leave_first_and_others_only_where_that_is_not_enough() -> None:
    new = Model(0.6, group="g")
    there = {"mate": Model(0.3, group="g", priority=99), "a": Model(0.3, priority=0), "b": Model(0.3, priority=1)}
    assert Case(new, there).leaving() == {"mate", "a"}
    there["mate"] = dataclasses.replace(there["mate"], share=0.6)
    assert Case(new, {name: there[name] for name in ("mate", "a")}).leaving() == {"mate"}


def test_of_several_mates_one_that_has_to_stay_keeps_the_others() -> None:
    there = {"a": GROUP, "b": dataclasses.replace(GROUP, stayed=9.0)}
    place, _, sent_away = Case(GROUP, there, nodes(4)).find()
    assert (place, sent_away) == (Place.QUEUED, {})


def test_of_two_mates_that_are_asked_for_the_one_that_waits_longer_starts() -> None:
    plan = Case(GROUP, {}, nodes(4), waits=5.0).plan({"elder": (GROUP, 6.0)})
    assert [step.model for step in plan.steps if step.do is Do.START] == ["elder"]
    assert [step.model for step in plan.steps if step.do is Do.AWAIT] == [NEW]


# --- promises -----------------------------------------------------------------------------------------------


def starts(plan: Plan) -> set[str]:
    return {step.model for step in plan.steps if step.do is Do.START}


def unrouted(plan: Plan) -> set[str]:
    return {step.model for step in plan.steps if step.do is Do.UNROUTE}


@pytest.mark.parametrize(("small_waits", "started"), [(5.0, set()), (60.0, {"small"})])
def test_room_that_is_being_made_is_not_taken_by_a_smaller_model(small_waits: float, started: set[str]) -> None:
    """Half a GPU is free. The large model waits for the other half; who came before it may have what is free."""
    case = Case(Model(0.9), {"a": Model(0.4)}, waits=30.0)
    plan = case.plan({"small": (Model(0.5), small_waits)})
    assert starts(plan) == started
    # Without the half that was given away, nobody has to leave for the large one: it would be in vain.
    assert unrouted(plan) == (set() if started else {"a"})
    assert not plan.held


@pytest.mark.parametrize(("small_waits", "started"), [(5.0, set()), (60.0, {"small"})])
def test_nor_while_nobody_can_leave_yet(small_waits: float, started: set[str]) -> None:
    case = Case(Model(0.9), {"a": dataclasses.replace(FRESH, share=0.4)}, waits=30.0)
    plan = case.plan({"small": (Model(0.5), small_waits)})
    assert starts(plan) == started
    whys = {step.model: step.why for step in plan.steps if step.do is Do.AWAIT}
    assert whys[NEW].startswith("waits for room: a ")
    if not started:
        assert whys["small"] == f"queued behind {NEW}"


@pytest.mark.parametrize("there", [Model(0.4, node="n0"), dataclasses.replace(FRESH, share=0.4, node="n0")])
def test_where_it_is_in_nobodys_way_it_starts(there: Model) -> None:
    """The large model may be on the H100 only, the small one on either."""
    case = Case(Model(0.9, gpu="H100"), {"a": there}, nodes(1, 1, types=("H100", "L4")))
    assert starts(case.plan({"small": (Model(0.5, gpu="L4"), 5.0)})) == {"small"}
    assert starts(case.plan({"small": (Model(0.5, gpu="H100"), 5.0)})) == set()


def test_a_pinned_model_comes_before_who_waits_the_longest() -> None:
    plan = Case(Model(0.9), {}, waits=9999.0).plan({"always": (Model(0.9, policy="pinned"), 0.0)})
    assert starts(plan) == {"always"}
    assert [(held.model, held.kind) for held in plan.held] == [(NEW, HeldKind.NO_ROOM)]


def test_two_that_wait_do_not_send_the_same_one_away() -> None:
    """There is room for one of them behind the first that leaves: the second needs another one."""
    there = {"a": Model(0.9, idle=900.0, node="n0"), "b": Model(0.9, idle=800.0, node="n1")}
    case = Case(Model(0.9), there, nodes(1, 1))
    plan = case.plan({"other": (Model(0.9), 20.0)})
    assert unrouted(plan) == {"a", "b"}
    whys = {change.model: change.cause for change in plan.changes}
    assert whys["a"].endswith("for new")
    assert whys["b"].endswith("for other")


# --- one plan -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "seen"),
    [
        # Its first requests were answered, and some still count as waiting.
        (Model(), {"waiting": {NEW: Waiting(1, 5.0), "a": Waiting(1, 50.0)}}),
        # It was sent away and is asked for again, as long as the other one.
        (Model(is_up=False), {"waiting": {NEW: Waiting(1, 5.0), "a": Waiting(1, 5.0)}}),
        (Model(), {}),
    ],
)
def test_who_makes_room_is_told_so_in_the_same_plan(other: Model, seen: dict[str, Any]) -> None:
    case = Case(Model(0.9), {"a": other}, seen=seen)
    if not other.is_up:
        case.seen["up_seconds"] = {case.declared().targets["a"].application: HOUR}
    plan = case.plan({})
    (why,) = (step.why for step in plan.steps if step.model == NEW)
    unloaded = {change.model for change in plan.changes if change.action is Action.UNLOAD}
    assert (why == "waits until a made room") is (unloaded == {"a"})


def test_what_comes_back_does_not_come_up_beside_a_mate() -> None:
    """The next version of `new` failed, and its last one made way for that: it has to wait until the mate went."""
    new = Model(0.2, group="g", policy="pinned")
    case = Case(new, {"mate": dataclasses.replace(GROUP, policy="pinned")}, nodes(4))
    target = case.declared().targets[NEW]
    record = Record(NEW, target.file, "new-old", target.fields, previous={**target.config, "name": "new-old"})
    failure = Failure(NEW, target.application, "no", 1, 0.0, 9e9, target.basis)
    case.seen = {"records": {NEW: record}, "failures": {target.application: failure}}
    assert starts(case.plan({})) == set()


# --- main memory --------------------------------------------------------------------------------------------


def on_cpus(there: dict[str, Model], free: float, cache: float = 1.0) -> Case:
    """Every model takes 3 GiB of weights, 2.2 for its processes and its KV cache."""
    new = Model(more=f", kv_cache_memory_gib: {cache}")
    seen = {"main_memory": int(free * GIB), "folder_bytes": {"/w": 3 * GIB}}
    return Case(new, there, (), seen=seen, renderer=ON_CPUS)


def cached(gib: float, **more: Any) -> Model:
    return Model(more=f", kv_cache_memory_gib: {gib}", **more)


def test_on_cpus_main_memory_is_what_has_to_be_enough() -> None:
    there = {"a": cached(1, idle=900.0), "b": cached(1, idle=800.0), "c": cached(1, idle=700.0)}
    assert on_cpus(there, 6.3).find()[0] is Place.HERE
    assert on_cpus(there, 0.1).leaving() == {"a"}
    assert on_cpus(there, 0.1, cache=7.0).leaving() == {"a", "b"}


def test_on_cpus_one_that_gives_enough_leaves_rather_than_two() -> None:
    there = {"a": cached(1, idle=900.0), "b": cached(1, idle=800.0), "large": cached(9, idle=70.0)}
    assert on_cpus(there, 0.1, cache=7.0).leaving() == {"large"}
    there["large"] = cached(9, idle=70.0, priority=51)
    assert on_cpus(there, 0.1, cache=7.0).leaving() == {"a", "b"}


def test_on_cpus_what_is_too_large_says_what_it_needs_and_who_may_not_leave() -> None:
    there = {"a": cached(1), "b": cached(1, policy="pinned")}
    place, why, sent_away = on_cpus(there, 0.5, cache=7.0).find()
    assert (place, sent_away) == (Place.NEVER, {})
    assert why.startswith(
        "it needs 12.2 GiB of main memory (weights 3.0 GiB, KV cache 7.0 GiB, processes 2.2 GiB)"
    )
    assert why.endswith("; b may not leave")


def test_on_cpus_memory_that_is_being_made_is_not_taken_by_a_smaller_model() -> None:
    case = on_cpus({"a": cached(1)}, 6.3, cache=7.0)
    plan = case.plan({"small": (cached(1), 5.0)})
    assert unrouted(plan) == {"a"}
    assert starts(plan) == set()


# --- kept up by hand, for a time ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "override", "place"),
    [
        (Model(), Override("a", Kind.PIN, 0.0, 1199.0), Place.QUEUED),
        (Model(), Override("a", Kind.LOAD, 0.0, 1199.0), Place.QUEUED),
        (Model(), Override("a", Kind.PIN, 0.0, 1200.0), Place.NEVER),
        (Model(policy="manual"), Override("a", Kind.LOAD, 0.0, 60.0, leaves=True), Place.QUEUED),
        (Model(policy="manual"), Override("a", Kind.LOAD, 0.0, 60.0), Place.NEVER),
        (Model(policy="pinned"), Override("a", Kind.LOAD, 0.0, 60.0), Place.NEVER),
    ],
)
def test_who_is_kept_up_by_hand_for_a_short_time_is_waited_for(
    other: Model, override: Override, place: Place
) -> None:
    found, why, sent_away = Case(Model(0.9), {"a": other}, seen={"overrides": {"a": override}}).find()
    assert (found, sent_away) == (place, {})
    assert why.startswith("waits for room: a has" if place is Place.QUEUED else "it needs 0.9 GPU")


def test_a_window_that_is_open_behind_a_pin_is_not_waited_for() -> None:
    seen = {
        "overrides": {"a": Override("a", Kind.PIN, 0.0, 60.0)},
        "windows": {"a": Window(open=True, opens_in=None, closes_in=9e9, words="open")},
    }
    assert Case(Model(0.9), {"a": Model()}, seen=seen).find()[0] is Place.NEVER
