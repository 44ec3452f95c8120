"""Weights as JSON, for machines and between our own processes. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict

from pydantic import TypeAdapter

from reconciler.core.state import Json
from reconciler.core.weights import Copy, CopyState


def states_to_json(states: Mapping[Copy, CopyState]) -> list[Json]:
    """One row a copy; sizes in bytes, rates in bytes a second, times in seconds."""
    return [
        {
            **asdict(copy),
            **asdict(state),
            "files": [{**asdict(file), "seconds_left": file.seconds_left} for file in state.files],
            "missing": state.missing,
            "seconds_left": state.seconds_left,
        }
        for copy, state in states.items()
    ]


def states_from_json(rows: Iterable[Json]) -> dict[Copy, CopyState]:
    """What `states_to_json` wrote.

    Raises:
        pydantic.ValidationError: These are no such rows.
    """
    copies, states = TypeAdapter(Copy), TypeAdapter(CopyState)
    return {
        copies.validate_python({key: row[key] for key in ("repo", "commit", "role")}): states.validate_python(
            {key: value for key, value in row.items() if key in CopyState.__dataclass_fields__}
        )
        for row in rows
    }
