"""Serve's answer, translated to `core.state`. Pure."""

from collections.abc import Iterable, Mapping

from reconciler.core.application import demand_of, model_of
from reconciler.core.secrets import without_secrets
from reconciler.core.state import Application, Json, Node, Replica, Status
from reconciler.ray_serve.reasons import reason_from_message

_CARRIED = ("proxy_location", "http_options", "grpc_options", "target_capacity")


def serve_settings(instance: Json) -> Json | None:
    """What a PUT has to repeat about the running Serve instance; None where Serve does not run."""
    if not instance.get("controller_info"):
        return None
    return {key: instance[key] for key in _CARRIED if instance.get(key) is not None}


def applications(instance: Json) -> dict[str, Application]:
    """All of Serve's applications by name."""
    return {name: _application(name, details) for name, details in instance.get("applications", {}).items()}


def nodes(rows: Iterable[Json], usage: Mapping[str, tuple[float, float]], ours: float) -> tuple[Node, ...]:
    """The nodes with GPUs.

    Args:
        rows: Ray's state API.
        usage: Reserved and total GPUs by node id.
        ours: GPUs that our own applications reserve, over all nodes.
    """
    found: list[Node] = []
    for row in sorted(rows, key=lambda row: str(row["node_id"])):
        resources: Json = row.get("resources_total") or {}
        total = float(resources.get("GPU", 0.0))
        if total <= 0:
            continue
        reserved = usage.get(row["node_id"], (0.0, total))[0]
        kinds = [key.split(":", 1)[1] for key in resources if key.startswith("accelerator_type:")]
        foreign = max(0.0, reserved - ours)
        ours = max(0.0, ours - reserved)
        host = str(row.get("node_name") or row.get("node_ip") or "")
        found.append(Node(row["node_id"], total, foreign, kinds[0] if kinds else None, host=host))
    return tuple(found)


def _application(name: str, details: Json) -> Application:
    status = Status(details["status"])
    config: Json | None = details.get("deployed_app_config")
    deployments: Json = details.get("deployments") or {}
    # The router is a helper of ours without an engine; its replicas say nothing about the model.
    engines = [item for key, item in deployments.items() if key != "LLMRouter"]
    failure = next((reason for item in engines if (reason := reason_from_message(item.get("message") or ""))), "")
    message = "\n".join(filter(None, [details.get("message"), *(item.get("message") for item in engines)]))
    if status is Status.DEPLOY_FAILED and not failure:
        failure = reason_from_message(details.get("message") or "", certain=True)
    return Application(
        name=name,
        status=status,
        config=config,
        model=model_of(config) if config is not None else None,
        message=without_secrets(message),
        building=status is Status.DEPLOYING and not deployments,
        failure=without_secrets(failure),
        replicas=tuple(_replica(row) for item in engines for row in item.get("replicas") or ()),
        dead_replicas=tuple(_replica(row) for item in engines for row in item.get("recent_dead_replicas") or ()),
        demand=demand_of(config) if config is not None else demand_of({}),
    )


def _replica(row: Json) -> Replica:
    return Replica(
        id=row.get("replica_id") or "",
        state=row.get("state") or "",
        pid=row.get("pid"),
        node_id=row.get("node_id") or "",
        actor_id=row.get("actor_id") or "",
    )
