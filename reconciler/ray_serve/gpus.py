"""What Ray's dashboard says about a node's GPUs -> `core.devices.Reading`. Pure.

It is for nodes other than this one, of which `host.nvml` cannot read anything. On each node an agent asks NVML
every 2.5 seconds (`dashboard/modules/reporter/gpu_providers.py` in Ray 2.60); this is what the dashboard passes on
of it. Less can be told than on this machine:

- Sizes are whole MiB, rounded down: of a GPU up to 1 MiB is missing, and up to 1 MiB for each process.
- What the driver reserves counts as used, and is taken away by a rule of thumb (`core.fit.gpus.cuda_total`).
- Errors are not reported. A GPU that cannot be read is missing from the list, with all that come after it if even
  its handle cannot be had, so a short list does not say which GPU is at fault.
- All GPUs of the machine are listed, also those that Ray may not use there (`CUDA_VISIBLE_DEVICES`).
- Only Ray's own workers are known as Ray's. Serve's engines are: Ray Serve LLM runs each rank on a GPU in an
  actor. The child of another application's worker is not, and looks like somebody else's process or one of another
  container. Nobody can tell, so it is left to `core.devices` what that means.
"""

from typing import Any

from reconciler.core.devices import Process, Reading
from reconciler.core.fit.gpus import MIB, cuda_total
from reconciler.core.state import Json


def readings(detail: Json) -> tuple[Reading, ...]:
    """The GPUs of a node that `ServeClient.node_details` describes; empty while its agent reported none."""
    rays = _pids(detail.get("workers")) | _pids([detail.get("agent"), detail.get("gcs")])
    # The list of workers is up to 15 seconds older than the rest; actors are known as soon as they are up.
    actors = detail.get("actors")
    alive = _rows([*actors.values()]) if isinstance(actors, dict) else []
    rays |= _pids([row for row in alive if row.get("state") == "ALIVE"])
    found = (_reading(row, rays) for row in _rows(detail.get("gpus")))
    return tuple(sorted(found, key=lambda reading: reading.index))


def _reading(row: Json, rays: set[int]) -> Reading:
    size = _count(row.get("memoryTotal")) * MIB
    total = cuda_total(size) if size else 0
    return Reading(
        index=_count(row.get("index")),
        uuid=str(row.get("uuid") or ""),
        name=str(row.get("name") or ""),
        total=total,
        used=max(0, _count(row.get("memoryUsed")) * MIB - (size - total)),
        processes=tuple(
            Process(
                _count(process.get("gpuMemoryUsage")) * MIB, True if _count(process.get("pid")) in rays else None
            )
            for process in _rows(row.get("processesPids"))
        ),
    )


def _pids(rows: Any) -> set[int]:  # noqa: ANN401 -- as JSON has it
    return {_count(row.get("pid")) for row in _rows(rows)} - {0}


def _rows(value: Any) -> list[Json]:  # noqa: ANN401 -- as JSON has it
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def _count(value: Any) -> int:  # noqa: ANN401 -- as JSON has it
    return max(0, value) if isinstance(value, int) else 0
