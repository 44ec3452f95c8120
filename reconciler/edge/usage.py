"""What each application has in flight and when it was last used, and what each key asked. Pure.

Measured on 2.8: `conn_cur` is the number of requests being served; it falls with a response's last byte or when
the client leaves, whatever becomes of the connection. `exp`, the milliseconds until the entry expires, starts anew
when a request begins and when it ends.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

TABLE = "applications"
"""How the template names the stick table."""

TABLE_EXPIRY_SECONDS = 24 * 86400.0
"""The template's `expire`. HAProxy counts expiries in 31 bits of milliseconds, 24.8 days."""

KEY_TABLE = "keys"
"""How the template names the other."""

_ENTRY = re.compile(r"key=(?P<key>\S+) use=\d+ exp=(?P<exp>\d+) .*\bconn_cur=(?P<conn_cur>\d+)")
_KEY_ENTRY = re.compile(
    r"key=(?P<key>[0-9a-f]{12}) .*\bhttp_req_cnt=(?P<count>\d+) http_req_rate\(60000\)=(?P<rate>\d+)"
)


@dataclass(frozen=True)
class Usage:
    """How much one application is used.

    Attributes:
        in_flight: Requests that the edge is serving from it.
        idle_seconds: Time since the last request ended, 0.0 while one is in flight, None if the edge has seen none
            since it was started (or for 24 days).
    """

    in_flight: int
    idle_seconds: float | None


@dataclass(frozen=True)
class KeyCount:
    """How much one key asked.

    Attributes:
        requests: Since HAProxy was started.
        rate: About, in the last 60 seconds.
    """

    requests: int
    rate: int


def parse_table(answer: str) -> dict[str, Usage]:
    """Usage by application from the answer to `show table`."""
    found: dict[str, Usage] = {}
    for match in map(_ENTRY.search, answer.splitlines()):
        if match:
            in_flight = int(match["conn_cur"])
            idle = max(0.0, TABLE_EXPIRY_SECONDS - int(match["exp"]) / 1000)
            found[match["key"]] = Usage(in_flight, 0.0 if in_flight else idle)
    return found


def parse_key_table(answer: str) -> dict[str, KeyCount]:
    """Counts by fingerprint from the answer to `show table`."""
    matches = map(_KEY_ENTRY.search, answer.splitlines())
    return {match["key"]: KeyCount(int(match["count"]), int(match["rate"])) for match in matches if match}


def add_up(tables: Iterable[dict[str, Usage]]) -> dict[str, Usage]:
    """Usage over several processes: requests in flight added, the shortest idle time."""
    total: dict[str, Usage] = {}
    for table in tables:
        for application, use in table.items():
            before = total.get(application, Usage(0, None))
            idles = [idle for idle in (before.idle_seconds, use.idle_seconds) if idle is not None]
            total[application] = Usage(before.in_flight + use.in_flight, min(idles, default=None))
    return total
