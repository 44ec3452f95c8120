"""Runs the command-line git for the git source: nothing of this machine's own settings, every resource bounded.

A repository is hostile until shown otherwise: no hooks, no submodules, no checkout, no protocol but the one that
is wanted, no redirects, no questions. Secrets go through the environment of the process and never into its
arguments, which every user of the machine can read.
"""

import asyncio
import contextlib
import os
import resource
import signal
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from reconciler.core.git_names import GitError, printable
from reconciler.host import children
from reconciler.sources.git_access import Access

_SETTINGS = {
    "core.hooksPath": "/dev/null",
    "core.symlinks": "false",
    "core.fsmonitor": "false",
    # Larger ones are streamed, never held in memory nor unpacked from differences.
    "core.bigFileThreshold": "1m",
    "core.commitGraph": "false",
    "credential.helper": "",
    "fetch.fsckObjects": "true",
    "fetch.recurseSubmodules": "no",
    "fetch.writeCommitGraph": "false",
    "gc.auto": "0",
    "gpg.x509.program": "/bin/false",
    "http.followRedirects": "false",
    "http.lowSpeedLimit": "100",
    "http.lowSpeedTime": "20",
    "http.sslVerify": "true",
    "log.showRoot": "true",
    "log.showSignature": "false",
    "maintenance.auto": "false",
    "pack.threads": "1",
    "protocol.allow": "never",
    "submodule.recurse": "false",
    "transfer.bundleURI": "false",
    "transfer.credentialsInUrl": "die",
    "transfer.fsckObjects": "true",
    "transfer.unpackLimit": "1",
}
_PASSED_ON = ("PATH", "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "TMPDIR")
_MOST_ADDRESS_SPACE = 4 << 30
_MOST_OUTPUT = 16 << 20
_MOST_MESSAGE = 64 << 10
_BLOCK = 64 << 10
_LOOK_SECONDS = 0.1
# What git and ssh say, and what to do about it.
_HINTS = (
    ("Host key verification failed", "the server's host key is not the one in the known hosts file"),
    ("REMOTE HOST IDENTIFICATION HAS CHANGED", "the server's host key is not the one in the known hosts file"),
    ("Permission denied (", "the server refuses the ssh key"),
    ("Authentication failed", "the server refuses the token"),
    ("could not read Username", "the server asks for credentials, or refuses the token"),
    ("error: 401", "the server asks for credentials, or refuses the token"),
    ("error: 403", "the server forbids it: the token has no right to read this repository"),
    ("redirect", "the repository has moved: give its new URL"),
    ("error: 30", "the repository has moved: give its new URL"),
)


class CommandError(GitError):
    """The command failed; `said` is all that it said, without secrets."""

    def __init__(self, message: str, said: str) -> None:
        super().__init__(message)
        self.said = said


class SlowError(GitError):
    """The command did not end in time, and was killed."""


class TooLargeError(GitError):
    """More came than is allowed, and the command was killed."""


class Output(NamedTuple):
    """What a command left."""

    code: int
    stdout: bytes
    stderr: str


async def run(
    args: Sequence[str],
    *,
    home: Path,
    repo: Path | None = None,
    access: Access | None = None,
    settings: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    stdin: bytes = b"",
    seconds: float = 60,
    most_output: int = _MOST_OUTPUT,
    most_written: int | None = None,
    accept: Collection[int] = (0,),
) -> Output:
    """Run one git command and wait for it.

    Args:
        args: The command and its arguments.
        home: An empty folder that is its home and where it runs.
        repo: The bare repository that it works on; without, none.
        access: The remote, for a command that talks to it.
        settings: Further settings.
        environment: Further variables.
        stdin: What it reads.
        seconds: After so many, it and all that it started are killed.
        most_output: Bytes of output after which it is killed.
        most_written: Bytes by which `repo` may grow, and which any one file may have.
        accept: Exit statuses that are no failure.

    Raises:
        CommandError: It failed.
        SlowError: It took too long.
        TooLargeError: It said or wrote too much.
        GitError: There is no git, or `access` cannot be used.
    """
    command = _command(repo, {**_SETTINGS, **(access.settings() if access else {}), **(settings or {})})
    variables = _environment(home, access) | dict(environment or {})
    before = await asyncio.to_thread(size_of, repo) if repo is not None and most_written is not None else 0
    try:
        process = await asyncio.create_subprocess_exec(
            "git",
            *command,
            *args,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=home,
            env=variables,
            start_new_session=True,
        )
    except FileNotFoundError:
        raise GitError("there is no git command on this machine") from None
    verb = args[0]
    growth: asyncio.Task[None] | None = None
    try:
        _bound(process.pid, most_written)
        if most_written is not None and repo is not None:
            growth = asyncio.create_task(_watch(process.pid, repo, before + most_written))
        async with asyncio.timeout(seconds):
            stdout, stderr, _, code = await asyncio.gather(
                _all_of(process.stdout, most_output),
                _beginning_of(process.stderr),
                _feed(process.stdin, stdin),
                process.wait(),
            )
    except TimeoutError:
        raise SlowError(f"git {verb} did not end within {seconds:g} s") from None
    finally:
        if growth is not None:
            growth.cancel()
        await children.end(process)
    if code not in accept:
        if most_written is not None and repo is not None:
            # Killed by us, or by the kernel: git itself does not say so.
            size = await asyncio.to_thread(size_of, repo)
            if size >= before + most_written or "File too large" in stderr:
                raise TooLargeError(f"git {verb} wrote more than {most_written >> 20} MiB")
        stderr = _without(access, stderr)
        raise CommandError(_explain(verb, code, stderr), stderr)
    return Output(code, stdout, stderr)


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder, as far as they can be seen; files may come and go meanwhile."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_size  # noqa: PTH118 -- a hot loop
    return total


def _command(repo: Path | None, settings: Mapping[str, str]) -> list[str]:
    words = ["--no-pager"]
    for name, value in settings.items():
        words += ["-c", f"{name}={value}"]
    return words if repo is None else [*words, f"--git-dir={repo}"]


def _without(access: Access | None, said: str) -> str:
    for secret in access.secrets() if access else ():
        said = said.replace(secret, "***")
    return said


def _environment(home: Path, access: Access | None) -> dict[str, str]:
    passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    allowed = access.protocol if access else ""
    return {
        **passed,
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home),
        "LC_ALL": "C.UTF-8",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_ATTR_NOSYSTEM": "1",
        # Where `home` lies within a work tree, that is none of ours.
        "GIT_CEILING_DIRECTORIES": str(home.parent),
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "/bin/false",
        "SSH_ASKPASS": "/bin/false",
        "GIT_ALLOW_PROTOCOL": allowed or "none",
        **(access.environment() if access else {}),
    }


def _bound(pid: int, most_written: int | None) -> None:
    """Limits of the kernel's, which what the command starts inherits."""
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_AS, (_MOST_ADDRESS_SPACE, _MOST_ADDRESS_SPACE))
        resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))
        if most_written is not None:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (most_written, most_written))


async def _watch(pid: int, repo: Path, most: int) -> None:
    """Kill the command once the repository has so many bytes."""
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        if await asyncio.to_thread(size_of, repo) >= most:
            _kill(pid)
            return


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


async def _all_of(stream: asyncio.StreamReader | None, most: int) -> bytes:
    assert stream is not None
    found = bytearray()
    while block := await stream.read(_BLOCK):
        found += block
        if len(found) > most:
            raise TooLargeError(f"git said more than {most >> 10} KiB")
    return bytes(found)


async def _beginning_of(stream: asyncio.StreamReader | None) -> str:
    assert stream is not None
    found = bytearray()
    while block := await stream.read(_BLOCK):
        found += block[: _MOST_MESSAGE - len(found)]
    return found.decode(errors="replace")


async def _feed(stream: asyncio.StreamWriter | None, text: bytes) -> None:
    assert stream is not None
    with contextlib.suppress(ConnectionError):
        if text:
            stream.write(text)
            await stream.drain()
        stream.close()
        await stream.wait_closed()


def _explain(verb: str, code: int, stderr: str) -> str:
    """One line of what git said: the reason."""
    for text, hint in _HINTS:
        if text in stderr:
            return hint
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    chosen = [line for line in lines if line.startswith(("fatal:", "error:"))] or lines[-1:]
    return printable(chosen[0].partition(": ")[2] or chosen[0]) if chosen else f"git {verb} failed ({code})"
