"""Serve's own schema, asked before anything is sent."""

import contextlib
import importlib

from reconciler.core.state import Json


def prepare() -> None:
    """Import it now, which takes seconds, rather than when the first model is to be loaded."""
    with contextlib.suppress(ImportError):
        importlib.import_module("ray.serve.schema")


def complaint_about(application: Json) -> str:
    """What Serve's schema has against an application's configuration; empty where it has nothing.

    Where Ray is not installed beside the reconciler, nothing is checked here; Serve checks what it receives
    against the same schema.
    """
    try:
        from ray.serve.schema import ServeApplicationSchema  # noqa: PLC0415 -- Ray is slow to import, and optional
    except ImportError:
        return ""
    try:
        ServeApplicationSchema.model_validate(application)
    except ValueError as error:
        return " ".join(str(error).split())[:600]
    return ""
