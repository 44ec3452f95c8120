"""How the page is made: the templates, and the words and numbers in them."""

import hashlib
import time
import unicodedata
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.responses import HTMLResponse

from reconciler.core.weights import Phase, in_words
from reconciler.core.words import in_time
from reconciler.page import charts, offered

_HERE = Path(__file__).resolve().parent
STATIC = _HERE / "static"
_MOVING = frozenset({Phase.QUEUED, Phase.LISTING, Phase.FETCHING, Phase.VERIFYING, Phase.WAITING})
_LOOK = {
    "loaded": ("good", "●"),
    "loading": ("busy", "◐"),
    "unloading": ("busy", "◑"),
    "sleeping": ("calm", "☾"),
    "unloaded": ("calm", "○"),
    "failed": ("bad", "✕"),
}
_UNSEEN = frozenset({"Cc", "Cf", "Co", "Cs"})
_HARMLESS = frozenset("\n\t\u200c\u200d")
"""Line ends, and what joins the signs of a word or an emoji."""
_OUTCOMES = {
    "done": "good",
    "started": "busy",
    "failed": "bad",
    "refused": "bad",
    "interrupted": "bad",
    "held": "warn",
}


class Shown:
    """Renders templates."""

    def __init__(self) -> None:
        """Read no template yet; each is read when it is first shown."""
        self._environment = Environment(
            loader=FileSystemLoader(_HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            finalize=_visible,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters |= {
            "ago": ago,
            "clock": clock,
            "exact": exact,
            "ident": ident,
            "is_there": offered.is_there,
            "number": charts.number,
            "offered": offered.offered,
            "offered_for_a_time": offered.offered_for_a_time,
            "path": lambda text: quote(text, safe=""),
            "size": in_words,
            "span": in_time,
        }
        self._environment.globals |= {
            "look": _LOOK,
            "outcomes": _OUTCOMES,
            "moving": _MOVING,
            "chart_width": charts.WIDTH,
            "chart_height": charts.HEIGHT,
        }

    def text(self, template: str, values: Mapping[str, Any]) -> str:
        """A rendered template."""
        return self._environment.get_template(template).render(values)

    def page(self, template: str, status: int = 200, /, **values: Any) -> HTMLResponse:  # noqa: ANN401 -- values for a template
        """The same, as an answer."""
        return HTMLResponse(self.text(template, values), status)


def ident(text: str) -> str:
    """An id in the document for anything, whatever its name is made of."""
    return "x" + hashlib.sha256(text.encode(errors="replace")).hexdigest()[:12]


def exact(text: str) -> Markup:
    """Text that comes back as it was sent: in fields of forms."""
    return Markup(escape(text))  # noqa: S704 -- escaped right here


def ago(seconds: float) -> str:
    """How long it is since a moment, given in seconds since the epoch."""
    since = time.time() - seconds
    return "just now" if since < 1 else f"{in_time(since)} ago"


def clock(seconds: float) -> str:
    """A moment, given in seconds since the epoch: `2026-11-26 04:12:07 UTC`."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return "at no time"


def visible(text: str) -> str:
    """Text from elsewhere with its invisible marks spelled out: they can turn a line around."""
    if text.isprintable():
        return text
    return "".join(
        f"\\u{ord(char):04x}" if char not in _HARMLESS and unicodedata.category(char) in _UNSEEN else char
        for char in text
    )


def _visible(value: Any) -> Any:  # noqa: ANN401 -- whatever a template puts out
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
