"""A template that fails on one model is that model's problem; a value that looks like one is only text."""

import json
import time
import tracemalloc

import pytest

from reconciler.core.render import Renderer, RenderError
from reconciler.core.target import Platform

from . import cases_template
from .cases_template import TemplateCase
from .conftest import (
    GOOD,
    HEALTHY,
    SICK,
    TEMPLATE,
    Judged,
    Plain,
    assert_held,
    assert_located,
    desired_of,
    judge,
    run_plain,
)

FILES = {**HEALTHY, SICK: GOOD.encode()}


def _name(case: TemplateCase | Plain) -> str:
    return case.name


def run_template(case: TemplateCase) -> Judged:
    """The real template for all but `sick`, which gets the case's."""
    template = f'{{% if model.name == "sick" %}}{case.text}{{% else %}}{TEMPLATE}{{% endif %}}'
    judged = judge(desired_of(FILES, Renderer(template, Platform(simulate_gpus=True))))
    assert_located(judged.of_sick, "1:1", case.says)
    assert "application.json.j2" in str(judged.of_sick[0])
    assert_held(judged)
    return judged


@pytest.mark.parametrize("case", cases_template.CASES, ids=_name)
def test_a_template_that_fails(case: TemplateCase) -> None:
    run_template(case)


@pytest.mark.parametrize("case", cases_template.NO_JSON, ids=_name)
def test_a_template_that_makes_almost_json(case: TemplateCase) -> None:
    run_template(case)


def test_a_template_that_makes_a_number_too_large() -> None:
    run_template(cases_template.TOO_LARGE)


@pytest.mark.parametrize(
    "case",
    [
        *cases_template.BOMBS,
        *cases_template.UNBOUNDED,
        *cases_template.ENDLESS,
    ],
    ids=_name,
)
def test_a_template_that_explodes(case: TemplateCase) -> None:
    tracemalloc.start()
    began = time.monotonic()
    try:
        run_template(case)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.monotonic() - began < cases_template.BOUND_SECONDS
    assert peak < cases_template.BOUND_BYTES


@pytest.mark.parametrize("case", cases_template.DOES_NOT_COMPILE, ids=_name)
def test_a_template_that_is_none(case: TemplateCase) -> None:
    with pytest.raises(RenderError) as caught:
        Renderer(f"{{}}\n{case.text}", Platform())
    assert case.says in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("case", cases_template.DOES_NOT_COMPILE, ids=_name)
def test_a_template_that_is_none_is_named_with_its_line(case: TemplateCase) -> None:
    with pytest.raises(RenderError) as caught:
        Renderer(f"{{}}\n{case.text}", Platform())
    assert "application.json.j2:2" in str(caught.value)


def test_a_failing_template_is_named_with_its_line() -> None:
    template = f'{{% if model.name == "sick" %}}\n\n{{{{ nothing }}}}{{% else %}}{TEMPLATE}{{% endif %}}'
    judged = judge(desired_of(FILES, Renderer(template, Platform(simulate_gpus=True))))
    assert "application.json.j2:3" in str(judged.of_sick[0])


def test_a_template_names_neither_application_nor_route() -> None:
    """Whatever it writes there: they are the digest's."""
    template = TEMPLATE.replace("{{ app.name | tojson }}", '"steady-00000000"').replace(
        "{{ app.route_prefix | tojson }}", '"/"'
    )
    target = desired_of(FILES, Renderer(template, Platform(simulate_gpus=True))).targets["sick"]
    assert target.config["name"] == target.application
    assert target.application.startswith("sick-")
    assert target.config["route_prefix"] == f"/{target.application}"


@pytest.mark.parametrize("case", cases_template.PLAIN, ids=_name)
def test_a_value_is_no_template(case: Plain) -> None:
    judged = run_plain(case)
    # Nothing was evaluated on the way.
    assert "49" not in json.dumps(judged.desired.targets["sick"].fields)
