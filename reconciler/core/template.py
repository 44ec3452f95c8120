"""The operator's template, rendered within bounds: it makes JSON of bounded size, or an error with its line.

A template is a program. The sandbox keeps it from everything but its variables; this keeps it from making the
reconciler run out of memory, which the sandbox alone does not.
"""

import json
import math
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Final, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from reconciler.core.secrets import without_secrets

MOST_CHARACTERS: Final = 1_000_000
"""What a template may make, and any string in it."""
MOST_MADE: Final = 16_000_000
"""Characters of all strings together that one rendering makes."""
DEEPEST: Final = 100
_FILE: Final = "<template>"
MOST_TURNS: Final = 100_000
"""Of all loops over `range` together."""
_UNBOUNDED_METHODS: Final = frozenset(
    "center expandtabs format format_map join ljust replace rjust translate zfill".split()
)
_UNBOUNDED_FILTERS: Final = frozenset("center format indent wordwrap".split())


class TemplateError(Exception):
    """The template failed, or made nothing of use; the message begins with the template's name, and its line."""


class _Generator(CodeGenerator):
    """Has the operator `~` ask its environment, which jinja would not."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802 -- jinja's own name
        self.write("environment.concat((")
        for each in node.nodes:
            self.write("str(")
            self.visit(each, frame)
            self.write("), ")
        self.write("))")


def _concat(parts: Iterable[str]) -> str:
    """What a block or the operator `~` makes."""
    kept: list[str] = []
    size = 0
    for part in parts:
        size += len(part)
        _bound(size)
        kept.append(part)
    return "".join(kept)


def _join(values: Iterable[Any], separator: str = "") -> str:
    return _concat(part for value in values for part in (separator, str(value)))[len(separator) :]


def _replace(text: str, old: str, new: str) -> str:
    _bound(len(text) + (text.count(old) if old else len(text) + 1) * len(new))
    return text.replace(old, new)


class _Range:
    """`range`, which counts its turns over a whole rendering."""

    def __init__(self) -> None:
        self._left = MOST_TURNS

    def __call__(self, *bounds: int) -> range:
        found = range(*bounds)
        self._left -= len(found)
        if self._left < 0:
            raise SecurityError(f"more than {MOST_TURNS} turns of loops over range")
        return found


class _Bounded(ImmutableSandboxedEnvironment):
    """A sandbox in which no string grows beyond its bounds."""

    intercepted_binops = frozenset(["*", "+", "%", "**"])
    code_generator_class = _Generator
    concat = staticmethod(_concat)

    def __init__(self) -> None:
        super().__init__(undefined=jinja2.StrictUndefined, autoescape=False)
        for name in _UNBOUNDED_FILTERS:
            del self.filters[name]
        self.filters |= {"join": _join, "replace": _replace}
        self._made = 0

    def begin(self) -> None:
        """A rendering begins."""
        self._made = 0

    def wrap_str_format(self, value: Any) -> None:  # noqa: ANN401 -- jinja's own signature
        """No `format`, whose widths have no bound: `is_safe_attribute` is to be asked, as for other methods."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:  # noqa: ANN401 -- jinja's own signature
        if isinstance(obj, str) and attr in _UNBOUNDED_METHODS:
            return False
        return bool(super().is_safe_attribute(obj, attr, value))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:  # noqa: ANN401 -- as above
        sizes = [len(each) for each in (left, right) if isinstance(each, str | bytes | list | tuple)]
        if operator == "%" and isinstance(left, str):
            raise SecurityError("the operator % on text is not allowed; use ~ to join")
        if operator == "*" and sizes:
            count = right if isinstance(right, int) else left
            _bound(max(sizes) * count if isinstance(count, int) else 0)
        if operator == "+":
            _bound(sum(sizes))
        if operator == "**" and isinstance(right, int) and right > DEEPEST:
            raise SecurityError(f"a power above {DEEPEST}")
        found = super().call_binop(context, operator, left, right)
        if isinstance(found, str | bytes | list | tuple):
            # A block keeps what its loops make, each within its own bounds.
            self._made += len(found)
            _bound(self._made, MOST_MADE)
        return found


class Template:
    """A template, compiled once.

    Args:
        name: Its file's name, for messages.
        text: Its text.

    Raises:
        TemplateError: It does not compile.
    """

    def __init__(self, name: str, text: str) -> None:
        self._name = name
        try:
            self._environment = _Bounded()
            self._template = self._environment.from_string(text)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"{name}:{error.lineno}: {error.message}") from error
        except (jinja2.TemplateError, RecursionError) as error:
            raise TemplateError(f"{name}: {error}") from error

    def render_json(self, variables: Mapping[str, Any]) -> Any:  # noqa: ANN401 -- any JSON value
        """What the template makes of `variables`, read as JSON.

        Raises:
            TemplateError: It fails, makes too much, or no JSON.
        """
        text = self._render(variables)
        if _depth(text) > DEEPEST:
            raise TemplateError(f"{self._name} nests deeper than {DEEPEST} levels")
        try:
            return json.loads(text, parse_constant=_no_number, parse_float=_finite)
        except (ValueError, RecursionError) as error:
            raise TemplateError(f"{self._name} made no JSON: {error}") from error

    def _render(self, variables: Mapping[str, Any]) -> str:
        parts: list[str] = []
        size = 0
        self._environment.begin()
        try:
            for part in self._template.generate({**variables, "range": _Range()}):
                parts.append(part)
                size += len(part)
                _bound(size)
        except Exception as error:  # a template is a program: it can raise anything
            line = _line_of(error.__traceback__)
            where = f"{self._name}:{line}" if line else self._name
            raise TemplateError(f"{where}: {without_secrets(str(error)) or type(error).__name__}") from error
        return "".join(parts)


def _bound(size: int, most: int = MOST_CHARACTERS) -> None:
    if size > most:
        raise SecurityError(f"more than {most} characters")


def _line_of(trace: TracebackType | None) -> int | None:
    """The innermost line of the template in a trace."""
    line = None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == _FILE:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _depth(text: str) -> int:
    """An upper bound on how deep JSON nests: brackets within strings count too."""
    depth = deepest = 0
    for character in text:
        if character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest


def _finite(number: str) -> float:
    found = float(number)
    return found if math.isfinite(found) else _no_number(number)


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON's")
