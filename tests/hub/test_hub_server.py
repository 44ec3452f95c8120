"""The test hub itself: the stock client believes it, and each of its faults is one."""

import hashlib
import http.client
import json
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hub_server import (
    ANY_FILE,
    Flip,
    Hub,
    IgnoreRange,
    LyingLength,
    MoveBranch,
    Redirect,
    Reset,
    Slow,
    Stall,
    Status,
)
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile, RepoFolder

REPO = "org/model"
CONFIG = b'{"model_type": "tiny"}'
HEADER = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
WEIGHTS = struct.pack("<Q", len(HEADER)) + HEADER + bytes(range(8)) * 1000
FILES = {"config.json": CONFIG, "model.safetensors": WEIGHTS, "extra/deep/note.txt": b"", "a b+ü.txt": b"odd"}
CONFIG_SHA1 = hashlib.sha1(b"blob %d\0" % len(CONFIG) + CONFIG).hexdigest()
WEIGHTS_SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
FILE = f"/{REPO}/resolve/main/model.safetensors"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        hub.repo(REPO, FILES, pipeline_tag="text-generation", config={"model_type": "tiny"})
        yield hub


@dataclass
class Got:
    status: int
    headers: dict[str, str]
    body: bytes
    """What came before the end, or before the error."""
    error: Exception | None = None


def ask(
    hub: Hub, path: str, headers: Mapping[str, str] | None = None, *, method: str = "GET", timeout: float = 5
) -> Got:
    """One request over a connection of its own, without a client's cleverness."""
    connection = http.client.HTTPConnection(urlsplit(hub.url).netloc, timeout=timeout)
    try:
        connection.request(method, path, headers=headers or {})
        response = connection.getresponse()
        got = Got(response.status, {k.lower(): v for k, v in response.getheaders()}, b"")
        try:
            while block := response.read1(4096):
                got.body += block
        except (OSError, http.client.HTTPException) as error:
            got.error = error
        return got
    finally:
        connection.close()


# The stock client.


def test_what_the_api_tells(hub: Hub) -> None:
    api = HfApi(endpoint=hub.url, token=False)
    info = api.model_info(REPO, files_metadata=True)
    assert (info.id, info.author, info.private, info.gated) == (REPO, "org", False, False)
    assert (info.pipeline_tag, info.config) == ("text-generation", {"model_type": "tiny"})
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
    assert siblings.keys() == FILES.keys()
    assert (siblings["config.json"].size, siblings["config.json"].blob_id) == (len(CONFIG), CONFIG_SHA1)
    assert siblings["config.json"].lfs is None
    lfs = siblings["model.safetensors"].lfs
    assert lfs is not None
    assert (lfs.sha256, lfs.size) == (WEIGHTS_SHA256, len(WEIGHTS))
    assert {sibling.size for sibling in api.model_info(REPO).siblings or []} == {None}
    assert api.model_info(REPO, expand=["sha"]).siblings is None

    tree = {entry.path: entry for entry in api.list_repo_tree(REPO, recursive=True)}
    assert tree.keys() == {*FILES, "extra", "extra/deep"}
    assert isinstance(tree["extra/deep"], RepoFolder)
    entry = tree["model.safetensors"]
    assert isinstance(entry, RepoFile)
    assert entry.lfs is not None
    assert (entry.size, entry.lfs.sha256, entry.xet_hash) == (len(WEIGHTS), WEIGHTS_SHA256, None)
    assert [entry.path for entry in api.list_repo_tree(REPO, "extra")] == ["extra/deep"]
    assert [entry.path for entry in api.get_paths_info(REPO, ["config.json", "none"])] == ["config.json"]


def test_old_commits_and_tags_stay(hub: Hub) -> None:
    api = HfApi(endpoint=hub.url, token=False)
    first = api.model_info(REPO).sha
    assert first is not None
    hub.tag(REPO, "v1", first)
    second = hub.repo(REPO, {"config.json": b"{}"})
    hub.repo(REPO, {"config.json": b"side"}, revision="refs/pr/1")
    refs = api.list_repo_refs(REPO)
    assert {ref.name: ref.target_commit for ref in refs.tags} == {"v1": first}
    assert {ref.name for ref in refs.branches} == {"main", "refs/pr/1"}
    assert api.model_info(REPO).sha == second != first
    for revision in (first, "v1"):
        assert api.model_info(REPO, revision=revision).sha == first
    assert ask(hub, f"/{REPO}/resolve/{first}/config.json").body == CONFIG
    assert ask(hub, f"/{REPO}/resolve/refs%2Fpr%2F1/config.json").body == b"side"
    assert api.model_info(REPO).pipeline_tag == "text-generation", "what a later commit leaves out stays"
    with Hub() as other:
        assert other.repo(REPO, FILES) == first, "ids are the same on every hub"


def test_a_snapshot_and_safetensors_metadata(hub: Hub, tmp_path: Path) -> None:
    folder = Path(snapshot_download(REPO, endpoint=hub.url, token=False, cache_dir=tmp_path))
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == FILES.keys()
    assert all((folder / path).read_bytes() == content for path, content in FILES.items())
    assert (folder / "model.safetensors").resolve().name == WEIGHTS_SHA256
    assert (folder / "config.json").resolve().name == CONFIG_SHA1
    assert hub.bytes_sent("model.safetensors") == len(WEIGHTS)
    metadata = HfApi(endpoint=hub.url, token=False).get_safetensors_metadata(REPO)
    assert metadata.parameter_count == {"F32": 2}
    assert [row.range_start for row in hub.requests_for("model.safetensors", "GET")] == [None, 0]


def test_the_command(hub: Hub, tmp_path: Path) -> None:
    hub.repo("org/secret", {"config.json": CONFIG, "big.bin": b"x" * 100}, private=True, tokens=["hf_good"])
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": "hf_good",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    command = [sys.executable, "-m", "huggingface_hub.cli.hf", "download", "org/secret", "--local-dir", "got"]
    subprocess.run(command, env=environment, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    assert (tmp_path / "got/big.bin").read_bytes() == b"x" * 100


def test_large_trees_come_in_pages() -> None:
    with Hub(page_size=3) as hub:
        hub.repo(REPO, {f"{n}.txt": b"" for n in range(8)})
        api = HfApi(endpoint=hub.url, token=False)
        assert len(list(api.list_repo_tree(REPO, recursive=True))) == 8
        assert len(hub.requests) == 3


# Who may have what.


def test_tokens(hub: Hub, tmp_path: Path) -> None:
    hub.repo("org/secret", FILES, private=True, tokens=["hf_secret"])
    hub.repo("org/gated", FILES, gated="auto", tokens=["hf_gated"])

    def api(token: str | None) -> HfApi:
        return HfApi(endpoint=hub.url, token=token or False)

    def status(path: str, token: str | None, method: str = "HEAD") -> tuple[int, str | None]:
        got = ask(hub, path, {"Authorization": f"Bearer {token}"} if token else {}, method=method)
        return got.status, got.headers.get("x-error-code")

    for repo in ("org/none", "org/secret"):
        for path in (f"/api/models/{repo}", f"/{repo}/resolve/main/config.json"):
            assert status(path, None) == (401, "RepoNotFound")
            assert status(path, "hf_gated") == (404, "RepoNotFound")
            assert status(path, "hf_bad") == (401, None)
    assert status("/org/secret/resolve/main/config.json", "hf_secret") == (200, None)
    assert status("/org/gated/resolve/main/config.json", "hf_gated") == (200, None)
    assert status("/org/gated/resolve/main/config.json", None) == (401, "GatedRepo")
    assert status("/org/gated/resolve/main/config.json", "hf_secret") == (403, "GatedRepo")
    assert status(f"/api/models/{REPO}", "hf_bad") == (401, None), "refused even where none is needed"

    for token, error in ((None, RepositoryNotFoundError), ("hf_gated", RepositoryNotFoundError)):
        with pytest.raises(error):
            api(token).model_info("org/secret")
    with pytest.raises(HfHubHTTPError, match="Invalid credentials in Authorization header") as bad:
        api("hf_bad").model_info(REPO)
    assert not isinstance(bad.value, RepositoryNotFoundError)
    assert api("hf_secret").model_info("org/secret").private is True
    assert api(None).model_info("org/gated").gated == "auto", "the listing of a gated repo is for all"
    with pytest.raises(GatedRepoError, match="you are not in the authorized list"):
        hf_hub_download("org/gated", "config.json", endpoint=hub.url, token="hf_secret", cache_dir=tmp_path)
    with pytest.raises(GatedRepoError, match="Please log in"):
        api(None).auth_check("org/gated")
    api("hf_gated").auth_check("org/gated")
    assert api("hf_gated").whoami()["name"] == "tester"


def test_unknown_revisions_and_files(hub: Hub, tmp_path: Path) -> None:
    api = HfApi(endpoint=hub.url, token=False)
    with pytest.raises(RevisionNotFoundError):
        api.model_info(REPO, revision="none")
    with pytest.raises(RevisionNotFoundError):
        list(api.list_repo_tree(REPO, revision="0" * 40))
    for revision, error in (("none", RevisionNotFoundError), ("main", RemoteEntryNotFoundError)):
        with pytest.raises(error):
            hf_hub_download(REPO, "none.txt", revision=revision, endpoint=hub.url, token=False, cache_dir=tmp_path)
    assert len(list(tmp_path.rglob(".no_exist/*/none.txt"))) == 1


# Plain HTTP.


def test_headers_of_files(hub: Hub) -> None:
    commit = HfApi(endpoint=hub.url, token=False).model_info(REPO).sha
    weights, config = (ask(hub, f"/{REPO}/resolve/main/{file}", method="HEAD") for file in list(FILES)[1::-1])
    assert weights.headers["etag"] == weights.headers["x-linked-etag"] == f'"{WEIGHTS_SHA256}"'
    assert weights.headers["content-length"] == weights.headers["x-linked-size"] == str(len(WEIGHTS))
    assert weights.headers["accept-ranges"] == "bytes"
    assert weights.headers["x-repo-commit"] == config.headers["x-repo-commit"] == commit
    assert config.headers["etag"] == f'"{CONFIG_SHA1}"'
    assert not [name for got in (weights, config) for name in got.headers if "xet" in name]
    assert not [name for name in config.headers if "linked" in name]
    assert ask(hub, f"/{REPO}/resolve/main/a%20b%2B%C3%BC.txt").body == b"odd"


@pytest.mark.parametrize(
    ("wanted", "start", "end"),
    [("bytes=0-9", 0, 10), ("bytes=100-", 100, None), ("bytes=-7", -7, None), ("bytes=50-999999", 50, None)],
)
def test_ranges(hub: Hub, wanted: str, start: int, end: int | None) -> None:
    got = ask(hub, FILE, {"Range": wanted})
    assert (got.status, got.body) == (206, WEIGHTS[start:end])
    first = range(len(WEIGHTS))[start]
    assert got.headers["content-range"] == f"bytes {first}-{first + len(got.body) - 1}/{len(WEIGHTS)}"
    assert got.headers["content-length"] == str(len(got.body))


def test_ranges_that_are_none(hub: Hub) -> None:
    beyond = ask(hub, FILE, {"Range": f"bytes={len(WEIGHTS)}-"})
    assert (beyond.status, beyond.headers["content-range"]) == (416, f"bytes */{len(WEIGHTS)}")
    for headers in ({"Range": "bytes=5-1"}, {"Range": "lines=1-2"}, {"Range": "bytes=1-", "If-Range": '"old"'}):
        got = ask(hub, FILE, headers)
        assert (got.status, got.body) == (200, WEIGHTS)
    same = ask(hub, FILE, {"Range": "bytes=1-", "If-Range": f'"{WEIGHTS_SHA256}"'})
    assert (same.status, same.body) == (206, WEIGHTS[1:])


def test_files_from_disk(hub: Hub, tmp_path: Path) -> None:
    content = os.urandom(3 << 20) + b"end"
    (tmp_path / "large").write_bytes(content)
    hub.repo(REPO, {"large.gguf": tmp_path / "large", "large.txt": tmp_path / "large"})
    got = ask(hub, f"/{REPO}/resolve/main/large.gguf")
    assert got.body == content
    assert got.headers["etag"] == f'"{hashlib.sha256(content).hexdigest()}"'
    part = ask(hub, f"/{REPO}/resolve/main/large.txt", {"Range": f"bytes={1 << 20}-"})
    assert part.body == content[1 << 20 :]
    assert part.headers["etag"] == f'"{hashlib.sha1(b"blob %d" % len(content) + bytes(1) + content).hexdigest()}"'


def test_the_log(hub: Hub) -> None:
    ask(hub, f"{FILE}?download=true", {"Range": "bytes=8000-", "Authorization": ""})
    (row,) = hub.requests
    assert (row.method, row.path, row.query, row.repo, row.file) == (
        "GET",
        FILE,
        "download=true",
        REPO,
        "model.safetensors",
    )
    assert (row.status, row.range_start, row.bytes_sent) == (206, 8000, len(WEIGHTS) - 8000)
    assert row.headers["range"] == "bytes=8000-"
    assert f"http://{row.host}" == hub.url
    hub.clear()
    assert (hub.requests, hub.bytes_sent("model.safetensors")) == ([], 0)


def test_what_nobody_reads_is_hardly_sent() -> None:
    with Hub(small_buffers=True) as hub:
        hub.repo(REPO, {"large.bin": bytes(32 << 20)})
        connection = http.client.HTTPConnection(urlsplit(hub.url).netloc, timeout=5)
        connection.request("GET", f"/{REPO}/resolve/main/large.bin")
        response = connection.getresponse()
        response.read(1000)
        sent = -1
        while sent != (sent := hub.bytes_sent("large.bin")):
            time.sleep(0.1)
        assert 1000 < sent < 8 << 20
        connection.close()
        response.close()
        time.sleep(0.1)
        assert hub.bytes_sent("large.bin") < 8 << 20, "nor after the client has gone"


# Faults.


@pytest.mark.parametrize("after", [0, 1, 5000])
def test_reset(hub: Hub, after: int) -> None:
    hub.fault(Reset(after), path="model.safetensors")
    got = ask(hub, FILE)
    assert (got.status, got.body) == (200, WEIGHTS[:after])
    assert isinstance(got.error, ConnectionResetError)
    assert hub.bytes_sent("model.safetensors") == after
    hub.fault(Reset(10), path="*.safetensors")
    got = ask(hub, FILE, {"Range": "bytes=100-"})
    assert got.body == WEIGHTS[100:110], "counted within the response"
    assert (ask(hub, FILE).body, hub.pending) == (WEIGHTS, 0)


def test_reset_before_the_answer(hub: Hub) -> None:
    hub.fault(Reset(None), method="HEAD")
    with pytest.raises(ConnectionResetError):
        ask(hub, FILE, method="HEAD")
    assert [(row.method, row.status) for row in hub.requests] == [("HEAD", None)]


def test_status(hub: Hub) -> None:
    hub.fault(Status(429, {"Retry-After": "7"}), path="/api/models/*", times=2)
    hub.fault(Status(503), path=ANY_FILE)
    for _ in range(2):
        got = ask(hub, f"/api/models/{REPO}")
        assert (got.status, got.headers["retry-after"]) == (429, "7")
    got = ask(hub, FILE)
    assert (got.status, hub.bytes_sent("model.safetensors")) == (503, 0)
    assert "retry-after" not in got.headers
    assert [ask(hub, path).status for path in (FILE, f"/api/models/{REPO}")] == [200, 200]


def test_stall(hub: Hub) -> None:
    hub.fault(Stall(100, 30), path="model.safetensors")
    got = ask(hub, FILE, timeout=1)
    assert got.body == WEIGHTS[:100]
    assert isinstance(got.error, TimeoutError)
    hub.fault(Stall(None, 30))
    with pytest.raises(TimeoutError):
        ask(hub, FILE, timeout=1)
    hub.fault(Stall(50, 0.1))
    begun = time.monotonic()
    assert ask(hub, FILE).body == WEIGHTS, "the rest follows"
    assert time.monotonic() - begun >= 0.1


def test_a_stalled_hub_closes_at_once() -> None:
    hub = Hub()
    hub.repo(REPO, FILES)
    hub.fault(Stall(10, 60))
    thread = threading.Thread(target=lambda: ask(hub, FILE, timeout=30))
    thread.start()
    while hub.bytes_sent("model.safetensors") < 10:
        time.sleep(0.01)
    begun = time.monotonic()
    hub.close()
    thread.join()
    hub.close()
    assert time.monotonic() - begun < 20


def test_lying_length(hub: Hub) -> None:
    hub.fault(LyingLength(-10))
    less = ask(hub, FILE)
    assert (less.body, less.error) == (WEIGHTS[:-10], None)
    assert less.headers["content-length"] == str(len(WEIGHTS) - 10)
    hub.fault(LyingLength(10))
    more = ask(hub, FILE)
    assert more.body == WEIGHTS
    assert more.headers["content-length"] == str(len(WEIGHTS) + 10)
    assert hub.bytes_sent("model.safetensors") == 2 * len(WEIGHTS) - 10


def test_ignore_range(hub: Hub) -> None:
    hub.fault(IgnoreRange())
    got = ask(hub, FILE, {"Range": "bytes=100-"})
    assert (got.status, got.body) == (200, WEIGHTS)
    assert "content-range" not in got.headers


def test_flip(hub: Hub) -> None:
    hub.fault(Flip(150), times=2)
    flipped = WEIGHTS[:150] + bytes([WEIGHTS[150] ^ 0xFF]) + WEIGHTS[151:]
    assert ask(hub, FILE).body == flipped
    assert ask(hub, FILE, {"Range": "bytes=100-199"}).body == flipped[100:200]
    assert ask(hub, FILE).body == WEIGHTS


def test_slow(hub: Hub) -> None:
    hub.fault(Slow(20_000), times=None)
    begun = time.monotonic()
    assert ask(hub, FILE).body == WEIGHTS
    assert time.monotonic() - begun > 0.9 * len(WEIGHTS) / 20_000
    hub.clear_faults()
    assert ask(hub, FILE).body == WEIGHTS


def test_move_branch(hub: Hub) -> None:
    before = ask(hub, FILE, method="HEAD").headers["x-repo-commit"]
    hub.fault(MoveBranch({"config.json": b"new"}), path="config.json")
    got = ask(hub, f"/{REPO}/resolve/main/config.json")
    assert (got.body, got.headers["x-repo-commit"] == before) == (b"new", False)
    assert ask(hub, FILE).headers["x-error-code"] == "EntryNotFound"
    assert ask(hub, FILE.replace("main", before)).body == WEIGHTS


def test_faults_in_order_together_and_for_ever(hub: Hub) -> None:
    hub.fault(Status(500), times=None, method=None)
    hub.fault(Status(503))
    hub.fault(IgnoreRange(), Flip(0), Reset(3))
    assert ask(hub, FILE).status == 503
    assert ask(hub, FILE, {"Range": "bytes=100-"}).body == bytes([WEIGHTS[0] ^ 0xFF]) + WEIGHTS[1:3]
    assert hub.pending == 0
    assert [ask(hub, FILE, method=method).status for method in ("HEAD", "GET", "GET")] == [500] * 3


def test_redirect_to_a_cdn(hub: Hub, tmp_path: Path) -> None:
    """As on the real hub: the metadata is on the redirect, and the token does not go along."""
    hub.repo("org/gated", FILES, gated=True, tokens=["hf_good"])
    hub.fault(Redirect(hub.other_url), path="*.safetensors", times=None, method=None)
    path = hf_hub_download("org/gated", "model.safetensors", endpoint=hub.url, token="hf_good", cache_dir=tmp_path)
    assert Path(path).read_bytes() == WEIGHTS
    head, get = hub.requests
    assert (head.method, head.status, f"http://{head.host}") == ("HEAD", 302, hub.url)
    assert (get.method, get.status, f"http://{get.host}") == ("GET", 200, hub.other_url)
    assert ("authorization" in head.headers, "authorization" in get.headers) == (True, False)
    refused = ask(hub, "/org/gated/resolve/main/model.safetensors")
    assert (refused.status, refused.headers["x-error-code"]) == (401, "GatedRepo")


def test_redirect_to_another_hub(hub: Hub, tmp_path: Path) -> None:
    with Hub() as cdn:
        cdn.repo(REPO, FILES)
        hub.fault(Redirect(cdn.url), path="model.safetensors", times=None)
        path = hf_hub_download(REPO, "model.safetensors", endpoint=hub.url, token=False, cache_dir=tmp_path)
        assert Path(path).read_bytes() == WEIGHTS
        assert [row.status for row in hub.requests] == [200, 302]
        assert (cdn.bytes_sent("model.safetensors"), cdn.requests[0].method) == (len(WEIGHTS), "GET")


def test_the_stock_client_asks_again_after_a_short_answer(hub: Hub, tmp_path: Path) -> None:
    hub.fault(LyingLength(10), path="model.safetensors")
    path = hf_hub_download(REPO, "model.safetensors", endpoint=hub.url, token=False, cache_dir=tmp_path)
    assert Path(path).read_bytes() == WEIGHTS
    assert [row.status for row in hub.requests] == [200, 200, 200]
    assert hub.bytes_sent("model.safetensors") == 2 * len(WEIGHTS)
