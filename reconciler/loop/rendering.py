"""The renderer for the operator's template and settings."""

import os

from reconciler.core.render import Platform, Renderer
from reconciler.host.settings import Settings
from reconciler.host.templates import read_template


def make_renderer(settings: Settings) -> Renderer:
    """The renderer for the operator's template.

    Raises:
        RenderError: The template does not compile.
        FileNotFoundError: `templates_dir` is not there.
    """
    platform = Platform(
        device=settings.device,
        simulate_gpus=settings.simulate_gpus,
        cpu_threads=settings.cpu_threads or os.cpu_count() or 1,
        hub_cache=str(settings.hub_cache_folder),
        allow_code=settings.allow_code,
    )
    return Renderer(read_template("application.json.j2", settings.templates_dir), platform)
