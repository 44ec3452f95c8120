"""Logs of Ray's nodes through the dashboard: those whose files are not on this machine. For `loop.logs`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

from reconciler.ray_serve.client import ServeClient, ServeRefusedError, ServeUnreachableError

_LONGEST_NAME = 512


@dataclass(frozen=True, slots=True)
class EngineProcess:
    """A process of an engine, as Ray remembers it: a replica, or a worker in its placement group.

    Attributes:
        application: The Serve application.
        node: Id of its node.
        pid: Its process id there.
        alive: Whether it runs.
    """

    application: str
    node: str
    pid: int
    alive: bool


class NodeLogs(ServeClient):
    """A client that also reads logs. It raises what its other calls raise, unless said otherwise."""

    async def files(self, node: str, glob: str) -> list[str]:
        """Names of the log files of a node that match, relative to its folder of logs."""
        answer = json.loads(await self._call("GET", f"/api/v0/logs?{urlencode({'node_id': node, 'glob': glob})}"))
        found = ((answer.get("data") or {}).get("result") or {}).values()
        names = (name for group in found if isinstance(group, list) for name in group)
        return sorted({name for name in names if isinstance(name, str) and len(name) <= _LONGEST_NAME})

    async def end_of(self, node: str, name: str, lines: int) -> str:
        """The last lines of a log file of a node; empty where it, or the node, is gone."""
        query = urlencode({"node_id": node, "filename": name, "lines": lines})
        try:
            return await self._call("GET", f"/api/v0/logs/file?{query}")
        except (ServeRefusedError, ServeUnreachableError):  # Ray answers 500 where there is no such file.
            return ""

    async def engine_processes(self) -> list[EngineProcess]:
        """The processes of all engines that Ray remembers, dead ones too: replicas and the workers beside them."""
        answer = json.loads(await self._call("GET", "/api/v0/actors?detail=1&limit=10000"))
        rows = ((answer.get("data") or {}).get("result") or {}).get("result") or []
        groups = {row.get("placement_group_id"): app for row in rows if (app := _application(row)) is not None}
        groups.pop(None, None)
        found: list[EngineProcess] = []
        for row in rows:
            application = _application(row) or groups.get(row.get("placement_group_id"))
            node, pid = row.get("node_id"), row.get("pid")
            if application is not None and isinstance(node, str) and isinstance(pid, int) and pid > 0:
                found.append(EngineProcess(application, node, pid, row.get("state") == "ALIVE"))
        return found


def _application(row: Mapping[str, object]) -> str | None:
    """The application of an actor that is a replica: its class is `ServeReplica:APPLICATION:DEPLOYMENT`."""
    kind, _, rest = str(row.get("class_name")).partition(":")
    application, colon, _ = rest.partition(":")
    return application if kind == "ServeReplica" and colon else None
