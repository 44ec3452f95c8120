"""The reference documentation says what the code says: names, fields, options, events, codes, both ways."""

import ast
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from pydantic import BaseModel

from reconciler.activator.directory import ModelState
from reconciler.cli.main import cli
from reconciler.core.endpoints import ROUTED_PATHS
from reconciler.core.plan import Action, Change, Do, Held, HeldKind, Plan, Refusal, Step
from reconciler.core.plan_json import plan_to_json
from reconciler.core.safety import ALLOW_FLAG
from reconciler.core.spec import ALLOWED_ENGINE_ARGS, ModelSpec
from reconciler.core.weights import Phase
from reconciler.edge.replies import reply_files
from reconciler.host.settings import Settings
from reconciler.loop import source, write_back

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
LEVELS = {"debug": "debug", "info": "info", "warning": "warning", "error": "error", "exception": "error"}


def read(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def rows(text: str, heading: str) -> list[list[str]]:
    """The cells of all tables whose first heading is `heading`."""
    found: list[list[str]] = []
    inside = False
    for line in text.splitlines():
        if not line.startswith("|"):
            inside = False
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if cells[0] == heading:
            inside = True
        elif inside and not set(cells[0]) <= set("-: "):
            found.append(cells)
    return found


def quoted(text: str) -> list[str]:
    """What stands in backticks; blocks of code are left out."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def between(text: str, mark: str) -> str:
    return text.partition(f"<!-- {mark}: begin -->")[2].partition(f"<!-- {mark}: end -->")[0]


def section(text: str, title: str) -> str:
    """What stands under the `## title` heading."""
    found = re.search(rf"^## {re.escape(title)}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found is not None, f"no section {title!r}"
    return found[1]


# --- events -----------------------------------------------------------------------------------------------


def events_in_code() -> dict[str, tuple[str, set[str]]]:
    """Event name to level and the fields of all calls that log it."""
    found: dict[str, tuple[str, set[str]]] = {}
    for path in sorted((ROOT / "reconciler").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        indirect = list(_indirect_events(tree))
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            function = call.func
            if not isinstance(function, ast.Attribute) or function.attr not in LEVELS:
                continue
            if not _is_logger(function.value):
                continue
            first = call.args[0]
            names = [str(first.value)] if isinstance(first, ast.Constant) else indirect
            assert names, f"{path}:{call.lineno}: cannot tell which event this is"
            for name in names:
                level, fields = found.get(name, (LEVELS[function.attr], set()))
                assert level == LEVELS[function.attr], f"{name} has two levels"
                found[name] = (level, fields | {str(word.arg) for word in call.keywords})
    return found


def _is_logger(node: ast.expr) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "get_logger"
    return isinstance(node, ast.Name) and node.id == "log"


def _indirect_events(tree: ast.Module) -> Iterator[str]:
    """Events from the table `_EVENTS` or handed to `_log_failure`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            if any(isinstance(target, ast.Name) and target.id == "_EVENTS" for target in node.targets):
                yield from (value.value for value in node.value.values if isinstance(value, ast.Constant))  # type: ignore[misc]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "_log_failure":
            assert isinstance(node.args[0], ast.Constant)
            yield str(node.args[0].value)


def test_every_event_is_documented_with_its_level_and_fields_and_no_other() -> None:
    documented = {
        quoted(name)[0]: (level, set(quoted(fields)))
        for name, level, fields, *_ in rows(read("events.md"), "Event")
    }
    assert documented == events_in_code()


def test_the_events_are_listed_in_order() -> None:
    names = [quoted(row[0])[0] for row in rows(read("events.md"), "Event")]
    assert names == sorted(names)


# --- settings ---------------------------------------------------------------------------------------------


def test_every_setting_is_documented_with_its_default_and_no_other() -> None:
    documented = {
        quoted(row[1])[0]: (quoted(row[0])[0], row[2].strip("`"))
        for row in rows(read("settings.md"), "Variable")
        if len(row) == 4
    }
    expected = {}
    for name, field in Settings.model_fields.items():
        default = field.default
        unset = default is None or default == ""
        shown = "none" if unset else str(default).lower() if isinstance(default, bool) else str(default)
        expected[name] = (f"RECONCILE_{name.upper()}", shown)
    assert documented == expected


def test_every_variable_of_the_templates_is_documented() -> None:
    text = read("settings.md")
    for template in ("application.json.j2", "edge.cfg.j2"):
        head = (ROOT / "templates" / template).read_text(encoding="utf-8").partition("#}")[0]
        variables = re.findall(r"`([a-z_]+)`", head.partition("Variables:")[2].replace("`address`", ""))
        assert variables
        for name in variables:
            assert f"`{name}`" in text, f"{template}: {name}"


# --- model files ------------------------------------------------------------------------------------------


def paths_of(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        for inner, dots in _models_in(field.annotation):
            yield from paths_of(inner, f"{prefix}{name}{dots}")


def _models_in(annotation: Any) -> Iterator[tuple[type[BaseModel], str]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        if issubclass(annotation, BaseModel):
            yield annotation, "."
        return
    for argument in typing.get_args(annotation):
        for model, _ in _models_in(argument):
            yield model, "[]." if typing.get_origin(annotation) in (tuple, list) else "."


def test_every_field_of_a_model_file_is_documented_and_no_other() -> None:
    documented = [quoted(row[0])[0] for row in rows(read("model-file.md"), "Field")]
    assert sorted(documented) == sorted(paths_of(ModelSpec))


def test_the_effects_of_fields_are_those_that_plans_show() -> None:
    from reconciler.core.diff import effect_of

    for row in rows(read("model-file.md"), "Field"):
        path, effect = quoted(row[0])[0], row[3]
        if effect and path != "name":
            assert effect == effect_of(path.replace("[]", ".0")).value, path


def test_the_defaults_of_fields_are_those_of_the_classes() -> None:
    spec = ModelSpec.model_validate({"name": "m", "source": {"repo": "a/b"}}).model_dump(mode="json")
    for row in rows(read("model-file.md"), "Field"):
        path, default = quoted(row[0])[0], row[2].strip("`")
        if default in ("required", "{}", "none", "the file's stem", "the value of `min") or "[]" in path:
            continue
        value: Any = spec
        for part in path.split("."):
            value = value[part]
        shown = {"": '""', "[]": "[]", "False": "false"}.get(str(value), str(value))
        assert default == shown, path


def test_the_engine_arguments_are_those_that_are_allowed() -> None:
    text = read("model-file.md")
    listed = quoted(between(text, "engine args"))
    assert sorted(listed) == sorted(ALLOWED_ENGINE_ARGS)
    assert f"these {len(ALLOWED_ENGINE_ARGS)} names" in text


# --- commands ---------------------------------------------------------------------------------------------


def test_every_command_and_option_is_documented_and_no_other() -> None:
    text = read("commands.md")
    titles = {match[1]: match[0] for match in re.findall(r"^## (`reconcile ?([\w-]*).*)$", text, re.MULTILINE)}
    assert sorted(titles) == sorted(["", *cli.commands])
    shared = _options_of(cli)
    for name in cli.commands.keys() - {"schema"}:
        shared &= _options_of(cli.commands[name])
    common = section(text, "Options of every command")
    assert _listed_options(common) == shared | {"--help", "-h"}
    for name, command in {"": cli, **cli.commands}.items():
        own = _options_of(command) - shared
        assert _listed_options(section(text, titles[name])) == own, name


def _options_of(command: click.Command) -> set[str]:
    own = {name for parameter in command.params if isinstance(parameter, click.Option) for name in parameter.opts}
    parts = command.commands.values() if isinstance(command, click.Group) and command is not cli else ()
    return own.union(*(_options_of(part) for part in parts))


def _listed_options(text: str) -> set[str]:
    cells = " ".join(row[0] for row in rows(text, "Option"))
    return set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", cells))


def test_the_plans_json_is_documented_field_by_field() -> None:
    plan = Plan(
        changes=(Change("m", Action.ADD, "c"),),
        held=(Held("m", HeldKind.FAILED, "r"),),
        refused=(Refusal(("m",), "r", ""),),
        steps=(Step(Do.START, "m", "m-1"),),
    )
    text = section(read("commands.md"), "`reconcile`")
    listed = {quoted(row[0])[0] for row in rows(text, "Field")}
    known = plan_to_json(plan)
    assert {name.partition("[")[0].partition(".")[0] for name in listed} == set(known)
    assert {name.partition("[].")[2].removesuffix("[]") for name in listed if "changes[]." in name} == set(
        known["changes"][0]
    )
    words = set(quoted(text))
    for group in ("held", "refused", "steps"):
        assert set(known[group][0]) <= words | listed | {"model", "reason"}, group
    for enum in (Do, HeldKind, Action):
        assert {member.value for member in enum} <= words
    assert set(known["summary"]) <= words


def test_the_kinds_of_held_models_and_the_flag_are_in_the_plans_page() -> None:
    text = read("plan.md")
    assert {quoted(row[0])[0] for row in rows(text, "Kind")} == {kind.value for kind in HeldKind}
    assert ALLOW_FLAG in text


# --- front door -------------------------------------------------------------------------------------------


def test_every_error_code_of_the_front_door_is_documented_and_no_other() -> None:
    source = (ROOT / "reconciler" / "activator" / "errors.py").read_text(encoding="utf-8")
    codes = set(re.findall(r'\bcode="([a-z_]+)"', source))
    codes |= {f"model_{state.value}" for state in ModelState if state is not ModelState.LOADED}
    codes |= {name.removesuffix(".http") for name in reply_files()}
    assert {quoted(row[1])[0] for row in rows(read("front-door.md"), "Status")} == codes


def test_every_routed_path_and_state_is_documented_and_no_other() -> None:
    text = read("front-door.md")
    assert sorted(quoted(between(text, "paths"))) == sorted(ROUTED_PATHS)
    assert {quoted(row[0])[0] for row in rows(text, "`status.value`")} == {state.value for state in ModelState}


# --- weights ----------------------------------------------------------------------------------------------


def test_the_phases_of_a_download_are_those_of_the_code() -> None:
    assert quoted(between(read("weights.md"), "phases")) == [phase.value for phase in Phase]


# --- all pages --------------------------------------------------------------------------------------------

PAGES = sorted(DOCS.glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        other = (page.parent / file) if file else page
        assert other.is_file(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", other.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {_anchor(title) for title in titles}, target


def _anchor(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_variables_that_a_page_names_exist(page: Path) -> None:
    known = {f"RECONCILE_{name.upper()}" for name in Settings.model_fields} | {"RECONCILE_MODEL"}
    known |= {source.TOKEN_VARIABLE, write_back.TOKEN_VARIABLE}  # secrets, which are no settings
    started = (ROOT / "start.sh").read_text(encoding="utf-8")
    named = set(re.findall(r"RECONCILE_[A-Z_]+[A-Z]", page.read_text(encoding="utf-8")))
    assert not {name for name in named - known if name not in started} - {"RECONCILE_BOGUS"}
