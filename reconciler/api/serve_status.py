"""Serve's own description of itself as it may be shown, and where its replicas write logs. Only translates."""

import re
from collections.abc import Mapping
from typing import Any, Final

from reconciler.core.secrets import without_secrets
from reconciler.core.state import Json

_BLANK: Final = "***"
_SECRET_KEY: Final = re.compile(
    r"env_vars|(?i:token(?!iz|s\b|_?threshold)|secret|passw|credential|api_?key|authorization)"
)


def shown(instance: Json) -> Json:
    """The same without environment variables, tokens, keys and passwords."""
    blanked: Json = _blanked(instance)
    return blanked


def log_files(instance: Json, application: str) -> dict[str, str]:
    """The log files of an application's replicas, by the replicas' ids, as far as Serve says."""
    app = instance.get("applications", {}).get(application) or {}
    return {
        str(replica["replica_id"]): str(replica["log_file_path"])
        for deployment in (app.get("deployments") or {}).values()
        for replica in deployment.get("replicas") or ()
        if replica.get("log_file_path")
    }


def _blanked(value: Any) -> Any:  # noqa: ANN401 -- any JSON value
    if isinstance(value, Mapping):
        return {key: _of_key(str(key), each) for key, each in value.items()}
    if isinstance(value, list):
        return [_blanked(each) for each in value]
    return without_secrets(value) if isinstance(value, str) else value


def _of_key(key: str, value: Any) -> Any:  # noqa: ANN401 -- any JSON value
    if not _SECRET_KEY.search(key):
        return _blanked(value)
    if isinstance(value, Mapping):
        return dict.fromkeys(value, _BLANK)
    return _BLANK if isinstance(value, str | list) and value else value
