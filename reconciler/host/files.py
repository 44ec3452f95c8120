"""Files of the state directory: written whole or not at all, readable by their owner only."""

import contextlib
import os
import tempfile
from pathlib import Path


def write_atomic(path: Path, text: str, *, mode: int = 0o600) -> None:
    """Replace `path` by `text` in one rename, so that a reader sees the old content or the new one.

    Args:
        path: Where the text goes. Its folder is made (mode 0700) when it is absent.
        text: The whole content.
        mode: Permission bits of the new file.

    Raises:
        OSError: The folder or the file cannot be written; the old content is then still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(mode)
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()
        raise
