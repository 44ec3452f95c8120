"""A backend of the page in memory: a bad week, with names, texts and logs that try to break out of the page."""

import asyncio
import difflib
import hashlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from reconciler.api.schemas import (
    ActualView,
    CatalogueRow,
    ClusterView,
    CommitView,
    DesiredView,
    Done,
    EditView,
    GpuUse,
    GpuView,
    HistoryView,
    LogLine,
    LogView,
    MemoryView,
    ModelDetail,
    ModelList,
    ModelMetrics,
    NodeView,
    OverrideView,
    PlanView,
    ReplicaView,
    SeriesView,
    SourceView,
    WeightsView,
)
from reconciler.core.keys import Key, KeyRing, Scope, digest_of
from reconciler.core.safety import ALLOW_FLAG
from reconciler.host.event_feed import FeedEvent
from reconciler.loop.by_hand import CONFLICT, NOT_FOUND, CommandRefusedError

GIB = 1024**3
KEY = "rk-" + "a" * 43
EVIL = (
    '<script>window.injected=1</script><img src=x onerror="window.injected=1">\'"`{{7*7}}${7*7} '
    "javascript:window.injected=1 \u202egnp.exe\u202c </textarea></title><svg/onload=window.injected=1>"
)
EVIL_NAME = "<img src=x onerror=window.injected=1>/\"'&?#%2e.\u202ex"
LONG = "a-model-with-a-name-of-the-greatest-length-there-may-be-which-is-ninety-six-characters-of-it-abc"


RING = KeyRing((Key("ops", digest_of(KEY), frozenset({Scope.ADMIN}), 0.0),))


def text_of(repo: str, policy: str) -> str:
    return f"source:\n  repo: {repo}\nlifecycle:\n  policy: {policy}\n"


def model(name: str, state: Any, policy: str = "on_demand", **more: Any) -> ModelDetail:
    at = time.time()
    application = f"{name[:20]}-3fa9c1d2"
    up = state in ("loaded", "loading", "sleeping")
    replica = ReplicaView(id="rep7f", state="RUNNING", node="gpu-1", gpus=(0,), pid=4711, log="replica_rep7f.log")
    values: dict[str, Any] = {
        "name": name,
        "sync": "in sync",
        "desired": DesiredView(
            file=f"models.d/{name}.yaml",
            policy=policy,
            revision="main",
            application=application,
            changed_by=CommitView(
                commit="9f8e7d6c5b4a39281706", at=at - 7300, author="Ada", subject="longer context"
            ),
        ),
        "actual": ActualView(
            state=state,
            application=application if up else None,
            health="RUNNING" if state == "loaded" else None,
            replicas=(replica,) if up else (),
            in_flight=2 if state == "loaded" else None,
            idle_seconds=42.0 if state == "loaded" else None,
            up_seconds=7200.0 if state == "loaded" else None,
            expected_wait=35.0 if not up else None,
        ),
        "memory": MemoryView(
            where="h100-80g", ranks=1, total=80 * GIB, needed=21 * GIB, needed_safe=24 * GIB, basis="tensors"
        ),
        "spec": {"source": {"repo": "Qwen/Qwen3-0.6B"}, "lifecycle": {"policy": policy}, "aliases": []},
        "text": text_of("Qwen/Qwen3-0.6B", policy),
        "engine": {"name": application, "args": {"model_id": name}},
    }
    return ModelDetail(**{**values, **more})


def weights(repo: str, phase: str, done: int, total: int, **more: Any) -> WeightsView:
    return WeightsView(
        repo=repo, commit="c0ffee", revision="main", phase=phase, done=done, total=total, seconds_left=None, **more
    )


def models() -> dict[str, ModelDetail]:
    downloading = weights("Qwen/Qwen3-8B", "downloading", 4 * GIB, 16 * GIB, rate=90e6)
    listed = [
        model("qwen3-0.6b", "loaded", "pinned", aliases=("qwen",), description="Small and quick.", weights=()),
        model(
            "qwen3-8b",
            "unloaded",
            weights=(downloading,),
            sync="add",
            reason="its weights are being downloaded; it is loaded when they are there",
        ),
        model("embed", "sleeping", task="embed", description="Embeddings.", override=OverrideView(
            kind="pin", until=None, drift=False, text="pinned for 50 min by hand; its file says on_demand")),
        model("mixtral", "loading", sync="load", reason="1 request waits for it"),
        model("org/broken", "failed", sync="held", reason=f"CUDA out of memory {EVIL}", suspended=f"today {EVIL}"),
        model(LONG, "unloaded", "manual"),
        model(
            EVIL_NAME,
            "unloaded",
            description=EVIL,
            aliases=(EVIL,),
            task=EVIL,
            sync="invalid",
            reason=EVIL,
            desired=None,
            text=f"# {EVIL}\nsource: [\n",
            problems=(f"models.d/evil.yaml:2:9: {EVIL}",),
            weights=(weights(EVIL, "failed", 1, 2, reason=EVIL),),
            spec=None,
        ),
    ]  # fmt: skip
    return {each.name: each for each in listed}


@dataclass
class FakeBackend:
    """Keeps models, and what it was told to do."""

    of: dict[str, ModelDetail] = field(default_factory=models)
    done: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    events: list[FeedEvent] = field(default_factory=list)
    listeners: int = 0
    pending: bool = True
    starting: bool = False
    nodes: bool = True
    suspended: str | None = None
    """All models are."""

    def set_state(self, name: str, state: Any) -> None:
        """As the loop would, with an event."""
        old = self.of[name]
        self.of[name] = old.model_copy(update={"actual": old.actual.model_copy(update={"state": state})})
        self.happen("model.state_changed", model=name, note=EVIL)

    def happen(self, event: str, **fields: object) -> None:
        number = str(len(self.events) + 1)
        line: dict[str, object] = {"event": event, "level": "info", "timestamp": "2026-11-26T04:12:07Z", **fields}
        self.events.append(FeedEvent(number, line))

    async def models(self) -> ModelList:
        if self.starting:
            raise CommandRefusedError(503, "the reconciler has not finished its first look yet; try again shortly")
        names = ModelDetail.model_fields.keys() - {
            "spec", "text", "digest", "engine", "problems", "rolled_back", "rolled_back_by_all",
        }  # fmt: skip
        listed = tuple(ModelDetail(**{name: getattr(each, name) for name in names}) for each in self.of.values())
        problems = (f"models.d/evil.yaml:2:9: {EVIL}",) if EVIL_NAME in self.of else ()
        return ModelList(
            revision="9f8e7d6c5b4a",
            looked_at=time.time(),
            models=listed,
            problems=problems,
            suspended=self.suspended,
        )

    async def model(self, name: str) -> ModelDetail:
        if name not in self.of:
            raise CommandRefusedError(NOT_FOUND, f"there is no model {name!r}", ("qwen3-0.6b",))
        found = self.of[name]
        digest = None if found.text is None else hashlib.sha256(found.text.encode()).hexdigest()
        return found.model_copy(update={"digest": digest})

    async def plan(self) -> PlanView:
        if not self.pending:
            return PlanView(plan={"changes": [], "base": {}}, text="No changes.\n")
        change = {
            "model": "qwen3-0.6b", "action": "replace", "cause": "models.d/qwen3-0.6b.yaml changed",
            "old": "qwen3-0-6b-d71e2340", "new": "qwen3-0-6b-f12c0189", "order": "beside", "phase": "",
            "fields": [
                {"path": "engine.max_model_len", "old": 8192, "new": 16384, "effect": "new engine"},
                {"path": "description", "old": None, "new": EVIL, "effect": "front door"},
            ],
            "memory": {"needed": 21 * GIB, "where": "h100-80g"},
        }  # fmt: skip
        bad: dict[str, Any] = {
            "model": EVIL_NAME,
            "action": "remove",
            "cause": EVIL,
            "old": EVIL,
            "new": None,
            "fields": [],
        }
        plan = {
            "revision": "9f8e", "base": {"desired": "d1", "observed": "o1"}, "changes": [change, bad],
            "held": [{"model": "org/broken", "kind": "failed", "reason": EVIL, "advice": [EVIL]}],
            "refused": [{"models": [EVIL_NAME], "reason": EVIL, "flag": ALLOW_FLAG}],
            "resting": [{"model": "mixtral", "reason": "on demand: a request loads it"}],
            "notes": [{"model": "embed", "text": EVIL}],
            "summary": {"add": 0, "replace": 1, "remove": 1, "held": 1},
        }  # fmt: skip
        return PlanView(
            plan=plan, text=f"± qwen3-0.6b replace\n{EVIL}\n", problems=(f"models.d/x.yaml:1:1: {EVIL}",)
        )

    async def cluster(self) -> ClusterView:
        if not self.nodes:
            return ClusterView(nodes=())
        stays = GpuUse(model="qwen3-0.6b", bytes=21 * GIB)
        first = GpuView(
            index=0,
            uuid="GPU-1",
            name="NVIDIA H100 80GB",
            total=80 * GIB,
            foreign=3 * GIB,
            models=(stays, GpuUse(model="mixtral", bytes=30 * GIB, pending="going")),
            after=(stays, GpuUse(model=EVIL_NAME, bytes=40 * GIB, pending="coming")),
        )
        second = GpuView(index=1, name=EVIL, total=80 * GIB, failed=EVIL)
        cpu = NodeView(id="node2", host="cpu-box")
        return ClusterView(
            nodes=(NodeView(id="n1", host="gpu-1", gpus=2, accelerator="H100", devices=(first, second)), cpu)
        )

    async def history(self, model: str | None, limit: int) -> list[HistoryView]:
        at = "2026-11-26T04:12:07.120Z"
        lines = [
            HistoryView(at=at, model="qwen3-0.6b", what="replace", outcome="done", cause="its file changed",
                        commit="9f8e7d6c5b4a", author="Ada", text="2026-11-26 qwen3-0.6b replaced in 61 s"),
            HistoryView(at=at, model=EVIL_NAME, what="hold", outcome="failed", cause=EVIL, author=EVIL, text=EVIL),
        ]  # fmt: skip
        return [line for line in lines if model in (None, line.model)][:limit]

    async def downloads(self) -> list[WeightsView]:
        return [weights("other/tokenizer", "downloading", 10, 100)]

    async def source(self) -> SourceView:
        commit = CommitView(commit="9f8e7d6c5b4a39281706", at=time.time() - 7300, author=EVIL, subject=EVIL)
        return SourceView(kind="git", place="https://git.example/models.git", ref="main", commit=commit,
                          signed_by="ada@example.org", age_seconds=12.0, problem=f"it said {EVIL}")  # fmt: skip

    async def catalogue(self, words: str) -> list[CatalogueRow]:
        rows = [
            CatalogueRow(name="qwen3-0.6b", repo="Qwen/Qwen3-0.6B", task="generate", parameters="0.6 B",
                         license="apache-2.0", description="A very small chat model.", needs="about 3 GiB"),
            CatalogueRow(name="evil", repo=EVIL, task="generate", description=EVIL),
        ]  # fmt: skip
        return [row for row in rows if words.lower() in row.name]

    async def model_metrics(self, name: str) -> ModelMetrics | None:
        if self.of[name].actual.state != "loaded":
            return None
        points = tuple(None if 20 < i < 26 else float(i % 17) for i in range(60))
        return ModelMetrics(model=name, series=(
            SeriesView(name="Requests", unit="/s", start=0, step=60, points=points),
            SeriesView(name=EVIL, unit="tokens/s", start=0, step=60, points=points),
            SeriesView(name="KV cache", unit="%", start=0, step=60, points=()),
        ))  # fmt: skip

    async def logs(self, model: str | None, lines: int) -> LogView:
        log = [
            LogLine(at=1.7e9, origin="vllm", model="qwen3-0.6b", level="info", text="Starting vLLM engine"),
            LogLine(at=1.7e9, origin="serve", model=EVIL_NAME, level="error", text=EVIL),
            LogLine(at=None, origin="edge", level="warning", text="\x1b[31mred\x1b[0m " + "x" * 400),
        ]
        return LogView(lines=tuple(log[-lines:]))

    async def do(self, action: str, model: str, **options: Any) -> Done:
        if model == "org/broken":
            raise CommandRefusedError(CONFLICT, f"{model} is suspended {EVIL}")
        await self.model(model)
        self.done.append((action, model, options))
        if action in ("load", "unload"):
            self.set_state(model, "loading" if action == "load" else "unloading")
        return Done(model=model, text=f"{action} of {model} is asked for")

    def suspend(self, model: str | None, seconds: float | None, reason: str) -> Done:
        self.suspended = f"all models are suspended by hand {EVIL}"
        return Done(model=model, text=self.suspended)

    def resume(self, model: str | None) -> Done:
        self.suspended = None
        return Done(model=model, text="1 suspensions have ended")

    async def apply_plan(self, desired: str, observed: str) -> Done:
        if (desired, observed) != ("d1", "o1"):
            raise CommandRefusedError(CONFLICT, "the plan is stale: the model files changed")
        self.pending = False
        return Done(text="2 changes are applied")

    async def sync(self) -> Done:
        self.done.append(("sync", "", {}))
        return Done(text="nothing new in https://git.example/models.git")

    async def add_preview(self, repo: str, name: str | None, revision: str | None) -> EditView:
        if "/" not in repo:
            raise CommandRefusedError(400, f"{repo!r} is no repository", ("Qwen/Qwen3-0.6B",))
        new = text_of(repo, "on_demand")
        path = f"models.d/{name or 'new'}.yaml"
        return EditView(path=path, diff=_diff("", new, path))

    async def add(self, repo: str, name: str | None, revision: str | None, *, author: str) -> EditView:
        edit = await self.add_preview(repo, name, revision)
        self.of[name or "new"] = model(name or "new", "unloaded")
        return edit.model_copy(update={"written": True})

    async def edit_preview(self, model: str, text: str, digest: str) -> EditView:
        old = (await self.model(model)).text or ""
        if hashlib.sha256(old.encode()).hexdigest() != digest:
            raise CommandRefusedError(CONFLICT, "the file was changed by somebody else; load the page again")
        problems = () if "repo:" in text else (f"models.d/{model}.yaml:1:1: source is missing {EVIL}",)
        return EditView(path=f"models.d/{model}.yaml", diff=_diff(old, text, model), problems=problems)

    async def edit(self, model: str, text: str, digest: str, *, author: str) -> EditView:
        edit = await self.edit_preview(model, text, digest)
        if edit.problems:
            return edit
        self.of[model] = self.of[model].model_copy(update={"text": text})
        return edit.model_copy(update={"written": True, "backup": "backups/it.yaml"})

    async def remove(self, model: str, digest: str, *, author: str) -> EditView:
        await self.edit_preview(model, "repo:", digest)
        if model == "embed":
            return EditView(path="models.d/embed.yaml", diff="", patch=f"From 9f8e\nSubject: remove {EVIL}\n")
        del self.of[model]
        return EditView(path=f"models.d/{model}.yaml", diff="", written=True)

    async def chat(self, model: str, messages: Sequence[Mapping[str, str]], max_tokens: int) -> AsyncIterator[str]:
        if messages[-1]["content"] == "fail":
            raise CommandRefusedError(503, f"it does not come up {EVIL}")
        for piece in ("Good ", "day. ", EVIL, f" ({len(messages)} messages, {max_tokens} tokens)"):
            await asyncio.sleep(0.02)
            yield piece

    async def follow_events(self, last_id: str | None) -> AsyncIterator[FeedEvent]:
        seen = int(last_id) if last_id else len(self.events)
        self.listeners += 1
        try:
            while True:
                for each in self.events[seen:]:
                    yield each
                seen = len(self.events)
                await asyncio.sleep(0.02)
        finally:
            self.listeners -= 1

    async def follow_logs(self, model: str | None) -> AsyncIterator[LogLine]:
        while True:
            await asyncio.sleep(0.2)
            yield LogLine(at=time.time(), origin="vllm", model=model, level="info", text=f"live line {EVIL}")


def _diff(old: str, new: str, path: str) -> str:
    lines = difflib.unified_diff(old.splitlines(True), new.splitlines(True), f"a/{path}", f"b/{path}")
    return "".join(lines)
