"""What the API answers, as types: its contract with the page, with scripts and with its own document.

Sizes are in bytes, times in seconds since the epoch, durations in seconds. Within `/api/v1` fields are only added.
"""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from reconciler.core.key_usage import KeyUse
from reconciler.core.keys import Key
from reconciler.core.state import Json


class View(BaseModel):
    """Something that is shown."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class CommitView(View):
    """A commit of the source."""

    commit: str
    at: float = 0.0
    author: str = ""
    subject: str = ""


class DesiredView(View):
    """What a model's file asks for."""

    file: str
    policy: str
    """pinned, on_demand or manual."""
    revision: str
    changed_by: CommitView | None = None
    """The commit that changed the file last, where the source can tell."""
    application: str
    """The version that the file stands for."""


class ReplicaView(View):
    """One engine process."""

    id: str
    state: str
    node: str = ""
    gpus: tuple[int, ...] = ()
    """Indices on that node, where they are known."""
    pid: int | None = None
    log: str = ""
    """Name of its log file on that node."""


class ActualView(View):
    """What is up."""

    state: Literal["loaded", "loading", "sleeping", "unloaded", "unloading", "failed"]
    application: str | None = None
    """The version that has the traffic."""
    health: str | None = None
    """Its status, as Serve names it."""
    replicas: tuple[ReplicaView, ...] = ()
    in_flight: int | None = None
    waiting: int = 0
    idle_seconds: float | None = None
    up_seconds: float | None = None
    expected_wait: float | None = None
    """Seconds until it answers, as far as earlier loads tell."""


class MemoryView(View):
    """What a model takes on each of its GPUs, or of main memory."""

    where: str
    ranks: int
    total: int
    """Of one such GPU."""
    needed: int
    needed_safe: int
    measured: int | None = None
    """What the engine itself said at a start."""
    basis: str


class WeightsView(View):
    """One repository that a model is made of."""

    repo: str
    commit: str
    revision: str
    phase: str
    done: int
    total: int | None
    seconds_left: float | None
    rate: float | None = None
    """Bytes a second."""
    reason: str = ""


class OverrideView(View):
    """What holds by hand."""

    kind: str
    until: float | None
    drift: bool
    text: str


class HistoryView(View):
    """A line of the journal; the fields of `core.journal_entry.Entry`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    at: str
    model: str
    what: str
    outcome: str
    cause: str = ""
    revision: str = ""
    commit: str = ""
    author: str = ""
    text: str = ""
    """The whole line in words, as `reconcile history` prints it."""


class ModelView(View):
    """One model: what its file wants and what is up, apart from each other."""

    name: str
    description: str = ""
    task: str = "generate"
    aliases: tuple[str, ...] = ()
    sync: str
    """`in sync`, `held`, `invalid`, or the action that is pending."""
    reason: str = ""
    """In plain words, wherever the two differ or something is waited for."""
    desired: DesiredView | None
    """None: no file declares it, or the file that did is invalid."""
    actual: ActualView
    memory: MemoryView | None = None
    weights: tuple[WeightsView, ...] = ()
    window_open: bool = False
    """A time window of its schedule is open: until it closes it is kept up as a pinned one is."""
    override: OverrideView | None = None
    suspended: str | None = None
    """In words; None where it is not."""
    suspended_by_all: bool = False
    """Only together with all others: resuming this one does not end it."""
    last: HistoryView | None = None
    """The newest line of the journal about it."""


class ModelDetail(ModelView):
    """The same with everything that is too long for a list."""

    spec: Json | None = None
    """The file's fields with the defaults filled in."""
    text: str | None = None
    """The file as it is; what is no UTF-8 in it is replaced."""
    digest: str | None = None
    """sha256 of the file's bytes: a change names it. None where the file cannot be read."""
    rolled_back: str | None = None
    """What it was taken back to by hand, in words; None where it was not."""
    rolled_back_by_all: bool = False
    """Only together with all others: ending it for this one does nothing."""
    engine: Json | None = None
    """The rendered application."""
    problems: tuple[str, ...] = ()


class ModelList(View):
    """All models."""

    revision: str
    looked_at: float
    models: tuple[ModelView, ...]
    problems: tuple[str, ...] = ()
    """Mistakes in files, as `file:line:column: message`."""
    refused: tuple[str, ...] = ()
    suspended: str | None = None
    """The suspension of all of them, in words; None where there is none."""


class SourceView(View):
    """Where the files come from."""

    kind: Literal["folder", "git"]
    place: str
    ref: str = ""
    commit: CommitView | None = None
    signed_by: str = ""
    checked_at: float | None = None
    age_seconds: float | None = None
    """Since it was last reached."""
    problem: str = ""


class GpuUse(View):
    """A model's part of a GPU."""

    model: str
    bytes: int
    pending: Literal["", "coming", "going"] = ""
    """What the pending plan does with it."""


class GpuView(View):
    """One GPU: what is on it now, and what the pending plan makes of it."""

    index: int
    uuid: str = ""
    name: str = ""
    total: int
    foreign: int = 0
    """Of processes that are not Ray's."""
    failed: str = ""
    models: tuple[GpuUse, ...] = ()
    after: tuple[GpuUse, ...] = ()


class NodeView(View):
    """One node of the Ray cluster. Where it has no GPU, `devices` is empty."""

    id: str
    host: str = ""
    gpus: float = 0.0
    accelerator: str | None = None
    devices: tuple[GpuView, ...] = ()


class ClusterView(View):
    """All nodes."""

    nodes: tuple[NodeView, ...]


class PlanView(View):
    """The pending plan: the JSON of `reconcile plan --output json`, and the same as text."""

    plan: Json
    text: str
    """As `reconcile plan` prints it, without colours."""
    problems: tuple[str, ...] = ()


class Done(View):
    """A command that was carried out."""

    model: str | None = None
    text: str
    until: float | None = None


class FileView(View):
    """A model file."""

    path: str
    text: str
    digest: str
    """sha256 of the text: a change names it, so that nobody overwrites what they have not seen."""


class EditView(View):
    """What a change of a file is, or would be."""

    path: str
    diff: str
    """Unified."""
    problems: tuple[str, ...] = ()
    """Why it is refused; empty: it is valid."""
    written: bool = False
    backup: str | None = None
    """Where the file as it was is kept, relative to the state directory."""
    commit: str | None = None
    branch: str | None = None
    patch: str | None = None
    """In a git source without a place to push to: for `git am`."""


class SeriesView(View):
    """One measure over the last hour; a point a step, null where nothing was measured."""

    name: str
    unit: str
    start: float
    step: float
    points: tuple[float | None, ...]


class ModelMetrics(View):
    """A model's measures over the last hour."""

    model: str
    series: tuple[SeriesView, ...]


class LogLine(View):
    """One line of a log."""

    at: float | None
    origin: str
    """reconciler, edge, serve or vllm."""
    model: str | None = None
    level: str = "info"
    text: str


class LogView(View):
    """Lines of a log, oldest first."""

    lines: tuple[LogLine, ...]


class CatalogueRow(View):
    """A well-known model."""

    name: str
    repo: str
    task: str
    parameters: str = ""
    license: str = ""
    description: str = ""
    needs: str = Field(default="", description="Memory in words.")


class KeyView(View):
    """A key, without what it opens with."""

    fingerprint: str
    name: str
    scopes: tuple[str, ...]
    models: tuple[str, ...] | None = None
    created: float
    expires: float | None = None
    revoked: float | None = None
    requests_per_minute: int | None = None
    concurrent: int | None = None
    requests: int = 0
    last_used: float | None = None

    @classmethod
    def of(cls, key: Key, use: KeyUse | None) -> Self:
        """A key, and how much it was used where that is known."""
        use = use or KeyUse()
        return cls(
            fingerprint=key.fingerprint,
            name=key.name,
            scopes=tuple(sorted(key.scopes)),
            models=None if key.models is None else tuple(sorted(key.models)),
            created=key.created,
            expires=key.expires,
            revoked=key.revoked,
            requests_per_minute=key.requests_per_minute,
            concurrent=key.concurrent,
            requests=use.requests,
            last_used=use.last_used,
        )


class Problem(View):
    """Why something is refused or failed."""

    error: str
    near: tuple[str, ...] = ()
    """Names that were perhaps meant."""


class HistoryList(View):
    """Lines of the journal, the newest first."""

    entries: tuple[HistoryView, ...]


class RevisionProblem(View):
    """A branch or tag of which nobody can tell which commit it is."""

    model_config = ConfigDict(extra="allow", frozen=True)

    repo: str
    revision: str
    reason: str = ""


class DownloadList(View):
    """What is being fetched, and what could not be."""

    copies: tuple[WeightsView, ...]
    revisions: tuple[RevisionProblem, ...] = ()


class FileList(View):
    """All model files."""

    files: tuple[FileView, ...]


class CatalogueList(View):
    """Well-known models."""

    models: tuple[CatalogueRow, ...]


class KeyList(View):
    """All keys, revoked ones included."""

    keys: tuple[KeyView, ...]


class NewKey(View):
    """A key that was made."""

    key: KeyView
    secret: str
    """What it opens with. It is shown this once, and kept nowhere."""


class ServeView(View):
    """Ray Serve's own description of itself, without secrets."""

    instance: Json
