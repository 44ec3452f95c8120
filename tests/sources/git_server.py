"""A git server of the tests: the real `git http-backend` behind a small HTTP front, with a token if need be."""

import base64
import os
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self

_ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "LC_ALL": "C.UTF-8",
}


class GitServer:
    """Serves the bare repositories of a folder.

    Attributes:
        token: What the password must be; "" where none is asked for.
        delay: Seconds before each answer.
        redirect: Where every request is sent instead.
        requests: Paths that were asked for.
        headers: Values of Authorization that came.
    """

    def __init__(self, root: Path, *, token: str = "") -> None:
        self.root, self.token = root, token
        self.delay = 0.0
        self.redirect = ""
        self.requests: list[str] = []
        self.headers: list[str] = []
        server = self

        class Front(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server._answer(self)

            do_POST = do_GET  # noqa: N815 -- http.server calls it so

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Front)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=lambda: self._server.serve_forever(poll_interval=0.02), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        path, _, query = request.path.partition("?")
        self.requests.append(path)
        time.sleep(self.delay)
        given = request.headers.get("Authorization", "")
        self.headers.append(given)
        if self.redirect:
            request.send_response(302)
            request.send_header("Location", self.redirect + request.path)
            request.end_headers()
            return
        if self.token and not self._is_allowed(given):
            request.send_response(401)
            request.send_header("WWW-Authenticate", 'Basic realm="git"')
            request.end_headers()
            return
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        if request.headers.get("Transfer-Encoding") == "chunked":
            while size := int(request.rfile.readline(), 16):
                body += request.rfile.read(size)
                request.rfile.readline()
        backend = subprocess.run(
            ["git", "http-backend"],
            input=body,
            capture_output=True,
            check=False,
            env={
                **_ENVIRONMENT,
                "GIT_PROJECT_ROOT": str(self.root),
                "GIT_HTTP_EXPORT_ALL": "1",
                "REQUEST_METHOD": request.command,
                "PATH_INFO": path,
                "QUERY_STRING": query,
                "CONTENT_TYPE": request.headers.get("Content-Type", ""),
                "HTTP_CONTENT_ENCODING": request.headers.get("Content-Encoding", ""),
                "GIT_PROTOCOL": request.headers.get("Git-Protocol", ""),
                "REMOTE_ADDR": "127.0.0.1",
            },
        )
        head, _, content = backend.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if ": " in line)
        request.send_response(int(headers.pop("Status", "200").split()[0]))
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        try:
            request.wfile.write(content)
        except ConnectionError:
            request.close_connection = True

    def _is_allowed(self, given: str) -> bool:
        return base64.b64decode(given.removeprefix("Basic ")).decode().partition(":")[2] == self.token


class Repository:
    """A person's work tree, and the bare repository that it is pushed to."""

    def __init__(self, work: Path, bare: Path) -> None:
        self.work, self.bare = work, bare
        self.git("init", "--quiet", "--bare", "--initial-branch=main", str(bare), cwd=bare.parent)
        self.git("init", "--quiet", "--initial-branch=main", str(work), cwd=work.parent)
        self.git("remote", "add", "origin", str(bare))
        for name, value in {"user.name": "Ada", "user.email": "ada@example.com", "gpg.format": "ssh"}.items():
            self.git("config", name, value)

    def git(self, *args: str, cwd: Path | None = None, stdin: bytes | None = None, **environment: str) -> str:
        """Run git as this person."""
        done = subprocess.run(
            ["git", *args],
            cwd=cwd or self.work,
            env={**_ENVIRONMENT, **environment},
            input=stdin,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, (args, done.stderr.decode(errors="replace"))
        return done.stdout.decode(errors="replace").strip()

    def write(self, path: str, content: str | bytes) -> None:
        place = self.work / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content.encode() if isinstance(content, str) else content)

    def commit(self, files: dict[str, str | bytes] | None = None, *args: str, message: str = "change") -> str:
        """Write files, commit all and push it over whatever is there; gives the commit."""
        for path, content in (files or {}).items():
            self.write(path, content)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "-m", message, *args)
        return self.push()

    def push(self, *refs: str) -> str:
        self.git("push", "--quiet", "--force", "origin", *(refs or ("HEAD",)))
        return self.head()

    def head(self) -> str:
        return self.git("rev-parse", "HEAD")

    def tree(self, lines: list[tuple[str, str, str]]) -> str:
        """A tree of (mode, id, name) as it is, with any name."""
        kinds = {"040000": "tree", "160000": "commit"}
        text = b"".join(
            f"{mode} {kinds.get(mode, 'blob')} {each}\t".encode() + os.fsencode(name) + b"\0"
            for mode, each, name in lines
        )
        return self.git("mktree", "-z", "--missing", stdin=text)

    def commit_tree(self, tree: str) -> str:
        """Commit a tree and push it to main."""
        commit = self.git("commit-tree", tree, "-m", "by hand")
        self.git("push", "--quiet", "--force", "origin", f"{commit}:refs/heads/main")
        return commit

    def blob(self, content: bytes) -> str:
        return self.git("hash-object", "-w", "--stdin", stdin=content)
