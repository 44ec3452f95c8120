"""A model hub of our own on loopback: real HTTP, the real hub's headers, and every fault a network has to offer.

The stock `huggingface_hub` client works against it when `HF_ENDPOINT` (or `endpoint=`) is `Hub.url`.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import hmac
import io
import json
import re
import secrets
import socket
import struct
import termios
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from aiohttp import web

Content = bytes | Path
Gate = bool | Literal["auto", "manual"]

LFS_PATTERNS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")
ANY_FILE = "[!/]*"
"""As a fault's path: any file of any repo, but no API path."""

_BLOCK = 1 << 20
_SMALL_BLOCK = 16 << 10
_SMALL_BUFFER = 64 << 10
_SECRET = secrets.token_bytes()  # of the process: what one hub signs, another one accepts
_REPO = r"(?P<repo>[^/]+(?:/[^/]+)?)"
_ROUTES = [
    (kind, re.compile(pattern))
    for kind, pattern in (
        ("whoami", r"/api/whoami-v2"),
        ("info", rf"/api/models/{_REPO}/revision/(?P<revision>[^/]+)"),
        ("tree", rf"/api/models/{_REPO}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?"),
        ("paths-info", rf"/api/models/{_REPO}/paths-info/(?P<revision>[^/]+)"),
        ("refs", rf"/api/models/{_REPO}/refs"),
        ("auth-check", rf"/api/models/{_REPO}/auth-check"),
        ("info", rf"/api/models/{_REPO}"),
        ("file", rf"/(?!api/){_REPO}/resolve/(?P<revision>[^/]+)/(?P<file>.+)"),
    )
]


@dataclass(frozen=True)
class Reset:
    """The connection is reset (RST) once the client's kernel has so many bytes of the body."""

    after: int | None = 0
    """`None`: before the status line."""


@dataclass(frozen=True)
class Stall:
    """So many bytes of the body, then silence for so long, then the rest."""

    after: int | None
    """`None`: before the status line."""
    seconds: float


@dataclass(frozen=True)
class Status:
    """Another status instead of the answer; `X-Error-Code` and the like only as given."""

    code: int
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LyingLength:
    """`Content-Length` is wrong by `delta`: less is declared and sent, or more is declared than is there."""

    delta: int


@dataclass(frozen=True)
class IgnoreRange:
    """200 and the whole file, whatever range was asked for."""


@dataclass(frozen=True)
class Redirect:
    """302 to the same path (signed, so that no token is needed) at another `http://host:port`.

    A request that is already at that host is left alone. The answer carries the file's commit, etag and size, as
    the hub's redirects to its CDN do.
    """

    to_url_prefix: str


@dataclass(frozen=True)
class Flip:
    """The byte at this offset of the file arrives with all its bits flipped."""

    offset: int


@dataclass(frozen=True)
class Slow:
    """The body at this pace."""

    bytes_per_second: float


@dataclass(frozen=True)
class MoveBranch:
    """Before the answer the branch gets a new commit, of exactly these files."""

    new_files: Mapping[str, Content]
    branch: str = "main"


Fault = Reset | Stall | Status | LyingLength | IgnoreRange | Redirect | Flip | Slow | MoveBranch


@dataclass(frozen=True)
class Request:
    """One request as it arrived, and what has become of it until now."""

    time: float
    """Of its arrival, on the monotonic clock."""
    method: str
    path: str
    """As sent: percent-encoded, without the query."""
    query: str
    host: str
    headers: dict[str, str]
    """Names in lower case."""
    repo: str | None
    file: str | None
    range_start: int | None
    status: int | None
    """None until the answer begins."""
    bytes_sent: int
    """Of the body, handed to the transport; at most one block more than the kernel has taken."""


@dataclass
class _Exchange:
    """The row of the log that is still being written."""

    time: float
    method: str
    path: str
    query: str
    host: str
    headers: dict[str, str]
    kind: str = ""
    parts: dict[str, str] = field(default_factory=dict)
    status: int | None = None
    bytes_sent: int = 0

    @property
    def repo(self) -> str | None:
        return self.parts.get("repo")

    @property
    def file(self) -> str | None:
        return self.parts.get("file")

    def row(self) -> Request:
        start = re.match(r"bytes=(\d+)-", self.headers.get("range", ""))
        return Request(
            time=self.time,
            method=self.method,
            path=self.path,
            query=self.query,
            host=self.host,
            headers=dict(self.headers),
            repo=self.repo,
            file=self.file,
            range_start=int(start[1]) if start else None,
            status=self.status,
            bytes_sent=self.bytes_sent,
        )


@dataclass
class _Rule:
    faults: tuple[Fault, ...]
    path: str | None
    times: int | None
    method: str | None

    def matches(self, exchange: _Exchange) -> bool:
        if self.method is not None and self.method != exchange.method:
            return False
        name = exchange.path if exchange.file is None else exchange.file
        if self.path is not None and self.path != name and not fnmatchcase(name, self.path):
            return False
        elsewhere = [urlsplit(fault.to_url_prefix).netloc for fault in self.faults if isinstance(fault, Redirect)]
        return exchange.host not in elsewhere


@dataclass(frozen=True)
class _Blob:
    """One version of one file, with the two names that git and LFS have for it."""

    source: Content
    size: int
    oid: str
    """Git's name: for an LFS file, that of its pointer."""
    sha256: str | None
    """Only of an LFS file."""
    pointer_size: int = 0

    @classmethod
    def of(cls, source: Content, *, lfs: bool) -> Self:
        size = source.stat().st_size if isinstance(source, Path) else len(source)
        content = hashlib.sha256() if lfs else hashlib.sha1(b"blob %d\0" % size)
        with _open(source) as file:
            while block := file.read(_BLOCK):
                content.update(block)
        if not lfs:
            return cls(source, size, content.hexdigest(), None)
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{content.hexdigest()}\nsize {size}\n"
        oid = hashlib.sha1(b"blob %d\0" % len(pointer) + pointer.encode()).hexdigest()
        return cls(source, size, oid, content.hexdigest(), len(pointer))

    @property
    def etag(self) -> str:
        return f'"{self.sha256 or self.oid}"'

    def lfs(self, name: str) -> dict[str, Any]:
        """The `lfs` entry as the API has it; the two endpoints call the hash differently."""
        if self.sha256 is None:
            return {}
        return {"lfs": {name: self.sha256, "size": self.size, "pointerSize": self.pointer_size}}

    def tree_entry(self, path: str) -> dict[str, Any]:
        return {"type": "file", "oid": self.oid, "size": self.size, "path": path, **self.lfs("oid")}


@dataclass
class _Repo:
    name: str
    private: bool = False
    gated: Gate = False
    tokens: tuple[str, ...] = ()
    pipeline_tag: str | None = None
    config: Mapping[str, Any] | None = None
    tags: tuple[str, ...] = ()
    safetensors: Mapping[str, Any] | None = None
    branches: dict[str, str] = field(default_factory=dict)
    git_tags: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, _Blob]] = field(default_factory=dict)

    def commit(self, branch: str, tree: dict[str, _Blob]) -> str:
        parent = self.branches.get(branch, self.branches.get("main"))
        content = json.dumps([self.name, parent, sorted((path, blob.oid) for path, blob in tree.items())])
        commit = hashlib.sha1(content.encode()).hexdigest()
        self.commits[commit] = dict(sorted(tree.items()))
        self.branches[branch] = commit
        return commit

    def find(self, revision: str) -> str:
        commit = self.branches.get(revision) or self.git_tags.get(revision) or revision
        if commit not in self.commits:
            raise _Refused(404, f"Invalid rev id: {revision}", code="RevisionNotFound")
        return commit

    def info(self, revision: str, query: Mapping[str, list[str]]) -> dict[str, Any]:
        commit = self.find(revision)
        blobs = query.get("blobs", ["false"])[0].lower() in {"true", "1"}
        tree = self.commits[commit]
        info: dict[str, Any] = {
            "_id": hashlib.sha1(self.name.encode()).hexdigest()[:24],
            "id": self.name,
            "modelId": self.name,
            "author": self.name.rpartition("/")[0] or None,
            "sha": commit,
            "lastModified": "2025-01-01T00:00:00.000Z",
            "createdAt": "2025-01-01T00:00:00.000Z",
            "private": self.private,
            "gated": "manual" if self.gated is True else self.gated,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [*self.tags, *([self.pipeline_tag] if self.pipeline_tag else [])],
            "usedStorage": sum(blob.size for blob in tree.values()),
            "siblings": [
                {"rfilename": path, **({"size": b.size, "blobId": b.oid, **b.lfs("sha256")} if blobs else {})}
                for path, b in tree.items()
            ],
        }
        optional = {"pipeline_tag": self.pipeline_tag, "config": self.config, "safetensors": self.safetensors}
        info |= {key: value for key, value in optional.items() if value is not None}
        wanted = query.get("expand")
        return info if wanted is None else {k: v for k, v in info.items() if k in {"_id", "id", *wanted}}

    def tree(self, revision: str, folder: str, *, recursive: bool) -> list[dict[str, Any]]:
        tree = self.commits[self.find(revision)]
        prefix = f"{folder}/" if folder else ""
        entries: dict[str, dict[str, Any]] = {}
        for path, blob in tree.items():
            if not path.startswith(prefix):
                continue
            parents = [parent.as_posix() for parent in Path(path).parents][-2::-1]
            for parent in parents:
                if parent.startswith(prefix) and (recursive or "/" not in parent[len(prefix) :]):
                    oid = hashlib.sha1(f"{self.name}:{revision}:{parent}".encode()).hexdigest()
                    entries[parent] = {"type": "directory", "oid": oid, "size": 0, "path": parent}
            if recursive or "/" not in path[len(prefix) :]:
                entries[path] = blob.tree_entry(path)
        if folder and not entries:
            raise _Refused(404, f"{folder} does not exist on {revision}", code="EntryNotFound")
        return list(entries.values())


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: dict[str, str]
    source: Content
    start: int
    length: int


class _Refused(Exception):  # noqa: N818 -- an answer, not a failure of ours
    """What is answered instead, as the hub words it."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = {
            **({"X-Error-Code": code} if code else {}),
            "X-Error-Message": message,
            **(headers or {}),
        }


class Hub:
    """A hub in a thread of its own, on two loopback addresses; it serves until it is closed."""

    def __init__(
        self,
        *,
        tokens: Iterable[str] = (),
        lfs_patterns: Iterable[str] = LFS_PATTERNS,
        page_size: int = 1000,
        small_buffers: bool = False,
    ) -> None:
        """Start to serve.

        Args:
            tokens: Valid tokens that belong to no repo; a repo's own are valid everywhere, too.
            lfs_patterns: Which files are in LFS; the others are in git.
            page_size: Entries in one page of a tree.
            small_buffers: Keep little on the way, so that what is logged as sent is close to what was read.
        """
        self._lock = threading.RLock()
        self._repos: dict[str, _Repo] = {}
        self._tokens = frozenset(tokens)
        self._lfs_patterns = tuple(lfs_patterns)
        self._page_size = page_size
        self._small_buffers = small_buffers
        self._rules: list[_Rule] = []
        self._log: list[_Exchange] = []
        self._listeners = _listen_twice(small_buffers=small_buffers)
        port = self._listeners[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.other_url = f"http://127.0.0.2:{port}"
        """The same server under another host, as a CDN would be."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="hub", daemon=True)
        self._thread.start()
        if not self._started.wait(30):
            raise RuntimeError("The hub did not start.")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End at once: connections are cut, stalled answers too."""
        if self._thread.is_alive() and self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(30)

    # What is served.

    def repo(
        self,
        name: str,
        files: Mapping[str, Content],
        *,
        revision: str = "main",
        private: bool | None = None,
        gated: Gate | None = None,
        tokens: Iterable[str] | None = None,
        pipeline_tag: str | None = None,
        config: Mapping[str, Any] | None = None,
        tags: Iterable[str] | None = None,
        safetensors: Mapping[str, Any] | None = None,
    ) -> str:
        """Add a commit of exactly these files, and the repo where it is new.

        What is left out stays as it was; a new repo is public and open.

        Args:
            name: As `org/name`.
            files: By path; a `Path` is read from disk each time it is served.
            revision: The branch that moves.
            private: Unknown to those without one of its tokens.
            gated: Its files are only for those with one of its tokens; its listing is for everybody.
            tokens: Those that may read it.
            pipeline_tag: As the hub tells it.
            config: As the hub tells it: a part of `config.json`.
            tags: As the hub tells them, besides the pipeline's.
            safetensors: As the hub tells it: `parameters` and `total`.

        Returns:
            The commit's id; the same calls in the same order give the same ids on every hub.
        """
        tree = {
            path: _Blob.of(source, lfs=any(fnmatchcase(path, pattern) for pattern in self._lfs_patterns))
            for path, source in files.items()
        }
        given = {
            "private": private,
            "gated": gated,
            "tokens": None if tokens is None else tuple(tokens),
            "pipeline_tag": pipeline_tag,
            "config": config,
            "tags": None if tags is None else tuple(tags),
            "safetensors": safetensors,
        }
        with self._lock:
            repo = self._repos.setdefault(name, _Repo(name))
            for key, value in given.items():
                if value is not None:
                    setattr(repo, key, value)
            return repo.commit(revision, tree)

    def tag(self, repo: str, tag: str, commit: str) -> None:
        """Name a commit; a tag of that name moves."""
        with self._lock:
            self._repos[repo].git_tags[tag] = self._repos[repo].find(commit)

    # What goes wrong.

    def fault(
        self, *faults: Fault, path: str | None = None, times: int | None = 1, method: str | None = "GET"
    ) -> None:
        """Queue a fault for the requests to come; each meets the first that is for it.

        Args:
            faults: One, or several that befall the same request together.
            path: A file's path in its repo, or an API path as in the URL (`/api/...`), or a glob for either
                (`*` crosses slashes; `ANY_FILE`, `/api/*`). By default any request.
            times: How many requests it is for; `None`: all that meet no other, until `clear_faults`.
            method: `None`: any.
        """
        with self._lock:
            self._rules.append(_Rule(faults, path, times, method))

    @property
    def pending(self) -> int:
        """How many times the counted faults have still to strike: zero when a test met all it meant to meet."""
        with self._lock:
            return sum(rule.times or 0 for rule in self._rules)

    def clear_faults(self) -> None:
        """From now on all is well."""
        with self._lock:
            self._rules.clear()

    # What was asked.

    @property
    def requests(self) -> list[Request]:
        """All requests since the start or `clear`, in the order of their arrival, as they stand now."""
        with self._lock:
            return [exchange.row() for exchange in self._log]

    def requests_for(self, file: str, method: str | None = None) -> list[Request]:
        """Those for one file, whichever repo and revision it is of."""
        return [row for row in self.requests if row.file == file and method in {None, row.method}]

    def bytes_sent(self, file: str) -> int:
        """Bytes of this file in all answers together; the bodies of errors and redirects are not of it."""
        return sum(row.bytes_sent for row in self.requests_for(file) if row.status in {200, 206})

    def clear(self) -> None:
        """Forget the requests until now; one under way no longer shows."""
        with self._lock:
            self._log.clear()

    # The server.

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        server = web.Server(self._handle, handler_cancellation=True, access_log=None)
        runner = web.ServerRunner(server, shutdown_timeout=0.05)
        await runner.setup()
        for listener in self._listeners:
            await web.SockSite(runner, listener).start()
        self._started.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        path, _, query = request.raw_path.partition("?")
        headers = {name.lower(): value for name, value in request.headers.items()}
        exchange = _Exchange(time.monotonic(), request.method, path, query, headers.get("host", ""), headers)
        for kind, pattern in _ROUTES:
            if found := pattern.fullmatch(path):
                exchange.kind = kind
                exchange.parts = {key: unquote(value) for key, value in found.groupdict().items() if value}
                break
        with self._lock:
            self._log.append(exchange)
            faults = self._due(exchange)
        form = await request.post() if request.method == "POST" else {}
        paths = [str(value) for key, value in form.items() if key == "paths"]
        for fault in faults:
            if isinstance(fault, MoveBranch) and exchange.repo in self._repos:
                self.repo(exchange.repo, fault.new_files, revision=fault.branch)
        return await self._send(request, exchange, self._answer(exchange, faults, paths), faults)

    def _due(self, exchange: _Exchange) -> tuple[Fault, ...]:
        for rule in sorted(self._rules, key=lambda rule: rule.times is None):
            if rule.matches(exchange):
                if rule.times is not None:
                    rule.times -= 1
                    if rule.times <= 0:
                        self._rules.remove(rule)
                return rule.faults
        return ()

    def _answer(self, exchange: _Exchange, faults: Sequence[Fault], paths: Sequence[str]) -> _Answer:
        """What is right, and then what the faults make of it."""
        headers = dict(exchange.headers)
        for fault in faults:
            if isinstance(fault, Status):
                return _json(fault.code, {"error": f"Status {fault.code}, by the test's wish."}, fault.headers)
            if isinstance(fault, IgnoreRange):
                headers.pop("range", None)
        try:
            with self._lock:
                answer = self._look_up(exchange, headers, paths)
        except _Refused as refused:
            return _json(refused.status, {"error": refused.message}, refused.headers)
        for fault in faults:
            if isinstance(fault, Redirect):
                query = [*([exchange.query] if exchange.query else []), f"Signature={_signature(exchange.path)}"]
                location = f"{fault.to_url_prefix.rstrip('/')}{exchange.path}?{'&'.join(query)}"
                kept = {key: value for key, value in answer.headers.items() if key.startswith("X-")}
                if exchange.file is not None:
                    kept |= {"X-Linked-Etag": answer.headers["ETag"], "X-Linked-Size": _size(answer)}
                return _json(302, {"location": location}, {**kept, "Location": location})
        return answer

    def _look_up(self, exchange: _Exchange, headers: Mapping[str, str], paths: Sequence[str]) -> _Answer:
        query = parse_qs(exchange.query)
        token = headers.get("authorization", "").removeprefix("Bearer ").strip()
        signed = hmac.compare_digest(query.get("Signature", [""])[0], _signature(exchange.path))
        known = self._tokens.union(*(repo.tokens for repo in self._repos.values()))
        if token and token not in known and not signed:
            raise _Refused(401, "Invalid credentials in Authorization header")
        if exchange.kind == "whoami":
            if not token:
                raise _Refused(401, "Invalid username or password.")
            return _json(200, {"type": "user", "name": "tester", "orgs": [], "auth": {"type": "access_token"}})
        repo = self._admit(exchange, token, signed=signed)
        revision = exchange.parts.get("revision", "main")
        if exchange.kind == "file":
            return _file(repo, revision, exchange.parts["file"], headers, ranges=exchange.method == "GET")
        if exchange.kind == "tree":
            return self._tree_page(exchange, repo, query)
        payload: Any = {}
        match exchange.kind:
            case "info":
                payload = repo.info(revision, query)
            case "refs":
                payload = _refs(repo)
            case "paths-info":
                tree = repo.commits[repo.find(revision)]
                payload = [tree[path].tree_entry(path) for path in paths if path in tree]
        return _json(200, payload)

    def _admit(self, exchange: _Exchange, token: str, *, signed: bool) -> _Repo:
        """The repo, for one who may see it, and its files only for one who may read them."""
        if exchange.repo is None:
            raise _Refused(404, "Sorry, we can't find the page you are looking for.")
        repo = self._repos.get(exchange.repo)
        if repo is None or (repo.private and token not in repo.tokens and not signed):
            if token:
                raise _Refused(404, "Repository not found", code="RepoNotFound")
            raise _Refused(401, "Invalid username or password.", code="RepoNotFound")
        guarded = exchange.kind in {"file", "auth-check"} and repo.gated is not False
        if guarded and token not in repo.tokens and not signed:
            restricted = f"Access to model {repo.name} is restricted"
            if not token:
                hint = "You must have access to it and be authenticated to access it. Please log in."
                raise _Refused(401, f"{restricted}. {hint}", code="GatedRepo")
            hint = f"Visit {self.url}/{repo.name} to ask for access."
            raise _Refused(403, f"{restricted} and you are not in the authorized list. {hint}", code="GatedRepo")
        return repo

    def _tree_page(self, exchange: _Exchange, repo: _Repo, query: Mapping[str, list[str]]) -> _Answer:
        recursive = query.get("recursive", ["false"])[0].lower() in {"true", "1"}
        entries = repo.tree(exchange.parts["revision"], exchange.parts.get("folder", ""), recursive=recursive)
        start = int(query.get("cursor", ["0"])[0])
        end = start + min(int(query.get("limit", [self._page_size])[0]), self._page_size)
        headers = {}
        if end < len(entries):
            rest = urlencode({**{key: values[0] for key, values in query.items()}, "cursor": end})
            headers["Link"] = f'<http://{exchange.host}{exchange.path}?{rest}>; rel="next"'
        return _json(200, entries[start:end], headers)

    async def _send(
        self, request: web.BaseRequest, exchange: _Exchange, answer: _Answer, faults: Sequence[Fault]
    ) -> web.StreamResponse:
        length, declared = answer.length, answer.length
        response = web.StreamResponse(status=answer.status, headers=answer.headers)
        flips: set[int] = set()
        rate: float | None = None
        stops: list[tuple[int, Reset | Stall]] = []  # -1: before the status line
        for fault in faults:
            match fault:
                case LyingLength(delta):
                    declared = max(length + delta, 0)
                    length = min(length, declared)
                    if delta > 0:
                        response.force_close()
                case Flip(offset):
                    flips.add(offset - answer.start)
                case Slow(bytes_per_second):
                    rate = bytes_per_second
                case Reset(after) | Stall(after):
                    stops.append((-1 if after is None else after, fault))
        if request.method == "HEAD":
            length = 0
        stops = sorted(((min(after, length), fault) for after, fault in stops), key=lambda stop: stop[0])
        response.content_length = declared
        try:
            if await self._halt(request, stops, -1):
                return response
            exchange.status = answer.status
            writer = await response.prepare(request)
            assert writer is not None
            if self._small_buffers and isinstance(writer.transport, asyncio.WriteTransport):
                writer.transport.set_write_buffer_limits(high=0)
            begun, done = time.monotonic(), 0
            block = _SMALL_BLOCK if self._small_buffers else _BLOCK
            if rate is not None:
                block = max(1, min(block, int(rate / 20)))
            with _open(answer.source) as file:
                file.seek(answer.start)
                while True:
                    if stops and stops[0][0] <= done:
                        writer.send_headers()
                        if await self._halt(request, stops, done):
                            return response
                    if done == length:
                        break
                    data = file.read(min(block, length - done, *(after - done for after, _ in stops[:1])))
                    if not data:
                        raise RuntimeError(f"{answer.source!r} is shorter than it was.")
                    for flip in flips:
                        data = _flipped(data, flip - done)
                    exchange.bytes_sent += len(data)
                    await writer.write(data)
                    await writer.drain()
                    done += len(data)
                    if rate is not None:
                        await asyncio.sleep(max(0.0, begun + done / rate - time.monotonic()))
        except ConnectionError:
            pass  # the client went away; aiohttp notices too
        return response

    async def _halt(self, request: web.BaseRequest, stops: list[tuple[int, Reset | Stall]], done: int) -> bool:
        """Do what is to be done after so many bytes; true: the connection is no more."""
        while stops and stops[0][0] <= done:
            _, fault = stops.pop(0)
            if isinstance(fault, Reset):
                await _reset(request)
                return True
            await asyncio.sleep(fault.seconds)
        return False


def _listen_twice(*, small_buffers: bool) -> list[socket.socket]:
    """One port on 127.0.0.1 and 127.0.0.2."""
    for _ in range(50):
        with contextlib.ExitStack() as stack:
            listeners = [stack.enter_context(socket.socket()) for _ in range(2)]
            for listener in listeners:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if small_buffers:  # accepted sockets inherit it
                    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SMALL_BUFFER)
            listeners[0].bind(("127.0.0.1", 0))
            try:
                listeners[1].bind(("127.0.0.2", listeners[0].getsockname()[1]))
            except OSError:
                continue
            for listener in listeners:
                listener.listen(128)
            stack.pop_all()
            return listeners
    raise RuntimeError("No port is free on both 127.0.0.1 and 127.0.0.2.")


async def _reset(request: web.BaseRequest) -> None:
    """Wait (not for ever) until the client's kernel has all that was sent, then reset."""
    transport = request.transport
    if transport is None:
        return
    connection = transport.get_extra_info("socket")
    until = time.monotonic() + 5
    while time.monotonic() < until and not transport.is_closing():
        unsent = struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)))[0]
        if unsent == 0 and transport.get_write_buffer_size() == 0:
            break
        await asyncio.sleep(0.002)
    if not transport.is_closing():
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()


@contextlib.contextmanager
def _open(source: Content) -> Iterator[BinaryIO]:
    with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as file:
        yield file


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :] if 0 <= at < len(data) else data


def _signature(path: str) -> str:
    return hmac.new(_SECRET, path.encode(), hashlib.sha256).hexdigest()


def _json(status: int, payload: Any, headers: Mapping[str, str] | None = None) -> _Answer:
    body = json.dumps(payload).encode()
    return _Answer(status, {"Content-Type": "application/json", **(headers or {})}, body, 0, len(body))


def _refs(repo: _Repo) -> dict[str, list[dict[str, str]]]:
    kinds = {"branches": ("heads", repo.branches), "tags": ("tags", repo.git_tags)}
    return {
        "converts": [],
        "pullRequests": [],
        **{
            kind: [
                {"name": name, "ref": f"refs/{folder}/{name}", "targetCommit": commit}
                for name, commit in refs.items()
            ]
            for kind, (folder, refs) in kinds.items()
        },
    }


def _file(repo: _Repo, revision: str, path: str, headers: Mapping[str, str], *, ranges: bool) -> _Answer:
    commit = repo.find(revision)
    blob = repo.commits[commit].get(path)
    if blob is None:
        raise _Refused(404, "Entry not found", code="EntryNotFound", headers={"X-Repo-Commit": commit})
    name = quote(path.rpartition("/")[2])
    answered = {
        "Accept-Ranges": "bytes",
        "Content-Disposition": f"inline; filename*=UTF-8''{name}; filename=\"{name}\";",
        "Content-Type": "application/octet-stream",
        "ETag": blob.etag,
        "X-Repo-Commit": commit,
    }
    if blob.sha256 is not None:
        answered |= {"X-Linked-Etag": blob.etag, "X-Linked-Size": str(blob.size)}
    wanted = headers.get("range") if ranges and headers.get("if-range", blob.etag) == blob.etag else None
    span = _span(wanted, blob.size)
    if span is None:
        return _Answer(200, answered, blob.source, 0, blob.size)
    start, end = span
    answered["Content-Range"] = f"bytes {start}-{end - 1}/{blob.size}"
    return _Answer(206, answered, blob.source, start, end - start)


def _span(wanted: str | None, size: int) -> tuple[int, int] | None:
    """The first byte and the one after the last; none where the header says nothing that a server must heed."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", (wanted or "").replace(" ", ""))
    if found is None or found[0] == "bytes=-":
        return None
    if not found[1]:
        start, end = max(size - int(found[2]), 0), size
    else:
        start, end = int(found[1]), min(int(found[2]) + 1 if found[2] else size, size)
        if found[2] and int(found[2]) < start:
            return None
    if start >= size:
        raise _Refused(416, "Range not satisfiable", headers={"Content-Range": f"bytes */{size}"})
    return start, end


def _size(answer: _Answer) -> str:
    """The whole file's, in whatever part of it the answer is."""
    return answer.headers.get("Content-Range", f"/{answer.length}").rpartition("/")[2]
