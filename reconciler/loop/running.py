"""Speaking to the reconciler that runs in the same state directory, over its control socket."""

import contextlib
from dataclasses import asdict
from pathlib import Path

import aiohttp

from reconciler.core.turn import Wishes
from reconciler.core.weights_json import states_from_json
from reconciler.weights.revisions import Problem
from reconciler.weights.store import WeightStore

CONTROL_SOCKET = "control.sock"


async def ask_running(state_dir: Path, wishes: Wishes) -> dict[str, object]:
    """Have the reconciler that runs here take its turns now; gives its plan's outcome once it is settled.

    Raises:
        aiohttp.ClientError: It does not answer.
    """
    connector = aiohttp.UnixConnector(str(state_dir / CONTROL_SOCKET))
    timeout = aiohttp.ClientTimeout(total=None)
    async with (
        aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
        session.post("http://reconciler/reconcile", json=asdict(wishes)) as answer,
    ):
        answer.raise_for_status()
        outcome: dict[str, object] = await answer.json()
        return outcome


async def learn_from_running(state_dir: Path, weights: WeightStore) -> None:
    """Take over what the reconciler that runs here knows of downloads; nothing where none runs or none answers."""
    socket = state_dir / CONTROL_SOCKET
    if not socket.exists():
        return
    timeout = aiohttp.ClientTimeout(total=2)
    with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError):
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket)), timeout=timeout) as session,
            session.get("http://reconciler/downloads") as answer,
        ):
            answer.raise_for_status()
            known = await answer.json()
        weights.learn(states_from_json(known["copies"]))
        weights.revisions.learn(
            {
                (row["repo"], row["revision"]): Problem(row["reason"], row["attempts"], row["retry_at"])
                for row in known["revisions"]
            }
        )
