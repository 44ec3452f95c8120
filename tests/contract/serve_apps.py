"""Tiny Serve applications of every kind that the contract needs. Ray imports this module by name."""

import sys
import time
from pathlib import Path
from typing import Any

REASON = "Repo id must use alphanumeric chars: 'x'."
SLOW_BUILD_SECONDS = 3.0


class Tiny:
    def __init__(self, kind: str) -> None:
        if kind == "no replica":
            raise ValueError(REASON)

    async def __call__(self) -> str:
        return "ok"


def build(args: dict[str, Any]) -> Any:
    """An application of `args["kind"]`; each build leaves a line in the file `args["log"]`."""
    from ray import serve

    with Path(args["log"]).open("a") as log:
        log.write("built\n")
    if args["kind"] == "slow":
        time.sleep(SLOW_BUILD_SECONDS)
    if args["kind"] == "no build":
        raise ValueError(REASON)
    resources = {"num_cpus": 0, "num_gpus": 99 if args["kind"] == "no room" else 0}
    deployment: Any = serve.deployment(
        Tiny,
        name="LLMServer:x",
        ray_actor_options=resources,
        max_constructor_retry_count=2,
        graceful_shutdown_timeout_s=2,
        graceful_shutdown_wait_loop_s=0.1,
    )
    return deployment.bind(args["kind"])


def run_by_hand(address: str, name: str, log: str) -> None:
    """What somebody does with `serve.run`."""
    import ray
    from ray import serve

    ray.init(address=address, namespace="serve", log_to_driver=False)
    serve.run(build({"kind": "well", "log": log}), name=name, route_prefix=f"/{name}", blocking=False)


if __name__ == "__main__":
    run_by_hand(*sys.argv[1:])
