"""A model on the CPU that main memory cannot hold is held and explained, not started and killed by the kernel."""

from pathlib import Path
from typing import Any

import pytest

from reconciler.core.desired import Desired, Snapshot, compile_desired
from reconciler.core.main_memory import PROCESSES, main_memory_of, source_of
from reconciler.core.plan import Do, HeldKind
from reconciler.core.planner import make_plan
from reconciler.core.render import Renderer
from reconciler.core.state import Application, Observed, Record, Replica, Status, Waiting
from reconciler.core.target import Platform
from reconciler.core.turn import Options
from reconciler.host.main_memory import available_bytes

TEMPLATE = (Path(__file__).parents[2] / "templates" / "application.json.j2").read_text(encoding="utf-8")
GIB = 2**30
FILE = "source: {path: /weights}\nengine: {kv_cache_memory_gib: 2}\nlifecycle: {policy: pinned}\n"
ON_DEMAND = FILE.replace("pinned", "on_demand")


def desired(text: str = FILE, device: str = "cpu", *names: str) -> Desired:
    files = {f"models.d/{name}.yaml": text.encode() for name in names or ("m",)}
    return compile_desired(Snapshot("r", files, "/m"), Renderer(TEMPLATE, Platform(device=device)))


def observed(free: int | None, weights: int = 3 * GIB, **more: Any) -> Observed:
    return Observed(main_memory=free, folder_bytes={"/weights": weights}, **more)


def test_it_is_weights_and_kv_cache_and_processes() -> None:
    config = desired().targets["m"].config
    assert source_of(config) == "/weights"
    assert main_memory_of(config, {"/weights": 3 * GIB}) == 5 * GIB + PROCESSES
    assert main_memory_of(desired(device="cuda").targets["m"].config, {"/weights": 3 * GIB}) == 0
    assert main_memory_of({"args": {}}, {}) == 0


def test_a_model_that_does_not_fit_is_held_with_its_numbers() -> None:
    plan = make_plan(desired(), observed(6 * GIB))
    (held,) = plan.held
    assert held.kind is HeldKind.NO_ROOM
    assert held.reason.startswith(
        "it needs 7.2 GiB of main memory (weights 3.0 GiB, KV cache 2.0 GiB, processes 2.2 GiB), "
        "and 6.0 GiB are left"
    )
    assert plan.steps == ()


@pytest.mark.parametrize("free", [8 * GIB, None])
def test_a_model_that_fits_or_of_which_nobody_knows_is_started(free: int | None) -> None:
    assert [step.do for step in make_plan(desired(), observed(free)).steps] == [Do.START]


def test_what_is_promised_to_one_is_not_promised_to_another() -> None:
    """Neither in one turn nor while the first is still loading, when its memory does not show yet."""
    two = desired(FILE, "cpu", "a", "b")
    plan = make_plan(two, observed(10 * GIB), Options(max_loads=2))
    assert [(step.do, step.model) for step in plan.steps] == [(Do.START, "a")]
    assert [held.model for held in plan.held] == ["b"]
    first = two.targets["a"]
    loading = Application(first.application, Status.DEPLOYING, first.config, "a")
    plan = make_plan(two, observed(10 * GIB, applications={loading.name: loading}), Options(max_loads=2))
    assert [held.model for held in plan.held] == ["b"]


def test_at_rest_it_takes_none_and_is_not_weighed_until_it_is_asked_for() -> None:
    plan = make_plan(desired(ON_DEMAND), observed(6 * GIB))
    assert plan.converged
    assert [each.model for each in plan.resting] == ["m"]
    plan = make_plan(desired(ON_DEMAND), observed(6 * GIB, waiting={"m": Waiting(1, 0.0)}))
    assert [held.kind for held in plan.held] == [HeldKind.NO_ROOM]


def test_a_change_of_what_runs_is_tried() -> None:
    """It may well fit once the old version is gone; and the old one serves on if it does not."""
    before, after = desired(), desired(FILE.replace("2}", "4}"))
    old = before.targets["m"]
    app = Application(old.application, Status.RUNNING, old.config, "m", replicas=(Replica("r", "RUNNING"),))
    now = observed(
        GIB,
        applications={app.name: app},
        routes={"m": app.name},
        ready=frozenset({app.name}),
        records={"m": Record("m", old.file, app.name, old.fields)},
    )
    assert make_plan(after, now).held == ()


# --- the machine --------------------------------------------------------------------------------------------


def machine(folder: Path, *, available_kb: int, limit: str = "max", used: int = 0, cached: int = 0) -> int | None:
    (folder / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable:   {available_kb} kB\n")
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\n")
    return available_bytes(folder / "meminfo", folder)


def test_a_containers_limit_counts_where_it_is_less(tmp_path: Path) -> None:
    assert machine(tmp_path, available_kb=1000) == 1000 * 1024
    assert machine(tmp_path, available_kb=1000, limit="500000", used=300_000) == 200_000
    assert machine(tmp_path, available_kb=1000, limit="500000", used=300_000, cached=100_000) == 300_000
    assert machine(tmp_path, available_kb=100, limit="500000", used=0) == 100 * 1024
    assert machine(tmp_path, available_kb=100, limit="5", used=9) == 0


def test_a_machine_that_does_not_say_is_not_guessed(tmp_path: Path) -> None:
    assert available_bytes(tmp_path / "nothing", tmp_path) is None


def test_this_machine_says() -> None:
    assert (available_bytes() or 0) > 2**20
