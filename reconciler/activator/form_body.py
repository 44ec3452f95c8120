"""Read a multipart/form-data body (audio) into a spool file and find its `model` field on the way.

The parts are written anew in canonical form while they arrive: contents byte for byte, headers in order, what
surrounds the parts dropped. The parser is the one that Starlette, and so vLLM, reads forms with: two readers of
one body that disagree about where a field ends would be a hole.
"""

import logging
import tempfile
from collections.abc import AsyncIterable
from typing import IO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from reconciler.activator import errors
from reconciler.activator.body import Body

# Up to here a form stays in memory; beyond, it goes to a temporary file.
_IN_MEMORY = 1 << 20
_LONGEST_MODEL = 1024

# The parser warns of every malformed form by itself. The client is told; the log is not theirs to write.
logging.getLogger("python_multipart.multipart").setLevel(logging.ERROR)


async def read_form(chunks: AsyncIterable[bytes], content_type: str) -> Body:
    """Spool the body and locate the value of its `model` field.

    Raises:
        Refusal: It is not a complete form, or `model` is not there exactly once, as a short text.
    """
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise errors.invalid_form("the Content-Type must be multipart/form-data with a boundary")
    # Closed by Body.close, or below.
    file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115
    try:
        form = _Form(options[b"boundary"], file)
        async for chunk in chunks:
            form.write(chunk)
        return form.body()
    except FormParserError as error:
        file.close()
        raise errors.invalid_form(str(error)) from None
    except BaseException:
        file.close()
        raise


class _Form:
    """Copies one form into a file, part by part, as the parser's callbacks tell of it."""

    def __init__(self, boundary: bytes, file: IO[bytes]) -> None:
        self._file = file
        self._boundary = boundary
        self._complete = False
        self._header_name = b""
        self._header_value = b""
        self._in_model = False
        self._model = b""
        self._span: tuple[int, int] | None = None
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._part_begin,
                "on_header_begin": self._header_begin,
                "on_header_field": self._on_header_name,
                "on_header_value": self._on_header_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
                "on_part_data": self._part_data,
                "on_part_end": self._part_end,
                "on_end": self._end,
            },
        )

    def write(self, chunk: bytes) -> None:
        self._parser.write(chunk)

    def body(self) -> Body:
        if not self._complete:
            raise errors.invalid_form("it ends before its closing boundary")
        if self._span is None:
            raise errors.invalid_model("The field 'model' is missing.")
        try:
            model = self._model.decode()
        except UnicodeDecodeError:
            raise errors.invalid_model("The field 'model' is not UTF-8.") from None
        if not model:
            raise errors.invalid_model("The field 'model' must be a non-empty string.")
        return Body(self._file, self._file.tell(), model, *self._span, str.encode)

    def _part_begin(self) -> None:
        self._in_model = False
        self._file.write(b"--" + self._boundary + b"\r\n")

    def _header_begin(self) -> None:
        self._header_name = self._header_value = b""

    def _on_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _header_end(self) -> None:
        self._file.write(self._header_name + b": " + self._header_value + b"\r\n")
        if self._header_name.lower() == b"content-disposition":
            _, options = parse_options_header(self._header_value)
            self._in_model = options.get(b"name") == b"model"

    def _headers_finished(self) -> None:
        self._file.write(b"\r\n")
        if not self._in_model:
            return
        if self._span is not None:
            raise errors.invalid_model("The field 'model' is given more than once.")
        self._span = (self._file.tell(), self._file.tell())

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._file.write(data[start:end])
        if self._in_model:
            self._model += data[start:end]
            if len(self._model) > _LONGEST_MODEL:
                raise errors.invalid_model("The field 'model' is too long.")

    def _part_end(self) -> None:
        if self._in_model and self._span is not None:
            self._span = (self._span[0], self._file.tell())
        self._file.write(b"\r\n")

    def _end(self) -> None:
        self._file.write(b"--" + self._boundary + b"--\r\n")
        self._complete = True
