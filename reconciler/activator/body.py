"""A request body at rest, and the one place in it that a proxy has to know: where the model's name stands."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import IO

_CHUNK = 256 * 1024


@dataclass(frozen=True, slots=True)
class Body:
    """A complete body in a file (in memory or spooled), with the span of its `model` value.

    Attributes:
        file: Holds the body; read with seeks, closed by `close`.
        size: Bytes in all.
        model: The name that the client wrote.
        start: Where the encoded name begins.
        end: Where it ends.
        encode: How another name is written in its place.
        streams: It asks for a stream.
    """

    file: IO[bytes]
    size: int
    model: str
    start: int
    end: int
    encode: Callable[[str], bytes]
    streams: bool = False

    def naming(self, model: str) -> "Rendition":
        """This body, byte for byte, but for the model that it names."""
        if model == self.model:
            return Rendition(self, b"", self.size, self.size)
        return Rendition(self, self.encode(model), self.start, self.end)

    def close(self) -> None:
        """Free the memory or the spool file."""
        self.file.close()


@dataclass(frozen=True, slots=True)
class Rendition:
    """A body with `insert` in place of its bytes from `start` to `end`. Can be sent more than once."""

    body: Body
    insert: bytes
    start: int
    end: int

    @property
    def length(self) -> int:
        """Bytes that `chunks` yields in all."""
        return self.body.size - (self.end - self.start) + len(self.insert)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The bytes to send. Reads of a spool file are short and from the page cache, so they are not awaited."""
        position = 0
        while position < self.start:
            chunk = self._read(position, self.start)
            position += len(chunk)
            yield chunk
        if self.insert:
            yield self.insert
        position = self.end
        while position < self.body.size:
            chunk = self._read(position, self.body.size)
            position += len(chunk)
            yield chunk

    def _read(self, position: int, stop: int) -> bytes:
        self.body.file.seek(position)
        return self.body.file.read(min(_CHUNK, stop - position))
