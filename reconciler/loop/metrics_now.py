"""What is, as measures for Prometheus: of source, plan, models and GPUs, from the last look. Pure."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from reconciler.core.main_memory import main_memory_of
from reconciler.core.placement import Ledger
from reconciler.core.state import Observed, homes_of
from reconciler.loop.loop import Look

Rows = Sequence[tuple[tuple[str, ...], float]]


def gauge(name: str, words: str, numbers: Rows, labels: Sequence[str] = ()) -> Metric:
    """A measure that goes up and down; each row has the values of its labels, and a number."""
    family = GaugeMetricFamily(name, words, labels=labels)
    for values, value in numbers:
        family.add_metric(values, value)
    return family


def counter(name: str, words: str, numbers: Rows, labels: Sequence[str]) -> Metric:
    """A measure that only grows; its name goes without `_total`."""
    family = CounterMetricFamily(name, words, labels=labels)
    for values, value in numbers:
        family.add_metric(values, value)
    return family


def rows(counts: Mapping[str, float]) -> Rows:
    """Numbers by the value of their only label."""
    return [((name,), value) for name, value in counts.items()]


def of_source(look: Look, now: float) -> Iterator[Metric]:
    """Where the model files come from; `now` in seconds since the epoch."""
    desired, came_from = look.desired, look.desired.provenance
    problem = bool(desired.unreadable or (came_from is not None and came_from.problem))
    yield gauge(
        "reconcile_source_problem",
        "1 while the source of the model files cannot be read, or nothing newer is taken over from it.",
        [((), problem)],
    )
    if came_from is not None and came_from.checked_at:
        yield gauge(
            "reconcile_source_age_seconds",
            "Since the git repository was last looked at with success.",
            [((), max(0.0, now - came_from.checked_at))],
        )
    yield gauge("reconcile_file_problems", "Mistakes in model files.", [((), len(desired.problems))])
    yield gauge(
        "reconcile_last_look_timestamp_seconds",
        "When the cluster was last looked at.",
        [((), look.observed.now)],
    )


def of_plan(look: Look) -> Iterator[Metric]:
    """What differs from the files."""
    drift = Counter({"true": 0, "false": 0})
    drift.update(str(each.healed).lower() for each in look.plan.drift)
    yield gauge(
        "reconcile_drift_applications",
        "Applications that somebody changed or deleted behind our back, by whether they are put right.",
        rows(drift),
        ["healed"],
    )
    pending = Counter(change.action.value for change in look.plan.changes)
    yield gauge("reconcile_pending_changes", "Changes that the plan has.", rows(pending), ["action"])
    yield gauge("reconcile_refusals", "What safety rules forbid.", [((), len(look.plan.refused))])


def of_each_model(look: Look) -> Iterator[Metric]:
    """The traffic and the engines of every model."""
    observed, models = look.observed, sorted(look.desired.targets)
    live = [app for app in observed.applications.values() if app.model is not None]
    waiting = {model: observed.waiting.get(model) for model in sorted({*models, *observed.waiting})}
    of_model: dict[str, Counter[str]] = {
        "up": Counter(),
        "wanted": Counter(),
        "in_flight": Counter(),
    }
    for app in live:
        model = app.model or ""
        of_model["up"][model] += sum(replica.state == "RUNNING" for replica in app.replicas)
        of_model["wanted"][model] += app.demand.replicas
        of_model["in_flight"][model] += (observed.in_flight or {}).get(app.name, 0)
    yield gauge(
        "reconcile_model_held",
        "1 for a model that is not where its file wants it and stays so, by the kind of reason.",
        [((model, kind), 1) for model, kind in dict.fromkeys((h.model, h.kind.value) for h in look.plan.held)],
        ["model", "kind"],
    )
    yield gauge(
        "reconcile_model_waiting_requests",
        "Requests that wait for a model to come up; all that were told when to come back count as one.",
        [((model,), each.count if each is not None else 0) for model, each in waiting.items()],
        ["model"],
    )
    yield gauge(
        "reconcile_model_waiting_seconds",
        "For how long the first of them has been waiting.",
        [((model,), each.seconds) for model, each in waiting.items() if each is not None],
        ["model"],
    )
    if observed.in_flight is not None:
        yield gauge(
            "reconcile_model_in_flight_requests",
            "Requests that a model is answering.",
            rows(of_model["in_flight"]),
            ["model"],
        )
    idle: dict[str, float] = {}
    for app in live:
        if app.name in observed.idle_seconds:
            seconds = observed.idle_seconds[app.name]
            idle[app.model or ""] = min(seconds, idle.get(app.model or "", seconds))
    yield gauge("reconcile_model_idle_seconds", "Since the last request to a model ended.", rows(idle), ["model"])
    yield gauge("reconcile_model_replicas", "Engines that run.", rows(of_model["up"]), ["model"])
    yield gauge("reconcile_model_replicas_wanted", "Engines that are to run.", rows(of_model["wanted"]), ["model"])
    # Downloads are counted by repository, which several models may share; this says whose they are.
    copies = {(model, copy.repo) for model, target in look.desired.targets.items() for copy in target.copies}
    yield gauge(
        "reconcile_model_repo_info",
        "1 for a repository that a model's weights come from.",
        [((model, repo), 1) for model, repo in sorted(copies)],
        ["model", "repo"],
    )


def of_memory(
    observed: Observed, used: Mapping[str, int], gpu_used: Mapping[tuple[str, int], int]
) -> Iterator[Metric]:
    """What models and GPUs have of memory.

    Args:
        observed: With applications and GPUs.
        used: Bytes in use on GPUs, by application.
        gpu_used: Bytes in use of a GPU, by Ray's id of the node and its index.
    """
    placed = {app.name: app.demand for app in observed.applications.values() if app.model is not None}
    ledger = Ledger(observed.nodes, placed, homes_of(observed.applications))
    parts = _parts(observed, ledger)
    devices = {(node.id, device.index): device for node in observed.nodes for device in node.devices}
    columns: dict[str, list[tuple[tuple[str, ...], float]]] = {
        key: [] for key in ("size", "reserved", "foreign", "used", "failed", "models")
    }
    reserved: dict[str, float] = {}
    in_use: dict[str, float] = {}
    for app in observed.applications.values():
        if app.model is not None and app.config is not None:
            size = main_memory_of(app.config, observed.folder_bytes)
            reserved[app.model] = reserved.get(app.model, 0) + size
            in_use[app.model] = in_use.get(app.model, 0) + used.get(app.name, 0)
    for bar in ledger.bars(ledger):
        place, labels = (bar.node, bar.device), (bar.host or bar.node[:12], bar.node[:12], str(bar.device))
        columns["failed"].append((labels, bool(bar.failed)))
        device = devices.get(place)
        if device is None or not device.total:
            continue
        columns["size"].append((labels, device.total))
        columns["reserved"].append((labels, bar.before.share * device.total))
        columns["foreign"].append((labels, device.foreign))
        if place in gpu_used:
            columns["used"].append((labels, gpu_used[place]))
        for model, share in parts.get(place, {}).items():
            columns["models"].append(((*labels, model), share * device.total))
            reserved[model] = reserved.get(model, 0) + share * device.total
    gpu = ["node", "node_id", "gpu"]
    for key, name, words in (
        ("size", "reconcile_gpu_memory_bytes", "What CUDA can have of a GPU."),
        ("reserved", "reconcile_gpu_memory_reserved_bytes", "What Ray has reserved of a GPU."),
        ("used", "reconcile_gpu_memory_used_bytes", "What is in use of a GPU."),
        ("foreign", "reconcile_gpu_memory_foreign_bytes", "What processes have of a GPU that are not Ray's."),
        ("failed", "reconcile_gpu_failed", "1 for a GPU that is left out of planning."),
    ):
        yield gauge(name, words, columns[key], gpu)
    yield gauge(
        "reconcile_gpu_model_memory_reserved_bytes",
        "What a model has reserved of a GPU, as far as that can be told.",
        columns["models"],
        [*gpu, "model"],
    )
    yield gauge(
        "reconcile_model_memory_reserved_bytes",
        "What a model's versions have of all GPUs by Ray's account, or may take of main memory.",
        rows({model: size for model, size in reserved.items() if size}),
        ["model"],
    )
    yield gauge(
        "reconcile_model_memory_used_bytes",
        "What a model's processes have of GPUs by the driver's account, a minute old at most.",
        rows({model: size for model, size in in_use.items() if size}),
        ["model"],
    )


def _parts(observed: Observed, ledger: Ledger) -> dict[tuple[str, int], dict[str, float]]:
    """Shares by model, of each GPU that our applications are on."""
    found: dict[tuple[str, int], dict[str, float]] = {}
    for bar in ledger.bars(ledger):
        for name in bar.before.applications:
            app = observed.applications[name]
            share = min(1.0, app.demand.gpus)
            if share < 1 and app.demand.ranks * app.demand.replicas > 1:
                # Several of its engines may be on the same one.
                mark = ledger.mark()
                ledger.release([name])
                rest = next(
                    each for each in ledger.bars(ledger) if (each.node, each.device) == (bar.node, bar.device)
                )
                share = bar.before.share - rest.before.share
                ledger.back_to(mark)
            models = found.setdefault((bar.node, bar.device), {})
            models[app.model or ""] = models.get(app.model or "", 0.0) + share
    return found
