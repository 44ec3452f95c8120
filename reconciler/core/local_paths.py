"""The folders of a source that a model file names by a relative path, and what tells their contents apart.

Between `desired` (which has the source's folders) and what compares versions: plans, the journal, rollbacks. Pure.
"""

import posixpath
import re
from collections.abc import Collection, Mapping

from reconciler.core.spec import LOCAL_PREFIXES, ModelSpec
from reconciler.core.state import Json

_CONTENT = re.compile(r"source\.(?:tokenizer_)?content|adapters\.[0-9]+\.content")


def only_content(fields: Collection[str]) -> bool:
    """Whether something changed, and nothing but the contents of folders, of which no file says anything.

    Args:
        fields: Paths of those of a target's fields that changed.
    """
    return bool(fields) and all(map(_CONTENT.fullmatch, fields))


def folders_of(spec: ModelSpec, objects: Mapping[str, str]) -> dict[str, str]:
    """Those of a source's folders that a model file names, by relative path.

    Args:
        spec: The model file.
        objects: `Snapshot.objects`.
    """
    tokenizer = spec.source.tokenizer or ""
    paths = [
        spec.source.path,
        tokenizer if tokenizer.startswith(LOCAL_PREFIXES) else None,
        *(adapter.path for adapter in spec.adapters),
    ]
    named = {posixpath.normpath(path) for path in paths if path is not None}
    return {path: objects[path] for path in sorted(named) if path in objects}


def with_contents(fields: Json, objects: Mapping[str, str]) -> Json:
    """The model file's fields with the content beside every folder, so that a plan shows when one changed."""
    rows = [(fields["source"], "path", "content"), (fields["source"], "tokenizer", "tokenizer_content")]
    rows += [(row, "path", "content") for row in fields["adapters"]]
    for row, path, content in rows:
        found = objects.get(posixpath.normpath(row[path])) if row.get(path) else None
        # A repository on the hub is no folder here.
        if found is not None and (path == "path" or row[path].startswith(LOCAL_PREFIXES)):
            row[content] = posixpath.basename(found)
    return fields
