"""Secrets in files of the operator's: for webhooks, and tokens. Read anew whenever they are needed."""

import os
import stat
from pathlib import Path

_SHORTEST = 16
_MOST = 8
_MOST_BYTES = 4096


class SecretFileError(RuntimeError):
    """A file with a secret cannot be used; the message says why, and nothing of what it holds."""


def read_secrets(path: Path) -> tuple[str, ...]:
    """The secrets of a file, one a line, so that one can be replaced while the other is still in use.

    Raises:
        FileNotFoundError: There is none.
        SecretFileError: Others may read or change it, or it holds nothing of use.
    """
    try:
        # Without waiting: it could be a pipe.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise SecretFileError(f"{path}: {error.strerror}") from error
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise SecretFileError(f"{path} is not a regular file")
        if status.st_mode & (stat.S_IRWXO | stat.S_IWGRP):
            mode = stat.S_IMODE(status.st_mode)
            raise SecretFileError(f"others may read or change {path} (mode {mode:04o}): chmod 600 {path}")
        content = os.read(handle, _MOST_BYTES + 1)
    except OSError as error:
        raise SecretFileError(f"{path}: {error.strerror}") from error
    finally:
        os.close(handle)
    if len(content) > _MOST_BYTES:
        raise SecretFileError(f"{path} is larger than {_MOST_BYTES} bytes")
    try:
        lines = content.decode().splitlines()
    except UnicodeDecodeError:
        # Not `from` it: that error holds the content.
        raise SecretFileError(f"{path} is not text") from None
    secrets = tuple(line.strip() for line in lines if line.strip())
    if not 0 < len(secrets) <= _MOST:
        raise SecretFileError(f"{path} has {len(secrets)} secrets; it takes 1 to {_MOST}, one a line")
    if any(len(secret) < _SHORTEST for secret in secrets):
        raise SecretFileError(f"{path}: a secret has fewer than {_SHORTEST} characters")
    return secrets
