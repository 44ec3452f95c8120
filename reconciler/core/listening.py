"""The kernel's table of sockets (/proc/net/tcp, tcp6) -> who listens where, and who could reach it. Pure."""

import ipaddress
import re
import sys
from dataclasses import dataclass

_LISTENS = "0A"
_LINE = re.compile(
    r"\s*\d+:\s+([0-9A-F]{8}|[0-9A-F]{32}):([0-9A-F]{4})\s+\S+\s+([0-9A-F]{2})\s(?:\s*\S+){5}\s+(\d+)"
)
_MOST = 100_000


@dataclass(frozen=True, slots=True)
class Listener:
    """A TCP port that somebody listens on.

    Attributes:
        address: IP address; `0.0.0.0` or `::` for all of the machine.
        inode: What the socket is called in /proc/PID/fd.
    """

    address: str
    port: int
    inode: int

    @property
    def is_loopback(self) -> bool:
        """Only processes of this machine reach it."""
        address = ipaddress.ip_address(self.address)
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return (mapped or address).is_loopback

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


def listeners(table: str) -> list[Listener]:
    """Those of a table that listen; lines of another form are left out."""
    found = []
    for line in table.splitlines()[:_MOST]:
        match = _LINE.match(line)
        if match is not None and match[3] == _LISTENS:
            found.append(Listener(_address(match[1]), int(match[2], 16), int(match[4])))
    return found


def _address(text: str) -> str:
    """The kernel prints addresses as words of 32 bits, each in the machine's own order of bytes."""
    raw = bytes.fromhex(text)
    if sys.byteorder == "little":
        raw = b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4))
    return str(ipaddress.ip_address(raw))
