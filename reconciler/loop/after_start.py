"""Tasks beside the loop: what a version took, read from its log once it has the traffic."""

import asyncio

from reconciler.core.fit.classes import classes_of
from reconciler.core.fitting import Fitter, name_of
from reconciler.core.state import Application, Observed
from reconciler.core.target import Target
from reconciler.host.log import get_logger
from reconciler.loop.measuring import Measuring
from reconciler.ray_serve.client import ServeClient
from reconciler.weights.facts import FactsStore

log = get_logger()

_PATIENCE_SECONDS = 10.0


class AfterStart:
    """Measures versions that came up.

    Args:
        client: Open.
        measuring: Where measurements are kept.
        fitter: Knows what a measurement holds for.
        facts: Of the models.
    """

    def __init__(self, client: ServeClient, measuring: Measuring, fitter: Fitter, facts: FactsStore) -> None:
        self._client, self._measuring, self._fitter, self._facts = client, measuring, fitter, facts
        self._tasks: set[asyncio.Task[None]] = set()

    def measure(self, target: Target, observed: Observed) -> None:
        """Measure the version of `target`, which is up, beside the loop."""
        app = observed.applications.get(target.application)
        if app is None or app.config is None or target.reads.model is None:
            return
        task = asyncio.create_task(self._measure(target, app, observed))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Give up what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _measure(self, target: Target, app: Application, observed: Observed) -> None:
        place = target.reads.model
        assert place is not None
        assert app.config is not None
        facts = (await self._facts.look([place], patience=_PATIENCE_SECONDS))[place].facts
        homes = {replica.node_id for replica in app.replicas}
        kinds = classes_of(node for node in observed.nodes if node.id in homes) if app.demand.gpus else ()
        if facts is None or (app.demand.gpus and not kinds):
            return
        name = await asyncio.to_thread(name_of, target, facts)
        key = self._fitter.key_of(name, app.config, kinds[0] if kinds else None)
        if key is None:
            return
        try:
            await self._measuring.measure(app, key, self._client)
        except OSError as error:
            log.warning("measurements.unsaved", model=app.model, application=app.name, reason=str(error))
