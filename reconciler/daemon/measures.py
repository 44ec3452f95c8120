"""What is measured while the process stays: for Prometheus, for the page, and of each key's use."""

from collections.abc import Mapping

from apscheduler.schedulers.asyncio import AsyncIOScheduler

from reconciler import __version__
from reconciler.core.series import STEP_SECONDS
from reconciler.edge.errors import EdgeUnreachableError
from reconciler.host.key_file import KeyFileError
from reconciler.host.log import get_logger
from reconciler.host.settings import Settings
from reconciler.loop.assemble import Parts
from reconciler.loop.engine_memory import EngineMemory
from reconciler.loop.key_usage import KeyUsage
from reconciler.loop.last_hour import LastHour
from reconciler.loop.metrics import Feeds, Metrics, TurnResult
from reconciler.ray_serve.engine_metrics import EngineMetrics

log = get_logger()

_KEYS_SECONDS = 5.0


class Measures:
    """The measures of one reconciler, and who feeds them."""

    def __init__(self, parts: Parts, settings: Settings) -> None:
        """Hook in wherever something happens that is counted.

        Args:
            parts: The reconciler.
            settings: The operator's.
        """
        self._parts = parts
        self.key_usage = KeyUsage(settings.state_dir)
        self._complained = False
        held = EngineMemory(parts.client.actors).held if settings.device == "cuda" else None
        engines = EngineMetrics(settings.ray_dashboard, settings.ray_token_path)
        self.last_hour = LastHour(lambda: parts.loop.last, engines, held)
        feeds = Feeds(
            look=lambda: parts.loop.last,
            directory=lambda: parts.activator.directory,
            holds_lease=parts.lease.holds,
            downloads=parts.weights.under_way,
            received=parts.weights.received,
            key_requests=lambda: {each: use.requests for each, use in self.key_usage.usage().items()},
            refused=parts.activator.refused,
            model_memory=self.last_hour.memory,
            gpu_used=self._gpu_used,
        )
        disks = {"weights": settings.hub_cache_folder, "state": settings.state_dir}
        self.metrics = Metrics(feeds, __version__, disks=disks)
        parts.loop.turn_ended = lambda seconds, result: self.metrics.turn(seconds, TurnResult(result))
        parts.loop.loaded = self.metrics.loaded
        parts.journal.told = self.metrics.noted
        parts.actor.evicted = self.metrics.evicted
        if parts.sleeping is not None:
            parts.sleeping.woke = self.metrics.woke

    def add_to(self, scheduler: AsyncIOScheduler) -> None:
        """Look again and again, beside the loop, at what nobody tells."""
        for job, seconds in ((self.metrics.look_at_disks, STEP_SECONDS), (self._look_at_keys, _KEYS_SECONDS)):
            scheduler.add_job(job, "interval", seconds=seconds)

    async def close(self) -> None:
        """Write down what is worth keeping."""
        await self._look_at_keys()
        try:
            self.key_usage.save()
        except OSError as error:
            log.warning("key_usage.unsaved", reason=str(error))

    def _gpu_used(self) -> Mapping[tuple[str, int], int]:
        return self._parts.gpus.used if self._parts.gpus is not None else {}

    async def _look_at_keys(self) -> None:
        try:
            self.key_usage.keep({key.fingerprint for key in self._parts.keys.ring().keys})
            self.key_usage.note(await self._parts.edge.key_usage())
        except (EdgeUnreachableError, KeyFileError):
            return  # Whoever needs these complains.
        except OSError as error:
            if not self._complained:
                log.warning("key_usage.unsaved", reason=str(error))
            self._complained = True
        else:
            self._complained = False
