"""The Ray side of sleep and wake: a driver of Ray's, in a process of its own so that the reconciler needs no Ray.

    engine_calls -> lines of JSON -> this process -> Serve's handle -> `LLMServer` of every replica -> vLLM

    {"id": 1, "call": "sleep", "application": "qwen3-0-6b-3fa9c1d2", "seconds": 170}
    {"id": 1, "ok": true, "sleeping": [true, true]}      what each replica says of itself afterwards
    {"id": 1, "refused": "ValueError: ..."}              an engine itself said no
    {"id": 1, "error": "..."}                            there was nobody to ask, so nothing was done
    {"id": 1, "lost": "..."}                             nobody can tell what was done; start this process anew

Run as `python -m reconciler.ray_serve.engine_worker GCS_ADDRESS`, with RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH as
Ray needs them. It ends when its input does. Each call has a thread, so one that hangs stops no other.

`DeploymentHandle.broadcast` reaches every replica that runs, past Serve's routing. Direct streaming changes
nothing for it: `LLMServer` is the application's deployment all the same (Ray 2.60). vLLM's own endpoints for this
are not used, because VLLM_SERVER_DEV_MODE, which opens them, opens others with them that let a client run code.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TextIO

_METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "sleep": ("sleep", {"level": 1}),
    "wake": ("wakeup", {}),
    "is_sleeping": ("is_sleeping", {}),
}
_ENGINES = "LLMServer"
"""How the names of deployments with engines begin; the others of an application are helpers."""
_LONGEST = 500
Answer = dict[str, Any]


class _RefusedError(Exception):
    """An engine said no; the text is its own."""


class _NobodyError(Exception):
    """There is nobody to ask."""


class Worker:
    """Carries out calls.

    Args:
        address: Host and port of Ray's GCS.
        say: Takes an answer; called from several threads.
    """

    def __init__(self, address: str, say: Callable[[Answer], None]) -> None:
        self._address = address
        self._say = say
        self._connecting = threading.Lock()

    def take(self, line: str) -> None:
        """Start on a call, in a thread of its own."""
        request = json.loads(line)
        threading.Thread(target=self._answer, args=(request,), daemon=True).start()

    def _answer(self, request: dict[str, Any]) -> None:
        answer: Answer = {"id": request["id"]}
        handles: list[Any] = []
        try:
            until = time.monotonic() + float(request["seconds"])
            self._connect()
            answer |= {"ok": True, "sleeping": self._call(request, until, handles)}
        except _RefusedError as error:
            answer["refused"] = str(error)
        except _NobodyError as error:
            answer["error"] = str(error)
        except Exception as error:  # noqa: BLE001 -- whatever it is, somebody waits for an answer
            answer["lost"] = _in_words(error)
        self._say(answer)
        for handle in handles:
            handle.shutdown()

    def _connect(self) -> None:
        import ray  # noqa: PLC0415 -- it takes seconds, and this is what the first call waits for anyway

        with self._connecting:
            if not ray.is_initialized():
                ray.init(self._address, log_to_driver=False, logging_level="warning")

    def _call(self, request: dict[str, Any], until: float, handles: list[Any]) -> list[bool]:
        from ray import serve  # noqa: PLC0415 -- as above

        application, (method, arguments) = request["application"], _METHODS[request["call"]]
        status = serve.status().applications.get(application)
        deployments = status.deployments if status is not None else {}
        name = next((name for name in deployments if name.startswith(_ENGINES)), None)
        if name is None:
            raise _NobodyError(f"Serve has no application {application} with engines")
        states = {
            str(getattr(state, "value", state)): count
            for state, count in deployments[name].replica_states.items()
            if count
        }
        if set(states) != {"RUNNING"}:
            raise _NobodyError(f"not all engines of {application} run: {states or 'there is none'}")
        handle = serve.get_deployment_handle(name, application)
        handles.append(handle)
        if method != "is_sleeping":
            _broadcast(handle, method, arguments, until, states["RUNNING"])
        return [bool(each) for each in _broadcast(handle, "is_sleeping", {}, until, states["RUNNING"])]


def _broadcast(handle: Any, method: str, arguments: dict[str, Any], until: float, replicas: int) -> list[Any]:  # noqa: ANN401 -- Ray has no types
    from ray.exceptions import RayTaskError  # noqa: PLC0415 -- as above

    response = handle.broadcast(method, **arguments)
    results = response.results(timeout_s=max(0.0, until - time.monotonic()), return_exceptions=True)
    errors = [each for each in results if isinstance(each, Exception)]
    for error in errors:
        if not isinstance(error, RayTaskError):
            raise error
    if errors:
        raise _RefusedError(_in_words(errors[0]))
    if len(results) != replicas:
        # It skips those that died a moment ago, without a word.
        raise RuntimeError(f"{len(results)} of {replicas} replicas answered")
    return list(results)


def _in_words(error: BaseException) -> str:
    """The last line that says something: an engine's error comes with the trace of its process."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if lines else ""
    name = type(error).__name__
    return (text if text.startswith(name) or len(lines) > 1 else f"{name}: {text}")[:_LONGEST]


def _own_stdout() -> TextIO:
    """What this process is asked through, for answers alone: whatever Ray prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    return answers


def main() -> None:
    """Answer until standard input ends."""
    answers, one_at_a_time = _own_stdout(), threading.Lock()

    def say(answer: Answer) -> None:
        with one_at_a_time:
            answers.write(json.dumps(answer) + "\n")

    address = sys.argv[1]
    if address.startswith(("127.", "localhost:", "[::1]:")):
        # Else Ray takes loopback for this machine's outward address, where a Ray on loopback does not listen.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    worker = Worker(address, say)
    for line in sys.stdin:
        worker.take(line)
    # Not an orderly end: Ray's would wait for a Ray that is gone. Ray notices that its driver is.
    os._exit(0)


if __name__ == "__main__":
    main()
