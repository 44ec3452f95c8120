"""Events: one JSON line each for machines, a readable line on a terminal.

An event has a stable name (`model.ready`), listed in docs/events.md, and flat fields. Nothing secret may be
passed in; values of fields whose name says that they are secret are blanked all the same, and what looks like a
token in any text. From here an event goes to standard error, to the log file, and to those who listen.
"""

import json
import logging
import os
import sys
import threading
from pathlib import Path
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, WrappedLogger

from reconciler.core.secrets import without_secrets
from reconciler.host.event_feed import EventFeed
from reconciler.host.log_file import LogFile

_SECRET_FIELDS = ("token", "secret", "password", "authorization", "api_key")
_SHORTEST_SECRET = 8
_LONGEST_TEXT = 16_384
_DEEPEST = 8
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
"""Levels as syslog counts them (sd-daemon(3))."""


def get_logger() -> Any:  # noqa: ANN401 -- structlog's bound logger is a dynamic proxy
    """The logger of the control plane: `get_logger().info("event.name", field=value)`."""
    return structlog.get_logger("reconciler")


def configure(
    *,
    json_lines: bool,
    level: str = "info",
    stream: TextIO | None = None,
    file: Path | None = None,
    feed: EventFeed | None = None,
) -> None:
    """Send events to `stream` (standard error by default) as JSON lines, or for a person to read.

    Where the stream is the systemd journal's, lines have a `<N>` in front, by which the journal knows their level,
    and no time, which it adds itself. Warnings of libraries that log in Python's own way are events too.

    Args:
        json_lines: One JSON object a line; otherwise aligned, coloured text.
        level: The least severe level that is written: debug, info, warning or error.
        stream: Where lines go.
        file: Gets JSON lines as well, whatever the stream gets. Rotated; see `host.log_file`.
        feed: Gets the events as they are.
    """
    target = stream or sys.stderr
    colours = target.isatty() and "NO_COLOR" not in os.environ
    renderer: Any = _to_json if json_lines else structlog.dev.ConsoleRenderer(colors=colours, pad_event_to=24)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _blank_secrets,
            _Copies(LogFile(file) if file is not None else None, feed),
            _Out(renderer, journal=is_journal(target), json_lines=json_lines),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=lambda *_: _Stream(target),
        cache_logger_on_first_use=False,
    )
    _take_over_libraries()


def is_journal(stream: TextIO) -> bool:
    """Whether the stream is connected to the systemd journal, as JOURNAL_STREAM tells (systemd.exec(5))."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class _Stream:
    """Writes lines to a stream. One that is closed, or full, is no reason to end."""

    _lock = threading.Lock()

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def msg(self, line: str) -> None:
        try:
            with self._lock:
                self._stream.write(line + "\n")
                self._stream.flush()
        except (OSError, ValueError):
            return

    debug = info = warning = error = critical = msg


class _Copies:
    """Gives a finished event to the file and to the feed, before it is made up for the stream."""

    def __init__(self, file: LogFile | None, feed: EventFeed | None) -> None:
        self._file = file
        self._feed = feed

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        if self._file is not None:
            self._file.write(_to_json(None, "", event))
        if self._feed is not None:
            self._feed.append(event)
        return event


class _Out:
    """Makes an event up for the stream."""

    def __init__(self, renderer: Any, *, journal: bool, json_lines: bool) -> None:  # noqa: ANN401 -- structlog's
        self._renderer = renderer
        self._journal = journal
        self._local_time = None if json_lines else structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> str:
        priority = f"<{_PRIORITIES.get(event.get('level', ''), 6)}>" if self._journal else ""
        if self._journal:
            event.pop("timestamp", None)
        elif self._local_time is not None:
            event = self._local_time(logger, method, event)
        line = self._renderer(logger, method, event)
        # Each line is an entry of the journal, of a level of its own.
        return priority + str(line).replace("\n", f"\n{priority}")


def _to_json(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    return json.dumps(event, default=str)


def _blank_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    for key, value in event.items():
        secret = any(word in key.lower() for word in _SECRET_FIELDS)
        event[key] = "***" if secret else _blanked(value, _DEEPEST)
    return event


def _blanked(value: Any, depth: int) -> Any:  # noqa: ANN401 -- any value of a field
    if isinstance(value, str):
        if len(value) > _LONGEST_TEXT:
            value = f"{value[:_LONGEST_TEXT]}… ({len(value)} characters)"
        return value if len(value) < _SHORTEST_SECRET else without_secrets(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if depth and isinstance(value, dict):
        return {str(key): _blanked(each, depth - 1) for key, each in value.items()}
    if depth and isinstance(value, list | tuple | set | frozenset):
        return [_blanked(each, depth - 1) for each in value]
    return _blanked(str(value), depth)


class _FromLibraries(logging.Handler):
    """Makes events of what libraries say with Python's own logging."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
        except (TypeError, ValueError):  # arguments that do not fit the message
            text = str(record.msg)
        trace = logging.Formatter().formatException(record.exc_info) if record.exc_info else None
        if record.levelno >= logging.ERROR:
            get_logger().error("library.failed", library=record.name, text=text, exception=trace)
        else:
            get_logger().warning("library.warned", library=record.name, text=text, exception=trace)


def _take_over_libraries() -> None:
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if isinstance(handler, _FromLibraries):
            root.removeHandler(handler)
    root.addHandler(_FromLibraries(logging.WARNING))
    # It warns whenever a job is still running when its time comes again, which is what we ask it to bear.
    logging.getLogger("apscheduler").setLevel(logging.ERROR)
