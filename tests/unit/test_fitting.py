"""Between the files and the plan: sizes are decided once, kept while a version runs; what fits nowhere is held."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from reconciler.core.application import basis_of, demand_of, sizing_of
from reconciler.core.desired import Desired, Snapshot, compile_desired
from reconciler.core.fit.extras import Known
from reconciler.core.fit.facts import Facts, FactsState, Place
from reconciler.core.fit.gpus import GIB
from reconciler.core.fit.measured import Key
from reconciler.core.fitting import Cluster, Fitter, name_of
from reconciler.core.memory_plan import footprint_of
from reconciler.core.plan import Action, Do, HeldKind, Plan
from reconciler.core.planner import make_plan
from reconciler.core.render import Renderer
from reconciler.core.state import (
    Application,
    Device,
    Failure,
    Json,
    Node,
    Observed,
    Record,
    Replica,
    Status,
)
from reconciler.core.target import Platform, Target
from reconciler.core.turn import Options

TEMPLATE = (Path(__file__).parents[2] / "templates" / "application.json.j2").read_text(encoding="utf-8")
PLATFORM = Platform(device="cuda", vllm="0.29.0")
RENDERER = Renderer(TEMPLATE, PLATFORM)
CONFIG: Json = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "intermediate_size": 14336,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "max_position_embeddings": 131072,
}  # fmt: skip
LARGE: Json = {**CONFIG, "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64}
FACTS: dict[Place, FactsState] = {
    "/w/small": FactsState(Facts(CONFIG, None)),
    "/w/large": FactsState(Facts(LARGE, None)),
}


class Measurements:
    """What was measured: nothing, or these weights for everything."""

    def __init__(self) -> None:
        self.measured_at = 0
        self.weights: int | None = None
        self.asked: list[Key] = []

    def version(self, model: str) -> int:
        return self.measured_at

    def known(self, key: Key) -> Known | None:
        self.asked.append(key)
        return None if self.weights is None else Known(weights=self.weights)


def box(
    gib: float, count: int = 1, *, name: str = "n", accelerator: str | None = None, foreign: float = 0
) -> Node:
    devices = tuple(
        Device(index, f"{name}-{index}", f"NVIDIA G{gib:g}", int(gib * GIB), int(foreign * GIB))
        for index in range(count)
    )
    return Node(name, count, accelerator=accelerator, devices=devices, host=name)


def read(**files: str) -> Desired:
    contents = {f"m/{name}.yaml": text.encode() for name, text in files.items()}
    return compile_desired(Snapshot("r", contents, "/m"), RENDERER)


def running(target: Target, *, status: Status = Status.RUNNING) -> Application:
    return Application(
        target.application,
        status,
        target.config,
        target.model,
        replicas=(Replica("r", "RUNNING", node_id="n"),),
        demand=demand_of(target.config),
    )


@dataclasses.dataclass
class World:
    """A fitter, and what it is shown."""

    nodes: tuple[Node, ...] = (box(80, 2),)
    apps: dict[str, Application] = dataclasses.field(default_factory=dict)
    facts: dict[Place, FactsState] = dataclasses.field(default_factory=lambda: dict(FACTS))
    measurements: Measurements = dataclasses.field(default_factory=Measurements)
    records: dict[str, Record] = dataclasses.field(default_factory=dict)
    failures: dict[str, Failure] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.fitter = Fitter(RENDERER, PLATFORM, self.measurements)

    @property
    def cluster(self) -> Cluster:
        routes = {app.model: name for name, app in self.apps.items() if app.model}
        return Cluster(self.apps, self.nodes, routes, records=self.records)

    def fit(self, desired: Desired) -> Desired:
        return self.fitter.fitted(desired, self.cluster, self.facts)

    def plan(self, desired: Desired, *, seen: Json | None = None, **options: Any) -> Plan:
        observed = Observed(
            applications=self.apps,
            nodes=self.nodes,
            routes=self.cluster.routes,
            records=self.records,
            failures=self.failures,
            now=1.0,
            **(seen or {}),
        )
        return make_plan(self.fit(desired), observed, Options(max_loads=9, **options))

    def start(self, desired: Desired, model: str) -> Target:
        target = self.fit(desired).targets[model]
        self.apps[target.application] = running(target)
        self.record(target)
        return target

    def record(self, target: Target) -> None:
        """As the loop does once a version has the traffic."""
        row = Record(target.model, target.file, target.application, target.fields, basis=target.basis)
        self.records[target.model] = row


PINNED, ON_DEMAND = "lifecycle: {policy: pinned}\n", "lifecycle: {policy: on_demand}\n"
SMALL_SOURCE, LARGE_SOURCE = "source: {path: /w/small}\n", "source: {path: /w/large}\n"
SMALL, LARGE_FILE = SMALL_SOURCE + PINNED, LARGE_SOURCE + PINNED


def kwargs(target: Target) -> Json:
    found: Json = target.config["args"]["llm_configs"][0]["engine_kwargs"]
    return found


def test_every_size_is_set_in_what_is_rendered() -> None:
    target = World().fit(read(a=SMALL)).targets["a"]
    assert (
        kwargs(target).items()
        >= {
            "tensor_parallel_size": 1,
            "pipeline_parallel_size": 1,
            "gpu_memory_utilization": 0.92,
            "max_model_len": 131072,
        }.items()
    )
    assert {"max_num_seqs", "max_num_batched_tokens"} <= kwargs(target).keys()
    assert sizing_of(target.config) == target.sizing
    # How much of a whole GPU vLLM leaves alone is read back roughly.
    read_back = demand_of(target.config)
    assert read_back.memory == pytest.approx(target.demand.memory, abs=0.02)
    assert dataclasses.replace(read_back, memory=0.0) == dataclasses.replace(target.demand, memory=0.0)
    assert target.application.endswith(target.config["name"][-8:])


def test_a_version_that_runs_keeps_its_sizes_whatever_changes_around_it() -> None:
    world, desired = World(), read(a=SMALL)
    before = world.start(desired, "a")
    world.nodes = (box(24, 1), box(80, 2, name="other"))
    world.measurements.weights, world.measurements.measured_at = 30 * GIB, 1
    after = world.fit(desired).targets["a"]
    assert (after.application, after.config) == (before.application, before.config)
    assert world.plan(desired).converged


@pytest.mark.parametrize(
    "more",
    [
        "", "engine: {kv_cache_memory_gib: 4}\n", "engine: {gpu_memory_utilization: 0.5, max_model_len: 4096}\n",
        "resources: {tensor_parallel: 2}\n",
    ],
)  # fmt: skip
def test_of_a_version_that_runs_is_known_what_it_takes(more: str) -> None:
    world, desired = World(), read(a=SMALL + more)
    assert world.fitter.places(desired) == {"/w/small"}
    before = world.start(desired, "a")
    world.nodes = (box(80, 2), box(24, 1, name="other"))
    after = world.fit(desired).targets["a"]
    assert after.fit is not None
    assert before.fit is not None
    assert after.application == before.application
    assert after.fit.sized.found == before.fit.sized.found
    assert footprint_of(after) == footprint_of(before)
    assert not after.fit.misfit
    assert world.fit(desired).targets["a"] is after
    # One of whom nothing can be told runs on all the same.
    world.facts = {}
    assert world.fit(desired).targets["a"].fit is None
    assert world.plan(desired).converged


def test_it_has_the_numbers_that_were_measured_when_it_started() -> None:
    world, desired = World(), read(a=SMALL)
    world.start(desired, "a")
    world.measurements.weights, world.measurements.measured_at = 15 * GIB, 1
    fit = world.fit(desired).targets["a"].fit
    assert fit is not None
    assert (fit.basis, fit.sized.found.weights.expected) == ("measured", 15 * GIB)


def test_an_idle_model_goes_to_sleep_where_main_memory_has_room_for_its_weights() -> None:
    file = SMALL_SOURCE + "lifecycle: {policy: on_demand, sleep_after: 1m, idle_timeout: 1h}\n"
    world, desired = World(), read(a=file)
    name = world.start(desired, "a").application
    idle: Json = {"in_flight": {}, "idle_seconds": {name: 90.0}, "up_seconds": {name: 600.0}}
    plan = world.plan(desired, seen={**idle, "sleep_left": 40 * GIB})
    assert [change.action for change in plan.changes] == [Action.SLEEP]
    assert world.plan(desired, seen={**idle, "sleep_left": 20 * GIB}).converged


def test_a_file_that_leaves_open_what_it_said_is_decided_anew() -> None:
    world = World()
    narrow = world.start(read(a=SMALL + "engine: {max_model_len: 4096}\n"), "a")
    opened = world.fit(read(a=SMALL)).targets["a"]
    assert basis_of(narrow.config) != opened.basis
    assert kwargs(opened)["max_model_len"] == 131072


def test_saying_what_was_decided_anyway_costs_no_engine() -> None:
    world = World()
    decided = world.start(read(a=SMALL), "a")
    written = read(a=SMALL + "engine: {max_model_len: 131072}\nresources: {tensor_parallel: 1}\n")
    said = world.fit(written).targets["a"]
    assert said.application == decided.application
    assert said.basis != decided.basis
    # And it keeps protecting the version that serves, once it is recorded.
    world.record(said)
    world.nodes = (box(80, 2), box(24, 1, name="new"))
    assert world.fit(written).targets["a"].application == decided.application


def test_a_version_of_before_sizes_were_decided_is_kept() -> None:
    world, desired = World(), read(a=SMALL)
    old = desired.targets["a"]
    config = json.loads(json.dumps(old.config))
    del config["args"]["llm_configs"][0]["runtime_env"]["env_vars"]["RECONCILE_BASIS"]
    world.apps[old.application] = dataclasses.replace(running(old), config=config)
    assert world.fit(desired).targets["a"].application == old.application


def test_while_facts_are_read_what_made_way_does_not_come_back() -> None:
    world, desired = World(), read(a=SMALL)
    previous = world.start(read(a=SMALL + "engine: {max_model_len: 4096}\n"), "a")
    world.apps.clear()
    world.records["a"] = dataclasses.replace(world.records["a"], previous=previous.config)
    facts, world.facts = world.facts, {}
    plan = world.plan(desired)
    assert ([step.do for step in plan.steps], [change.action for change in plan.changes]) == (
        [Do.AWAIT],
        [Action.REPLACE],
    )
    world.facts = facts
    assert [step.do for step in world.plan(desired).steps] == [Do.START]


def test_what_made_way_comes_back_beside_a_little_memory_of_others() -> None:
    world, desired = World(nodes=(box(80, foreign=1),)), read(a=SMALL)
    previous = world.start(read(a=SMALL + "engine: {max_model_len: 4096}\n"), "a")
    world.apps.clear()
    world.records["a"] = dataclasses.replace(world.records["a"], previous=previous.config)
    wanted = world.fit(desired).targets["a"]
    world.failures = {wanted.application: Failure("a", wanted.application, "no", 1, 0.0, 99.0, wanted.basis)}
    assert [step.application for step in world.plan(desired).steps] == [previous.application]


def test_backoff_holds_for_other_sizes_of_the_same_file_too() -> None:
    world, desired = World(), read(a=SMALL)
    wanted = world.fit(desired).targets["a"]
    world.failures = {wanted.application: Failure("a", wanted.application, "no", 3, 0.0, 99.0, wanted.basis)}
    world.nodes = (box(24, 2),)
    other = world.fit(desired).targets["a"]
    assert other.application != wanted.application
    plan = world.plan(desired)
    assert ([held.kind for held in plan.held], plan.steps) == ([HeldKind.FAILED], ())
    changed = read(a=SMALL + "engine: {max_num_seqs: 32}\n")
    assert [step.do for step in world.plan(changed).steps] == [Do.START]


def test_a_model_whose_kind_of_gpu_is_gone_is_planned_elsewhere() -> None:
    world = World(nodes=(box(80, name="n", accelerator="A100"), box(96, name="h", accelerator="H100")))
    desired = read(a=SMALL)
    first = world.start(desired, "a")
    assert first.demand.accelerator == "A100"
    world.nodes = (box(96, name="h", accelerator="H100"),)
    dead = dataclasses.replace(world.apps[first.application], status=Status.UNHEALTHY, replicas=())
    world.apps[first.application] = dead
    (change,) = world.plan(desired).changes
    assert (change.action, change.old) == (Action.REPLACE, first.application)
    assert world.fit(desired).targets["a"].demand.accelerator is None
    # A look that saw no node at all says nothing about any.
    world.nodes = ()
    assert world.fit(desired).targets["a"].application == first.application


def test_one_model_that_the_template_fails_on_does_not_stop_the_others() -> None:
    fault = '{% if model.name == "a" and engine_kwargs.max_model_len is defined %}{{ 1 // 0 }}{% endif %}'
    template = TEMPLATE.replace('"name": {{ app.name', fault + '"name": {{ app.name')
    renderer = Renderer(template, PLATFORM)
    files = {f"m/{name}.yaml": SMALL.encode() for name in "ab"}
    desired = compile_desired(Snapshot("r", files, "/m"), renderer)
    fitter = Fitter(renderer, PLATFORM, Measurements())
    fitted = fitter.fitted(desired, Cluster({}, (box(80, 2),), {}), FACTS)
    assert "application.json.j2" in fitted.targets["a"].unknown
    assert fitted.targets["b"].fit is not None


def test_the_key_of_a_share_is_found_again() -> None:
    world = World()
    target = world.fit(read(a=SMALL + "engine: {gpu_memory_utilization: 0.5}\n")).targets["a"]
    assert target.fit is not None
    facts = FACTS["/w/small"].facts
    assert facts is not None
    key = world.fitter.key_of(name_of(target, facts), target.config, target.fit.sized.where)
    assert key in world.measurements.asked


def test_bars_keep_what_serves_while_its_successor_is_weighed() -> None:
    world = World()
    old = world.start(read(a=SMALL + "engine: {max_model_len: 4096}\n"), "a")
    world.facts = {}
    assert [gpu.applications for gpu in world.plan(read(a=SMALL)).gpus if gpu.after] == [(old.application,)]


@pytest.mark.parametrize(
    "more",
    [
        "engine: {max_num_seqs: 100000000, args: {speculative_config: {method: mtp, num_speculative_tokens: 3}}}",
        "engine: {max_num_batched_tokens: 100000000, args: {max_cudagraph_capture_size: 1048576}}",
        "engine: {args: {block_size: 1000000, cpu_offload_gb: 1.0e+300, hf_overrides: {hidden_size: -1}}}",
        "engine: {args: {hf_overrides: {num_hidden_layers: 99999999, rope_scaling: [1, {}]}}}",
        "resources: {tensor_parallel: 1024, pipeline_parallel: 1024}",
    ],
)
def test_no_setting_of_one_file_stops_a_turn(more: str) -> None:
    world = World(nodes=(box(80, 8),))
    plan = world.plan(read(a=SMALL + more + "\n", b=SMALL))
    assert "b" in {step.model for step in plan.steps if step.do is Do.START}


def test_what_cannot_fit_is_held_with_advice_and_forced_on_request() -> None:
    world = World(nodes=(box(24),))
    plan = world.plan(read(a=LARGE_FILE, b=SMALL + "engine: {max_model_len: 131072}\n"))
    held = {each.model: each for each in plan.held}
    assert held["a"].kind is held["b"].kind is HeldKind.DOES_NOT_FIT
    assert "GiB" in held["a"].reason
    assert any("max_model_len" in advice for advice in held["b"].advice)
    assert not plan.steps
    forced = world.plan(read(a=LARGE_FILE), force=True)
    assert [step.do for step in forced.steps] == [Do.START]


def test_what_cannot_fit_is_held_before_anybody_asks_for_it() -> None:
    world = World(nodes=(box(24),))
    plan = world.plan(read(a=LARGE_SOURCE + ON_DEMAND, b=SMALL_SOURCE + ON_DEMAND))
    assert [(held.model, held.kind, held.on_request) for held in plan.held] == [
        ("a", HeldKind.DOES_NOT_FIT, False)
    ]
    assert [(each.model, each.on_request) for each in plan.resting] == [("b", True)]
    assert not plan.steps


def test_while_the_facts_are_read_the_model_waits() -> None:
    world = World(facts={})
    plan = world.plan(read(a=SMALL))
    assert [step.do for step in plan.steps] == [Do.AWAIT]
    assert "config.json" in plan.steps[0].why
    assert not plan.held


def test_without_facts_the_model_is_tried_and_the_plan_says_that_nobody_checked() -> None:
    world = World(facts={"/w/small": FactsState(problem="config.json is no JSON")})
    plan = world.plan(read(a=SMALL))
    assert [step.do for step in plan.steps] == [Do.START]
    assert [note.model for note in plan.notes] == ["a"]
    assert "not checked: config.json is no JSON" in plan.notes[0].text


def test_a_model_that_is_not_understood_is_tried_too() -> None:
    world = World(facts={"/w/small": FactsState(Facts({"model_type": "novel"}, None))})
    plan = world.plan(read(a=SMALL))
    assert [step.do for step in plan.steps] == [Do.START]
    assert "not checked" in plan.notes[0].text


def test_where_it_fits_only_by_the_expected_values_the_plan_warns() -> None:
    for gib in range(320, 480):
        world = World(nodes=(box(gib / 20),))
        plan = world.plan(read(a=SMALL + "engine: {max_model_len: 8192}\n"))
        if plan.notes:
            break
    assert "fits only by the expected values" in plan.notes[0].text
    assert [step.do for step in plan.steps] == [Do.START]
    assert plan.changes[0].memory is not None
    assert not plan.changes[0].memory.fits_safely


def test_the_plan_says_what_each_model_takes_and_what_each_gpu_holds() -> None:
    world = World(nodes=(box(80, 2, foreign=1),))
    desired = read(a=SMALL + "engine: {kv_cache_memory_gib: 4, max_model_len: 8192}\n")
    plan = world.plan(desired)
    memory = plan.changes[0].memory
    assert memory is not None
    assert memory.weights > 14 * GIB
    assert memory.needed > memory.weights + memory.kv_cache
    assert memory.basis == "config"
    (first, second) = plan.gpus
    assert (first.before, second.before, second.after) == (0.0, 0.0, 0.0)
    assert first.after == pytest.approx(memory.gpus)
    assert first.foreign == pytest.approx(1 / 80, abs=1e-3)
    assert first.applications == (plan.changes[0].new,)


def test_a_little_memory_of_others_does_not_keep_a_model_from_a_whole_gpu() -> None:
    desired = read(a=SMALL)
    assert [step.do for step in World(nodes=(box(80, foreign=1),)).plan(desired).steps] == [Do.START]
    plan = World(nodes=(box(80, foreign=10),)).plan(desired)
    assert [held.kind for held in plan.held] == [HeldKind.NO_ROOM]


def test_no_room_names_who_may_not_leave() -> None:
    world = World(nodes=(box(80, 2),))
    desired = read(a=SMALL, b=SMALL_SOURCE + ON_DEMAND, c=LARGE_FILE)
    for model in "ab":
        world.start(desired, model)
    plan = world.plan(desired)
    (held,) = plan.held
    assert (held.model, held.kind) == ("c", HeldKind.NO_ROOM)
    assert held.reason.endswith(" GPU free; a may not leave")
    assert held.reason.startswith("it needs 2 x 1 GPU; 0")
    assert not plan.steps


def test_a_pinned_model_sends_one_away_that_may_leave() -> None:
    world = World(nodes=(box(80),))
    desired = read(a=SMALL_SOURCE + ON_DEMAND, b=SMALL)
    name = world.start(desired, "a").application
    plan = world.plan(desired, seen={"up_seconds": {name: 3600.0}, "idle_seconds": {name: 720.0}})
    assert not plan.held
    unload = next(change for change in plan.changes if change.model == "a")
    assert unload.action is Action.UNLOAD
    assert re.fullmatch(r"idle 12 min, priority 50, to make \d+\.\d GiB for b", unload.cause)
    assert [(step.do, step.model) for step in plan.steps] == [(Do.AWAIT, "b"), (Do.UNROUTE, "a")]
    # What has only just come up stays its time.
    (waits,) = world.plan(desired, seen={"up_seconds": {name: 59.0}, "idle_seconds": {name: 59.0}}).steps
    assert (waits.do, waits.model) == (Do.AWAIT, "b")
    assert waits.why.startswith("waits for room: a ")


def test_of_two_kinds_of_gpu_the_one_with_room_is_taken() -> None:
    world = World(nodes=(box(24, 1, name="l", accelerator="L4"), box(80, 1, name="h", accelerator="H100")))
    fitted = world.fit(read(a=SMALL, b=SMALL))
    assert {target.demand.accelerator for target in fitted.targets.values()} == {"L4", "H100"}
    plan = world.plan(read(a=SMALL, b=SMALL))
    assert [step.do for step in plan.steps] == [Do.START, Do.START]


def test_a_failed_gpu_is_left_out_and_said() -> None:
    node = box(80, 2)
    ill = dataclasses.replace(node.devices[0], failed="it is lost")
    world = World(nodes=(dataclasses.replace(node, devices=(ill, node.devices[1])),))
    plan = world.plan(read(a=SMALL, b=SMALL))
    assert len([step for step in plan.steps if step.do is Do.START]) == 1
    assert [held.kind for held in plan.held] == [HeldKind.NO_ROOM]
    assert plan.gpus[0].failed == "it is lost"


def test_measured_numbers_are_looked_up_for_what_would_run_and_used() -> None:
    world = World()
    first = world.fit(read(a=SMALL)).targets["a"]
    world.measurements.weights, world.measurements.measured_at = 20 * GIB, 1
    desired = read(a=SMALL)
    measured = world.fit(desired).targets["a"]
    assert measured.fit is not None
    assert measured.fit.basis == "measured"
    assert measured.fit.sized.found.weights.expected == 20 * GIB
    keys = world.measurements.asked
    assert {key.vllm for key in keys} == {"0.29.0"}
    # The key of what was sized is the key of what is then rendered.
    kind = measured.fit.sized.where
    facts = FACTS["/w/small"].facts
    assert facts is not None
    assert world.fitter.key_of(name_of(first, facts), first.config, kind) in keys


def test_a_new_measurement_is_used_for_a_file_that_did_not_change() -> None:
    world, desired = World(), read(a=SMALL)
    assert (fit := world.fit(desired).targets["a"].fit) is not None
    assert fit.basis == "config"
    world.measurements.weights, world.measurements.measured_at = 20 * GIB, 1
    assert (fit := world.fit(desired).targets["a"].fit) is not None
    assert fit.basis == "measured"


def test_the_same_things_are_weighed_once() -> None:
    world, desired = World(), read(a=SMALL)
    world.fit(desired)
    asked = len(world.measurements.asked)
    world.fit(desired)
    assert len(world.measurements.asked) == asked


def test_shares_reach_vllms_workers() -> None:
    world = World()
    target = world.fit(read(a=SMALL + "engine: {gpu_memory_utilization: 0.4}\n")).targets["a"]
    env = target.config["args"]["llm_configs"][0]["runtime_env"]["env_vars"]
    assert env["VLLM_RAY_PER_WORKER_GPUS"] == json.dumps(target.demand.gpus)
    whole = world.fit(read(a=SMALL)).targets["a"]
    assert "VLLM_RAY_PER_WORKER_GPUS" not in whole.config["args"]["llm_configs"][0]["runtime_env"]["env_vars"]
