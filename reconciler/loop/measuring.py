"""Beside the loop: once a version has the traffic, what it took is read from its log and kept for estimates.

    recorded -> its engine's logs -> `StartFacts` -> `Measured` -> fit.lock.json -> `Known` -> the next estimate

The file is only worth estimates: whoever deletes it loses nothing else.
"""

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from reconciler.core.fit.extras import Known
from reconciler.core.fit.measured import (
    Key,
    Measured,
    entries_from_json,
    entries_to_json,
    known_of,
    look_up,
    updated,
)
from reconciler.core.state import Application
from reconciler.host.files import write_atomic
from reconciler.host.log import get_logger
from reconciler.ray_serve.client import ServeClient
from reconciler.ray_serve.start_log import measured, merged, start_facts

FILE = "fit.lock.json"
_MOST_ENTRIES = 500
"""Some 400 KB. The measurements that are oldest make room: of versions that have not been started for longest."""
_LARGEST = 4 * 2**20

log = get_logger()


class Measuring:
    """The measurements of one state directory.

    Args:
        folder: The state directory. A file in it that holds no measurements is put aside.
        read_only: Nothing is written, and nothing put aside.
        wall_clock: Seconds since the epoch.
    """

    def __init__(
        self, folder: Path, *, read_only: bool = False, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._file = folder / FILE
        self._wall_clock = wall_clock
        # Replaced whole, never changed: plans are made in a thread of their own.
        self._entries = _read(self._file, put_aside=not read_only)
        self._of_model: dict[str, dict[Key, Measured]] = {}
        self._index()

    def version(self, model: str) -> float:
        """Another one whenever something was measured of a model."""
        return max((each.at for each in self._of_model.get(model, {}).values()), default=0.0)

    def measured(self, key: Key) -> Measured | None:
        """What was measured with just these settings; else with others, where the weights are the same."""
        return look_up(self._of_model.get(key.model, {}), key)

    def known(self, key: Key) -> Known | None:
        """The same as terms of an estimate; None where it must do without."""
        found = self.measured(key)
        return known_of(found, pipeline_parallel=key.pipeline_parallel) if found is not None else None

    async def measure(self, app: Application, key: Key, client: ServeClient) -> Measured | None:
        """Read what `app` took from its logs, and keep it; None where they do not say.

        Args:
            app: It is up.
            key: Its settings. Of the versions of vLLM, the one that the log names counts.
            client: Open.

        Raises:
            OSError: The state directory cannot be written.
        """
        replica = next((each for each in app.replicas if each.state == "RUNNING" and each.actor_id), None)
        if replica is None:
            return None
        facts = merged(map(start_facts, await client.start_logs(replica.actor_id)))
        found = measured(facts, self._wall_clock())
        if found is None:
            return None
        key = replace(key, vllm=facts.version or key.vllm)
        # The newest stand last.
        others = {other: each for other, each in self._entries.items() if other != key}
        entries = [*others.items(), (key, updated(self._entries.get(key), found))]
        self._entries = dict(entries[-_MOST_ENTRIES:])
        self._index()
        write_atomic(self._file, json.dumps(entries_to_json(self._entries), indent=1, sort_keys=True) + "\n")
        log.info(
            "model.measured",
            model=app.model,
            application=app.name,
            weights=found.weights,
            kv_capacity=found.kv_tokens,
            load_seconds=found.load_seconds,
        )
        return self._entries[key]

    def _index(self) -> None:
        found: dict[str, dict[Key, Measured]] = {}
        for key, each in self._entries.items():
            found.setdefault(key.model, {})[key] = each
        self._of_model = found


def _read(file: Path, *, put_aside: bool) -> dict[Key, Measured]:
    try:
        with file.open(encoding="utf-8") as opened:
            # What is cut off is damaged.
            found = entries_from_json(json.loads(opened.read(_LARGEST)))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        log.warning("measurements.damaged", file=str(file), reason=str(error))
        # It is put out of the way of the next measurement, for whoever wants to know what it was.
        with contextlib.suppress(OSError):
            if put_aside:
                file.replace(file.with_name(f"{file.name}.damaged"))
        return {}
    return dict(sorted(found.items(), key=lambda item: item[1].at))
