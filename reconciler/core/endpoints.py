"""The inference paths of vLLM 0.29 that the front door lets through: the edge and the activator share this list.

Closed on purpose. vLLM's application also has routes that load adapters, scale, sleep, profile and abort; what is
not named here is answered with 404 and never reaches an engine.
"""

FORM_PATHS = frozenset({"/v1/audio/transcriptions", "/v1/audio/translations"})
"""Paths whose body is multipart/form-data (audio); every other path takes JSON."""

ROUTED_PATHS = FORM_PATHS | {
    "/classify",
    "/detokenize",
    "/pooling",
    "/rerank",
    "/score",
    "/tokenize",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/messages",
    "/v1/rerank",
    "/v1/responses",
    "/v1/score",
    "/v2/rerank",
}
"""Every path that is proxied: POST only, compared with the decoded path of the request, exactly."""
