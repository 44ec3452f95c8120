"""The hash of content that comes in pieces is that of the whole, in its own thread or not."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.weights import hashing
from reconciler.weights.hashing import ContentHash

PIECES = st.lists(st.binary(max_size=50), max_size=20)


@pytest.mark.parametrize("large", [False, True])
@given(pieces=PIECES)
def test_pieces_hash_to_the_name_of_the_whole(large: bool, pieces: list[bytes]) -> None:
    whole = b"".join(pieces)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashing, "_PIECE", 16)
        patch.setattr(hashing, "_LARGE", 0 if large else 10**9)
        for etag in (
            hashlib.sha256(whole).hexdigest(),
            hashlib.sha1(b"blob %d\0" % len(whole) + whole).hexdigest(),
        ):
            with ContentHash(etag, len(whole)) as found:
                for piece in pieces:
                    found.update(piece)
                assert found.matches()
            with ContentHash(etag, len(whole)) as found:
                found.update(whole + b"!")
                assert not found.matches()


def test_a_file_is_taken_whole_and_its_pieces_are_told(tmp_path: Path) -> None:
    content = bytes(range(256)) * 20_000
    (tmp_path / "file").write_bytes(content)
    told: list[int] = []
    with ContentHash(hashlib.sha256(content).hexdigest(), len(content)) as found:
        assert found.update_from(tmp_path / "file", told.append) == len(content)
        assert found.matches()
    assert sum(told) == len(content)
