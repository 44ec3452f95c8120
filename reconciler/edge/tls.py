"""The certificate of the front door: the operator's files, read, tried and put together as HAProxy wants them."""

import os
import ssl
import stat
import tempfile
from pathlib import Path

from reconciler.edge.errors import EdgeStartError

_MOST_BYTES = 2**20


class Certificate:
    """Certificate and key as one PEM text.

    Args:
        cert: The certificate with its chain, PEM.
        key: Its private key, PEM and not encrypted; None where `cert` has it too.
        folder: Where the texts may lie for a moment, readable by us alone, to be tried.
    """

    def __init__(self, cert: Path, key: Path | None, folder: Path) -> None:
        self._cert = cert
        self._key = key
        self._folder = folder
        self._good = ""

    def read(self) -> str:
        """What the files hold now.

        Raises:
            EdgeStartError: One cannot be read, or they are no certificate with its key. The message has file and
                reason, and nothing of the key.
            OSError: The edge's folder cannot be written.
        """
        pem = "".join(_text(file) for file in (self._cert, self._key) if file is not None)
        if pem != self._good:
            self._try(pem)
            self._good = pem
        return pem

    def _try(self, pem: str) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Made with mode 0600. What is tried is what was read, whatever becomes of the files.
        with tempfile.NamedTemporaryFile(dir=self._folder, prefix=".edge.pem.") as file:
            file.write(pem.encode("ascii"))
            file.flush()
            try:
                # An encrypted key would be asked about at the terminal, here and by HAProxy.
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(file.name, password=lambda: "")
            except (ssl.SSLError, ValueError) as error:
                files = f"{self._cert} with {self._key}" if self._key is not None else str(self._cert)
                raise EdgeStartError(f"{files} cannot be served with: {_reason(error)}") from error


def _text(path: Path) -> str:
    try:
        # A pipe would be waited for.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise EdgeStartError(f"{path} is no file")
            content = os.read(handle, _MOST_BYTES + 1)
        finally:
            os.close(handle)
    except OSError as error:
        raise EdgeStartError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > _MOST_BYTES or not content.isascii() or b"-----BEGIN " not in content:
        raise EdgeStartError(f"{path} is no PEM file")
    return content.decode("ascii").rstrip() + "\n"


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    if reason == "KEY_VALUES_MISMATCH":
        return "the key is not that of the certificate"
    if not isinstance(reason, str):
        return "it lacks a certificate or its private key, or the key is encrypted"
    return reason.lower().replace("_", " ")
