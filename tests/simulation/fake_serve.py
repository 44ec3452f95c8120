"""A Serve that needs no Ray: applications, builds, placement groups, replicas and their words, by a clock of ours.

It has `ServeClient`'s two calls, `instance` and `put`. What it does with them is Serve's declarative API as
`ray/serve/_private/application_state.py` (2.60) has it; `tests/contract` asks the same of it and of Ray.
"""

import copy
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from reconciler.core.application import demand_of, model_of
from reconciler.core.state import Json
from reconciler.ray_serve.client import ServeRefusedError, ServeUnreachableError

BUILD_SECONDS, BUILD_RETRY_SECONDS, START_SECONDS, DELETE_SECONDS, FLIP_SECONDS = 2.0, 1.0, 3.0, 3.0, 1.0
CONTROLLER_SECONDS, RECOVERY_SECONDS, HEAD_SECONDS = 3.0, 1.0, 8.0
"""How long nobody answers after the controller or the head was lost, and how long replicas are looked for."""
BUILD_TRIES = 4
"""So often a build runs before it counts as failed: Ray itself retries the task (`max_retries=3`)."""
TRIES = 3
"""So often a replica is started before Serve gives up: `MAX_PER_REPLICA_RETRY_COUNT` for one replica."""
SLOW_SECONDS = 30.0
"""After this Serve says that a replica waits for its place."""
REASON = "Repo id must use alphanumeric chars: 'x'."
BUILD, REPLICA, MUTE = "build", "replica", "mute"
_CODE = ("import_path", "runtime_env", "args")
"""What of a configuration decides that an application is built anew (`get_app_code_version`)."""


@dataclass
class SimApp:
    """One application as Serve has it."""

    name: str
    config: Json | None
    status: str = "DEPLOYING"
    message: str = ""
    deployment_message: str = ""
    stage: str = "building"
    """building, pending, starting, running, deleting or broken."""
    until: float = 0.0
    build_began: float = 0.0
    """When its build began, whoever restarted it since."""
    gpu: list[tuple[int, float]] | None = None
    flips_until: float = 0.0
    recovers_until: float = 0.0
    imperative: bool = False
    tries: int = 0
    built: bool = False
    replica: int = 0
    """Its replica's number, which no other has."""

    @property
    def up(self) -> bool:
        """It has a running replica."""
        return self.stage == "running"


@dataclass
class FakeServe:
    """Serve, and the GPUs of one node.

    Attributes:
        faults: By application or model name: `build`, `replica` or `mute`.
        reason: What the exception of a failure says.
        start_seconds: How long a model's replica takes to start, where that is not `START_SECONDS`.
        settings: What a PUT has to repeat about the running instance; None where Serve does not run.
        gone: Told of each application whose replicas are no more.
    """

    clock: Callable[[], float]
    gpus: int = 0
    faults: dict[str, str] = field(default_factory=dict)
    reason: str = REASON
    start_seconds: dict[str, float] = field(default_factory=dict)
    settings: Json | None = None
    apps: dict[str, SimApp] = field(default_factory=dict)
    gone: Callable[[str], None] = lambda name: None
    silent_until: float = 0.0

    def __post_init__(self) -> None:
        self.free = [1.0] * self.gpus
        self.builds: Counter[str] = Counter()
        self._replicas = 0

    # --- what `ServeClient` offers -------------------------------------------------------------------------

    async def instance(self) -> Json:
        """Serve's own description of itself.

        Raises:
            ServeUnreachableError: The controller or the head is gone at the moment.
        """
        return self.describe()

    async def put(self, config: Json) -> None:
        """Replace the whole declarative configuration.

        Raises:
            ServeRefusedError: The configuration is not valid as a whole; nothing changes.
            ServeUnreachableError: The controller or the head is gone at the moment.
        """
        self.apply(config)

    def describe(self) -> Json:
        """`instance`, for whoever does not wait. What it gives belongs to Serve: look, and leave it alone."""
        self._answer()
        if self.settings is None:
            return {"controller_info": {}, "applications": {}}
        details = {app.name: self._details(app) for app in self.apps.values()}
        return {"controller_info": {"pid": 1}, **self.settings, "applications": details}

    def apply(self, body: Json) -> None:
        """`put`, for whoever does not wait."""
        self._answer()
        wanted = _valid(body)
        self.settings = self.settings or {"proxy_location": body.get("proxy_location", "HeadOnly")}
        for name, config in wanted.items():
            there = self.apps.get(name)
            if there is None or there.status == "DELETING":
                self.add(name, config)
            elif not there.built or _code(there.config) != _code(config):
                # Neither a build that runs nor one that failed has a version yet that could be the same.
                self.add(name, config)
            else:
                # Replicas that failed stay failed: the version is the same.
                there.config, there.imperative = copy.deepcopy(config), False
                if there.up:
                    there.flips_until = self.clock() + FLIP_SECONDS
        for app in list(self.apps.values()):
            if not app.imperative and app.name not in wanted:
                self.delete(app.name)

    # --- what happens to it --------------------------------------------------------------------------------

    def add(self, name: str, config: Json | None, *, imperative: bool = False) -> SimApp:
        """An application is deployed, or deployed anew; build comes first."""
        if name in self.apps:
            self._release(self.apps[name])
        now, before = self.clock(), self.apps.get(name)
        began = before.build_began if before is not None and before.stage == "building" else now
        until = now + BUILD_SECONDS
        app = SimApp(name, copy.deepcopy(config), until=until, build_began=began, imperative=imperative)
        self.apps[name] = app
        self.builds[name] += 1
        self.settings = self.settings or {"proxy_location": "HeadOnly"}
        return app

    def delete(self, name: str) -> None:
        """An application is deleted: Serve forgets its configuration before its replicas are gone."""
        app = self.apps[name]
        if app.status == "DELETING":
            return
        app.status, app.config, app.stage, app.message = "DELETING", None, "deleting", ""
        app.until = self.clock() + DELETE_SECONDS

    def meddle(self, name: str) -> None:
        """Somebody deploys another configuration under a name of ours."""
        app = self.apps[name]
        if app.config is not None:
            changed = copy.deepcopy(app.config)
            changed["args"]["llm_configs"][0]["engine_kwargs"]["seed"] = 7
            others = [each.config for each in self.apps.values() if each.config is not None and each is not app]
            self.apply({"applications": [*others, changed]})

    def fail_running(self, name: str) -> None:
        """A running application breaks for good: Serve gives it up."""
        app = self.apps[name]
        app.status, app.stage = "DEPLOY_FAILED", "broken"
        app.message = "The replicas died too often."

    def occupy(self, share: float, name: str) -> None:
        """A foreign declarative application takes its share of the first GPU with room."""
        app = self.add(name, {"name": name, "route_prefix": f"/{name}", "import_path": "theirs:app", "args": {}})
        app.stage, app.status, app.built = "running", "RUNNING", True
        index = next(i for i, free in enumerate(self.free) if free + 1e-6 >= share)
        self.free[index] -= share
        app.gpu = [(index, share)]

    def restart_controller(self) -> None:
        """The controller's actor dies; a new one finds the replicas again, and runs builds from the beginning."""
        now = self.clock()
        self.silent_until = max(self.silent_until, now + CONTROLLER_SECONDS)
        for app in self.apps.values():
            if app.stage == "building":
                app.until = self.silent_until + BUILD_SECONDS
                self.builds[app.name] += 1
            elif app.stage in ("pending", "starting", "running"):
                app.recovers_until = self.silent_until + RECOVERY_SECONDS

    def lose_head(self) -> None:
        """The head node dies, and with it the cluster; an empty one comes in its place."""
        self.silent_until = self.clock() + HEAD_SECONDS
        for app in self.apps.values():
            self.gone(app.name)
        self.apps, self.settings, self.free = {}, None, [1.0] * self.gpus

    def progress(self) -> None:
        """Whatever was to happen by now happens."""
        for app in list(self.apps.values()):
            self._progress(app)

    def fault_of(self, app: SimApp) -> str | None:
        """What is wrong with it, by its own name or its model's."""
        return self.faults.get(app.name) or self.faults.get(model_of(app.config or {}) or "")

    def _answer(self) -> None:
        if self.clock() < self.silent_until:
            raise ServeUnreachableError("Ray's dashboard does not answer: nobody is there")

    def _progress(self, app: SimApp) -> None:
        now = self.clock()
        if app.stage == "deleting" and app.until <= now:
            self._release(app)
            del self.apps[app.name]
            self.gone(app.name)
        elif app.stage == "building" and app.until <= now:
            if self.fault_of(app) == BUILD:
                self._fail_build(app)
            else:
                app.stage, app.built, app.until, app.tries = "pending", True, now, 0
                self._replicas += 1
                app.replica = self._replicas
        elif app.stage == "starting" and app.until <= now:
            if self.fault_of(app) == REPLICA:
                self._fail_replica(app)
            else:
                app.stage, app.status, app.deployment_message = "running", "RUNNING", ""
        if app.stage == "pending" and self._place(app):
            app.stage, app.until, app.deployment_message = "starting", now + self._start_seconds(app), ""
        elif app.stage == "pending" and now - app.until > SLOW_SECONDS:
            app.deployment_message = (
                f"Deployment 'LLMServer:x' in application '{app.name}' has 1 replicas that have taken more than "
                f"{SLOW_SECONDS:.0f}s to be scheduled."
            )

    def _fail_build(self, app: SimApp) -> None:
        app.tries += 1
        if app.tries < BUILD_TRIES:
            app.until = self.clock() + BUILD_RETRY_SECONDS
            self.builds[app.name] += 1
            return
        app.status, app.stage = "DEPLOY_FAILED", "broken"
        error = f"Traceback (most recent call last):\nValueError: {self.reason}"
        app.message = f"Deploying app '{app.name}' failed with exception:\n{error}"

    def _fail_replica(self, app: SimApp) -> None:
        app.tries += 1
        error = f"Traceback (most recent call last):\nValueError: {self.reason}"
        if app.tries >= TRIES:
            app.status, app.stage = "DEPLOY_FAILED", "broken"
            app.message = "Failed to update the deployments ['LLMServer:x']."
            app.deployment_message = (
                f"The deployment failed to start {app.tries} times in a row. This may be due to a problem with "
                f"its constructor or initial health check failing. See controller logs for details. "
                f"Error:\n{error}"
            )
            self._release(app)
            return
        app.until = self.clock() + self._start_seconds(app)
        left = TRIES - app.tries
        app.deployment_message = (
            f"A replica failed to start with exception. Retrying {left} more time(s). Error:\n{error}"
        )

    def _start_seconds(self, app: SimApp) -> float:
        return self.start_seconds.get(model_of(app.config or {}) or "", START_SECONDS)

    def _place(self, app: SimApp) -> bool:
        demand = demand_of(app.config or {})
        free, taken = list(self.free), []
        for _ in range(demand.ranks if demand.gpus else 0):
            fitting = [index for index, share in enumerate(free) if share + 1e-6 >= demand.gpus]
            if not fitting:
                return False
            best = min(fitting, key=lambda index: free[index])
            free[best] -= demand.gpus
            taken.append((best, demand.gpus))
        self.free, app.gpu = free, taken
        return True

    def _release(self, app: SimApp) -> None:
        for index, share in app.gpu or ():
            self.free[index] += share
        app.gpu = None

    def _details(self, app: SimApp) -> Json:
        now = self.clock()
        flips = app.up and app.status == "RUNNING" and now < max(app.flips_until, app.recovers_until)
        deployments: Json = {}
        if app.stage != "building" and (app.built or app.imperative):
            state = {"running": "RUNNING", "deleting": "STOPPING"}.get(app.stage, "STARTING")
            if now < app.recovers_until and app.stage != "deleting":
                state = "RECOVERING"
            replicas = (
                [{"replica_id": f"{app.name}#{app.replica}", "state": state}] if app.stage != "broken" else []
            )
            deployments = {"LLMServer:x": {"message": app.deployment_message, "replicas": replicas}}
        return {
            "status": "DEPLOYING" if flips else app.status,
            "message": app.message,
            "deployments": deployments,
            "deployed_app_config": None if app.imperative else app.config,
        }


def _valid(body: Json) -> dict[str, Json]:
    """The applications by name, if `ServeDeploySchema` would take them."""
    configs: Any = body.get("applications")
    if not isinstance(configs, list):
        raise ServeRefusedError("HTTP 400: applications: Field required")
    for config in configs:
        if not isinstance(config, Mapping) or ":" not in str(config.get("import_path", "")):
            raise ServeRefusedError("HTTP 400: import_path: Value error")
    for key in ("name", "route_prefix"):
        values = [config.get(key, {"name": "default", "route_prefix": "/"}[key]) for config in configs]
        if len(values) != len(set(values)):
            raise ServeRefusedError(f"HTTP 400: found multiple applications with the same {key}")
    return {config.get("name", "default"): config for config in configs}


def _code(config: Json | None) -> str:
    return json.dumps([(config or {}).get(key) for key in _CODE], sort_keys=True)
