"""What a folder of model files may hold besides model files, put there by accident or on purpose."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from .conftest import ANYWHERE, GOOD


class FolderCase(NamedTuple):
    """One hostile entry of the folder.

    Attributes:
        name: What it is.
        make: Puts it at the path of `sick.yaml`.
        says: Part of the problem that is reported.
        at: Its place.
    """

    name: str
    make: Callable[[Path], None]
    says: str
    at: str = "1:1"


def _linked_pipe(path: Path) -> None:
    os.mkfifo(path.with_suffix(".pipe"))
    path.symlink_to(path.with_suffix(".pipe"))


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        # By a relative name: the whole path may be longer than a socket's may be.
        here = os.open(".", os.O_RDONLY)
        try:
            os.chdir(path.parent)
            listener.bind(path.name)
        finally:
            os.fchdir(here)
            os.close(here)


def _loop(path: Path) -> None:
    path.symlink_to("loop2.yaml")
    path.with_name("loop2.yaml").symlink_to(path.name)


def _sparse(path: Path) -> None:
    """A terabyte that takes no room."""
    with path.open("wb") as file:
        file.truncate(2**40)


def _write(content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


CASES = [
    FolderCase("a pipe", os.mkfifo, "not a regular file"),
    FolderCase("a link to a pipe", _linked_pipe, "not a regular file"),
    FolderCase("a device", _device, "not a regular file"),
    FolderCase("a link to a terminal", lambda path: path.symlink_to("/dev/tty"), ""),
    FolderCase("a link to standard input", lambda path: path.symlink_to("/dev/stdin"), ""),
    FolderCase("a socket", _socket, "not a regular file"),
    FolderCase("a folder", Path.mkdir, "not a regular file"),
    FolderCase("a link to the folder itself", lambda path: path.symlink_to("."), "not a regular file"),
    FolderCase("a link to the root", lambda path: path.symlink_to("/"), "not a regular file"),
    FolderCase("links in a circle", _loop, "Too many levels of symbolic links"),
    FolderCase("a link to itself", lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
    FolderCase("a link that leads nowhere", lambda path: path.symlink_to("nowhere"), "the link leads nowhere"),
    FolderCase("a link through a file", lambda path: path.symlink_to("steady.yaml/x"), "Not a directory"),
    FolderCase("a link to the users", lambda path: path.symlink_to("/etc/passwd"), "", ANYWHERE),
    FolderCase("a link to a process's memory", lambda path: path.symlink_to("/proc/self/mem"), ""),
    FolderCase("a link to an environment", lambda path: path.symlink_to("/proc/self/environ"), "", ANYWHERE),
    FolderCase("a hundred megabytes", _write(b"# " + b"x" * (100 * 2**20)), "larger than 256 KiB"),
    FolderCase("a terabyte of holes", _sparse, "larger than 256 KiB"),
    FolderCase("a byte too many", _write(b"#" * (256 * 1024 + 1)), "larger than 256 KiB"),
    FolderCase("nothing", _write(b""), "the file is empty"),
    FolderCase("only a NUL", _write(b"\0"), "U+0000"),
    FolderCase("half a file", _write(GOOD.encode()[:30]), "a ':' is missing", "2:1"),
]  # fmt: skip
