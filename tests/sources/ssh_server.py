"""As much of an ssh server as shows its host key: a real key exchange (RFC 4253, RFC 8731), then it hangs up."""

import base64
import contextlib
import hashlib
import os
import socket
import struct
import threading
from types import TracebackType
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

_KEXINIT, _NEWKEYS, _INIT, _REPLY = 20, 21, 30, 31
_VERSION = b"SSH-2.0-test"
_LISTS = [
    *(b"curve25519-sha256", b"ssh-ed25519", b"aes128-ctr", b"aes128-ctr", b"hmac-sha2-256", b"hmac-sha2-256"),
    *(b"none", b"none", b"", b""),
]


class SshServer:
    """Listens on loopback. `accepted` counts the clients that went on once they had seen the host key."""

    def __init__(self) -> None:
        self._key = Ed25519PrivateKey.generate()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.clients = self.accepted = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    @property
    def known_hosts(self) -> str:
        """Its line of a known hosts file."""
        return f"[127.0.0.1]:{self.port} ssh-ed25519 {base64.b64encode(self._blob()).decode()}\n"

    def new_key(self) -> None:
        self._key = Ed25519PrivateKey.generate()

    def _blob(self) -> bytes:
        return _string(b"ssh-ed25519") + _string(_raw(self._key))

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._socket.accept()
                self.clients += 1
                with client, contextlib.suppress(OSError, EOFError):
                    client.settimeout(10)
                    self._exchange(client)

    def _exchange(self, client: socket.socket) -> None:
        client.sendall(_VERSION + b"\r\n")
        version = b""
        while not version.endswith(b"\n"):
            version += _exactly(client, 1)
        own = bytes([_KEXINIT]) + os.urandom(16) + b"".join(map(_string, _LISTS)) + b"\0" * 5
        _send(client, own)
        theirs = _receive(client, _KEXINIT)
        client_key = _receive(client, _INIT)[5:]
        ephemeral = X25519PrivateKey.generate()
        secret = ephemeral.exchange(X25519PublicKey.from_public_bytes(client_key)).lstrip(b"\0")
        secret = b"\0" + secret if secret[0] & 0x80 else secret
        server_key = _raw(ephemeral)
        parts = [version.rstrip(), _VERSION, theirs, own, self._blob(), client_key, server_key, secret]
        signature = self._key.sign(hashlib.sha256(b"".join(map(_string, parts))).digest())
        signed = _string(_string(b"ssh-ed25519") + _string(signature))
        _send(client, bytes([_REPLY]) + _string(self._blob()) + _string(server_key) + signed)
        _receive(client, _NEWKEYS)
        self.accepted += 1


def _raw(key: Ed25519PrivateKey | X25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def _string(content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + content


def _send(client: socket.socket, payload: bytes) -> None:
    padding = 16 - (len(payload) + 5) % 16
    padding += 16 if padding < 4 else 0
    client.sendall(struct.pack(">IB", len(payload) + padding + 1, padding) + payload + b"\0" * padding)


def _receive(client: socket.socket, kind: int) -> bytes:
    """The next message of a kind; others are passed over."""
    while True:
        length, padding = struct.unpack(">IB", _exactly(client, 5))
        payload = _exactly(client, length - 1)[: length - 1 - padding]
        if payload[0] == kind:
            return payload
        if payload[0] == 1:  # It hangs up.
            raise EOFError


def _exactly(client: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        block = client.recv(count - len(found))
        if not block:
            raise EOFError
        found += block
    return found
