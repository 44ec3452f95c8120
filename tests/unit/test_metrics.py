"""What `/metrics` says, made of real looks: each number where it belongs, and nothing of models that are gone."""

import shutil
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from reconciler.activator.directory import Directory
from reconciler.core.application import demand_of
from reconciler.core.desired import Desired, Snapshot, compile_desired
from reconciler.core.drift import Deed, Drift
from reconciler.core.fit.facts import Facts, FactsState, Place
from reconciler.core.fit.gpus import GIB
from reconciler.core.fitting import Cluster, Fitter
from reconciler.core.journal_entry import Entry, Outcome
from reconciler.core.main_memory import main_memory_of
from reconciler.core.plan import Held, HeldKind, Plan
from reconciler.core.planner import make_plan
from reconciler.core.provenance import Commit, Provenance
from reconciler.core.render import Renderer
from reconciler.core.state import Application, Device, Json, Node, Observed, Record, Replica, Status, Waiting
from reconciler.core.target import Platform, Target
from reconciler.core.weights import Copy, CopyState, Phase
from reconciler.loop.directory import build_directory
from reconciler.loop.loop import Look
from reconciler.loop.metrics import Feeds, Metrics, TurnResult

TEMPLATE = (Path(__file__).parents[2] / "templates" / "application.json.j2").read_text(encoding="utf-8")
PLATFORM = Platform(device="cuda", vllm="0.29.0")
RENDERER = Renderer(TEMPLATE, PLATFORM)
CONFIG: Json = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "intermediate_size": 14336,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "max_position_embeddings": 131072,
}  # fmt: skip
FACTS: dict[Place, FactsState] = {"/w/small": FactsState(Facts(CONFIG, None))}
SMALL = "source: {path: /w/small}\nengine: {max_model_len: 8192}\n"
NODE_ID = "0123456789abcdef" * 3


class Nothing:
    """Nothing was measured."""

    def version(self, model: str) -> int:
        return 0

    def known(self, key: object) -> None:
        return None


def node(name: str = NODE_ID, host: str = "box", failed: str = "") -> Node:
    devices = (
        Device(0, "g0", "NVIDIA G80", 80 * GIB, foreign=GIB),
        Device(1, "g1", "NVIDIA G80", 80 * GIB, failed=failed),
    )
    return Node(name, 2, devices=devices, host=host)


@dataclass
class World:
    """A reconciler's measures, and what they are made of."""

    files: dict[str, str] = field(default_factory=lambda: {"a": SMALL, "b": SMALL})
    nodes: tuple[Node, ...] = (node(),)
    apps: dict[str, Application] = field(default_factory=dict)
    records: dict[str, Record] = field(default_factory=dict)
    seen: Json = field(default_factory=dict)
    look: Look | None = None
    directory: Directory = field(default_factory=Directory)
    downloads: dict[Copy, CopyState] = field(default_factory=dict)
    counted: dict[str, dict[str, int]] = field(default_factory=dict)
    gpu_used: dict[tuple[str, int], int] = field(default_factory=dict)
    disks: dict[str, Path] = field(default_factory=dict)
    lease: bool = True
    now: float = 1_000.0

    def __post_init__(self) -> None:
        def counted(name: str) -> dict[str, int]:
            return self.counted.get(name, {})

        feeds = Feeds(
            look=lambda: self.look,
            directory=lambda: self.directory,
            holds_lease=lambda: self.lease,
            downloads=lambda: self.downloads,
            received=lambda: counted("received"),
            key_requests=lambda: counted("keys"),
            refused=lambda: counted("refused"),
            model_memory=lambda: counted("memory"),
            gpu_used=lambda: self.gpu_used,
        )
        self.metrics = Metrics(feeds, "1.2.3", disks=self.disks, wall_clock=lambda: self.now)

    def desired(self) -> Desired:
        files = {f"m/{name}.yaml": text.encode() for name, text in self.files.items()}
        read = compile_desired(Snapshot("r", files, "/m"), RENDERER)
        routes = {app.model: app.name for app in self.apps.values() if app.model is not None}
        cluster = Cluster(self.apps, self.nodes, routes, records=self.records)
        return Fitter(RENDERER, PLATFORM, Nothing()).fitted(read, cluster, FACTS)

    def start(self, model: str, *, replicas: int = 1) -> Target:
        target = self.desired().targets[model]
        self.apps[target.application] = Application(
            target.application,
            Status.RUNNING,
            target.config,
            model,
            replicas=tuple(Replica(f"{model}{number}", "RUNNING", node_id=NODE_ID) for number in range(replicas)),
            demand=demand_of(target.config),
        )
        self.records[model] = Record(model, target.file, target.application, target.fields, basis=target.basis)
        return target

    def see(self, *, provenance: Provenance | None = None, plan: Plan | None = None) -> None:
        desired = replace(self.desired(), provenance=provenance)
        routes = {app.model: app.name for app in self.apps.values() if app.model is not None}
        given = {"in_flight": {}, "routes": routes, "records": self.records, "now": self.now - 2, **self.seen}
        observed = Observed(applications=dict(self.apps), nodes=self.nodes, **given)
        made = make_plan(desired, observed)
        if plan is not None:
            made = replace(made, held=plan.held, drift=plan.drift)
        self.look = Look(desired, observed, made)
        self.directory = build_directory(desired, observed, made, created=0)

    def values(self) -> dict[str, dict[tuple[str, ...], float]]:
        """Numbers by name, and by the values of the labels in the order of the labels' names."""
        found: dict[str, dict[tuple[str, ...], float]] = {}
        for family in text_string_to_metric_families(self.metrics.text().decode()):
            for sample in family.samples:
                key = tuple(value for _, value in sorted(sample.labels.items()))
                rows = found.setdefault(sample.name, {})
                assert key not in rows, (sample.name, key)
                rows[key] = sample.value
        return found


def full() -> World:
    """Everything has a number."""
    world = World()
    first = world.start("a")
    world.files["c"] = "source: {path: /w/none}\n"
    world.seen = {
        "in_flight": {first.application: 3},
        "idle_seconds": {first.application: 42.0},
        "waiting": {"b": Waiting(5, 7.5)},
    }
    world.gpu_used = {(NODE_ID, 0): 33 * GIB}
    copy = Copy("o/m", "c" * 40)
    world.downloads = {copy: CopyState(Phase.FETCHING, total=100, done=40, rate=5.4)}
    world.counted = {
        "received": {"o/m": 40},
        "keys": {"0123456789ab": 9},
        "refused": {"401": 2, "429": 1},
        "memory": {first.application: 30 * GIB},
    }
    commit = Commit("f" * 40, "A", 1.0, "x")
    provenance = Provenance("https://git/x", "main", commit, checked_at=900.0, problem="it cannot be reached")
    held = (Held("b", HeldKind.FAILED, "it fails"), Held("b", HeldKind.FAILED, "and fails"))
    drift = (Drift("a", first.application, Deed.CHANGED, healed=True),)
    world.see(provenance=provenance, plan=Plan(held=held, drift=drift))
    world.metrics.turn(0.3, TurnResult.OK)
    world.metrics.turn(0.2, TurnResult.FAILED)
    world.metrics.loaded("a", {"build": 4.0, "load": 20.0, "probe": 1.0})
    world.metrics.woke("a", 1.5)
    world.metrics.evicted("b")
    world.metrics.noted([
        Entry("2026-01-01T00:00:00Z", "a", "add", Outcome.DONE),
        Entry("2026-01-01T00:00:00Z", "a", "hold", Outcome.HELD),
    ])  # fmt: skip
    return world


def test_before_the_first_look_it_says_what_it_can() -> None:
    values = World().values()
    assert values["reconcile_build_info"] == {("1.2.3",): 1}
    assert values["reconcile_turns_total"] == {("ok",): 0, ("failed",): 0, ("crashed",): 0}
    assert "reconcile_last_success_timestamp_seconds" not in values
    assert not any(name.startswith("reconcile_model_state") for name in values)


def test_turns_and_changes_are_counted() -> None:
    values = full().values()
    assert values["reconcile_turns_total"] == {("ok",): 1, ("failed",): 1, ("crashed",): 0}
    assert values["reconcile_turn_duration_seconds_count"] == {(): 2}
    assert values["reconcile_turn_duration_seconds_sum"] == {(): 0.5}
    assert values["reconcile_last_success_timestamp_seconds"] == {(): 1_000.0}
    assert values["reconcile_changes_total"] == {("add", "done"): 1}
    assert values["reconcile_lease_held"] == {(): 1}


def test_the_source_the_drift_and_what_is_held() -> None:
    values = full().values()
    assert values["reconcile_source_problem"] == {(): 1}
    assert values["reconcile_source_age_seconds"] == {(): 100.0}
    assert values["reconcile_last_look_timestamp_seconds"] == {(): 998.0}
    assert values["reconcile_drift_applications"] == {("true",): 1, ("false",): 0}
    assert values["reconcile_model_held"] == {("failed", "b"): 1}
    world = World()
    world.files["bad"] = "source: 7\n"
    world.see()
    assert world.values()["reconcile_file_problems"] == {(): 1}
    assert world.values()["reconcile_source_problem"] == {(): 0}
    assert "reconcile_source_age_seconds" not in world.values()


def test_each_model_has_its_state_and_its_traffic() -> None:
    values = full().values()
    states = {key[0]: key[1] for key in values["reconcile_model_state"]}
    assert states["a"] == "loaded"
    assert set(states) == {"a", "b", "c"}
    assert values["reconcile_models"]["loaded",] == 1
    assert sum(values["reconcile_models"].values()) == 3
    assert values["reconcile_model_in_flight_requests"] == {("a",): 3}
    assert values["reconcile_model_idle_seconds"] == {("a",): 42.0}
    assert values["reconcile_model_waiting_requests"] == {("a",): 0, ("b",): 5, ("c",): 0}
    assert values["reconcile_model_waiting_seconds"] == {("b",): 7.5}
    assert values["reconcile_model_replicas"] == values["reconcile_model_replicas_wanted"] == {("a",): 1}
    assert values["reconcile_model_evictions_total"] == {("b",): 1}
    assert values["reconcile_model_load_seconds_sum"] == {("a",): 25.0}
    assert values["reconcile_model_wake_seconds_sum"] == {("a",): 1.5}
    assert values["reconcile_model_last_load_seconds"] == {
        ("a", "build"): 4.0, ("a", "load"): 20.0, ("a", "probe"): 1.0,
    }  # fmt: skip


def test_where_nobody_can_tell_what_is_in_flight_no_number_is_made_up() -> None:
    world = full()
    world.seen["in_flight"] = None
    world.see()
    assert "reconcile_model_in_flight_requests" not in world.values()


def test_memory_by_gpu_and_by_model() -> None:
    world = full()
    values = world.values()
    assert world.look is not None
    target = world.look.desired.targets["a"]
    assert values["reconcile_model_memory_used_bytes"] == {("a",): 30 * GIB}
    first, second = ("0", "box", NODE_ID[:12]), ("1", "box", NODE_ID[:12])
    share = target.demand.gpus * 80 * GIB
    assert 0 < target.demand.gpus <= 1
    assert values["reconcile_model_memory_reserved_bytes"] == {("a",): pytest.approx(share)}
    assert values["reconcile_gpu_memory_bytes"] == {first: 80 * GIB, second: 80 * GIB}
    assert values["reconcile_gpu_memory_reserved_bytes"] == {first: pytest.approx(share), second: 0}
    assert values["reconcile_gpu_memory_foreign_bytes"] == {first: GIB, second: 0}
    assert values["reconcile_gpu_memory_used_bytes"] == {first: 33 * GIB}
    parts = values["reconcile_gpu_model_memory_reserved_bytes"]
    assert parts == {("0", "a", "box", NODE_ID[:12]): pytest.approx(share)}
    assert values["reconcile_gpu_failed"] == {first: 0, second: 0}


def test_several_engines_of_a_model_on_one_gpu_count_all() -> None:
    world = World()
    target = world.start("a", replicas=2)
    app = world.apps[target.application]
    world.apps[app.name] = replace(app, demand=replace(app.demand, replicas=2, gpus=0.25))
    world.see()
    values = world.values()
    parts = values["reconcile_gpu_model_memory_reserved_bytes"]
    assert sum(parts.values()) == sum(values["reconcile_gpu_memory_reserved_bytes"].values()) == 40 * GIB


def test_an_engine_on_the_cpu_has_main_memory_reserved() -> None:
    files = {"m/a.yaml": SMALL.encode()}
    desired = compile_desired(Snapshot("r", files, "/m"), Renderer(TEMPLATE, Platform(device="cpu")))
    target = desired.targets["a"]
    app = Application(target.application, Status.RUNNING, target.config, "a", demand=target.demand)
    observed = Observed(applications={app.name: app}, folder_bytes={"/w/small": 3 * GIB})
    world = World()
    world.look = Look(desired, observed, make_plan(desired, observed))
    assert world.values()["reconcile_model_memory_reserved_bytes"] == {
        ("a",): main_memory_of(target.config, {"/w/small": 3 * GIB})
    }


def test_a_gpu_that_failed_is_said_to_have() -> None:
    world = World(nodes=(node(failed="it fell off the bus"),))
    world.see()
    assert world.values()["reconcile_gpu_failed"]["1", "box", NODE_ID[:12]] == 1


def test_two_nodes_of_one_host_are_told_apart() -> None:
    world = World(nodes=(node(), node("fedcba" * 8)))
    world.see()
    assert len(world.values()["reconcile_gpu_memory_bytes"]) == 4


def test_downloads_keys_and_refusals() -> None:
    values = full().values()
    assert values["reconcile_downloads"] == {("downloading",): 1}
    assert values["reconcile_download_bytes_per_second"] == {("o/m",): 5}
    assert values["reconcile_download_missing_bytes"] == {("o/m",): 60}
    assert values["reconcile_download_bytes_total"] == {("o/m",): 40}
    assert values["reconcile_key_requests_total"] == {("0123456789ab",): 9}
    assert values["reconcile_requests_refused_total"] == {("401",): 2, ("429",): 1}


async def test_disks_are_looked_at_beside_the_loop(tmp_path: Path) -> None:
    world = World(disks={"weights": tmp_path, "gone": tmp_path / "gone"})
    assert "reconcile_disk_free_bytes" not in world.values()
    await world.metrics.look_at_disks()
    values = world.values()
    assert values["reconcile_disk_size_bytes"] == {("weights",): shutil.disk_usage(tmp_path).total}
    assert 0 < values["reconcile_disk_free_bytes"]["weights",] <= values["reconcile_disk_size_bytes"]["weights",]


def test_a_model_that_is_gone_takes_all_its_series_with_it() -> None:
    world = full()
    world.metrics.evicted("a")
    assert b'model="a"' in world.metrics.text()
    del world.files["a"]
    world.see()
    # It still runs.
    assert b'reconcile_model_load_seconds_count{model="a"}' in world.metrics.text()
    world.apps.clear()
    world.see()
    assert b'model="a"' not in world.metrics.text()


def test_a_file_that_is_invalid_for_a_moment_costs_no_counters() -> None:
    world = full()
    text, world.files["a"] = world.files["a"], "source: 7\n"
    world.apps.clear()
    world.see()
    world.metrics.turn(0.1, TurnResult.OK)
    world.files["a"] = text
    world.see()
    assert world.values()["reconcile_model_load_seconds_sum"] == {("a",): 25.0}


def test_what_comes_and_goes_leaves_nothing_behind_where_nobody_scrapes() -> None:
    world = World()
    for number in range(50):
        world.files = {f"m{number}": SMALL}
        world.see()
        world.metrics.loaded(f"m{number}", {"load": 1.0})
        world.metrics.turn(0.1, TurnResult.OK)
    assert len(world.metrics._load_seconds._metrics) == 1


def test_there_is_an_end_to_the_series_of_keys_and_reasons() -> None:
    world = World()
    world.counted["refused"] = {f"reason {number}": number for number in range(5_000)}
    found = world.values()["reconcile_requests_refused_total"]
    assert len(found) == 1_000
    assert ("reason 4999",) in found


def promtool(*arguments: str, given: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    found = shutil.which("promtool")
    assert found is not None, "promtool is missing: install Debian's package `prometheus`"
    return subprocess.run([found, *arguments], input=given, capture_output=True, timeout=60, check=False)


@pytest.mark.parametrize("world", [World(), full()], ids=["empty", "full"])
async def test_promtool_has_nothing_to_say_about_the_text(world: World, tmp_path: Path) -> None:
    world.metrics._disks = {"weights": tmp_path}
    await world.metrics.look_at_disks()
    checked = promtool("check", "metrics", given=world.metrics.text())
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
    assert promtool("check", "metrics", given=b"bad{").returncode != 0


def test_names_of_models_and_reasons_cannot_write_lines_of_their_own() -> None:
    world = World()
    evil = 'x"} 1\nforged_metric 7\n# \\'
    world.counted = {"refused": {evil: 1}, "keys": {evil: 1}, "received": {evil: 1}}
    values = world.values()
    assert values["reconcile_requests_refused_total"] == {(evil,): 1}
    assert "forged_metric" not in values


def test_whose_downloads_a_repositorys_are() -> None:
    world = full()
    assert world.look is not None
    desired, copy = world.look.desired, Copy("o/m", "c" * 40)
    targets = {name: replace(each, copies={copy: "main"}) for name, each in desired.targets.items() if name != "c"}
    world.look = replace(world.look, desired=replace(desired, targets=targets))
    assert world.values()["reconcile_model_repo_info"] == {("a", "o/m"): 1, ("b", "o/m"): 1}
