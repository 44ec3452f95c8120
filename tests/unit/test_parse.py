"""The parser: every mistake at its place, in an operator's words, and no file that can break another."""

import hashlib
import random

import pytest

from reconciler.core.parse import MAX_PROBLEMS, InvalidFile, ParsedFile, ParsedSet, Problem, parse_all, parse_model
from reconciler.core.spec import Policy, Task

SOURCE = "source: {repo: a/b}\n"

FULL = """\
# yaml-language-server: $schema=../schema/model.schema.json
name: qwen3-0.6b
source:
  repo: Qwen/Qwen3-0.6B
  revision: main
task: generate
engine:
  max_model_len: 8192
  gpu_memory_utilization: auto
  args: {enable_prefix_caching: true}
resources:
  accelerator: auto
  tensor_parallel: auto
  replicas: {min: 1, max: 2}
lifecycle:
  policy: on_demand
  idle_timeout: 15m
  priority: 50
  schedule:
    - {start: "0 8 * * 1-5", end: "0 18 * * 1-5", timezone: Europe/Berlin}
aliases: [qwen]
description: für alles
labels: {team: search}
"""


def parsed(text: str, path: str = "models.d/m.yaml") -> ParsedFile:
    found = parse_model(path, text.encode())
    assert isinstance(found, ParsedFile), found
    return found


def invalid(text: str | bytes, path: str = "m.yaml") -> InvalidFile:
    found = parse_model(path, text if isinstance(text, bytes) else text.encode())
    assert isinstance(found, InvalidFile), found
    return found


def lines(text: str, path: str = "m.yaml") -> list[str]:
    return [str(problem) for problem in invalid(text, path).problems]


def files(**contents: str) -> ParsedSet:
    return parse_all({f"{name}.yaml": text.encode() for name, text in contents.items()})


def test_a_full_file_becomes_a_spec() -> None:
    found = parsed(FULL)
    assert found.spec.name == "qwen3-0.6b"
    assert found.spec.task is Task.GENERATE
    assert found.spec.lifecycle.policy is Policy.ON_DEMAND
    assert found.spec.engine.max_model_len == 8192
    assert found.spec.aliases == ("qwen",)
    assert found.digest == hashlib.sha256(FULL.encode()).hexdigest()


def test_the_name_defaults_to_the_stem() -> None:
    assert parsed(SOURCE, "some/folder/qwen3-0.6b.yaml").spec.name == "qwen3-0.6b"


def test_a_later_step_can_point_into_the_file() -> None:
    found = parsed(FULL)
    where = ("engine", "max_model_len")
    assert str(found.problem(where, "too long", "less")) == "models.d/m.yaml:8:18: too long (less)"
    assert found.problem(where, "x", at_key=True).column == 3
    # What the file leaves out is blamed on the nearest section, and on the top at last.
    assert found.problem(("engine", "dtype"), "x").line == 7
    assert parsed(SOURCE).problem(("name",), "x").line == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Unknown keys: what is allowed, what was meant, where it belongs.
        (SOURCE + "aliasses: [a]\n", ("2:1: unknown key 'aliasses'; allowed: adapters, aliases, description,"
         " engine, labels, lifecycle, name, resources, source, task (did you mean 'aliases'?)")),
        (SOURCE + "engine: {max-model-len: 4}\n", ("2:10: unknown key 'max-model-len' under engine; *"
         " (did you mean 'max_model_len'?)")),
        (SOURCE + "max_model_len: 4\n", "2:1: unknown key 'max_model_len'; * (it belongs under engine:)"),
        (SOURCE + "Min: 1\n", "2:1: unknown key 'Min'; * (it belongs under resources.replicas: as min)"),
        (SOURCE + "engine: {aliases: []}\n", "2:10: unknown key 'aliases' *(it belongs at the top level)"),
        (SOURCE + "enforce_eager: true\n", "2:1: unknown key 'enforce_eager'; * (it belongs under engine.args:)"),
        (SOURCE + "idle_timout: 5m\n", "2:1: *(did you mean 'idle_timeout' under lifecycle:?)"),
        (SOURCE + "engine: {args: {enforce_eagr: true}}\n", ("2:17: unknown key 'enforce_eagr' under engine.args;"
         " allowed: the * that `reconcile schema` lists (did you mean 'enforce_eager'?)")),
        (SOURCE + "engine: {args: {dtype: auto}}\n", "2:17: *(it belongs under engine:)"),
        (SOURCE + "zzzzzzzz: 1\n", "2:1: unknown key 'zzzzzzzz'; allowed: *source, task"),
        # Missing keys and rules over several keys.
        ("task: embed\n", "1:1: source is missing (it says: Where the weights come from*"),
        (SOURCE + "lifecycle:\n  schedule:\n    - start: '0 8 * * *'\n",
         "4:7: lifecycle.schedule[0].end is missing*"),
        ("source: {}\n", "1:1: source: give exactly one of repo and path"),
        ("source: {path: x, repo: a/b}\n", "1:19: source: give exactly one of repo and path"),
        (SOURCE + "resources:\n  replicas:\n    max: 2\n    min: 3\n",
         "5:5: resources.replicas: min (3) is more than max (2)"),
        # Values: strict types, bounds, lists of what is allowed.
        (SOURCE + "task: generat\n", ("2:7: task is 'generat'; allowed: generate, embed, *"
         " (did you mean 'generate'?)")),
        (SOURCE + "engine:\n  max_model_len: true\n",
         "3:18: engine.max_model_len is true; allowed: a whole number from 1 to 100000000, or auto"),
        (SOURCE + "engine: {max_model_len: '4'}\n", ("2:25: engine.max_model_len is '4'; allowed: *"
         " (write it without quotes: 4)")),
        (SOURCE + "engine: {max_model_len: 4.0}\n", "2:25: engine.max_model_len is 4.0; * (write 4)"),
        (SOURCE + "engine: {max_model_len: autoo}\n", "2:25: * (did you mean 'auto'?)"),
        (SOURCE + "engine: {gpu_memory_utilization: 1.5}\n",
         "2:34: engine.gpu_memory_utilization is 1.5; allowed: a number above 0 and at most 1, or auto"),
        (SOURCE + "engine:\n", "2:8: engine is empty; allowed: a mapping (give it a value, or delete the line)"),
        (SOURCE + "engine: fast\n", "2:9: engine is 'fast'; allowed: a mapping"),
        (SOURCE + "aliases: qwen\n", "2:10: aliases is 'qwen'; allowed: a list (write it as a list: [a, b])"),
        (SOURCE + "aliases: {a: 1}\n", "2:10: aliases is a mapping; allowed: a list *"),
        (SOURCE + "aliases: [ok, 'a b']\n", "2:15: aliases[1] is 'a b'; allowed: letters, digits and . _ - /*"),
        ("name: 007\n" + SOURCE, '1:7: name is 007; allowed: letters*(put it in quotes: "007")'),
        ("source: {repo: a/b, track: yes}\n", "1:28: source.track is 'yes'; allowed: true or false (write true)"),
        ("source: {repo: ab}\n", "1:16: source.repo is 'ab'; allowed: text such as Qwen/Qwen3-0.6B"),
        (SOURCE + "lifecycle: {idle_timeout: 15 m}\n", "2:27: lifecycle.idle_timeout*'15 m'*15m*1h30m*"),
        (SOURCE + "lifecycle: {priority: 101}\n",
         "2:23: lifecycle.priority is 101; allowed: a whole number from 0 to 100"),
        (SOURCE + "labels: {a b: x}\n", ("2:10: the key 'a b' under labels is not allowed; allowed: letters,"
         " digits and . / _ -, beginning with a letter or digit, at most 63 characters")),
        (SOURCE + "labels: {build: 12}\n", '2:17: labels.build is 12; allowed: text * (put it in quotes: "12")'),
    ],
)  # fmt: skip
def test_a_mistake_is_told_at_its_place_and_with_what_is_allowed(text: str, expected: str) -> None:
    # `*` stands for anything in between.
    (found,) = lines(text)
    parts = f"m.yaml:{expected}".split("*")
    assert found.startswith(parts[0])
    assert found.endswith(parts[-1])
    at = 0
    for part in parts:
        at = found.index(part, at) + len(part)


def test_all_mistakes_of_a_file_come_at_once_in_its_order() -> None:
    found = lines(
        "nam: x\nsource: {repo: 5, path: 6}\ntask: x\n"
        "engine: {dtype: y, foo: 1, args: {a: 1, trust_remote_code: true}}\n"
        "lifecycle: {idle_timeout: 1}\naliases: ['?']\n"
    )
    assert [line.split(": ")[0] for line in found] == [
        "m.yaml:1:1", "m.yaml:2:16", "m.yaml:2:25", "m.yaml:3:7", "m.yaml:4:17", "m.yaml:4:20", "m.yaml:4:35",
        "m.yaml:4:41", "m.yaml:5:27", "m.yaml:6:11",
    ]  # fmt: skip


def test_messages_hold_no_jargon() -> None:
    everything = "\n".join(lines("x: 1\nsource: []\nengine: {args: []}\naliases: {}\nlabels: 5\ntask: [1]\n"))
    for word in ("pydantic", "http", "Input should", "tuple", "dict", "[type="):
        assert word not in everything


def test_values_are_shortened_escaped_and_stripped_of_secrets() -> None:
    (long,) = lines(f"source: {{repo: {'x' * 5000}}}\n")
    assert len(long) < 300
    (escaped,) = lines(SOURCE + 'task: "a\\nb\\tc"\n')
    assert "a\\nb\\tc" in escaped
    (password,) = lines("source: {repo: 'https://user:geheim@host/a'}\n")
    assert "geheim" not in password
    (token,) = lines(f"source: {{repo: hf_{'a' * 34}}}\n")
    assert "aaa" not in token
    (key,) = lines(SOURCE + '"a\\nb": 1\n')
    assert key.isprintable()
    assert str(Problem("a\nb\x1b", 1, 1, "x")) == "a\\nb\\x1b:1:1: x"


def test_a_file_name_that_cannot_be_a_name_asks_for_one() -> None:
    found = invalid(SOURCE, "models.d/my model.yaml")
    assert str(found.problems[0]).startswith("models.d/my model.yaml:1:1: the file's name 'my model' cannot be")
    assert found.problems[0].hint == "set name:"
    assert found.claims is None
    assert parsed(SOURCE + "name: x\n", "my model.yaml").spec.name == "x"


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        ("name: x\ntask: y\n", {"x"}),
        ("task: y\n", {"m"}),
        ("{}", {"m"}),
        ("name: 5\n", None),
        ("name: 'a b'\n", None),
        ("name:\n", None),
        ("name: x\nname: y\n", None),
        ("name: x\nsource: [\n", None),
        ("", None),
    ],
)
def test_a_broken_file_claims_the_name_it_certainly_speaks_for(text: str, claims: set[str] | None) -> None:
    assert invalid(text).claims == (None if claims is None else frozenset(claims))


def test_a_flood_of_mistakes_is_counted() -> None:
    found = invalid(SOURCE + "".join(f"key{number}: 1\n" for number in range(3000)))
    assert len(found.problems) == MAX_PROBLEMS + 1
    assert f"and {3000 - MAX_PROBLEMS} more mistakes" in [problem.message for problem in found.problems[-2:]]
    twins = files(a=SOURCE + f"aliases: [{', '.join(['x'] * 900)}]\n")
    assert len(twins.problems) == MAX_PROBLEMS + 1


def test_yaml_problems_are_problems_of_the_file() -> None:
    assert lines("a: 1\na: 2\n") == [
        "m.yaml:2:1: the key 'a' is given twice, on line 1 and on line 2 (keep one of the two)"
    ]


def test_a_full_file_cut_off_anywhere_gives_a_spec_or_located_problems() -> None:
    content = FULL.encode()
    for end in range(len(content)):
        found = parse_model("m.yaml", content[:end])
        if isinstance(found, ParsedFile):
            continue
        text = content[:end].decode("utf-8", "replace").split("\n")
        assert found.problems
        for problem in found.problems:
            assert 1 <= problem.line <= len(text)
            assert 1 <= problem.column <= len(text[problem.line - 1]) + 1


def test_files_are_keyed_by_their_models_names() -> None:
    found = files(a=SOURCE, b=SOURCE + "name: c\n")
    assert set(found.valid) == {"a", "c"}
    assert (found.invalid, found.problems) == ((), ())


def test_two_files_with_one_name_are_both_wrong_and_name_each_other() -> None:
    found = files(a=SOURCE + "name: x\n", b=SOURCE + "\nname: x\n", c=SOURCE)
    assert [str(problem) for problem in found.problems] == [
        "a.yaml:2:7: the name 'x' is also claimed by b.yaml:3 (name) (a name or alias belongs to one model)",
        "b.yaml:3:7: the name 'x' is also claimed by a.yaml:2 (name) (a name or alias belongs to one model)",
    ]
    assert [(each.path, each.claims) for each in found.invalid] == [
        ("a.yaml", frozenset({"x"})),
        ("b.yaml", frozenset({"x"})),
    ]
    assert set(found.valid) == {"c"}


@pytest.mark.parametrize(
    ("first", "second", "places"),
    [
        ("aliases: [x]\n", "aliases: [x]\n", [("a.yaml", 2, 11), ("b.yaml", 2, 11)]),
        ("aliases: [b]\n", "", [("a.yaml", 2, 11), ("b.yaml", 1, 1)]),
        ("aliases: [B]\n", "", [("a.yaml", 2, 11), ("b.yaml", 1, 1)]),
        ("name: X\n", "name: x\n", [("a.yaml", 2, 7), ("b.yaml", 2, 7)]),
        ("aliases: [x, y, X]\n", "", [("a.yaml", 2, 11), ("a.yaml", 2, 17)]),
        ("aliases: [a]\n", "", [("a.yaml", 1, 1), ("a.yaml", 2, 11)]),
    ],
)
def test_names_and_aliases_share_one_space_without_case(
    first: str, second: str, places: list[tuple[str, int, int]]
) -> None:
    found = files(a=SOURCE + first, b=SOURCE + second)
    assert [(problem.path, problem.line, problem.column) for problem in found.problems] == places
    assert {each.path for each in found.invalid} == {path for path, _, _ in places}


def test_a_broken_file_still_claims_its_name_against_others() -> None:
    found = files(a=SOURCE + "name: x\n", b=SOURCE + "name: x\ntask: y\n")
    assert [(problem.path, problem.line) for problem in found.problems] == [
        ("a.yaml", 2),
        ("b.yaml", 2),
        ("b.yaml", 3),
    ]
    assert not found.valid


def test_an_unreadable_file_harms_no_other() -> None:
    found = files(a=SOURCE, b="name: [")
    assert set(found.valid) == {"a"}
    assert [each.claims for each in found.invalid] == [None]


def test_many_files_with_one_name_name_a_few_others() -> None:
    found = parse_all({f"{number:04}.yaml": (SOURCE + "name: x\n").encode() for number in range(300)})
    assert len(found.problems) == 300
    assert all("and 296 more" in problem.message for problem in found.problems)


def test_the_result_does_not_depend_on_the_order_of_the_files() -> None:
    contents = {
        f"{name}.yaml": (SOURCE + f"aliases: [{alias}]\n").encode()
        for name, alias in zip("abcdef", "bxxyzq", strict=True)
    }
    expected = parse_all(contents)
    for seed in range(5):
        shuffled = list(contents.items())
        random.Random(seed).shuffle(shuffled)
        found = parse_all(dict(shuffled))
        assert found == expected
        assert list(found.valid) == list(expected.valid)


@pytest.mark.parametrize(
    ("line", "at"),
    [
        ("description: ask hf_abcdefghijklmnop for it", "m/a.yaml:2"),
        ("labels: {mirror: 'https://me:secret@host/x'}", "m/a.yaml:2"),
    ],
)
def test_what_looks_like_a_secret_is_not_taken_where_many_can_read_it(line: str, at: str) -> None:
    parsed = parse_all({"m/a.yaml": f"source: {{repo: o/m}}\n{line}\n".encode()})
    (problem,) = parsed.problems
    assert str(problem).startswith(at)
    assert "token or a password" in problem.message
    assert "hf_abc" not in str(problem)
    assert "me:secret" not in str(problem)


def test_a_request_waits_no_longer_than_the_front_door_lets_it() -> None:
    assert parsed(SOURCE + "lifecycle: {wait_timeout: 4h}\n").spec.lifecycle.wait_timeout == "4h"
    (found,) = lines(SOURCE + "lifecycle:\n  wait_timeout: 4h1s\n")
    words = "4h1s is more than 4h, the longest that the front door lets a request wait"
    assert found == f"m.yaml:3:17: lifecycle.wait_timeout: {words}"
