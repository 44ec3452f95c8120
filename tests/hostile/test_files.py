"""Every hostile model file is refused at its place, holds its own model, and touches nothing else."""

import ast
import importlib.util
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from reconciler.core import yaml_reader
from reconciler.core.plan import Action
from reconciler.core.planner import make_plan
from reconciler.core.spec import ALLOWED_ENGINE_ARGS

from . import cases_engine, cases_schema, cases_yaml
from .cases_yaml import SOURCE
from .conftest import (
    FOLDER,
    HEALTHY,
    SICK,
    TESTS,
    Case,
    Plain,
    assert_held,
    assert_located,
    desired_of,
    judge,
    run_case,
    run_plain,
    serving,
)

EXAMPLES = sorted((TESTS.parent / "models.d" / "examples").glob("*.yaml"))


def _name(case: Case | Plain) -> str:
    return case.name


@pytest.mark.parametrize("case", cases_yaml.CASES, ids=_name)
def test_yaml(case: Case) -> None:
    run_case(case)


@pytest.mark.parametrize("case", cases_yaml.PLAIN, ids=_name)
def test_yaml_that_is_only_odd(case: Plain) -> None:
    run_plain(case)


@pytest.mark.parametrize("case", cases_schema.CASES, ids=_name)
def test_values(case: Case) -> None:
    run_case(case)


@pytest.mark.parametrize("case", cases_engine.CASES, ids=_name)
def test_engine_arguments(case: Case) -> None:
    run_case(case)


@pytest.mark.parametrize("case", cases_engine.SPELLED, ids=_name)
def test_engine_arguments_of_other_spellings(case: Case) -> None:
    run_case(case)


def _engine_fields() -> list[str]:
    """The fields of the installed vLLM's AsyncEngineArgs, read and not imported."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        return []
    tree = ast.parse((Path(spec.origin).parent / "engine" / "arg_utils.py").read_text(encoding="utf-8"))
    return [
        field.target.id
        for cls in tree.body
        if isinstance(cls, ast.ClassDef) and cls.name in ("EngineArgs", "AsyncEngineArgs")
        for field in cls.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    ]


def _hyphened(key: str) -> str:
    return key.replace("_", "-")


def _batches(keys: list[str], size: int) -> list[list[str]]:
    """No more at a time than a file may have mistakes."""
    return [keys[start : start + size] for start in range(0, len(keys), size)]


def test_every_argument_of_the_engine_is_either_allowed_or_refused_at_its_place() -> None:
    fields = _engine_fields()
    if not fields:
        pytest.skip("vLLM is not installed here")
    forbidden = sorted(set(fields) - ALLOWED_ENGINE_ARGS)
    assert len(forbidden) > 50
    spellings: tuple[Callable[[str], str], ...] = (
        str,
        str.upper,
        lambda key: key.replace("_", "-"),
        lambda key: f"--{key}",
    )
    for spelled, some in itertools.product(spellings, _batches(forbidden, 40)):
        lines = "".join(f"    {spelled(key)}: x\n" for key in some)
        judged = judge(desired_of({**HEALTHY, SICK: f"{SOURCE}engine:\n  args:\n{lines}".encode()}))
        assert_held(judged)
        told = {
            (problem.line, problem.message.split("'")[1]) for problem in judged.of_sick if "'" in problem.message
        }
        for line, key in enumerate(some, 4):
            assert (line, spelled(key)) in told


def test_a_hundred_megabytes_cost_nothing() -> None:
    """Past FolderSource, which would not read them: the parser looks at the size before anything else."""
    for huge in (b"a: [" + b"x," * (50 * 2**20), b"[" * (100 * 2**20), b"\0" * (100 * 2**20), b'a: "\\U' * 2**24):
        judged = judge(desired_of({**HEALTHY, SICK: huge}))
        assert_located(judged.of_sick, "1:1", "larger than 256 KiB")
        assert_held(judged)
    with pytest.raises(yaml_reader.YamlError, match="larger than 256 KiB"):
        yaml_reader.read("é" * (50 * 2**20))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_cut_off_at_any_byte_is_a_model_or_held(example: Path) -> None:
    """Never an exception, never another model's name, and above all never a removal."""
    content = example.read_bytes()
    path = f"{FOLDER}/{example.name}"
    whole = desired_of({path: content})
    (model,) = whole.targets
    steady = desired_of(HEALTHY).targets["steady"]
    observed = serving(steady, whole.targets[model])
    valid = 0
    for size in range(len(content)):
        cut = desired_of({**HEALTHY, path: content[:size]})
        plan = make_plan(cut, observed)
        assert plan.refused == ()
        assert [change for change in plan.changes if change.action is Action.REMOVE] == []
        assert cut.targets["steady"] == steady
        if model in cut.targets:
            valid += 1
            continue
        problems = [problem for problem in cut.problems if problem.path == path]
        assert_located(problems, f"{problems[0].line}:{problems[0].column}", "")
        assert problems[0].line <= content[:size].count(b"\n") + 1
        assert [held.model for held in plan.held] == [model]
        assert plan.applications is not None
        assert plan.applications[whole.targets[model].application] == whole.targets[model].config
    assert 0 < valid < len(content)
