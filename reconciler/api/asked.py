"""What may be asked of the API: the bodies of its requests. What it answers is in `api.schemas`."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from reconciler.core.keys import LARGEST_LIMIT, MOST_MODELS, Scope
from reconciler.core.rollback import LONGEST_REASON
from reconciler.core.state import Json

_LONGEST_SECONDS = 1e10
_LONGEST_NAME = 500
_LONGEST_FILE = 2**20
_Seconds = Annotated[float, Field(ge=0, le=_LONGEST_SECONDS, allow_inf_nan=False)]
_Reason = Annotated[str, Field(max_length=LONGEST_REASON)]
_Limit = Annotated[int, Field(ge=1, le=LARGEST_LIMIT)]
_Name = Annotated[str, Field(min_length=1, max_length=_LONGEST_NAME)]


class Asked(BaseModel):
    """Something that is asked for."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ForATime(Asked):
    """A command that may hold for a time."""

    seconds: _Seconds | None = None
    """For how long; the default is the command's own."""


class Suspend(ForATime):
    """Leave as it is."""

    reason: _Reason = ""


class Rollback(ForATime):
    """Go back to an earlier version, or end that."""

    to: _Name | None = None
    """A revision or commit; the default is the version before."""
    end: bool = False
    reason: _Reason = ""


class Reconcile(Asked):
    """What to allow, once, beyond what the files say."""

    allow_removals: bool = False
    retry_failed: bool = False
    force: bool = False


class Apply(BaseModel):
    """A plan that was read earlier: the `plan` of `GET /plan`, or a file of `reconcile plan --out`."""

    model_config = ConfigDict(extra="ignore", frozen=True, use_attribute_docstrings=True)

    plan: Json
    """It is applied only if it still is what would be planned."""


class PutFile(Asked):
    """A model file's new content."""

    text: Annotated[str, Field(max_length=_LONGEST_FILE)]
    message: Annotated[str, Field(max_length=LONGEST_REASON)] = ""
    """Why, for a commit; the default is a usual one."""


class MakeKey(Asked):
    """A new key."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    scopes: Annotated[frozenset[Scope], Field(min_length=1)] = frozenset({Scope.INFERENCE})
    models: Annotated[tuple[_Name, ...], Field(max_length=MOST_MODELS)] = ()
    """The models that it may use; none means all."""
    expires: Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)] | None = None
    """Seconds since the epoch."""
    requests_per_minute: _Limit | None = None
    concurrent: _Limit | None = None
