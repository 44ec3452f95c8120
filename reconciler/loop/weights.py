"""The weight store, and the store of facts about models, for the operator's settings."""

from reconciler.core.choose_files import Rules
from reconciler.host.settings import Settings
from reconciler.weights.cache import HubCache
from reconciler.weights.facts import FactsStore
from reconciler.weights.hub import Hub
from reconciler.weights.store import Limits, WeightStore

_GIB = 2**30


def make_weights(settings: Settings, *, read_only: bool = False, ask_hub: bool = True) -> WeightStore:
    """The store of weights.

    Args:
        settings: The operator's.
        read_only: Nothing is written.
        ask_hub: The hub may be asked; else what is known has to do.

    Raises:
        PinsUnreadableError: The file of remembered commits is there and cannot be read.
    """
    from huggingface_hub import is_offline_mode  # noqa: PLC0415 -- keeps --help fast

    limit = settings.cache_limit_gib
    limits = Limits(
        rules=_rules(settings),
        reserve=int(settings.disk_reserve_gib * _GIB),
        cache_limit=None if limit is None else int(limit * _GIB),
        files_at_once=settings.download_workers,
        downloads_at_once=settings.downloads_at_once,
        check_seconds=settings.revision_check_interval,
        offline=is_offline_mode(),
    )
    return WeightStore(
        settings.state_dir.absolute(),
        Hub(),
        HubCache(settings.hub_cache_folder),
        limits,
        ask_hub=ask_hub,
        read_only=read_only,
    )


def make_facts(settings: Settings, *, read_only: bool = False, ask_hub: bool = True) -> FactsStore:
    """The store of facts about models.

    Args:
        settings: The operator's.
        read_only: Nothing is written.
        ask_hub: The hub may be asked; else what is on disk has to do.
    """
    from huggingface_hub import is_offline_mode  # noqa: PLC0415 -- keeps --help fast

    return FactsStore(
        settings.state_dir.absolute(),
        Hub(),
        HubCache(settings.hub_cache_folder),
        _rules(settings),
        ask_hub=ask_hub,
        offline=is_offline_mode(),
        read_only=read_only,
    )


def _rules(settings: Settings) -> Rules:
    return Rules(settings.allow_pickle, settings.allow_code)
