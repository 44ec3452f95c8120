"""What Ray's agents call the measures of engines: vLLM's and Serve's names, as Ray 2.60 exports them. Pure data.

Ray puts `ray_` before a name, writes `_` for vLLM's `:`, and ends a counter's name with `_total`. vLLM 0.29 has
its names in `vllm.v1.metrics.loggers`, and the label `ReplicaId` from `vllm.v1.metrics.ray_wrappers`; Serve has
its names in `ray.serve._private.replica`, and the label `replica`. Both labels hold Serve's id of the replica.
"""

REQUESTS = "ray_vllm_request_success_total"
"""Requests that an engine finished, whatever made them end."""
PROMPT_TOKENS = "ray_vllm_prompt_tokens_total"
GENERATION_TOKENS = "ray_vllm_generation_tokens_total"
FIRST_TOKEN = "ray_vllm_time_to_first_token_seconds_bucket"  # noqa: S105 -- a time, not a secret
LATENCY = "ray_vllm_e2e_request_latency_seconds_bucket"
ERRORS = "ray_serve_deployment_error_counter_total"
"""Requests that raised an error in a replica."""

KV_CACHE = "ray_vllm_kv_cache_usage_perc"
"""A share from 0 to 1, whatever the name says."""
RUNNING = "ray_vllm_num_requests_running"
WAITING = "ray_vllm_num_requests_waiting"

COUNTERS = frozenset({REQUESTS, PROMPT_TOKENS, GENERATION_TOKENS, FIRST_TOKEN, LATENCY, ERRORS})
GAUGES = frozenset({KV_CACHE, RUNNING, WAITING})
REPLICA_LABELS = ("ReplicaId", "replica")
