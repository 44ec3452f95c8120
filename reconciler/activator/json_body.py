"""Read a JSON body and find its `model` and `stream`, without building or rewriting the rest of the document."""

import io
import json
import re
from collections.abc import AsyncIterable
from typing import NoReturn

from reconciler.activator import errors
from reconciler.activator.body import Body

_SPACE = re.compile(r"[ \t\r\n]*")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


# Numbers are checked and not converted: they are not needed here, and int() refuses very long ones.
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_int=str, parse_float=str)


async def read_json(chunks: AsyncIterable[bytes]) -> Body:
    """Collect the body, locate its top-level `model`, and see whether `stream` is true.

    Raises:
        Refusal: It is not a JSON object, or `model` is not there exactly once, as a string.
    """
    data = b"".join([chunk async for chunk in chunks])
    start, end, streams = _locate(data)
    model = json.loads(data[start:end])
    if not isinstance(model, str) or not model:
        raise errors.invalid_model("The field 'model' must be a non-empty string.")
    return Body(io.BytesIO(data), len(data), model, start, end, _encode, streams=streams)


def _encode(model: str) -> bytes:
    return json.dumps(model).encode()


def _locate(data: bytes) -> tuple[int, int, bool]:
    try:
        if not data.isascii():
            data.decode()  # only to refuse what is not UTF-8
        # One character per byte: JSON's structure is ASCII, so positions in this text are positions in the bytes,
        # and a document full of emoji does not take four times its size.
        spans, streams = _scan(data.decode("latin-1"))
    except UnicodeDecodeError:
        raise errors.invalid_json("it is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise errors.invalid_json(f"{error.msg} at byte {error.pos}") from None
    except ValueError as error:
        raise errors.invalid_json(str(error)) from None
    except RecursionError:
        raise errors.invalid_json("it is nested too deeply") from None
    if not spans:
        raise errors.invalid_model("The field 'model' is missing.")
    if len(spans) > 1:
        # Readers disagree on which of the two counts, and the edge's key check is one of the readers.
        raise errors.invalid_model("The field 'model' is given more than once.")
    return *spans[0], streams


def _scan(text: str) -> tuple[list[tuple[int, int]], bool]:
    """Where the values of the top-level key `model` stand, in a text that is checked to its end; and `stream`."""
    spans = []
    streams = False
    at = _expect(text, _skip(text, 0), "{")
    if text[at : at + 1] == "}":
        at = _skip(text, at + 1)
    else:
        while True:
            if text[at : at + 1] != '"':
                raise json.JSONDecodeError("Expecting a property name in double quotes", text, at)
            key, at = _DECODER.raw_decode(text, at)
            start = _expect(text, _skip(text, at), ":")
            value, end = _DECODER.raw_decode(text, start)
            if key == "model":
                spans.append((start, end))
            elif key == "stream":
                streams = value is True  # Of duplicates the last one counts, as for every JSON reader.
            at = _skip(text, end)
            if text[at : at + 1] == "}":
                at = _skip(text, at + 1)
                break
            at = _expect(text, at, ",")
    if at != len(text):
        raise json.JSONDecodeError("Extra data", text, at)
    return spans, streams


def _expect(text: str, at: int, character: str) -> int:
    """The position of what follows `character` and the space after it."""
    if text[at : at + 1] != character:
        raise json.JSONDecodeError(f"Expecting '{character}'", text, at)
    return _skip(text, at + 1)


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None  # the pattern matches the empty string
    return match.end()
