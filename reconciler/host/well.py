"""`python -m reconciler.host.well`: the GPUs that Ray may be given, for start.sh; nothing where all are well.

Ray hands out whatever it was told of when it started, failed GPUs too, and cannot be told otherwise afterwards.
"""

import os
import sys
from collections.abc import Sequence

from reconciler.core.devices import Reading
from reconciler.host.nvml import Gpus


def main() -> None:
    """Print what CUDA_VISIBLE_DEVICES should be, and on standard error what is left out and why."""
    readings = Gpus(os.environ.get("CUDA_VISIBLE_DEVICES")).readings()
    for reading in readings:
        if reading.failed:
            sys.stderr.write(f"GPU {reading.index} {reading.name} is left out: {reading.failed}\n")
    sys.stdout.write(visible(readings))


def visible(readings: Sequence[Reading]) -> str:
    """The UUIDs of those that are well; empty where all are, where none is, or where one has no UUID."""
    well = [reading.uuid for reading in readings if not reading.failed]
    if not well or len(well) == len(readings) or not all(well):
        return ""
    return ",".join(well)


if __name__ == "__main__":
    main()
