"""What an edge on another node and the reconciler tell each other, and the token that lets them.

`loop/follow.py` sends a `Report` and gets an `Answer` from `loop/edges.py`.
"""

from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, Field

from reconciler.edge.access import Access

SYNC_PATH: Final = "/_edges/sync"
_SHORTEST_TOKEN: Final = 32
_LONGEST_TOKEN: Final = 1024

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
Fingerprint = Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]


class Use(BaseModel, frozen=True):
    """`Usage` of one application."""

    in_flight: Annotated[int, Field(ge=0, le=2**31, strict=True)]
    idle_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None


class Report(BaseModel, frozen=True):
    """What a follower says.

    Attributes:
        edge: Its name, which the operator chose.
        agent: The process that speaks for it, by a random text: two edges of one name would hide each other's use.
        version: Of the routes that the edge has; None where that is not known.
        usage: By application, looked at after those routes were there.
        key_usage: Requests by a key's fingerprint, since the edge was started.
    """

    edge: Name
    agent: Name
    version: Name | None
    usage: dict[Name, Use]
    key_usage: dict[Fingerprint, Annotated[int, Field(ge=0, le=2**53, strict=True)]] = Field(default_factory=dict)


class Answer(BaseModel, frozen=True):
    """What it is told.

    Attributes:
        version: Of the newest routes, keys and revisions.
        routes: Model name to application; None where the follower has this version.
        access: Who may infer, by digests; None there too, and where this reconciler does not know yet.
        revisions: Application to commit; None there too.
        wait: Seconds that the next call may take to be answered.
    """

    version: Name
    routes: dict[str, str] | None
    access: Access | None = None
    revisions: dict[str, str] | None = None
    wait: Annotated[float, Field(ge=0, le=60)]


def read_token(path: Path) -> str:
    """The token in a file.

    Raises:
        OSError: It cannot be read.
        ValueError: It holds none. The message does not say what it holds.
    """
    with path.open("rb") as file:
        token = file.read(_LONGEST_TOKEN).decode("ascii", errors="replace").strip()
    if len(token) < _SHORTEST_TOKEN or not token.isalnum():
        raise ValueError(f"{path} holds no token: {_SHORTEST_TOKEN} letters and digits at the least")
    return token
