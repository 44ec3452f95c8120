"""The load generator, a process of its own: `python -m bench.load`, one job a line on standard input.

It must not be what is measured, so it does as little as possible: raw asyncio protocols over connections that are
kept, requests written as ready bytes, answers searched for their end and for one expected text, neither parsed nor
stored. `bench.load_process` is its other end, `bench.ceiling` tells its speed.
"""

import asyncio
import gc
import json
import sys
import time
from dataclasses import asdict, dataclass, field

_TAIL_BYTES = 1024
_LONGEST_SECONDS = 300.0
_OK = b"200"


@dataclass(frozen=True, slots=True)
class Job:
    """One slice of load.

    Attributes:
        clients: Connections; each sends its next request when the answer to the last one is there.
        requests: Requests in all.
        expect: What an answer has to contain near its end, or it counts as failed.
    """

    host: str
    port: int
    path: str
    body: str
    clients: int
    requests: int
    expect: str


@dataclass(slots=True)
class Slice:
    """What became of a job.

    Attributes:
        latency_ms: From sending a request to the last byte of its answer.
        first_ms: From sending a request to the first byte of its answer's body: the first token of a stream.
        seconds: From the first request to the last answer.
        cpu_seconds: Of that, what this process computed.
        reconnects: Connections that the server closed between two requests.
    """

    latency_ms: list[float] = field(default_factory=list)
    first_ms: list[float] = field(default_factory=list)
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    reconnects: int = 0
    failures: list[str] = field(default_factory=list)


class Connection(asyncio.Protocol):
    """One keep-alive connection with one request under way at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.WriteTransport | None = None
        self._answered: asyncio.Future[None] | None = None
        self._head = b""
        self._in_body = False
        self._left: int | None = None
        self.status = b""
        self.closing = False
        self.first_at = 0.0
        self.tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: the connection stands."""
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the connection is gone."""
        self.closing = True
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(ConnectionError(f"closed in the middle of an answer ({exc})"))

    async def ask(self, request: bytes) -> None:
        """Send a request; return at the end of its answer."""
        assert self._transport is not None
        self._head, self._in_body, self._left, self.tail = b"", False, None, b""
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        await self._answered

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes of the answer."""
        if not self._in_body:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            data = self._head[end + 4 :]
            self._begin_body(self._head[:end].lower())
        if not data:
            return
        if not self.tail:
            self.first_at = time.perf_counter()
        self.tail = (self.tail + data)[-_TAIL_BYTES:]
        if self._left is not None:
            self._left -= len(data)
            ended = self._left <= 0
        else:
            # The last chunk of a chunked body. JSON and events cannot contain it: they escape carriage returns.
            ended = self.tail.endswith(b"\r\n0\r\n\r\n")
        if ended and self._answered is not None and not self._answered.done():
            self._answered.set_result(None)

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()

    def _begin_body(self, head: bytes) -> None:
        self._in_body = True
        self.status = head[9:12]
        self.closing = b"\r\nconnection: close" in head
        _, found, rest = head.partition(b"\r\ncontent-length:")
        if found:
            self._left = int(rest.split(b"\r\n", 1)[0])


async def run(job: Job) -> Slice:
    """Connect, then send the job's requests in a closed loop."""
    body = job.body.encode()
    request = (
        f"POST {job.path} HTTP/1.1\r\nHost: {job.host}:{job.port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    expect = job.expect.encode()
    result = Slice()
    connections = [await _connect(job) for _ in range(job.clients)]
    left = job.requests

    async def client(connection: Connection) -> None:
        nonlocal left
        while left > 0 and not result.failures:
            left -= 1
            if connection.closing:
                result.reconnects += 1
                connection = await _connect(job)
            began = time.perf_counter()
            await connection.ask(request)
            ended = time.perf_counter()
            if connection.status != _OK or expect not in connection.tail:
                answer = (connection.status + b" " + connection.tail).decode(errors="replace")
                result.failures.append(f"{job.path}: {answer}")
            result.latency_ms.append(round((ended - began) * 1000, 4))
            result.first_ms.append(round((connection.first_at - began) * 1000, 4))
        connection.close()

    began, computed = time.perf_counter(), time.process_time()
    everything = asyncio.gather(*(client(each) for each in connections), return_exceptions=True)
    outcomes = await asyncio.wait_for(everything, _LONGEST_SECONDS)
    result.seconds = time.perf_counter() - began
    result.cpu_seconds = time.process_time() - computed
    result.failures += [f"{job.path}: {error!r}" for error in outcomes if error is not None]
    return result


async def _connect(job: Job) -> Connection:
    _, connection = await asyncio.get_running_loop().create_connection(Connection, job.host, job.port)
    return connection


def main() -> None:
    """Answer each job with its slice."""
    gc.disable()
    for line in sys.stdin:
        gc.collect()
        print(json.dumps(asdict(asyncio.run(run(Job(**json.loads(line)))))), flush=True)


if __name__ == "__main__":
    main()
