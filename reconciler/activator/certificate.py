"""The certificate of a port that we listen on ourselves, the management API's; loaded again when it is renewed.

    files -> `Certificate` -> `context`, which `server.serve_on` listens with

Each load makes a context of its own, and a handshake takes the newest. A load into the one in use would drop its
key where the new files do not belong together, and keep the old certificate beside a new one of another kind.
"""

import asyncio
import ssl
from pathlib import Path
from typing import NoReturn

from reconciler.host.log import get_logger

log = get_logger()

_LOOK_SECONDS = 10.0


class CertificateError(ValueError):
    """The files are no certificate with its key; the message names them and the reason, and nothing of the key."""


class Certificate:
    """Certificate and key as they are in their files."""

    def __init__(self, cert: Path, key: Path) -> None:
        """Load them.

        Args:
            cert: The certificate with its chain, PEM.
            key: Its private key, PEM and not encrypted.

        Raises:
            CertificateError: They cannot be served with.
        """
        self._cert, self._key = cert, key
        self._stamp = self._look()
        self._newest = self._load()
        self.context = self._newest
        """To listen with, for good."""
        # Called in every handshake, whether or not the client names a server.
        self.context.sni_callback = self._take_newest

    async def keep_fresh(self) -> None:
        """Load the files again whenever they change, until cancelled. While they are unfit, the last ones stay."""
        said = ""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                await asyncio.to_thread(self._refresh)
                said = ""
            except CertificateError as error:
                if str(error) != said:
                    log.warning("api.certificate_unusable", reason=str(error))
                said = str(error)

    def _refresh(self) -> None:
        # Looked at first: what changes while it is read is read again.
        stamp = self._look()
        if stamp != self._stamp:
            self._newest = self._load()
            self._stamp = stamp

    def _look(self) -> tuple[int, ...]:
        seen: list[int] = []
        for path in (self._cert, self._key):
            try:
                state = path.stat()
            except OSError as error:
                raise CertificateError(f"{path} cannot be read: {error.strerror}") from error
            seen += (state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
        return tuple(seen)

    def _load(self) -> ssl.SSLContext:
        def refuse() -> NoReturn:
            # Else OpenSSL would ask at the terminal, and everything would wait for that.
            raise CertificateError(f"the key {self._key} is encrypted: it has to be one without a password")

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self._cert, self._key, password=refuse)
        except OSError as error:  # ssl.SSLError is one
            files = f"{self._cert} with {self._key}"
            raise CertificateError(f"{files} cannot be served with: {_reason(error)}") from error
        return context

    def _take_newest(
        self, connection: ssl.SSLSocket | ssl.SSLObject, _name: str | None, _: ssl.SSLContext
    ) -> None:
        connection.context = self._newest


def _reason(error: OSError) -> str:
    if not isinstance(error, ssl.SSLError):
        return error.strerror or str(error)
    # The second where they are of different kinds, as RSA and elliptic curves are.
    if error.reason in ("KEY_VALUES_MISMATCH", "NO_CERTIFICATE_ASSIGNED"):
        return "the key is not that of the certificate"
    return (error.reason or "it lacks a certificate or its private key").lower().replace("_", " ")
