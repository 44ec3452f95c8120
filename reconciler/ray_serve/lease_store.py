"""The register that holds the lease: keys in the key-value store of Ray's GCS, asked over gRPC.

    loop.lease -> `GcsLeaseStore` -> GCS: one key for each version, `lease/00000000000000000017`

The store can create a key that is absent, in one step, and delete one; it cannot replace a value if it is still
what was read. So each version is a key of its own and never changes, and the greatest one counts. To replace
version n is to create n + 1. Why that lets only one win, whoever stops wherever:

- Of those who create n + 1 while it is absent, one succeeds.
- Only versions below one that exists are deleted, so the greatest never is, and it only grows.
- One who read n long ago may create n + 1 after all, when it was there once and has been deleted. Then something
  greater is there from before that and for ever, and the second look, after the creation, finds it: not won.
- So who finds its own n + 1 as the greatest afterwards has created it first, straight after n, and for all.
- A creation that nobody knows the outcome of, and that may arrive later, is one of these cases at any time.
- A GCS that keeps its keys in Redis lists them bit by bit: what comes and goes meanwhile may be left out. The last
  versions are kept, so that it takes several changes within one listing to leave out all that is greater.

A Ray that was started anew begins at 0, and must not take what was meant for the one before: each call names the
cluster that was read, and the GCS refuses it if it is another one (Ray 2.60: `WrongClusterID`).

Ray's own client would do the same with Ray imported (0.4 s, 40 MB). gRPC comes with Ray, and the messages are a
few fields each (gcs_service.proto). A call takes half a millisecond; connections are not kept, since after a
restart of Ray, and across a fork, they are only trouble.
"""

import asyncio
import importlib
import importlib.util
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from reconciler.core.lease import Kept, LeaseStoreError
from reconciler.ray_serve.engine_calls import EngineCallError

_NAMESPACE = b"llm_reconciler"
_PREFIX = b"lease/"
_DIGITS = 20
_KEY = re.compile(rb"lease/([0-9]{20})")
_KV = "/ray.rpc.InternalKVGcsService/InternalKV"
_CLUSTER = "/ray.rpc.NodeInfoGcsService/GetClusterId"
_CALL_SECONDS = 3.0
_TRIES = 5
"""How often what was the greatest version may be gone when it is read."""
_LAST_KEPT, _MOST_REMOVED = 3, 100
_VARINT, _TEXT = 0, 2
"""Of protobuf's wire types those that the replies have."""

_Call = Callable[..., Awaitable[bytes]]


def available() -> bool:
    """gRPC, which comes with Ray, can be imported."""
    return importlib.util.find_spec("grpc") is not None


class GcsLeaseStore:
    """The register of one cluster.

    Args:
        address: Finds host and port of Ray's GCS; asked again when that does not answer.
        token_path: File with the token of Ray's token authentication; None without.
    """

    def __init__(self, address: Callable[[], Awaitable[str]], token_path: Path | None) -> None:
        self._find_address = address
        self._token_path = token_path
        self._address = ""

    async def read(self) -> Kept:
        """What is there now.

        Raises:
            LeaseStoreError: The cluster does not answer.
        """
        async with self._calls("") as call:
            cluster = _only(_sound(await call(_CLUSTER, b""))).hex()
        if not cluster:
            raise LeaseStoreError("Ray's GCS does not say which cluster it is of")
        async with self._calls(cluster) as call:
            for _ in range(_TRIES):
                version = max(await _versions(call), default=0)
                if not version:
                    return Kept(cluster, 0, "")
                reply = await call(f"{_KV}Get", _field(1, _key(version)) + _field(2, _NAMESPACE))
                # Absent is not empty: no lease is written as an empty text.
                if text := _only(reply):
                    return Kept(cluster, version, text.decode(errors="replace"))
        raise LeaseStoreError("the lease in Ray's GCS changes faster than it can be read")

    async def replace(self, kept: Kept, text: str) -> bool:
        """Put `text` in the place of what was read; False where somebody else came before, or straight after.

        Raises:
            LeaseStoreError: Nobody can tell whether it is changed, or will be in a moment.
        """
        mine = kept.version + 1
        put = _field(1, _key(mine)) + _field(2, text.encode()) + _field(4, _NAMESPACE)
        async with self._calls(kept.cluster) as call:
            # Field 2 says whether it was added.
            if not any(number for _, number in _numbers(_sound(await call(f"{_KV}Put", put)))):
                return False
            versions = await _versions(call)
            greatest = max(versions, default=0)
            if greatest < mine:
                raise LeaseStoreError("Ray's GCS does not have what it has just taken")
            for each in sorted(versions)[:_MOST_REMOVED]:
                if each <= greatest - _LAST_KEPT:
                    await call(f"{_KV}Del", _field(1, _key(each)) + _field(2, _NAMESPACE))
        return greatest == mine

    @asynccontextmanager
    async def _calls(self, cluster: str) -> AsyncIterator[_Call]:
        """Calls over one connection; whatever goes wrong with them is a `LeaseStoreError`."""
        try:
            grpc = await asyncio.to_thread(importlib.import_module, "grpc")
            aio = await asyncio.to_thread(importlib.import_module, "grpc.aio")
        except ImportError as error:
            raise LeaseStoreError(f"gRPC cannot be imported: {error}") from error
        try:
            metadata = await self._metadata()
            if not self._address:
                self._address = await self._find_address()
        except (OSError, ValueError, EngineCallError) as error:
            raise LeaseStoreError(f"Ray's GCS cannot be asked: {error}") from error
        if cluster:
            metadata.append(("ray_cluster_id", cluster))

        def call(method: str, request: bytes) -> Any:  # noqa: ANN401 -- gRPC has no types here
            return channel.unary_unary(method)(request, metadata=metadata, timeout=_CALL_SECONDS)

        # Not through a proxy that is meant for the web.
        async with aio.insecure_channel(self._address, options=(("grpc.enable_http_proxy", 0),)) as channel:
            try:
                yield call
            except grpc.RpcError as error:
                where, self._address = self._address, ""
                code, detail = error.code().name, " ".join(str(error.details()).split())
                raise LeaseStoreError(f"Ray's GCS at {where} says {code}: {detail}"[:300]) from error

    async def _metadata(self) -> list[tuple[str, str]]:
        if self._token_path is None:
            return []
        token = (await asyncio.to_thread(self._token_path.read_text, encoding="ascii")).strip()
        if not token.isprintable():
            raise ValueError(f"{self._token_path} holds no token")
        return [("authorization", f"Bearer {token}")]


async def _versions(call: _Call) -> set[int]:
    reply = _sound(await call(f"{_KV}Keys", _field(1, _PREFIX) + _field(2, _NAMESPACE)))
    found = (_KEY.fullmatch(value) for number, value in _texts(reply) if number == 2)  # noqa: PLR2004
    return {int(each[1]) for each in found if each is not None}


def _key(version: int) -> bytes:
    return _PREFIX + str(version).zfill(_DIGITS).encode()


def _sound(reply: bytes) -> bytes:
    """The reply, if its status (field 1) says nothing: an error would read as if there were no keys."""
    status = next((value for number, value in _texts(reply) if number == 1), b"")
    if any(number for _, number in _numbers(status)):
        said = _only(status).decode(errors="replace")
        raise LeaseStoreError(f"Ray's GCS says: {said}"[:300])
    return reply


def _only(reply: bytes) -> bytes:
    """The one value (field 2) of a reply; empty where it has none."""
    return next((value for number, value in _texts(reply) if number == 2), b"")  # noqa: PLR2004


# --- protobuf's wire format -----------------------------------------------------------------------------------


def _field(number: int, value: bytes) -> bytes:
    return bytes([number << 3 | _TEXT]) + _varint(len(value)) + value


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:  # noqa: PLR2004 -- seven bits a byte
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _texts(reply: bytes) -> Iterator[tuple[int, bytes]]:
    for number, value in _fields(reply):
        if isinstance(value, bytes):
            yield number, value


def _numbers(reply: bytes) -> Iterator[tuple[int, int]]:
    for number, value in _fields(reply):
        if isinstance(value, int):
            yield number, value


def _fields(reply: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Numbers and values of a message's fields."""
    at = 0
    while at < len(reply):
        tag, at = _read_varint(reply, at)
        value, at = _read_varint(reply, at)
        if tag & 7 == _VARINT:
            yield tag >> 3, value
        elif tag & 7 == _TEXT and at + value <= len(reply):
            yield tag >> 3, reply[at : at + value]
            at += value
        else:
            raise LeaseStoreError("Ray's GCS answers what makes no sense")


def _read_varint(reply: bytes, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(reply):
            break
        byte = reply[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004 -- the last one
            return number, at
    raise LeaseStoreError("Ray's GCS answers what makes no sense")
