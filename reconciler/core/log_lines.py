"""Lines of the logs of each origin, read: when, how severe, of which model, and what. Pure.

`loop.logs` finds the files and merges them. What engines and requests get into a log may be anything, so nothing
here raises, and each line costs time in proportion to its length only.
"""

import json
import math
import re
from collections.abc import Callable, Collection, MutableMapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from reconciler.core.log_origins import Form, Of
from reconciler.core.render import slug
from reconciler.core.secrets import without_secrets

ORIGINS: Final = ("reconciler", "edge", "serve", "vllm")
LEVELS: Final = ("debug", "info", "warning", "error")
"""From the least severe on."""
_LONGEST_TEXT = 4000
_LONGEST_RAW = 8192
_MOST_NAMES = 10_000
_MOST_TRACE_LINES = 200
_AHEAD_SECONDS = 86_400.0
"""A line that claims to be of a later time than this is not believed."""

_ANSI = re.compile(r"\x1b(?:\[[0-?]{0,32}[ -/]{0,4}[@-~]|\][^\x07\x1b]{0,2048}(?:\x07|\x1b\\)?|[@-_])")
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""Control characters, those that turn the direction of text, and halves of characters, which cannot be written."""

_DAY_AND_TIME = r"(\d\d)-(\d\d) (\d\d):(\d\d):(\d\d)"
_SERVE = re.compile(rf"(DEBUG|INFO|WARNING|ERROR|CRITICAL) (\d{{4}})-{_DAY_AND_TIME},(\d{{3}}) ", re.ASCII)
"""`LEVEL time component -- text` (ray.serve 2.60, _private/constants.py)."""
_VLLM = re.compile(
    rf"((?:\([^)]{{1,200}}\) ){{0,4}})(DEBUG|INFO|WARNING|ERROR|CRITICAL) {_DAY_AND_TIME} (?=\[)", re.ASCII
)
"""`_FORMAT` in vllm/logger.py, after the names of processes that vLLM and Ray put first."""
_TORCH = re.compile(r"\[([DIWEF])(\d\d)(\d\d) (\d\d):(\d\d):(\d\d)\.(\d{1,9}) ", re.ASCII)
_PLAIN_LEVEL = re.compile(r"(DEBUG|INFO|WARNING|ERROR|CRITICAL):", re.ASCII)
_EDGE = re.compile(r"\[([A-Z]{1,10})\] {1,8}(?:\d+/\d+ )?\(\d+\) : ", re.ASCII)
_CRASH = re.compile(r"Traceback \(most recent call last\)|Fatal Python error|terminate called|\*\*\* SIG")
_APPLICATION = re.compile(r"(?<![a-z0-9-])([a-z0-9][a-z0-9-]{0,100}-[0-9a-f]{8})(?![a-z0-9-])")
"""As `core.render` names the applications of models."""
_RAYS_OWN = (":job_id:", ":actor_name:", ":task_name:")
_WORDS = {
    "D": "debug", "I": "info", "W": "warning", "E": "error", "F": "error", "DEBUG": "debug", "INFO": "info",
    "NOTICE": "info", "WARNING": "warning", "ERROR": "error", "ALERT": "error", "EMERG": "error", "CRIT": "error",
    "CRITICAL": "error", "EXCEPTION": "error", "FATAL": "error",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a log.

    Attributes:
        at: Seconds since the epoch; that of the line before where it has none of its own.
        origin: reconciler, edge, serve or vllm.
        model: Whose it is, where it is of one.
        level: debug, info, warning or error.
        text: Without secrets, colours and control characters.
    """

    at: float | None
    origin: str
    model: str | None
    level: str
    text: str


@dataclass(frozen=True, slots=True)
class About:
    """Whose lines are looked for.

    Attributes:
        model: Its name.
        repos: Repositories that it is made of, whose downloads are its business.
    """

    model: str
    repos: Collection[str] = ()

    def has(self, application: str) -> bool:
        """Whether an application is a version of it, by its name."""
        return re.fullmatch(rf"{re.escape(slug(self.model))}-[0-9a-f]{{8}}", application) is not None


def clean(text: str) -> str:
    """Fit to be shown: no colours, no control characters, no secrets, and not too long."""
    text = _UNSEEN.sub("", _ANSI.sub("", text[:_LONGEST_RAW]).replace("\t", "    "))
    text = without_secrets(text)
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}…"


class LineReader:
    """Reads the lines of one file, in their order.

    Args:
        of: What the file is.
        about: Whose lines count; None: all.
        now: Local time without a zone; vLLM's lines do not name their year.
        epoch: Seconds since the epoch of a local time without a zone, as `datetime.timestamp` tells it.
        names: Models by their applications, as far as they are known; the reconciler's own lines add to it.
    """

    def __init__(
        self,
        of: Of,
        *,
        about: About | None,
        now: datetime,
        epoch: Callable[[datetime], float],
        names: MutableMapping[str, str],
    ) -> None:
        self._of = of
        self._about = about
        self._year = now.year
        self._latest = epoch(now) + _AHEAD_SECONDS
        self._epoch = epoch
        self._names = names
        self._at: float | None = None
        self._level = "info"
        self._model = about.model if about is not None and of.application is not None else None
        self._counts = about is None or of.application is not None or of.form is Form.EDGE
        if about is None and of.application is not None:
            self._model = self._name_of(of.application)

    def read(self, raw: str) -> list[LogLine]:
        """The lines that a line of the file stands for: none where it is not asked for, several with a trace."""
        if self._of.form is Form.RECONCILER:
            return self._event(raw)
        # Bars that are drawn over themselves: what is left to see.
        raw = raw.rstrip("\r")[:_LONGEST_RAW].rpartition("\r")[2]
        text = _ANSI.sub("", raw)
        if not text.strip() or text.startswith(_RAYS_OWN):
            return []
        if self._of.form is Form.EDGE:
            head = _EDGE.match(text)
            self._level = _WORDS.get(head[1], "info") if head else self._level
            return [self._line(text[head.end() :] if head else text)]
        if head := _SERVE.match(text):
            return self._of_serve(text, head)
        if self._of.form is Form.PRINTED:
            text = self._of_engine(text)
        else:
            self._go_on(text)
        return [self._line(text)] if self._counts else []

    def _of_serve(self, text: str, head: re.Match[str]) -> list[LogLine]:
        level, year, month, day, hour, minute, second, thousandths = head.groups()
        parts = (int(part) for part in (year, month, day, hour, minute, second))
        self._begin(_WORDS[level], self._seconds(*parts, micros=int(thousandths) * 1000))
        if self._of.form is Form.PRINTED:
            return []  # Serve writes it to its own file as well.
        text = text[head.end() :]
        if self._of.application is None:
            self._find_whose(text)
        return [self._line(text)] if self._counts else []

    def _of_engine(self, text: str) -> str:
        if head := _VLLM.match(text):
            before, level, *time = head.groups()
            self._begin(_WORDS[level], self._without_year(*(int(part) for part in time)))
            return before + text[head.end() :]
        if head := _TORCH.match(text):
            level, *time, fraction = head.groups()
            micros = int(fraction[:6].ljust(6, "0"))
            self._begin(_WORDS[level], self._without_year(*(int(part) for part in time), micros=micros))
            return text
        self._go_on(text)
        return text

    def _begin(self, level: str, at: float | None) -> None:
        self._level = level
        self._at = at if at is not None else self._at

    def _go_on(self, text: str) -> None:
        """A line without a time of its own goes with the one before: a trace with its error, say."""
        if _CRASH.search(text, 0, 200):
            self._level = "error"
        elif head := _PLAIN_LEVEL.match(text):
            self._level = _WORDS[head[1]]
        elif self._level != "error" and not text[0].isspace():
            self._level = "info"

    def _find_whose(self, text: str) -> None:
        found = _APPLICATION.findall(text)
        if self._about is not None:
            self._counts = any(self._about.has(each) for each in found)
            self._model = self._about.model
        else:
            self._model = self._name_of(found[0]) if len(set(found)) == 1 else None

    def _name_of(self, application: str) -> str:
        return self._names.get(application, application[:-9])

    def _event(self, raw: str) -> list[LogLine]:
        try:
            event = json.loads(raw)
        except (ValueError, RecursionError):
            event = None
        if not isinstance(event, dict):
            return [self._line(raw)] if self._about is None and raw.strip() else []
        level, model, application = (event.get(key) for key in ("level", "model", "application"))
        self._level = _WORDS.get(str(level).upper(), "info")
        self._at = self._of_iso(event.get("timestamp"))
        self._model = model if isinstance(model, str) and model != "*" else None
        if isinstance(application, str):
            if self._model is not None and len(self._names) < _MOST_NAMES:
                self._names[application] = self._model
            elif self._model is None:
                self._model = self._names.get(application)
        if self._about is not None and not _is_about(event, self._about, self._level):
            return []
        lines = [self._line(_in_words(event))]
        trace = event.get("exception")
        if isinstance(trace, str):
            lines += [self._line(each) for each in trace.splitlines()[:_MOST_TRACE_LINES]]
        return lines

    def _line(self, text: str) -> LogLine:
        return LogLine(self._at, self._of.origin, self._model, self._level, clean(text.rstrip()))

    def _of_iso(self, text: object) -> float | None:
        try:
            return self._believed(datetime.fromisoformat(str(text)).timestamp())
        except (ValueError, OverflowError, OSError):
            return self._at

    def _seconds(self, *parts: int, micros: int) -> float | None:
        year, month, day, hour, minute, second = parts
        try:
            return self._believed(self._epoch(datetime(year, month, day, hour, minute, second, micros)))  # noqa: DTZ001 -- local
        except (ValueError, OverflowError, OSError):
            return None

    def _without_year(self, *parts: int, micros: int = 0) -> float | None:
        """The last such day that is not to come."""
        for year in (self._year + 1, self._year, self._year - 1):
            found = self._seconds(year, *parts, micros=micros)
            if found is not None:
                return found
        return None

    def _believed(self, at: float) -> float | None:
        return at if math.isfinite(at) and at <= self._latest else None


def _is_about(event: dict[str, Any], about: About, level: str) -> bool:
    model, application, models = (event.get(key) for key in ("model", "application", "models"))
    if model is not None or application is not None:
        return model in (about.model, "*") or (isinstance(application, str) and about.has(application))
    if isinstance(models, list):
        return about.model in models
    if "repo" in event:
        return event["repo"] in about.repos
    # What is wrong as a whole is wrong for each model.
    return level in ("warning", "error")


def _in_words(event: dict[str, Any]) -> str:
    words = [str(event.get("event", ""))]
    for key, value in event.items():
        if key not in ("event", "level", "timestamp", "model", "exception"):
            plain = isinstance(value, str) and value and not re.search(r"[\s\"=]", value)
            words.append(f"{key}={value if plain else json.dumps(value, ensure_ascii=False)}")
    return " ".join(words)


def with_time(line: LogLine, at: float) -> LogLine:
    """The line, where it has no time, as of that time."""
    return line if line.at is not None else replace(line, at=at)
