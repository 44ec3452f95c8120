"""The inference paths of vLLM 0.29 that the front door lets through: the edge and the activator share this list.

Closed on purpose. vLLM's other routes would let a client change the engine (`/sleep`, `/collective_rpc`,
`/v1/load_lora_adapter`) or read about it (`/metrics`, `/server_info`); what is not named here is answered with 404
and never reaches an engine.
"""

FORM_PATHS: tuple[str, ...] = ("/v1/audio/transcriptions", "/v1/audio/translations")
"""Paths whose body is multipart/form-data (audio); every other path takes JSON."""

ROUTED_PATHS: tuple[str, ...] = (
    "/v1/chat/completions",
    "/v1/chat/completions/batch",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/embeddings",
    "/v2/embed",
    "/v1/score",
    "/score",
    "/v1/rerank",
    "/v2/rerank",
    "/rerank",
    "/pooling",
    "/classify",
    "/generative_scoring",
    "/tokenize",
    "/detokenize",
    *FORM_PATHS,
)
"""Every path that infers or tokenises and names a model in the body of a POST; compared exactly."""
