"""The reason of a failure, out of what Ray Serve and vLLM really print (Ray 2.60, vLLM 0.29; paths shortened)."""

import pytest

from reconciler.ray_serve.reasons import is_vague, reason_from_log, reason_from_message

UNSCHEDULED = (
    "Deployment 'LLMServer:tiny--a_b' in application 'c-3333' has 1 replicas that have taken more than 30s to be "
    "scheduled. This may be due to waiting for the cluster to auto-scale or for a runtime environment to be "
    'installed. Resources required for each replica: [{"GPU": 0.1, "CPU": 0.1}], total resources available: {}. '
    "Use `ray status` for more details."
)
NO_SUCH_REPO = """\
A replica failed to start with exception. Retrying 2 more time(s). Error:
Traceback (most recent call last):
  File "/lib/ray/serve/_private/replica.py", line 3521, in initialize_and_get_metadata
    await self._replica_impl.initialize(deployment_config, rank, gang_context)
  File "/lib/ray/serve/_private/replica.py", line 1928, in initialize
    raise RuntimeError(traceback.format_exc()) from None
RuntimeError: Traceback (most recent call last):
  File "/lib/ray/serve/_private/replica.py", line 1867, in initialize
    await self._user_callable_wrapper.initialize_callable()
  File "/lib/ray/llm/_internal/serve/engines/vllm/vllm_engine.py", line 597, in _prepare_engine_config
    vllm_engine_args, vllm_engine_config = _get_vllm_engine_config(
                                           ^^^^^^^^^^^^^^^^^^^^^^^^
  File "/lib/ray/llm/_internal/serve/engines/vllm/vllm_engine.py", line 222, in _get_vllm_engine_config
    raise RuntimeError(f"Failed to create vLLM engine config: {e}") from None
RuntimeError: Failed to create vLLM engine config: Repo id must use alphanumeric chars, '-', '_' or '.'. The name \
cannot start or end with '-' or '.' and the maximum length is 96: '/nonexistent'."""
ENGINE_CORE = """\
A replica failed to start with exception. Retrying 1 more time(s). Error:
Traceback (most recent call last):
  File "/lib/vllm/v1/engine/utils.py", line 1116, in wait_for_engine_startup
    raise RuntimeError(
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"""
OUT_PREFIX = "(Worker pid=5028) ERROR 11-23 22:29:54 [multiproc_executor.py:1055] "
CORE_PREFIX = "(EngineCore pid=4916) ERROR 11-23 22:29:54 [core.py:1374] "
TOO_LITTLE = (
    "Available memory on node 0 (6.44/13.84 GiB) on kv cache allocation is less than requested memory for kv "
    "(100.0 GiB). Decrease --kv-cache-memory-bytes, VLLM_CPU_KVCACHE_SPACE, or reduce CPU memory used by other "
    "processes."
)
OUT_LOG = "\n".join(
    [
        "(Worker pid=5028) WARNING 11-23 22:29:20 [utils.py:538] Failed. Exception: could not create a primitive.",
        "(Worker pid=5028) INFO 11-23 22:29:54 [cpu_model_runner.py:154] Warming up done.",
        OUT_PREFIX + "WorkerProc hit an exception.",
        OUT_PREFIX + "Traceback (most recent call last):",
        OUT_PREFIX + '  File "/lib/vllm/v1/worker/cpu_worker.py", line 214, in determine_available_memory',
        OUT_PREFIX + "    raise ValueError(",
        OUT_PREFIX + "ValueError: " + TOO_LITTLE,
        OUT_PREFIX,
        CORE_PREFIX + "EngineCore failed to start.",
        CORE_PREFIX + "Traceback (most recent call last):",
        CORE_PREFIX + '  File "/lib/vllm/v1/executor/multiproc_executor.py", line 437, in get_response',
        CORE_PREFIX + "    raise RuntimeError(",
        CORE_PREFIX + f"RuntimeError: Worker failed with error '{TOO_LITTLE}', please check the stack trace above "
        "for the root cause",
        "(EngineCore pid=4916) ERROR 11-23 22:30:01 [multiproc_executor.py:314] Worker proc died unexpectedly.",
    ]
)
ERR_LOG = "\n".join(
    "(EngineCore pid=4916) " + line
    for line in [
        "Process EngineCore:",
        "Traceback (most recent call last):",
        '  File "/lib/vllm/v1/executor/multiproc_executor.py", line 437, in get_response',
        "    raise RuntimeError(",
        f"RuntimeError: Worker failed with error '{TOO_LITTLE}', please check the stack trace above",
    ]
)


def test_a_replica_that_waits_has_not_failed() -> None:
    assert reason_from_message(UNSCHEDULED) == ""
    assert reason_from_message("") == ""
    assert reason_from_message("Upscaling from 0 to 1 replicas.") == ""


def test_the_innermost_exception_of_the_message_is_the_reason() -> None:
    assert reason_from_message(NO_SUCH_REPO) == (
        "Repo id must use alphanumeric chars, '-', '_' or '.'. The name cannot start or end with '-' or '.' and "
        "the maximum length is 96: '/nonexistent'."
    )


def test_a_message_that_points_elsewhere_is_known_as_such() -> None:
    reason = reason_from_message(ENGINE_CORE)
    assert is_vague(reason)
    assert is_vague("")
    assert not is_vague(reason_from_message(NO_SUCH_REPO))


@pytest.mark.parametrize("log", [OUT_LOG, ERR_LOG], ids=["stdout", "stderr"])
def test_the_replica_s_log_has_the_reason(log: str) -> None:
    assert reason_from_log(log) == TOO_LITTLE


def test_colours_are_no_part_of_it() -> None:
    coloured = "\n".join("\x1b[1;36m" + line + "\x1b[0m" for line in ERR_LOG.splitlines())
    assert reason_from_log(coloured) == TOO_LITTLE


def test_a_log_without_an_error_has_no_reason() -> None:
    assert reason_from_log("") == ""
    assert reason_from_log("\n".join(OUT_LOG.splitlines()[:2])) == ""


def test_what_is_known_to_have_failed_has_some_reason() -> None:
    assert reason_from_message("first\nThe replicas died.", certain=True) == "The replicas died."
    assert reason_from_message("", certain=True) == ""


def test_the_kind_is_said_where_it_says_something() -> None:
    assert (
        reason_from_log("torch.OutOfMemoryError: CUDA out of memory.") == "OutOfMemoryError: CUDA out of memory."
    )
    assert reason_from_log("ValueError: no such dtype") == "no such dtype"


def test_a_validation_error_is_cut_to_what_was_said() -> None:
    text = (
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for VllmConfig\n"
        "  Value error, max_model_len (9999) is too large. [type=value_error, input_value=ArgsKwargs((), {}), "
        "input_type=ArgsKwargs]\n"
        "    For further information visit https://errors.pydantic.dev/2.12/v/value_error"
    )
    assert reason_from_log(text) == "max_model_len (9999) is too large."


def test_a_reason_is_one_line_of_bounded_length() -> None:
    reason = reason_from_log("ValueError: " + "x" * 5000)
    assert len(reason) == 600
    assert "\n" not in reason_from_log("ValueError: a\n  b\n  c")
