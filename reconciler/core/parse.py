"""Files to models: the pure step between a source's snapshot and the desired state.

A file becomes a `ParsedFile` or an `InvalidFile`, never an exception. An invalid file says which models it
certainly speaks for, because a file with a mistake holds its live model as it is and is not read as a removal.
"""

import difflib
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any, Final

from pydantic import ValidationError

from reconciler.core import schema, yaml_reader
from reconciler.core.secrets import without_secrets
from reconciler.core.spec import ModelSpec
from reconciler.core.yaml_reader import Data, Document, Path, Position, YamlError

SUFFIXES: Final = (".yaml", ".yml")
"""What the names of model files end in, in lower case."""
MAX_PROBLEMS: Final = 50
"""Problems reported of one file; behind that, only their number."""

_TOP: Final = Position(1, 1)
_MAX_SHOWN: Final = 60
_MAX_MESSAGE: Final = 600
_MAX_LISTED_KEYS: Final = 20
_MAX_COMPARED: Final = 64
_MAX_OTHERS: Final = 3
_ORDINARY_KEY: Final = re.compile(r"[A-Za-z0-9_-]{1,60}")
_YES: Final = frozenset({"yes", "y", "on", "true"})
_NO: Final = frozenset({"no", "n", "off", "false"})


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One mistake in one file: where, what is wrong and allowed, and a suggestion. Sorts by place."""

    path: str
    line: int
    column: int
    message: str
    hint: str = ""

    def __str__(self) -> str:
        hint = f" ({self.hint})" if self.hint else ""
        return f"{_printable(self.path)}:{self.line}:{self.column}: {self.message}{hint}"


@dataclass(frozen=True, slots=True)
class Mention:
    """A name or alias that a file claims, and where it does."""

    text: str
    position: Position
    alias: bool = False


@dataclass(frozen=True, slots=True)
class ParsedFile:
    """A file that declares a model.

    Attributes:
        path: The file, as the source names it.
        spec: What it declares.
        digest: SHA-256 of its content, in hex.
        document: The data as written, with positions.
        mentions: The name and the aliases it claims.
    """

    path: str
    spec: ModelSpec
    digest: str
    document: Document = field(repr=False, compare=False)
    mentions: tuple[Mention, ...] = field(default=(), repr=False)

    def problem(self, where: Path, message: str, hint: str = "", *, at_key: bool = False) -> Problem:
        """A problem that a later step found, at the value at `where` or, if that is absent, nearest above."""
        return _problem(self.path, _nearest(self.document, where, at_key=at_key), message, hint)


@dataclass(frozen=True, slots=True)
class InvalidFile:
    """A file with mistakes; its live model, if it has one, stays as it is.

    Attributes:
        path: The file, as the source names it.
        digest: SHA-256 of its content, in hex.
        problems: What is wrong, in the order of the file.
        claims: The models it certainly speaks for; None if that cannot be told.
        mentions: The name and the aliases it claims, as far as they can be read.
    """

    path: str
    digest: str
    problems: tuple[Problem, ...]
    claims: frozenset[str] | None
    mentions: tuple[Mention, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class ParsedSet:
    """All files of a snapshot.

    Attributes:
        valid: The files without a mistake, by the name of their model.
        invalid: The others, by path.
        problems: All mistakes of all files, by path, line and column.
    """

    valid: Mapping[str, ParsedFile]
    invalid: tuple[InvalidFile, ...]
    problems: tuple[Problem, ...]


def parse_all(files: Mapping[str, bytes], spec_class: type[ModelSpec] = ModelSpec) -> ParsedSet:
    """Parse every file, and hold the files against each other.

    Args:
        files: Content by path.
        spec_class: The class that a file is validated with.

    Returns:
        The valid files, the invalid ones and every problem, independent of the order of `files`.
    """
    parsed = [parse_model(path, files[path], spec_class) for path in sorted(files)]
    clashes = _clashes(parsed)
    valid: dict[str, ParsedFile] = {}
    invalid: list[InvalidFile] = []
    for each in parsed:
        found = clashes.get(each.path, [])
        if isinstance(each, ParsedFile) and not found:
            valid[each.spec.name] = each
        else:
            invalid.append(_invalidated(each, found))
    problems = tuple(sorted(problem for each in invalid for problem in each.problems))
    return ParsedSet(MappingProxyType(valid), tuple(invalid), problems)


def parse_model(path: str, content: bytes, spec_class: type[ModelSpec] = ModelSpec) -> ParsedFile | InvalidFile:
    """Parse one model file.

    Args:
        path: The file, as problems shall name it; its stem is the default of the model's name.
        content: The file's bytes.
        spec_class: The class that the file is validated with.

    Returns:
        The model, or every mistake that can be found without the other files.
    """
    digest = hashlib.sha256(content).hexdigest()
    try:
        document = yaml_reader.read(content)
    except YamlError as error:
        found = [_problem(path, Position(p.line, p.column), p.message, p.hint) for p in error.problems]
        return InvalidFile(path, digest, tuple(sorted(found)), None)
    stem = PurePosixPath(path).stem
    data = document.data if "name" in document.data else {"name": stem, **document.data}
    mentions = tuple(_mentions(data, document))
    try:
        # Through JSON, because strict mode then takes text for enums and lists for tuples, and nothing else.
        spec = spec_class.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        return _Explainer(path, document, spec_class, stem).invalid_file(error, digest, mentions)
    return ParsedFile(path, spec, digest, document, mentions)


def _mentions(data: dict[str, Data], document: Document) -> Iterator[Mention]:
    """Whatever stands where a name belongs and is text, whether it is a valid name or not."""
    name, aliases, adapters = data["name"], data.get("aliases"), data.get("adapters")
    if isinstance(name, str):
        yield Mention(name, _nearest(document, ("name",), fallback=_TOP))
    for index, alias in enumerate(aliases if isinstance(aliases, list) else ()):
        if isinstance(alias, str):
            yield Mention(alias, document.position(("aliases", index)), alias=True)
    for index, adapter in enumerate(adapters if isinstance(adapters, list) else ()):
        if isinstance(adapter, dict) and isinstance(named := adapter.get("name"), str):
            yield Mention(named, document.position(("adapters", index, "name")), alias=True)


def _clashes(parsed: Iterable[ParsedFile | InvalidFile]) -> dict[str, list[Problem]]:
    """The problems of names that are claimed more than once, by path."""
    claims: defaultdict[str, list[tuple[str, Mention]]] = defaultdict(list)
    for file in parsed:
        for mention in file.mentions:
            claims[mention.text.casefold()].append((file.path, mention))
    problems: defaultdict[str, list[Problem]] = defaultdict(list)
    for claimants in claims.values():
        if len(claimants) > 1:
            for index, (path, _) in enumerate(claimants):
                problems[path].append(_clash(claimants, index))
    return problems


def _clash(claimants: list[tuple[str, Mention]], index: int) -> Problem:
    path, mention = claimants[index]
    # Slices, so that a thousand claims on one name cost no million steps.
    others = [*claimants[:index][:_MAX_OTHERS], *claimants[index + 1 : index + 1 + _MAX_OTHERS]][:_MAX_OTHERS]
    named = [
        f"{_printable(other_path)}:{other.position.line}"
        f" ({'alias' if other.alias else 'name'}{f' {other.text!r}' if other.text != mention.text else ''})"
        for other_path, other in others
    ]
    more = len(claimants) - 1 - len(others)
    listed = ", ".join(named) + (f" and {more} more" if more else "")
    kind = "alias" if mention.alias else "name"
    message = f"the {kind} {_shown_text(mention.text)} is also claimed by {listed}"
    differs = any(other.text != mention.text for _, other in others)
    hint = "names that differ only in case count as one" if differs else "a name or alias belongs to one model"
    return _problem(path, mention.position, message, hint)


def _invalidated(file: ParsedFile | InvalidFile, clashes: list[Problem]) -> InvalidFile:
    if isinstance(file, InvalidFile):
        problems = tuple(sorted((*file.problems, *_bounded(clashes))))
        return InvalidFile(file.path, file.digest, problems, file.claims, file.mentions)
    claims = frozenset({file.spec.name})
    return InvalidFile(file.path, file.digest, _bounded(clashes), claims, file.mentions)


def _bounded(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """The first problems in order, and how many more there are."""
    found = sorted(problems)
    if len(found) > MAX_PROBLEMS:
        last, more = found[MAX_PROBLEMS - 1], len(found) - MAX_PROBLEMS
        found[MAX_PROBLEMS:] = [Problem(last.path, last.line, last.column, f"and {more} more mistakes")]
    return tuple(sorted(found))


class _Explainer:
    """Puts pydantic's errors about one document into an operator's words."""

    def __init__(self, path: str, document: Document, spec_class: type[ModelSpec], stem: str) -> None:
        self._path = path
        self._document = document
        self._root = schema.cached_schema(spec_class)
        self._homes = schema.places(spec_class)
        self._stem = stem
        # By what they are about, so that one mistake found in two ways is reported once.
        self._found: dict[tuple[Path, bool], Problem] = {}

    def invalid_file(self, error: ValidationError, digest: str, mentions: tuple[Mention, ...]) -> InvalidFile:
        """The file's verdict from everything that validation found."""
        errors = error.errors(include_url=False, include_input=False)
        self._unlisted_keys()
        for each in errors:
            self._explain(each["type"], each["loc"], each.get("ctx", {}))
        problems = _bounded(self._found.values())
        named = [mention.text for mention in mentions if not mention.alias]
        if any(each["loc"][:1] == ("name",) for each in errors):
            named = []
        claims = frozenset(named) if named else None
        kept = mentions if named else tuple(mention for mention in mentions if mention.alias)
        return InvalidFile(self._path, digest, problems, claims, kept)

    def _add(self, where: Path, message: str, hint: str = "", *, at_key: bool = False) -> None:
        position = _nearest(self._document, where, at_key=at_key)
        self._found.setdefault((where, at_key), _problem(self._path, position, message, hint))

    def _explain(self, kind: str, loc: Path, context: Mapping[str, Any]) -> None:
        where = self._follow(loc)
        if loc == ("name",) and "name" not in self._document.data:
            self._bad_stem()
        elif kind == "missing":
            self._missing((*where, loc[-1]))
        elif kind == "extra_forbidden":
            self._unknown_key(where)
        elif kind in {"value_error", "assertion_error"}:
            self._broken_rule(where, str(context.get("error", "this is not allowed")))
        elif loc[-1:] == ("[key]",):
            self._bad_key(where)
        elif loc[len(where) : len(where) + 1] and loc[len(where)] in schema.keys(self._schema(where)):
            return  # A value that was filled in from another one, which is as wrong and in the file.
        else:
            self._bad_value(where)

    def _follow(self, loc: Path) -> Path:
        """The part of pydantic's location that is in the document; the rest names union branches and the like."""
        value: Any = self._document.data
        path: list[str | int] = []
        for step in loc:
            in_mapping = isinstance(value, dict) and step in value
            if in_mapping or (isinstance(value, list) and isinstance(step, int) and step < len(value)):
                value = value[step]
                path.append(step)
        return tuple(path)

    def _schema(self, where: Path) -> schema.Schema:
        found = self._root
        for step in where:
            found = schema.child(found, step, self._root)
        return found

    def _value(self, where: Path) -> Data:
        value: Any = self._document.data
        for step in where:
            value = value[step]
        return value  # type: ignore[no-any-return]  # indexing by a path is beyond the type checker

    def _bad_stem(self) -> None:
        allowed = schema.describe(self._schema(("name",)))
        message = f"the file's name {_shown_text(self._stem)} cannot be the model's; allowed: {allowed}"
        self._found[("name",), False] = _problem(self._path, _TOP, message, "set name:")

    def _missing(self, where: Path) -> None:
        purpose = self._schema(where).get("description", "")
        self._add(where, f"{_label(where)} is missing", f"it says: {purpose}" if purpose else "")

    def _unlisted_keys(self) -> None:
        """Check mappings whose keys come from a list: validation stops at the first wrong one."""
        pending: list[Path] = [()]
        while pending:
            where = pending.pop()
            value, section = self._value(where), self._schema(where)
            if not isinstance(value, dict) or not section:
                continue
            listed = section.get("propertyNames", {}).get("enum")
            for key in value:
                pending.append((*where, key))
                if listed is not None and key not in listed:
                    self._unknown_key((*where, key))

    def _unknown_key(self, where: Path) -> None:
        if len(self._found) > MAX_PROBLEMS:
            # From here on only the number counts, and a hostile file must not cost more than that.
            self._add(where, "unknown key", at_key=True)
            return
        section, key = where[:-1], str(where[-1])
        keys = schema.keys(self._schema(section))
        place = f" under {_label(section)}" if section else ""
        many = f"the {len(keys)} that `reconcile schema` lists"
        allowed = ", ".join(sorted(keys)) if len(keys) <= _MAX_LISTED_KEYS else many
        message = f"unknown key {_shown_text(key)}{place}; allowed: {allowed}"
        self._add(where, message, self._suggestion(key, keys), at_key=True)

    def _suggestion(self, key: str, keys: list[str]) -> str:
        homes = self._homes
        meant = key.strip().lower().replace("-", "_")
        if meant not in keys and meant in homes:
            home = homes[meant][0]
            wrong = f" as {meant}" if meant != key else ""
            return f"it belongs under {_label(home)}:{wrong}" if home else f"it belongs at the top level{wrong}"
        if near := _closest(meant, keys):
            return f"did you mean {near!r}?"
        if near := _closest(meant, homes):
            home = homes[near][0]
            return f"did you mean {near!r} {f'under {_label(home)}:' if home else 'at the top level'}?"
        return ""

    def _broken_rule(self, where: Path, rule: str) -> None:
        """A rule over several values: the first key it names is where to look."""
        about, at_key = where, True
        value = self._value(where)
        if isinstance(value, dict):
            for word in re.findall(r"[\w.-]+", rule):
                head, _, tail = word.partition(".")
                if head in value:
                    inner = value[head]
                    about = (*where, head, tail) if isinstance(inner, dict) and tail in inner else (*where, head)
                    break
        else:
            at_key = False
        self._add(about, f"{_label(where)}: {rule}" if where else rule, at_key=at_key)

    def _bad_key(self, where: Path) -> None:
        section = self._schema(where[:-1])
        patterns = [schema.pattern_words(pattern) for pattern in section.get("patternProperties", {})]
        longest = section.get("propertyNames", {}).get("maxLength")
        allowed = [*filter(None, patterns), *([f"at most {longest} characters"] if longest else [])]
        says = f"; allowed: {', '.join(allowed)}" if allowed else ""
        self._add(where, f"the key {_shown_text(str(where[-1]))} under {_label(where[:-1])} is not allowed{says}",
                  at_key=True)  # fmt: skip

    def _bad_value(self, where: Path) -> None:
        allowed = self._schema(where)
        value = self._value(where)
        written = self._document.written(where)
        says = schema.describe(allowed)
        message = f"{_label(where) or 'the file'} is {_shown(value, written)}; allowed: {says}"
        self._add(where, message, _value_hint(value, written, allowed))


def _value_hint(value: Data, written: str | None, allowed: schema.Schema) -> str:
    """How to write what was probably meant."""
    branches = allowed.get("oneOf") or allowed.get("anyOf") or [allowed]
    kinds = {branch.get("type") for branch in branches}
    hint = ""
    if value is None:
        hint = "give it a value, or delete the line"
    elif isinstance(value, str):
        hint = _text_hint(value, kinds, [str(each) for branch in branches for each in _choices(branch)])
    elif kinds == {"array"}:
        hint = "write it as a list: [a, b]"
    elif "string" in kinds and not kinds & {"integer", "number"} and written is not None:
        hint = f'put it in quotes: "{_cut(written)}"'
    elif "integer" in kinds and isinstance(value, float) and value.is_integer():
        hint = f"write {int(value)}"
    return hint


def _choices(branch: schema.Schema) -> list[Any]:
    return [*branch.get("enum", ()), *([branch["const"]] if "const" in branch else [])]


def _text_hint(text: str, kinds: set[str | None], choices: list[str]) -> str:
    if "boolean" in kinds and text.lower() in _YES | _NO:
        return "write true" if text.lower() in _YES else "write false"
    if kinds == {"array"}:
        return "write it as a list: [a, b]"
    if kinds & {"integer", "number", "boolean"} and not isinstance(_resolved(text), str):
        return f"write it without quotes: {_cut(text)}"
    near = _closest(text.strip().lower(), choices)
    return f"did you mean {near!r}?" if near else ""


def _resolved(text: str) -> yaml_reader.Scalar:
    try:
        return yaml_reader.resolve(text)
    except ValueError:
        return text


def _closest(word: str, choices: Iterable[str]) -> str:
    if len(word) > _MAX_COMPARED:
        return ""
    found = difflib.get_close_matches(word, list(choices), n=1)
    return found[0] if found else ""


def _nearest(
    document: Document, where: Path, *, at_key: bool = False, fallback: Position | None = None
) -> Position:
    """The position of the value, or of the key of the nearest mapping above that is there."""
    find = document.key_position if at_key else document.position
    try:
        return find(where)
    except KeyError:
        if fallback is not None:
            return fallback
        return _nearest(document, where[:-1], at_key=True) if where else _TOP


def _problem(path: str, at: Position, message: str, hint: str = "") -> Problem:
    return Problem(path, at.line, at.column, _clean(message), _clean(hint))


def _clean(text: str) -> str:
    """Text that may quote the file, fit for a terminal and a log."""
    # A pasted token or a URL with a password must not travel on.
    text = _printable(without_secrets(text))
    return text if len(text) <= _MAX_MESSAGE else text[: _MAX_MESSAGE - 1] + "…"


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 1] + "…"


def _shown_text(text: str) -> str:
    # The secret goes before the cut, which could leave half of one that no pattern finds.
    return repr(_cut(without_secrets(text)))


def _shown(value: Data, written: str | None) -> str:
    if isinstance(value, str):
        return _shown_text(value)
    if value is None:
        return "empty"
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return _cut(written or str(value))


def _label(where: Path) -> str:
    """A path as operators write it: `engine.args`, `aliases[0]`."""
    parts = []
    for step in where:
        ordinary = isinstance(step, str) and _ORDINARY_KEY.fullmatch(step)
        parts.append(f".{step}" if ordinary else f"[{step if isinstance(step, int) else _shown_text(step)}]")
    return "".join(parts).removeprefix(".")
