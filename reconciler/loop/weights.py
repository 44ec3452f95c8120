"""The weight store for the operator's settings."""

from collections.abc import Callable

from reconciler.core.choose_files import Rules
from reconciler.host.settings import Settings
from reconciler.weights.cache import HubCache
from reconciler.weights.fetch import Limits
from reconciler.weights.hub import Hub
from reconciler.weights.store import WeightStore

_GIB = 2**30


def make_weights(
    settings: Settings, *, read_only: bool = False, ask_hub: bool = True, wake: Callable[[], None] = lambda: None
) -> WeightStore:
    """The store of weights.

    Args:
        settings: The operator's.
        read_only: Nothing is written.
        ask_hub: Where the hub may be asked at all.
        wake: Called when something changed that the loop should see.
    """
    from huggingface_hub import is_offline_mode  # noqa: PLC0415 -- keeps --help fast

    limit = settings.cache_limit_gib
    limits = Limits(
        rules=Rules(settings.allow_pickle, settings.allow_code),
        reserve=int(settings.disk_reserve_gib * _GIB),
        cache_limit=None if limit is None else int(limit * _GIB),
        files_at_once=settings.download_workers,
    )
    return WeightStore(
        settings.state_dir.absolute(),
        Hub(),
        HubCache(settings.hub_cache_folder),
        limits,
        downloads_at_once=settings.downloads_at_once,
        check_seconds=settings.revision_check_interval,
        offline=is_offline_mode(),
        ask_hub=ask_hub,
        read_only=read_only,
        wake=wake,
    )
