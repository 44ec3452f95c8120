"""What an application's configuration says so that it starts sooner; `ray_serve` does the other half. Pure.

    application's runtime_env  -> Serve's build task takes the worker that `ray_serve.warm_build` keeps
    llm_config's callback      -> `ray_serve.skip_node_init`, in the replica

All of it names modules of this package, so every Python that Ray starts workers with must have it.
"""

from reconciler.core.state import Json

HOOK_ENV = "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR"
"""Names what a worker of Ray's calls before it takes work (Ray 2.60, `ray._private.ray_constants`)."""
SPARE_HOOK = "reconciler.ray_serve.spare.preload"
REPLICA_HOOK = "ray.llm._internal.serve._worker_process_setup_hook"
"""Does nothing. Ray Serve LLM sets it for its replicas, in another way; vLLM's Ray executor, which connects to Ray
with the replica's environment, ends with an error where the two differ."""
BUILD_ENVIRONMENT: Json = {"env_vars": {HOOK_ENV: SPARE_HOOK}}
"""The application's own environment. Ray gives a waiting worker only to whom has just its environment."""
CALLBACK: Json = {"callback_class": "reconciler.ray_serve.skip_node_init:SkipNodeInit"}
