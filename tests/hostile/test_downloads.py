"""A hub's listing is a stranger's text: no path of it may lead anywhere but into the copy."""

import json
from pathlib import Path
from typing import NamedTuple

import pytest
from hub_server import Hub
from weights.repository import Kit
from weights.test_hostile import COMMIT, answering, listing

from reconciler.core.weights import Copy
from reconciler.weights.errors import WeightsError


class ListingCase(NamedTuple):
    """One file of a listing, with another path than it should have."""

    name: str
    path: object


CASES = [
    ListingCase("a way up", "../../../victim.json"),
    ListingCase("a way up inside", "a/../../../../victim.json"),
    ListingCase("an absolute path", "/etc/victim.json"),
    ListingCase("a path with a NUL", "a\0b.json"),
    ListingCase("a path with a line end", "a\nb.json"),
    ListingCase("an empty path", ""),
    ListingCase("a dot", "."),
    ListingCase("two dots", ".."),
    ListingCase("an empty part", "a//victim.json"),
    ListingCase("a folder", "victim.json/"),
    ListingCase("a backslash", "..\\..\\victim.json"),
    ListingCase("a name of 300 characters", "a" * 300 + ".json"),
    ListingCase("a path of 5,000 characters", "a/" * 2500 + "x.json"),
    ListingCase("half a surrogate pair", "\ud800.json"),
    ListingCase("a number", 7),
    ListingCase("nothing", None),
]
# Not even to be compared with other paths.
UNHASHABLE = [ListingCase("a list", ["config.json"]), ListingCase("an object", {"a": "config.json"})]


def _everything(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.mark.parametrize("case", [*CASES, *UNHASHABLE], ids=lambda case: case.name)
def test_a_path_of_a_listing(case: ListingCase, hub: Hub, tmp_path: Path) -> None:
    kit = Kit(hub, tmp_path / "deep" / "down" / "here")
    body = json.loads(listing())
    body["siblings"].append({**body["siblings"][0], "rfilename": case.path})
    with answering(json.dumps(body).encode()) as (url, _):
        kit.hub = type("There", (), {"url": url})()
        with pytest.raises(WeightsError) as caught:
            kit.fetch(Copy("org/model", COMMIT))
    assert str(caught.value).isprintable(), str(caught.value)
    assert len(str(caught.value)) < 1000
    found = _everything(tmp_path)
    assert not {path for path in found if "victim" in path}
    assert {path.split("/")[0] for path in found} <= {"deep"}
