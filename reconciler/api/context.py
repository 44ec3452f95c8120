"""What the management API is made of: it does nothing itself, and everything that it needs is named here."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from reconciler.api.schemas import ModelMetrics
from reconciler.api.sessions import Sessions
from reconciler.api.streams import MOST_LOG_FOLLOWERS, Listeners
from reconciler.core.key_usage import KeyUse
from reconciler.core.state import Json
from reconciler.host.event_feed import EventFeed
from reconciler.host.key_file import KeyFile
from reconciler.loop.edits import Edits
from reconciler.loop.logs import Logs
from reconciler.loop.operations import Operations


@dataclass(frozen=True, slots=True)
class Access:
    """Who may come, and from where.

    Attributes:
        host: The address that is listened on.
        allowed_hosts: Names that clients may call us by, `*.example.org` for all below; the default is the
            names of this machine's loopback, and `host`.
        cors_origins: Origins whose pages may call the API with a key; CORS is off without.
    """

    host: str = "127.0.0.1"
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """Where model files come from: a folder, or a repository without credentials."""

    kind: Literal["folder", "git"]
    place: str


@dataclass(frozen=True, slots=True)
class Context:
    """Everything that the API needs.

    Attributes:
        operations: What can be asked of the reconciler.
        keys: Who may ask.
        sessions: Who is logged in, on the page; shared with it.
        state_dir: Where the journal is.
        source: Where model files come from.
        feed: The events of the log.
        logs: The merged logs.
        edits: Changes of model files.
        serve: Serve's own description of itself; raises `ServeUnreachableError`.
        metrics_text: What `/metrics` answers.
        model_metrics: A model's measures over the last hour; None where nothing is measured.
        key_usage: How much each key is used, by fingerprint.
        access: Who may come.
        log_followers: Who follows the logs, over the API and on the page.
    """

    operations: Operations
    keys: KeyFile
    sessions: Sessions
    state_dir: Path
    source: Place
    feed: EventFeed
    logs: Logs
    edits: Edits
    serve: Callable[[], Awaitable[Json]]
    metrics_text: Callable[[], bytes]
    model_metrics: Callable[[str], ModelMetrics | None]
    key_usage: Callable[[], Mapping[str, KeyUse]] = dict
    access: Access = field(default_factory=Access)
    log_followers: Listeners = field(default_factory=lambda: Listeners(MOST_LOG_FOLLOWERS, "followers of logs"))
