"""Runs in a replica, before its engine starts: leaves out the task that would fetch the model to each node.

For a local folder that task (`ray.llm`, node_initialization_utils.py, Ray 2.60) fetches nothing, and its worker
imports all of vLLM first, which takes 7 s. Rendered only for models that live on one node (`core.render`).
"""

import contextlib
from pathlib import Path

from ray.llm._internal.common.callbacks.base import CallbackBase


class SkipNodeInit(CallbackBase):  # type: ignore[misc]  # Ray has no types
    """A callback of `llm_config.callback_config`."""

    async def on_before_node_init(self) -> None:
        """Called by Ray Serve LLM before it would start the task."""
        self.ctx.run_init_node = False
        # All that the task does for a local folder: torch makes this cache only where its parent is there.
        from torch import hub  # noqa: PLC0415 -- the replica has it; whoever only looks at this module may not

        with contextlib.suppress(OSError):
            (Path(hub.get_dir()).parent / "kernels").mkdir(parents=True, exist_ok=True)
