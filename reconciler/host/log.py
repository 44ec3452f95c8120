"""Events: one JSON line each for machines, a readable line on a terminal.

An event has a stable name (`model.ready`), listed in docs/events.md, and flat fields. Nothing secret may be
passed in; values of fields whose name says that they are secret are blanked all the same.
"""

import logging
import os
import sys
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, WrappedLogger

_SECRET_FIELDS = ("token", "secret", "password", "authorization", "api_key")


def get_logger() -> Any:  # noqa: ANN401 -- structlog's bound logger is a dynamic proxy
    """The logger of the control plane: `get_logger().info("event.name", field=value)`."""
    return structlog.get_logger("reconciler")


def configure(*, json_lines: bool, level: str = "info", stream: TextIO | None = None) -> None:
    """Send events to `stream` (standard error by default) as JSON lines, or for a person to read.

    Args:
        json_lines: One JSON object a line; otherwise aligned, coloured text.
        level: The least severe level that is written: debug, info, warning or error.
        stream: Where lines go.
    """
    target = stream or sys.stderr
    colours = target.isatty() and "NO_COLOR" not in os.environ
    renderer: Any = (
        structlog.processors.JSONRenderer(default=str)
        if json_lines
        else structlog.dev.ConsoleRenderer(colors=colours, pad_event_to=24)
    )
    # It warns whenever a job is still running when its time comes again, which is what we ask it to bear.
    logging.getLogger("apscheduler").setLevel(logging.ERROR)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso" if json_lines else "%H:%M:%S", utc=json_lines),
            _blank_secrets,
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(target),
        cache_logger_on_first_use=False,
    )


def _blank_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    for key in event:
        if any(word in key.lower() for word in _SECRET_FIELDS):
            event[key] = "***"
    return event
