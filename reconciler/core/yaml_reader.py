"""Text to data: the first step of the flow, a strict YAML 1.2 reader that knows where everything stands.

It is a small iterative builder on PyYAML's event stream. The event stream, because every node's position is
wanted and because the constructors above it take the last of duplicate keys, read `no` as false and recurse.
libyaml, because a thousand files have to be read in a fraction of a second: a model file of 22 lines takes
0.2 to 0.4 ms, 2 to 3 ms on PyYAML's pure parser (the fallback), and 5.9 ms with ruamel.yaml's pure safe loader
(a busy 2-core machine, Python 3.11).

What the reader refuses is what makes a file mean something else than it seems to: duplicate keys, anchors,
tags, directives, several documents, invisible characters. Bounds on size, depth and number of nodes keep a
hostile file cheap.
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple, NoReturn, Protocol, TypeAlias

import yaml

Scalar: TypeAlias = str | int | float | bool | None
Data: TypeAlias = "Scalar | list[Data] | dict[str, Data]"
Path: TypeAlias = tuple[str | int, ...]

MAX_BYTES: Final = 256 * 1024
MAX_DEPTH: Final = 32
MAX_NODES: Final = 10_000
MAX_INTEGER_DIGITS: Final = 18
_MAX_PROBLEMS: Final = 50
_SHOWN_LENGTH: Final = 40

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# What a reviewer cannot see or parsers disagree on: C0 and C1 controls (U+0085 among them), U+2028/9 (line
# ends to some parsers only), bidirectional overrides, a byte order mark further in, lone surrogates.
_INVISIBLE: Final = "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ufffe\uffff"
_FORBIDDEN: Final = re.compile(f"[{_INVISIBLE}\ud800-\udfff]")
_FORBIDDEN_IN_VALUE: Final = re.compile(f"[\r{_INVISIBLE}\ud800-\udfff]")
_NEWLINE: Final = re.compile(r"\r\n|\r|\n")
_DIRECTIVE: Final = re.compile(r"(?:[ \t]*(?:#[^\r\n]*)?(?:\r\n|\r|\n))*+(%)")

# YAML 1.2, chapter 10.3.2 "Core schema: tag resolution".
_NULL: Final = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL: Final = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT: Final = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE: Final = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
# A plain scalar that starts otherwise is text; one look at the first character spares most of the matching.
_NUMBER_START: Final = frozenset("0123456789+-.")

_UTF16_MARKS: Final = (b"\xff\xfe", b"\xfe\xff")

# libyaml's words (and the pure parser's, where they differ) in an operator's.
_SYNTAX_WORDS: Final = (
    ("mapping values are not allowed", "a ':' is not expected here", "indent it, or quote the text"),
    ("could not find expected ':'", "a ':' is missing after the key", "write key: value"),
    ("while scanning a quoted scalar", "a quoted text is not closed", "add the closing quote"),
    ("cannot start any token", "a plain text cannot start with this character", "put the text in quotes"),
    ("while parsing a flow sequence", "a ',' or ']' is missing in a list", "close the list with ]"),
    ("while parsing a flow mapping", "a ',' or '}' is missing in a mapping", "close the mapping with }"),
    ("while parsing a block mapping", "a key is expected here", "indent the keys of one mapping alike"),
    ("while parsing a block collection", "a '- ' is expected here", "indent the items of one list alike"),
    ("expected the node content", "a value is expected here", ""),
    ("did not find expected node content", "a value is expected here", ""),
    ("sequence entries are not allowed", "a '- ' is not expected here", "put the list on lines of its own"),
    ("while parsing a quoted scalar", "this escape is not allowed", "double the \\, or use single quotes"),
    ("scanning a double-quoted scalar", "this escape is not allowed", "double the \\, or use single quotes"),
    ("while scanning a block scalar", "the block text (| or >) is malformed", "begin it on the next line"),
    ("undefined tag handle", "tags such as !name are not allowed here", "leave the tag out"),
    ("while scanning a tag", "tags such as !name are not allowed here", "leave the tag out"),
    ("while scanning an anchor", "anchors are not allowed here", "write the value out"),
    ("while scanning an alias", "aliases are not allowed here", "write the value out, or put it in quotes"),
)  # fmt: skip


class Mark(Protocol):
    """A place as PyYAML's parsers give it, counted from 0."""

    @property
    def line(self) -> int:
        """The line."""

    @property
    def column(self) -> int:
        """The column, in characters."""


class Position(NamedTuple):
    """A place in a text, both numbers counted from 1, columns in characters."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class YamlProblem:
    """One reason why a text is not read."""

    message: str
    line: int
    column: int
    hint: str = ""


class YamlError(Exception):
    """The text is not read; `problems` says why, in the order of the text."""

    def __init__(self, problems: tuple[YamlProblem, ...]) -> None:
        super().__init__("; ".join(f"{each.line}:{each.column}: {each.message}" for each in problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Document:
    """What a text holds, and where.

    Attributes:
        data: The top-level mapping, of plain Python values.
    """

    data: dict[str, Data]
    # The parser's own marks: most are never asked for, and a thousand files hold fifty thousand.
    _values: dict[Path, Mark] = field(repr=False)
    _keys: dict[Path, Mark] = field(repr=False)
    _plain: dict[Path, str] = field(repr=False)

    def position(self, path: Path) -> Position:
        """Where the value at `path` starts.

        Args:
            path: Keys and list indexes from the top; `()` is the whole mapping.

        Raises:
            KeyError: There is no such value.
        """
        return _at(self._values[path])

    def key_position(self, path: Path) -> Position:
        """Where the key of the value at `path` starts; for a list item, where the item starts.

        Raises:
            KeyError: There is no such value.
        """
        return _at(self._keys[path] if path in self._keys else self._values[path])

    def written(self, path: Path) -> str | None:
        """How the file spells the number, boolean or null at `path` (`007`, `0o17`), or None for all else."""
        return self._plain.get(path)


def read(text: str | bytes) -> Document:
    """Read one YAML document whose top level is a mapping.

    Args:
        text: The file's content. Bytes have to be UTF-8; a leading byte order mark is ignored.

    Returns:
        The data with the position of every key and value.

    Raises:
        YamlError: The text is not YAML, or holds something that a model file must not hold.
    """
    decoded = _decode(text) if isinstance(text, bytes) else _check_size(text)
    decoded = decoded.removeprefix("\ufeff")
    _check_characters(decoded)
    if directive := _DIRECTIVE.match(decoded):
        _refuse(
            "directives (lines that begin with %) are not allowed",
            _locate(decoded, directive.start(1)),
            "delete the line; YAML 1.2 is what is read",
        )
    return _Builder(decoded).build()


def resolve(text: str) -> Scalar:
    """The value of a plain (unquoted) scalar by YAML 1.2's core schema.

    Raises:
        ValueError: It is a number that is not finite or not representable; the message says so.
    """
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if text[0] not in _NUMBER_START:
        return text
    if _INT.fullmatch(text):
        return _integer(text)
    if _FLOAT.fullmatch(text):
        return _finite(text)
    if _NOT_FINITE.fullmatch(text):
        raise ValueError(f"{text} is not a finite number")
    return text


def _integer(text: str) -> int:
    # The length comes first: int() itself raises beyond 4300 digits, and takes quadratic time below.
    if len(text.lstrip("+-")) > MAX_INTEGER_DIGITS:
        raise ValueError(f"{_shown(text)} has more than {MAX_INTEGER_DIGITS} digits")
    bases = {"0o": 8, "0x": 16}
    return int(text, bases.get(text[:2], 10))


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{_shown(text)} is too large a number")
    return number


def _shown(text: str) -> str:
    short = text if len(text) <= _SHOWN_LENGTH else text[: _SHOWN_LENGTH - 1] + "…"
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in short)


def _refuse(message: str, at: Position, hint: str = "") -> NoReturn:
    raise YamlError((YamlProblem(message, at.line, at.column, hint),))


def _locate(text: str, index: int) -> Position:
    """The position of the character at `index`, counting lines as YAML does."""
    line, start = 1, 0
    for newline in _NEWLINE.finditer(text, 0, index):
        line, start = line + 1, newline.end()
    return Position(line, index - start + 1)


def _check_size(text: str) -> str:
    # A character is at least a byte, so the first comparison spares encoding a huge text.
    if len(text) > MAX_BYTES or len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        _refuse(f"the file is larger than {MAX_BYTES // 1024} KiB", Position(1, 1), "is it a model file at all?")
    return text


def _decode(content: bytes) -> str:
    if len(content) > MAX_BYTES:
        _refuse(f"the file is larger than {MAX_BYTES // 1024} KiB", Position(1, 1), "is it a model file at all?")
    if content.startswith(_UTF16_MARKS):
        _refuse("the file is UTF-16 or UTF-32, not UTF-8", Position(1, 1), "save it as UTF-8")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode("utf-8").removeprefix("\ufeff")
        at = _locate(before, len(before))
        _refuse(f"the byte 0x{content[error.start]:02x} is not UTF-8", at, "save the file as UTF-8")


def _check_characters(text: str) -> None:
    found = itertools.islice(_FORBIDDEN.finditer(text), 10)
    problems = []
    for each in found:
        at = _locate(text, each.start())
        message = f"the character U+{ord(each.group()):04X} is not allowed"
        problems.append(YamlProblem(message, at.line, at.column, "delete it; it may be invisible in an editor"))
    if problems:
        raise YamlError(tuple(problems))


def _events(text: str) -> Iterator[yaml.Event]:
    """PyYAML's events; anything it can raise comes out as a located YamlError."""
    try:
        # What yaml.parse() does, less one generator: it is felt over a thousand files.
        loader = _LOADER(text)
        while loader.check_event():
            yield loader.get_event()
    except yaml.MarkedYAMLError as error:
        _refuse_syntax(text, error)
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # The pure parser lets chr() and int() fail on absurd escapes, without saying where.
        hint = "look for an escape such as \\U in double quotes"
        raise YamlError((YamlProblem("this is not valid YAML", 1, 1, hint),)) from error


def _refuse_syntax(text: str, error: yaml.MarkedYAMLError) -> NoReturn:
    # A missing ':' is noticed on the next line; the key that lacks it is the context.
    late = error.context_mark if "expected ':'" in (error.problem or "") else None
    mark = late or error.problem_mark or error.context_mark
    at = _inside(text, Position(mark.line + 1, mark.column + 1) if mark else Position(1, 1))
    lines = _NEWLINE.split(text)
    line = lines[at.line - 1]
    if "\t" in line[: len(line) - len(line.lstrip(" \t"))]:
        _refuse("a tab is used for indentation", Position(at.line, line.index("\t") + 1), "use spaces")
    raw = f"{error.context or ''}: {error.problem or ''}"
    for fragment, message, hint in _SYNTAX_WORDS:
        if fragment in raw:
            opened = error.context_mark
            since = f" (it begins on line {opened.line + 1})" if opened and opened.line + 1 < at.line else ""
            _refuse(message + since, at, hint)
    _refuse(f"this is not valid YAML: {_shown(error.problem or 'unreadable')}", at)


def _inside(text: str, at: Position) -> Position:
    """The position, moved to the end of the text where a parser reports the line after the last."""
    lines = _NEWLINE.split(text)
    if len(lines) > 1 and not lines[-1]:
        lines.pop()
    line = min(at.line, len(lines))
    end = len(lines[line - 1]) + 1
    return Position(line, min(at.column, end) if line == at.line else end)


@dataclass(slots=True)
class _Open:
    """A mapping or list whose end has not come yet; a mapping between key and value holds the key."""

    value: "dict[str, Data] | list[Data]"
    path: Path
    key: str | None = None


class _Builder:
    """Turns events into data with a stack of its own, so that no input can exhaust Python's."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._stack: list[_Open] = []
        self._problems: list[YamlProblem] = []
        self._values: dict[Path, Mark] = {}
        self._keys: dict[Path, Mark] = {}
        self._plain: dict[Path, str] = {}
        self._nodes = 0
        # Keys that were refused still need a slot, so that what stands below them is looked at too.
        self._placeholders = itertools.count()
        self._root: Data = None

    def build(self) -> Document:
        """Consume all events.

        Raises:
            YamlError: With every problem found up to the end, or up to where reading on has no sense.
        """
        try:
            for event in _events(self._text):
                self._take(event)
        except YamlError as error:
            raise YamlError((*self._problems, *error.problems)) from error
        if self._problems:
            raise YamlError(tuple(self._problems))
        if self._root is None:
            _refuse("the file is empty", Position(1, 1), "a model file needs at least source:")
        if not isinstance(self._root, dict):
            kind = "a list" if isinstance(self._root, list) else "a single value"
            _refuse(f"the top level is {kind}, not a mapping", _at(self._values[()]), "write key: value lines")
        return Document(self._root, self._values, self._keys, self._plain)

    def _take(self, event: yaml.Event) -> None:
        if isinstance(event, yaml.ScalarEvent):
            self._node(event)
            self._scalar(event)
        elif isinstance(event, yaml.MappingStartEvent):
            self._node(event)
            self._open({}, event)
        elif isinstance(event, yaml.SequenceStartEvent):
            self._node(event)
            self._open([], event)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._stack.pop()
        elif isinstance(event, yaml.AliasEvent):
            self._nodes += 1
            name = _shown(event.anchor or "")
            self._note(f"the alias *{name} is not allowed", _start(event), "write the value out, or quote it")
            self._place(None, event)
        elif isinstance(event, yaml.DocumentStartEvent) and self._nodes:
            _refuse("the file holds more than one document", _start(event), "one file holds one model")

    def _node(self, event: yaml.NodeEvent) -> None:
        """What holds for every node: the count, and no properties."""
        self._nodes += 1
        if self._nodes > MAX_NODES:
            _refuse(f"the file holds more than {MAX_NODES} values", _start(event))
        if event.anchor is not None:
            hint = "write the value out where it is needed"
            self._note(f"the anchor &{_shown(event.anchor)} is not allowed", _start(event), hint)
        tag = getattr(event, "tag", None)
        if tag is not None:
            self._note(f"the tag {_shown(tag)} is not allowed", _start(event), "leave it out; quote text")

    def _open(self, value: "dict[str, Data] | list[Data]", event: yaml.NodeEvent) -> None:
        if len(self._stack) >= MAX_DEPTH:
            _refuse(f"the nesting is deeper than {MAX_DEPTH}", _start(event))
        if self._expects_key():
            _refuse("a key has to be text, not a list or mapping", _start(event), "write key: value")
        path = self._place(value, event)
        self._stack.append(_Open(value, path))

    def _expects_key(self) -> bool:
        if not self._stack:
            return False
        container = self._stack[-1]
        return container.key is None and isinstance(container.value, dict)

    def _scalar(self, event: yaml.ScalarEvent) -> None:
        plain = event.style in (None, "")
        value: Scalar = event.value
        if plain:
            value = self._resolved(event)
        elif found := _FORBIDDEN_IN_VALUE.search(event.value):
            code = f"U+{ord(found.group()):04X}"
            self._note(f"the text contains the character {code}, which is not allowed", _start(event))
        if self._expects_key():
            self._key(value, event, plain=plain)
            return
        path = self._place(value, event)
        if not isinstance(value, str):
            self._plain[path] = event.value

    def _resolved(self, event: yaml.ScalarEvent) -> Scalar:
        try:
            return resolve(event.value)
        except ValueError as error:
            self._note(str(error), _start(event), "put it in quotes if it is text")
            return event.value

    def _key(self, value: Scalar, event: yaml.ScalarEvent, *, plain: bool) -> None:
        container = self._stack[-1]
        assert isinstance(container.value, dict)
        if not isinstance(value, str):
            shown = _shown(event.value)
            hint = f'put it in quotes: "{shown}"' if shown else "write key: value"
            self._note(f"the key {shown or '(nothing)'} is not text", _start(event), hint)
            value = f"\0{next(self._placeholders)}"
        elif plain and value == "<<":
            self._note("merge keys (<<) are not allowed", _start(event), "write the values out")
            value = f"\0{next(self._placeholders)}"
        elif value in container.value:
            at = _start(event)
            first = _at(self._keys[(*container.path, value)])
            self._note(
                f"the key {_shown(value)!r} is given twice, on line {first.line} and on line {at.line}",
                at,
                "keep one of the two",
            )
            value = f"\0{next(self._placeholders)}"
        container.key = value
        self._keys[(*container.path, value)] = _mark(event)

    def _place(self, value: Data, event: yaml.Event) -> Path:
        """Put the value where it belongs and remember where it stands."""
        path: Path = ()
        if not self._stack:
            self._root = value
        else:
            container = self._stack[-1]
            if isinstance(container.value, list):
                path = (*container.path, len(container.value))
                container.value.append(value)
            elif container.key is None:
                # Only an alias comes here as a key, and it is refused already.
                container.key = f"\0{next(self._placeholders)}"
                return path
            else:
                path = (*container.path, container.key)
                container.value[container.key] = value
                container.key = None
        self._values[path] = _mark(event)
        return path

    def _note(self, message: str, at: Position, hint: str = "") -> None:
        self._problems.append(YamlProblem(message, at.line, at.column, hint))
        if len(self._problems) >= _MAX_PROBLEMS:
            _refuse("there are too many mistakes to go on", at)


def _mark(event: yaml.Event) -> Mark:
    mark = event.start_mark
    assert mark is not None
    return mark


def _at(mark: Mark) -> Position:
    return Position(mark.line + 1, mark.column + 1)


def _start(event: yaml.Event) -> Position:
    return _at(_mark(event))
