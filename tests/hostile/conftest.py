"""What every hostile case is judged by: an error that says where, and nothing else changed.

Three models stand around each case. `steady` serves, and goes on as it is. `newcomer` is not up yet, and is
loaded. `sick` serves the version of a good file, and its file is now the case's: it has to be held, with its
application kept byte for byte.
"""

import json
import re
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1] / "hub"))
sys.path.insert(0, str(Path(__file__).parents[1] / "activator"))
sys.path.insert(0, str(Path(__file__).parents[1] / "edge"))

import pytest
from hub_server import Hub

from reconciler.core.desired import Desired, Snapshot, compile_desired
from reconciler.core.parse import Problem
from reconciler.core.plan import Action, Do, HeldKind, Plan
from reconciler.core.planner import make_plan
from reconciler.core.render import Renderer
from reconciler.core.state import Application, Node, Observed, Record, Replica, Status
from reconciler.core.target import Platform, Target

TESTS = Path(__file__).parents[1]
SLOWEST_SECONDS = 5.0
"""No case may take longer, on a busy machine; all but the largest take milliseconds."""
FOLDER = "models.d"
SICK = f"{FOLDER}/sick.yaml"
TEMPLATE = (TESTS.parent / "templates" / "application.json.j2").read_text(encoding="utf-8")
RENDERER = Renderer(TEMPLATE, Platform(simulate_gpus=True))
GOOD = "source: {repo: org/good}\nlifecycle: {policy: pinned}\nengine: {gpu_memory_utilization: 0.3}\n"
HEALTHY = {f"{FOLDER}/steady.yaml": GOOD.encode(), f"{FOLDER}/newcomer.yaml": GOOD.encode()}
HUB_TOKEN = "hf_plantedAaBbCcDdEeFf0123456789"
ANYWHERE = ""
"""A place that depends on the machine."""
_LOCATED = re.compile(r"[^:\n]+:([0-9]+):([0-9]+): \S.*")


class Case(NamedTuple):
    """One hostile model file.

    Attributes:
        name: What it tries.
        text: The content of `sick.yaml`.
        at: `line:column` of the first mistake.
        says: Part of its message.
        beside: Further files, by their names in the folder.
    """

    name: str
    text: str | bytes
    at: str
    says: str
    beside: Mapping[str, str] = {}

    @property
    def files(self) -> dict[str, bytes]:
        """What the case puts into the folder, by path."""
        texts = {"sick.yaml": self.text, **self.beside}
        return {f"{FOLDER}/{name}": _bytes(text) for name, text in texts.items()}


class Plain(NamedTuple):
    """A hostile value that is no mistake, and has to come out as nothing but data.

    Attributes:
        name: What it tries.
        text: The content of `sick.yaml`.
        where: The path of the value in the model file's fields, with dots.
        value: What it has to be.
    """

    name: str
    text: str
    where: str
    value: object


class Judged(NamedTuple):
    """What came of a set of files."""

    desired: Desired
    plan: Plan

    @property
    def of_sick(self) -> list[Problem]:
        return [problem for problem in self.desired.problems if problem.path == SICK]

    @property
    def printed(self) -> str:
        """Everything about it that an operator may see."""
        return "\n".join([*map(str, self.desired.problems), repr(self.plan)])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty hub; no token of the machine's owner is sent to it."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", "/nonexistent")
    with Hub(small_buffers=True, tokens=(HUB_TOKEN,)) as hub:
        yield hub


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")


def desired_of(files: Mapping[str, bytes], renderer: Renderer = RENDERER) -> Desired:
    return compile_desired(Snapshot("r", dict(files), f"/srv/{FOLDER}"), renderer)


def serving(*targets: Target) -> Observed:
    """A cluster in which these versions serve, all with traffic."""
    names = [target.application for target in targets]
    return Observed(
        applications={
            target.application: Application(
                target.application,
                Status.RUNNING,
                target.config,
                target.model,
                replicas=(Replica("r", "RUNNING"),),
                demand=target.demand,
            )
            for target in targets
        },
        nodes=(Node("n", 8.0, accelerator="H100"),),
        routes={target.model: target.application for target in targets},
        ready=frozenset(names),
        up_seconds=dict.fromkeys(names, 1000.0),
        idle_seconds=dict.fromkeys(names, 0.0),
        ages=dict.fromkeys(names, 1000.0),
        records={each.model: Record(each.model, each.file, each.application, each.fields) for each in targets},
        now=1000.0,
    )


_BEFORE = desired_of({**HEALTHY, SICK: GOOD.encode()})
assert set(_BEFORE.targets) == {"steady", "newcomer", "sick"}
OBSERVED = serving(_BEFORE.targets["steady"], _BEFORE.targets["sick"])


def judge(desired: Desired) -> Judged:
    """Plan for the three models, and check that the sick one's file has harmed nobody.

    What the file itself is said to be is the caller's to check.
    """
    plan = make_plan(desired, OBSERVED)
    for name in ("steady", "newcomer"):
        assert desired.targets[name] == _BEFORE.targets[name]
    assert [change.model for change in plan.changes if change.action is Action.ADD] == ["newcomer"]
    assert "steady" in plan.unchanged
    assert plan.refused == ()
    assert plan.applications is not None
    for name in ("steady", "newcomer"):
        assert _canonical(plan.applications[_BEFORE.targets[name].application]) == _canonical(
            _BEFORE.targets[name].config
        )
    return Judged(desired, plan)


def assert_held(judged: Judged) -> None:
    """`sick` stays exactly as it serves."""
    serves = _BEFORE.targets["sick"]
    plan = judged.plan
    assert "sick" not in judged.desired.targets
    held = [each for each in plan.held if each.model == "sick"]
    assert [each.kind for each in held] == [HeldKind.INVALID]
    assert [change for change in plan.changes if change.model == "sick"] == []
    assert [step for step in plan.steps if step.model == "sick" and step.do is not Do.FETCH] == []
    assert plan.applications is not None
    assert _canonical(plan.applications[serves.application]) == _canonical(serves.config)
    assert {name for name in plan.applications if name.startswith("sick")} == {serves.application}


def assert_located(problems: list[Problem], at: str, says: str) -> None:
    """The first problem is at `line:column` and says that; all are one printable line with a place."""
    assert problems
    for problem in problems:
        assert problem.line >= 1
        assert problem.column >= 1
        assert _LOCATED.fullmatch(str(problem)), str(problem)
        assert str(problem).isprintable()
        assert len(str(problem)) < 2000
    first = problems[0]
    assert at in (f"{first.line}:{first.column}", ANYWHERE), str(first)
    assert any(says in str(problem) for problem in problems), [str(problem) for problem in problems]


def run_case(case: Case) -> Judged:
    """One case, from bytes to a plan."""
    began = time.process_time()
    judged = judge(desired_of({**HEALTHY, **case.files}))
    assert time.process_time() - began < SLOWEST_SECONDS
    assert_located(judged.of_sick, case.at, case.says)
    assert_held(judged)
    return judged


def run_plain(case: Plain) -> Judged:
    """One hostile value that is only data, from bytes to the application that it becomes part of."""
    judged = judge(desired_of({**HEALTHY, SICK: case.text.encode()}))
    assert judged.of_sick == []
    target = judged.desired.targets["sick"]
    found: object = target.fields
    for step in case.where.split("."):
        assert isinstance(found, dict)
        found = found[step]
    assert found == case.value
    assert type(found) is type(case.value)
    good = _BEFORE.targets["sick"].config
    assert target.config.keys() == good.keys()
    assert target.config["args"]["llm_configs"][0].keys() == good["args"]["llm_configs"][0].keys()
    return judged


def _canonical(config: object) -> bytes:
    return json.dumps(config).encode()
