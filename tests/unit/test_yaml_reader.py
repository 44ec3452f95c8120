"""The YAML reader: YAML 1.2's meaning, every position, and a located refusal of everything doubtful."""

import contextlib
import string
import time
from collections.abc import Iterator

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core import yaml_reader
from reconciler.core.yaml_reader import MAX_BYTES, Data, Path, Position, YamlError, read, resolve

EXAMPLE = """\
# yaml-language-server: $schema=../schema/model.schema.json
name: qwen3-0.6b
source:
  repo: Qwen/Qwen3-0.6B        # or  path: a local folder
  revision: main
engine:
  max_model_len: 8192
  args: {enable_prefix_caching: true, seed: 7}
resources:
  replicas: {min: 1, max: 2}
lifecycle:
  schedule:
    - start: "0 8 * * 1-5"
      end: '0 18 * * 1-5'
aliases: [qwen, "größer"]
description: >
  Ein Satz
  über zwei Zeilen.
"""


@pytest.fixture(params=["libyaml", "pure"], autouse=True)
def loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test here holds for both parsers of PyYAML."""
    if request.param == "pure":
        monkeypatch.setattr(yaml_reader, "_LOADER", yaml.SafeLoader)
    elif not hasattr(yaml, "CSafeLoader"):
        pytest.skip("PyYAML was built without libyaml")


def refusal(text: str | bytes) -> list[tuple[int, int, str]]:
    with pytest.raises(YamlError) as caught:
        read(text)
    return [(each.line, each.column, f"{each.message} ({each.hint})") for each in caught.value.problems]


@pytest.mark.parametrize(
    ("plain", "value"),
    [
        # What YAML 1.1 made booleans is text.
        ("no", "no"), ("yes", "yes"), ("on", "on"), ("Off", "Off"), ("y", "y"),
        ("true", True), ("False", False), ("TRUE", True), ("tRue", "tRue"),
        ("null", None), ("~", None), ("", None), ("Null", None), ("nULL", "nULL"),
        # Sexagesimals, dates and underscores are text; octal is 0o17 and not 017.
        ("12:30:00", "12:30:00"), ("2026-01-01", "2026-01-01"), ("1_000", "1_000"),
        ("0o17", 15), ("017", 17), ("0x1F", 31), ("0b11", "0b11"), ("0o8", "0o8"), ("-0x1F", "-0x1F"),
        ("0", 0), ("-12", -12), ("+7", 7), ("9" * 18, int("9" * 18)),
        ("1.5", 1.5), (".5", 0.5), ("1.", 1.0), ("1e3", 1000.0), ("-1E-2", -0.01), ("1.5.2", "1.5.2"),
        (".", "."), ("+", "+"), ("1e", "1e"), ("e3", "e3"), ("3fa9c1d2", "3fa9c1d2"), ("0.6b", "0.6b"),
        ("<<x", "<<x"), ("=", "="), ("a#b", "a#b"), ("http://x:80/", "http://x:80/"),
    ],
)  # fmt: skip
def test_plain_scalars_follow_the_core_schema_of_yaml_1_2(plain: str, value: object) -> None:
    found = read(f"key: {plain}\n").data["key"]
    assert found == value
    assert type(found) is type(value)
    assert resolve(plain) == value


@pytest.mark.parametrize("text", ["no", "8192", "null", "1e3", ".nan", "<<", "0o17", "", "true"])
@pytest.mark.parametrize("quote", ['"', "'"])
def test_quoted_scalars_are_text(text: str, quote: str) -> None:
    assert read(f"key: {quote}{text}{quote}").data == {"key": text}
    assert read(f"{quote}{text}{quote}: 1").data == {text: 1}


def test_block_text_and_flow_collections_are_read() -> None:
    assert read(EXAMPLE).data == {
        "name": "qwen3-0.6b",
        "source": {"repo": "Qwen/Qwen3-0.6B", "revision": "main"},
        "engine": {"max_model_len": 8192, "args": {"enable_prefix_caching": True, "seed": 7}},
        "resources": {"replicas": {"min": 1, "max": 2}},
        "lifecycle": {"schedule": [{"start": "0 8 * * 1-5", "end": "0 18 * * 1-5"}]},
        "aliases": ["qwen", "größer"],
        "description": "Ein Satz über zwei Zeilen.\n",
    }


@pytest.mark.parametrize(
    ("path", "key", "value"),
    [
        ((), (2, 1), (2, 1)),
        (("name",), (2, 1), (2, 7)),
        (("source",), (3, 1), (4, 3)),
        (("source", "revision"), (5, 3), (5, 13)),
        (("engine", "args", "seed"), (8, 39), (8, 45)),
        (("lifecycle", "schedule", 0), (13, 7), (13, 7)),
        (("lifecycle", "schedule", 0, "end"), (14, 7), (14, 12)),
        (("aliases", 1), (15, 17), (15, 17)),
    ],
)
def test_keys_and_values_have_positions(path: Path, key: tuple[int, int], value: tuple[int, int]) -> None:
    document = read(EXAMPLE)
    assert document.key_position(path) == Position(*key)
    assert document.position(path) == Position(*value)


def test_columns_count_characters_and_lines_count_every_line_end() -> None:
    document = read("é: {ü: 1, 日本: 2}\r\nb: 3\rc: 4\n")
    assert document.key_position(("é", "日本")) == Position(1, 11)
    assert document.position(("b",)) == Position(2, 4)
    assert document.position(("c",)) == Position(3, 4)


def test_a_number_keeps_its_spelling() -> None:
    document = read("a: 007\nb: 0x1F\nc: text\n")
    assert document.written(("a",)) == "007"
    assert document.written(("b",)) == "0x1F"
    assert document.written(("c",)) is None


def test_an_unknown_path_is_a_key_error() -> None:
    document = read("a: 1")
    with pytest.raises(KeyError):
        document.position(("b",))
    with pytest.raises(KeyError):
        document.key_position(("a", "b"))


@pytest.mark.parametrize(
    ("text", "line", "column", "says"),
    [
        # The last of duplicate keys would win silently.
        ("a: 1\nb: 2\na: 3\n", 3, 1, "on line 1 and on line 3"),
        ("a: {b: 1, b: 2}", 1, 11, "'b' is given twice"),
        ('a: 1\n"a": 2', 2, 1, "'a' is given twice"),
        # References make the meaning of a line depend on another one.
        ("a: &x 1\n", 1, 4, "anchor &x"),
        ("&x a: 1\n", 1, 1, "anchor &x"),
        ("a: *x\n", 1, 4, "alias *x"),
        ("*x : 1\n", 1, 1, "alias *x"),
        ("a: &\n", 1, 5, "anchors are not allowed"),
        ("<<: {a: 1}\n", 1, 1, "merge keys"),
        # Tags choose types, and in other tools construct objects.
        ("a: !!str 1\n", 1, 4, "tag tag:yaml.org,2002:str"),
        ("a: !!python/object:os.system {}\n", 1, 4, "python/object"),
        ("a: ! x\n", 1, 4, "tag !"),
        ("a: !x [1]\n", 1, 4, "tag !x"),
        ("!x a: 1\n", 1, 1, "tag !x"),
        ("a: !x!y z\n", 1, 4, "tags such as !name"),
        # Directives would bring YAML 1.1's rules back.
        ("%YAML 1.1\n---\na: no\n", 1, 1, "directives"),
        ("# c\n\n  # d\n%TAG ! tag:x,2026:\n---\na: 1\n", 4, 1, "directives"),
        ("%FOO\n---\na: 1\n", 1, 1, "directives"),
        ("%YAML 1." + "9" * 5000 + "\n---\na: 1\n", 1, 1, "directives"),
        # One file is one model.
        ("a: 1\n---\nb: 2\n", 2, 1, "more than one document"),
        ("a: 1\n---\n", 2, 1, "more than one document"),
        ("", 1, 1, "empty"),
        ("\n\n", 1, 1, "empty"),
        ("# only a comment\n", 1, 1, "empty"),
        ("---\n", 1, 1, "empty"),
        ("null\n", 1, 1, "empty"),
        ("- a\n", 1, 1, "top level is a list"),
        ("just text\n", 1, 1, "top level is a single value"),
        # Keys other than text would be turned into text by JSON, or not.
        ("1: a\n", 1, 1, 'key 1 is not text (put it in quotes: "1")'),
        ("a: {true: 1}\n", 1, 5, "key true is not text"),
        ("null: a\n", 1, 1, "not text"),
        (": a\n", 1, 1, "a key is expected"),
        ("? \n: a\n", 1, 2, "key (nothing) is not text"),
        ("? [a]\n: b\n", 1, 3, "not a list or mapping"),
        ("? {a: b}\n: c\n", 1, 3, "not a list or mapping"),
        # Numbers that JSON, or a memory, cannot hold.
        ("a: .nan\n", 1, 4, "not a finite number"),
        ("a: -.INF\n", 1, 4, "not a finite number"),
        ("a: 1e999\n", 1, 4, "too large"),
        ("a: 1234567890123456789\n", 1, 4, "more than 18 digits"),
        ("a: " + "9" * 100_000 + "\n", 1, 4, "more than 18 digits"),
        ("a: 0x" + "f" * 100_000 + "\n", 1, 4, "more than 18 digits"),
        # What cannot be seen, or ends a line for some programs only.
        ("a: b\0\n", 1, 5, "U+0000"),
        ("a: \x1b[31m\n", 1, 4, "U+001B"),
        ("a: x\x7f\n", 1, 5, "U+007F"),
        ("a: x\x85b: 1\n", 1, 5, "U+0085"),
        ("a: x\u2028b: 1\n", 1, 5, "U+2028"),
        ("a: x\u2029b: 1\n", 1, 5, "U+2029"),
        ("ok: 1\na: x\u202eb\n", 2, 5, "U+202E"),
        ("a: x\ufeff\n", 1, 5, "U+FEFF"),
        ("a: \ud800\n", 1, 4, "U+D800"),
        ('a: "\\0"\n', 1, 4, "U+0000"),
        ('a: "x\\ry"\n', 1, 4, "U+000D"),
        ('a: "\\u2028"\n', 1, 4, "U+2028"),
        ('"\\e": 1\n', 1, 1, "U+001B"),
        # Tabs.
        ("a:\n\tb: 1\n", 2, 1, "a tab is used for indentation (use spaces)"),
        ("a:\n  b: 1\n\tc: 2\n", 3, 1, "a tab is used"),
        ("a:\n \t- b\n", 2, 2, "a tab is used"),
        ("a: |\n\tb\n", 2, 1, "a tab is used"),
        # Ordinary slips, in ordinary words.
        ("a: b: c\n", 1, 5, "':' is not expected"),
        ("a: 1\nb\nc: 1\n", 2, 1, "a ':' is missing"),
        ("a: 'x\n", 1, 6, "a quoted text is not closed (add the closing quote)"),
        ("a: [1, 2\n", 1, 9, "',' or ']' is missing"),
        ("a: {b: 1\n", 1, 9, "',' or '}' is missing"),
        ("a:\n  - b\n c: 1\n", 3, 2, "a key is expected"),
        ("a: @b\n", 1, 4, "put the text in quotes"),
        ("a: %b\n", 1, 4, "put the text in quotes"),
        ("a: [}]\n", 1, 5, "a value is expected"),
        ("a: - b\n", 1, 4, "'- ' is not expected"),
        # Bounds.
        ("[" * 100_000, 1, 33, "deeper than 32"),
        ("- " * 100_000, 1, 65, "deeper than 32"),
        ("a: " + '{"a": ' * 1000, 1, 190, "deeper than 32"),
        ("{" * 100_000, 1, 2, "not a list or mapping"),
        ("? " * 100_000, 1, 3, "not a list or mapping"),
        ("a: [" + "x," * 10_100 + "]", 1, 19_999, "more than 10000 values"),
        ("a: " + "x" * MAX_BYTES, 1, 1, "larger than 256 KiB"),
        ("#" + "é" * (MAX_BYTES // 2), 1, 1, "larger than 256 KiB"),
        # Encodings.
        (b"\xff\xfea\0:\0 \x001\0", 1, 1, "UTF-16"),
        (b"\xfe\xff\0a\0:\0 \x001", 1, 1, "UTF-16"),
        (b"\xff\xfe\0\0a\0\0\0", 1, 1, "UTF-16 or UTF-32"),
        (b"a\0:\0 \x001\0", 1, 2, "U+0000"),
        (b"a: 1\nb: \xe9t\xe9\n", 2, 4, "byte 0xe9 is not UTF-8"),
        (b"a: \xc3", 1, 4, "not UTF-8"),
        (b"a: \xed\xa0\x80", 1, 4, "not UTF-8"),
        (b"a: \xc0\x80", 1, 4, "not UTF-8"),
        (b"#" * (MAX_BYTES + 1), 1, 1, "larger than 256 KiB"),
    ],
    ids=lambda value: repr(value[:24]) if isinstance(value, str | bytes) else str(value),
)
def test_what_is_doubtful_is_refused_where_it_stands(text: str | bytes, line: int, column: int, says: str) -> None:
    began = time.monotonic()
    first = refusal(text)[0]
    assert time.monotonic() - began < 5
    assert first[:2] == (line, column)
    assert says in first[2]


@pytest.mark.parametrize("escape", ["\\q", "\\ud800", "\\U00110000", "\\UFFFFFFFF", "\\xZZ"])
def test_impossible_escapes_are_refused_and_not_a_value_error(escape: str) -> None:
    assert refusal(f'a: "{escape}"')


def test_mistakes_that_leave_the_structure_clear_are_reported_together() -> None:
    found = refusal("a: 1\na: &x 2\nb: *x\n1: {c: .nan, c: 1}\n<<: {d: !t 1}\n")
    assert [each[:2] for each in found] == [(2, 1), (2, 4), (3, 4), (4, 1), (4, 8), (4, 14), (5, 1), (5, 9)]


def test_mistakes_before_a_syntax_error_are_kept() -> None:
    assert [each[0] for each in refusal("a: 1\na: 2\nb: [1\n")] == [2, 3]


def test_a_flood_of_mistakes_ends_early() -> None:
    assert len(refusal("a: 1\n" * 9000)) == 51


def test_messages_escape_and_shorten_what_they_quote() -> None:
    (problem,) = refusal(f'"{"x" * 500}": 1\n"{"x" * 500}": 2\n')
    assert len(problem[2]) < 200
    assert all(each[2].isprintable() for each in refusal('"a\\tb\\n": 1\n"a\\tb\\n": 2\n'))


def test_what_is_harmless_is_accepted() -> None:
    assert read(b"\xef\xbb\xbfa: 1\n").data == {"a": 1}
    assert read("\ufeffa: 1\n").data == {"a": 1}
    assert read("---\na: 1\n...\n").data == {"a": 1}
    assert read("a: |\n  x\ty\n").data == {"a": "x\ty\n"}
    assert read("a: [" + "[" * 29 + "]" * 29 + "]").data["a"]
    assert read("{}").data == {}
    assert read("a: 'tab\tand 😀'").data == {"a": "tab\tand 😀"}


def test_a_file_cut_off_anywhere_is_read_or_refused_within_its_bounds() -> None:
    content = EXAMPLE.encode()
    for end in range(len(content)):
        cut = content[:end]
        lines = cut.decode("utf-8", "replace").split("\n")
        try:
            read(cut)
        except YamlError as error:
            for each in error.problems:
                assert 1 <= each.line <= len(lines)
                assert 1 <= each.column <= len(lines[each.line - 1]) + 1


def _paths(data: Data, at: Path = ()) -> Iterator[Path]:
    yield at
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from _paths(value, (*at, key))


_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp", "Cf", "Cn"]), max_size=12)
_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**17), 10**17),
    st.floats(allow_nan=False, allow_infinity=False),
    _TEXT,
    st.sampled_from(["no", "1_000", "2026-01-01", "0o17", "12:30", "a\nb", "a\tb", "- x", "# x", "<<", "=", "&"]),
)
_KEYS = st.text(string.ascii_letters + "_-", min_size=1, max_size=8).filter(lambda key: key.strip("-") != "")
_DATA = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner, max_size=4), max_leaves=20
)


class _Dumper(yaml.SafeDumper):
    """Writes no aliases: the same object twice is written twice."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _quoted(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # Text is quoted always, because the dumper's idea of what needs quotes is YAML 1.1's.
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')


_Dumper.add_representer(str, _quoted)


@settings(max_examples=60, deadline=None)
@given(data=st.dictionaries(_KEYS, _DATA, min_size=1, max_size=5), flow=st.sampled_from([True, False, None]))
def _law_round_trip(data: dict[str, Data], flow: bool | None) -> None:
    text = yaml.dump(data, Dumper=_Dumper, default_flow_style=flow, allow_unicode=True, sort_keys=False)
    document = read(text)
    assert document.data == data
    lines = text.split("\n")
    for path in _paths(data):
        at = document.key_position(path)
        if path and isinstance(path[-1], str):
            assert lines[at.line - 1][at.column - 1 :].startswith(f'"{path[-1]}"')


def test_reading_undoes_writing_and_positions_point_at_the_keys() -> None:
    _law_round_trip()


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.sampled_from("ab:- \n\t'\"[]{},&*!|>?#%@\\0.~<é\r"), max_size=40))
def _law_no_other_exception(text: str) -> None:
    try:
        document = read(text)
    except YamlError as error:
        lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        for each in error.problems:
            assert 1 <= each.line <= len(lines)
            assert 1 <= each.column <= len(lines[each.line - 1]) + 1
    else:
        for path in _paths(document.data):
            document.position(path)


def test_no_text_raises_anything_else() -> None:
    _law_no_other_exception()


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=60))
def _law_no_other_exception_on_bytes(content: bytes) -> None:
    with contextlib.suppress(YamlError):
        read(content)


def test_no_bytes_raise_anything_else() -> None:
    _law_no_other_exception_on_bytes()
