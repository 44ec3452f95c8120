"""Runs in workers of Ray's that have an application's environment, before they take work: prepares the spare.

A spare is a worker that was started for nobody in particular, which its environment tells. The others, such as a
build for which no spare waited, or the router of an application, import what they need themselves.
"""

import contextlib
import importlib
import os

JOB_ENV = "RAY_JOB_ID"
NO_JOB = "ffffffff"
"""How Ray writes that there is none."""


def preload() -> None:
    """Import what Serve's build task will import. Never fails: a worker whose hook does would be lost."""
    if os.environ.get(JOB_ENV, NO_JOB) == NO_JOB:
        with contextlib.suppress(Exception):
            importlib.import_module("ray.serve.llm")
