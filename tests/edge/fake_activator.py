"""A process that stands where the activator does and can be killed: `fake_activator.py PORT LOG MANNER`.

Every request that it has read is a JSON line in LOG: its pid, X-Request-Id and body. MANNER says what it does:
`answer` it; `hold` it; `begin` an answer and hold it; `hang_up` without a word; `deaf` reads nothing at all, so
that its death is a reset.
"""

import asyncio
import hashlib
import json
import os
import sys
from pathlib import Path


async def main(port: int, log: Path, manner: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if manner == "deaf":
            _note(log, "", b"")
            await asyncio.sleep(3600)
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in head[1:] if line)
        if manner == "hang_up":
            _note(log, headers["x-request-id"], b"")
            writer.close()
            return
        body = await _body(reader, headers)
        _note(log, headers["x-request-id"], body)
        if manner == "hold":
            await asyncio.sleep(3600)
        if manner == "begin":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: one\n\n")
            await asyncio.sleep(3600)
        reply = json.dumps({"pid": os.getpid(), "bytes": len(body)}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(reply) + reply)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", port, limit=2**22)
    async with server:
        await server.serve_forever()


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding") != "chunked":
        return await reader.readexactly(int(headers.get("content-length", "0")))
    body = b""
    while size := int(await reader.readline(), 16):
        body += await reader.readexactly(size)
        await reader.readline()
    await reader.readline()
    return body


def _note(log: Path, request_id: str, body: bytes) -> None:
    line = {"pid": os.getpid(), "id": request_id, "bytes": len(body), "sha": hashlib.sha256(body).hexdigest()}
    with log.open("a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
